"""Settings of the fusion model, and what a model is made for. Without torch, so that reading a configuration is quick.

Shape letters: D features of a modality, L labels.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from vca.core.config import Config
from vca.core.taxonomy import Taxonomy
from vca.models.fusion_inputs import InputsConfig
from vca.models.plm import PlmConfig


class FusionConfig(Config):
    """The fusion model. A change of any setting here is another model."""

    plm: PlmConfig = PlmConfig()
    """The language model."""
    inputs: InputsConfig = InputsConfig()
    """How a video is cut into windows."""
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    """In projectors and heads."""
    drop_vision: float = Field(0.05, ge=0.0, lt=1.0)
    """Share of the training windows that lose their picture, so that the model copes without it. Raise it where videos
    to tag lack what those to learn from have."""
    drop_audio: float = Field(0.05, ge=0.0, lt=1.0)
    """Share that lose their sound."""
    drop_text: float = Field(0.05, ge=0.0, lt=1.0)
    """Share that lose their text. Raise it where the text gives the labels away."""
    feature_noise: float = Field(0.05, ge=0.0, le=1.0)
    """Noise on features while training, in standard deviations of each feature."""
    span_head: Literal["pyramid", "steps"] = "pyramid"
    """What finds events: a pyramid of points that know the ends of their event (`vca.models.pyramid`), or the scores of
    the steps, which are there in any case, by hysteresis."""
    pyramid_levels: int = Field(4, ge=1, le=8)
    """Each level sees spans twice as long as the one below; the first sees those of up to four steps on either side."""
    place_weight: float = Field(0.5, ge=0.0)
    """Weight of `l_place` beside `l_time`."""
    participants_weight: float = Field(0.5, ge=0.0)
    """Weight of `l_participants` beside `l_time`."""
    positive_weight_limit: float = Field(10.0, ge=1.0)
    """Rare labels weigh more in the loss: negatives / positives, at most this."""


class FeatureStatistics(Config):
    """Mean and standard deviation of each feature over the training steps, [D] each."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.mean) != len(self.std) or not self.mean or min(self.std) <= 0:
            raise ValueError("mean and std need the same length, at least 1, and every std above 0")
        return self


class FusionSpec(Config):
    """What a model is made for: given by the data, not chosen."""

    taxonomy: Taxonomy
    """The tasks and labels that were trained, in order."""
    feature_set: str
    """Features of any other set mean something else."""
    step_us: int = Field(gt=0)
    """Length of a step of the grid, microseconds."""
    vision: FeatureStatistics | None = None
    """None: the feature set has no vision."""
    audio: FeatureStatistics | None = None
    """None: the feature set has no audio."""
    positive_weights: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """By task, [L]: weight of a positive in the loss."""
