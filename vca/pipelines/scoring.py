"""What every compared system says about stored videos: logits of trained models, zero-shot tags, inputs of the probe.

`ScoreStage` is a callable over Arrow tables and knows no Ray. Each video is read once for all systems.
Shape letters: S steps, F probe features.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vca.core.records import CategoryScore, Event, Evidence, Prediction, VideoLogits
from vca.core.taxonomy import Taxonomy
from vca.core.timeline import Span
from vca.media.output import Output
from vca.models.fusion_inputs import MODALITIES, InputsConfig, Modality
from vca.models.fusion_tagger import FusionScorer, without
from vca.models.probe import ProbeFeatures, probe_features
from vca.models.saved_model import read_card
from vca.models.text import TextModel, TextModelConfig
from vca.models.vision import VisionConfig, image_text_tower
from vca.models.zeroshot import ZeroShotConfig, ZeroShotTagger
from vca.pipelines.features import FeatureStore, join_segments
from vca.pipelines.model_store import local_folder
from vca.pipelines.predict import hide_gpus, stored_videos

SUBSETS: tuple[tuple[Modality, ...], ...] = (
    ("vision", "audio", "text"),
    ("vision", "audio"),
    ("vision", "text"),
    ("audio", "text"),
    ("vision",),
    ("audio",),
    ("text",),
)
"""Every set of modalities a video may have, the full one first."""

_ARRAYS = pa.list_(pa.field("element", pa.struct([("system", pa.string()), ("arrays", pa.large_binary())])))
SCORED = pa.schema(
    [
        pa.field("video_id", pa.string()),
        pa.field("duration_us", pa.int64()),
        pa.field("steps", pa.large_binary()),
        pa.field("logits", _ARRAYS),
        pa.field("zeroshot", pa.large_binary()),
        pa.field("probe", pa.large_binary()),
    ]
)
"""One row a video; arrays are safetensors, null where a system was not asked."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to compute for one video."""

    models: tuple[str, ...] = ()
    """Systems of `ScoreSettings.models`, with all modalities."""
    subsets: bool = False
    """The first of them also with every subset of the modalities."""
    zeroshot: bool = False
    probe: bool = False


@dataclass(frozen=True, slots=True)
class ScoreSettings:
    """Everything a worker needs."""

    output: Output
    feature_set: str
    wanted: Mapping[str, Wanted]
    """By video id."""
    models: Mapping[str, str]
    """System to the model's folder in the output; the first is the one that is examined."""
    taxonomy: Taxonomy
    text_model: TextModelConfig
    vision: VisionConfig
    zeroshot: ZeroShotConfig
    inputs: InputsConfig
    gpus: float = 0.0


@dataclass(frozen=True, slots=True)
class Scored:
    """A row of `SCORED` as arrays."""

    steps: npt.NDArray[np.int64]
    duration_us: int
    logits: Mapping[str, VideoLogits]
    """By system; subsets are `<system> <modalities>`, see `subset_name`."""
    zeroshot: Prediction | None
    probe: ProbeFeatures | None


def subset_name(system: str, kept: Sequence[Modality]) -> str:
    """`fusion` for all modalities, `fusion vision+text` for some."""
    return system if len(kept) == len(MODALITIES) else f"{system} {'+'.join(kept)}"


