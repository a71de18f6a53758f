"""The configuration of fine-tuning and evaluation: sections owned by the rooms, put together here."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from vca.core.config import Config, apply_overrides, build_config, parse_yaml
from vca.media.output import OutputConfig
from vca.models.evaluation import EvaluationConfig
from vca.models.fusion_config import FusionConfig
from vca.models.vision import VisionConfig
from vca.pipelines.annotations import AnnotationsConfig
from vca.pipelines.config import PredictConfig, RayConfig, TrackingConfig, read_text
from vca.pipelines.registry import RegistryConfig
from vca.pipelines.train_config import TrainConfig

Baseline = Literal["zeroshot", "probe", "frozen"]


class FinetuneConfig(Config):
    output: OutputConfig
    """Where the features lie, and where windows, checkpoints and models go."""
    annotations: AnnotationsConfig
    """What people say about the videos."""
    taxonomy: str = "configs/taxonomy.yaml"
    """Path of the taxonomy file, relative to the working directory."""
    feature_set: str | None = None
    """Id of the feature set to learn from; None is the only one in the output."""
    min_positives: int = Field(3, ge=1)
    """Training videos a label needs; labels with fewer stay zero-shot."""
    fusion: FusionConfig = FusionConfig()
    """The model."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    baselines: tuple[Baseline, ...] = ("zeroshot", "probe", "frozen")
    """What the model is compared with. `frozen`: the same with the language model frozen, which takes as long again."""
    evaluated: str = Field("champion", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What `vca evaluate` judges: `champion`, `candidate`, or the name of a model in the output."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Figures and their intervals."""
    vision: VisionConfig = VisionConfig()
    """As in the tagging job: its text tower, if any, takes part in zero-shot."""
    predict: PredictConfig = PredictConfig()
    """The zero-shot tagger to compare with."""
    registry: RegistryConfig = RegistryConfig()
    """Under which name the model is registered, and when it becomes champion."""
    scorers: int | None = Field(None, ge=1)
    """Worker processes that cut windows and score videos; None is one for each CPU."""
    scorer_gpus: float = Field(0.0, ge=0.0)
    """GPUs for each of them."""
    ray: RayConfig = RayConfig()
    """Which Ray cluster does the work."""
    tracking: TrackingConfig = TrackingConfig()
    """The record of runs in MLflow."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fusion.plm.tune == "frozen" and "frozen" in self.baselines:
            raise ValueError("fusion.plm.tune is frozen already; take 'frozen' out of baselines")
        return self


def read_finetune_config(path: str, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """The configuration in `path` with `a.b=c` overrides applied; every problem is a `ConfigError`."""
    values = apply_overrides(parse_yaml(read_text(path, "--config"), path), overrides)
    return build_config(FinetuneConfig, values, path)