class ScoreStage:
    """Groups of stored videos (schema `predict.GROUPS`) to rows of `SCORED`."""

    def __init__(self, settings: ScoreSettings) -> None:
        if settings.gpus == 0:
            hide_gpus()
        self._settings = settings
        self._store = FeatureStore(settings.output, settings.feature_set)
        self._dims = self._store.dims()
        self._text_model = TextModel(settings.text_model, "predict.text_model")
        self._zeroshot: ZeroShotTagger | None = None
        self._models: dict[str, FusionScorer] = {}
        for system, place in settings.models.items():
            with local_folder(settings.output, place) as folder:
                self._models[system] = FusionScorer(read_card(folder))

    def __call__(self, groups: pa.Table) -> Iterator[pa.Table]:
        for rows in stored_videos(self._store, groups):
            yield pa.Table.from_pylist([self._score(rows)], schema=SCORED)

    def _score(self, rows: pa.Table) -> dict[str, Any]:
        video = join_segments(rows)
        wanted = self._settings.wanted[video.video_id]
        logits = {system: self._models[system](video) for system in wanted.models}
        if wanted.subsets:
            examined = next(iter(self._models))
            for kept in SUBSETS[1:]:
                left = [m for m in MODALITIES if m not in kept]
                logits[subset_name(examined, kept)] = self._models[examined](without(video, left))
        return {
            "video_id": video.video_id,
            "duration_us": video.duration_us,
            "steps": _pack({"steps": video.steps}),
            "logits": [{"system": system, "arrays": pack_logits(found)} for system, found in logits.items()],
            "zeroshot": _pack_prediction(self._tag(video)) if wanted.zeroshot else None,
            "probe": self._probe(video) if wanted.probe else None,
        }

    def _tag(self, video: Any) -> Prediction:
        if self._zeroshot is None:
            settings = self._settings
            tower = image_text_tower(settings.vision)
            self._zeroshot = ZeroShotTagger(settings.taxonomy, settings.zeroshot, self._text_model, tower)
        return self._zeroshot(video)

    def _probe(self, video: Any) -> bytes:
        model, inputs = self._text_model, self._settings.inputs
        found = probe_features(video, self._dims.vision, self._dims.audio, model.dim, model.embed, inputs)
        return _pack({"pooled": found.pooled, "steps": found.steps})


def unpack(row: Mapping[str, Any], taxonomy: Taxonomy) -> Scored:
    """A row of `SCORED` as the driver uses it; `taxonomy` is that of the settings."""
    probe = None if row["probe"] is None else _unpack(row["probe"])
    return Scored(
        steps=_unpack(row["steps"])["steps"],
        duration_us=row["duration_us"],
        logits={item["system"]: unpack_logits(item["arrays"]) for item in row["logits"]},
        zeroshot=None if row["zeroshot"] is None else _unpack_prediction(row["zeroshot"], taxonomy),
        probe=None if probe is None else ProbeFeatures(probe["pooled"], probe["steps"]),
    )


_PARTS = ("video", "steps", "places", "participants", "video_shares", "candidates", "candidate_spans")


def pack_logits(logits: VideoLogits) -> bytes:
    """Logits of one video as safetensors, `<part>.<task>`."""
    arrays = {f"{part}.{task}": a for part in _PARTS for task, a in getattr(logits, part).items()}
    if logits.step_shares is not None:
        arrays["step_shares"] = logits.step_shares
    return _pack(arrays)


def unpack_logits(data: bytes) -> VideoLogits:
    arrays = _unpack(data)
    parts: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
    for name, values in arrays.items():
        part, _, task = name.partition(".")
        if part in parts:
            parts[part][task] = values
    return VideoLogits(**parts, step_shares=arrays.get("step_shares"))


def _pack_prediction(prediction: Prediction) -> bytes:
    """A prediction as JSON inside Arrow; arrays of step scores as lists."""
    content = {
        "categories": [asdict(c) for c in prediction.categories],
        "events": [asdict(e) for e in prediction.events],
        "step_scores": {task: scores.tolist() for task, scores in prediction.step_scores.items()},
    }
    return json.dumps(content).encode()


def _unpack_prediction(data: bytes, taxonomy: Taxonomy) -> Prediction:
    content = json.loads(data)
    widths = {task.name: len(task.labels) for task in taxonomy.tasks}
    return Prediction(
        categories=tuple(CategoryScore(**{**c, "evidence": Evidence(**c["evidence"])}) for c in content["categories"]),
        events=tuple(
            Event(
                **{
                    **e,
                    "span": Span(**e["span"]),
                    "evidence": Evidence(**e["evidence"]),
                    "participants": tuple((name, score) for name, score in e["participants"]),
                }
            )
            for e in content["events"]
        ),
        step_scores={
            task: np.array(scores, np.float32).reshape(-1, widths[task])
            for task, scores in content["step_scores"].items()
        },
    )


def _pack(arrays: Mapping[str, Any]) -> bytes:
    from safetensors.numpy import save

    return save({name: np.asarray(values, order="C") for name, values in arrays.items()})


def _unpack(data: bytes) -> dict[str, Any]:
    from safetensors.numpy import load

    return load(bytes(data))
