"""The windows a model is trained on, cut once from the feature store and kept: training reads them many times.

`<output>/training/windows/<id>/block-*.parquet`, schema `fusion_inputs.WINDOWS`, and `windows.json`, written last:
a folder without it is unfinished and made again. The id is a hash of everything that shapes a window, so equal
settings find what is there. Blocks hold windows of many videos in an order drawn from a hash; an epoch is shuffled by
block and within blocks.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vca.core.annotations import Split, VideoTruth, annotation_version
from vca.core.errors import ConfigError
from vca.core.identity import canonical_json, digest
from vca.core.taxonomy import Attributes, Task, TaskKind, Taxonomy
from vca.media.output import Output
from vca.models.fusion_config import FeatureStatistics, FusionConfig, FusionSpec
from vca.models.fusion_inputs import RULES, WINDOWS, window_rows
from vca.models.plm import load_language, plm_definition
from vca.pipelines.features import FeatureStore, join_segments
from vca.pipelines.predict import StoredVideo, group_by_part, stored_videos

BLOCK_WINDOWS = 256
INDEX = "windows.json"
MIN_STD = 1e-4
"""A feature that does not vary is not blown up."""


@dataclass(frozen=True, slots=True)
class WindowSet:
    """A finished set and what the model must know of it."""

    folder: str
    """Relative to the output."""
    blocks: tuple[str, ...]
    spec: FusionSpec
    n_windows: Mapping[str, int]
    """By split."""
    annotations: str
    """Version of the annotations."""


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """Everything a worker needs to cut windows."""

    output: Output
    feature_set: str
    truths: Mapping[str, VideoTruth]
    taxonomy: Taxonomy
    fusion: FusionConfig


class WindowStage:
    """Groups of stored videos (schema `predict.GROUPS`) to windows. Knows no Ray."""

    def __init__(self, settings: WindowSettings) -> None:
        self._settings = settings
        self._store = FeatureStore(settings.output, settings.feature_set)
        self._language = load_language(settings.fusion.plm)

    def __call__(self, groups: pa.Table) -> Iterator[pa.Table]:
        settings = self._settings
        for rows in stored_videos(self._store, groups):
            video = join_segments(rows)
            truth = settings.truths[video.video_id]
            yield window_rows(video, truth, settings.taxonomy, settings.fusion.inputs, self._language)


def trained_taxonomy(taxonomy: Taxonomy, truths: Iterable[VideoTruth], min_positives: int) -> Taxonomy:
    """The tasks and labels with at least `min_positives` training videos; attributes only where they are annotated.

    Raises `ConfigError` where nothing is left.
    """
    positives: dict[str, Counter[str]] = defaultdict(Counter)
    attributes: dict[str, set[str]] = defaultdict(set)
    for truth in truths:
        if truth.split is not Split.TRAIN:
            continue
        for task, labels in truth.labels.items():
            positives[task].update(labels)
        for task, events in truth.events.items():
            positives[task].update({event.label for event in events})
            attributes[task] |= {"place"} if any(e.place is not None for e in events) else set()
            attributes[task] |= {"participants"} if any(e.participants for e in events) else set()
    kept = {task: {label for label, n in found.items() if n >= min_positives} for task, found in positives.items()}
    trained = taxonomy.restrict(kept)
    tasks = tuple(_with_attributes(task, attributes[task.name]) for task in trained.tasks if _can_be_learned(task))
    if not tasks:
        raise ConfigError(
            f"annotations: no label has {min_positives} training videos with features; annotate more, "
            "or lower finetune.min_positives"
        )
    return trained.model_copy(update={"tasks": tasks})


def _can_be_learned(task: Task) -> bool:
    return task.kind is not TaskKind.SINGLE_LABEL or len(task.labels) > 1


def _with_attributes(task: Task, annotated: set[str]) -> Task:
    found = {name: getattr(task.attributes, name) for name in ("place", "participants") if name in annotated}
    return task.model_copy(update={"attributes": Attributes(**found)})


def window_set_id(fusion: FusionConfig, feature_set: str, taxonomy: Taxonomy, annotations: str) -> str:
    """Name of a set: everything that shapes a window or its targets."""
    definition = {
        "rules": RULES,
        "inputs": fusion.inputs.model_dump(mode="json"),
        "plm": plm_definition(fusion.plm),
        "feature_set": feature_set,
        "taxonomy": taxonomy.version,
        "annotations": annotations,
    }
    return digest("windows", canonical_json(definition))


def make_window_set(
    output: Output,
    feature_set: str,
    videos: Mapping[str, StoredVideo],
    truths: Sequence[VideoTruth],
    taxonomy: Taxonomy,
    fusion: FusionConfig,
    stream: Callable[[pa.Table, WindowSettings], Iterator[pa.Table]],
) -> WindowSet:
    """Cut the windows of all annotated videos that are stored, or find them cut.

    `stream` runs `WindowStage` over groups and keeps their order. Raises `ConfigError` for features of changing width.
    """
    annotated = {truth.video_id: truth for truth in truths if truth.video_id in videos}
    version = annotation_version(annotated.values())
    folder = f"training/windows/{window_set_id(fusion, feature_set, taxonomy, version)}"
    if not output.exists(f"{folder}/{INDEX}"):
        output.delete_tree(folder)
        groups = _shuffled(group_by_part({name: videos[name] for name in annotated}))
        settings = WindowSettings(output, feature_set, annotated, taxonomy, fusion)
        collected = _Collector(taxonomy, fusion.positive_weight_limit)
        blocks = _write_blocks(output, folder, collected.seen(stream(groups, settings)))
        spec = collected.spec(feature_set, FeatureStore(output, feature_set).definition()["step_us"])
        index = {
            "blocks": blocks,
            "spec": spec.model_dump(mode="json"),
            "n_windows": dict(collected.n_windows),
            "annotations": version,
        }
        output.write_bytes(f"{folder}/{INDEX}", json.dumps(index, indent=1).encode())
    index = json.loads(output.read_bytes(f"{folder}/{INDEX}"))
    return WindowSet(
        folder=folder,
        blocks=tuple(index["blocks"]),
        spec=FusionSpec.model_validate_json(json.dumps(index["spec"])),
        n_windows=index["n_windows"],
        annotations=index["annotations"],
    )


def _shuffled(groups: pa.Table) -> pa.Table:
    """Groups in an order drawn from their first video's id, which is a hash."""
    keys = [digest("order", videos[0]["video_id"]) for videos in groups.column("videos").to_pylist()]
    return groups.take(pa.array(np.argsort(keys, kind="stable")))


def _write_blocks(output: Output, folder: str, tables: Iterator[pa.Table]) -> list[str]:
    """Blocks of `BLOCK_WINDOWS` rows, the last one shorter. Only the driver writes."""
    blocks: list[str] = []
    waiting = WINDOWS.empty_table()

    def write(rows: pa.Table) -> None:
        name = f"block-{len(blocks):05d}.parquet"
        with output.open_write(f"{folder}/{name}") as file:
            pq.write_table(rows, file, compression="zstd")
        blocks.append(name)

    for table in tables:
        waiting = pa.concat_tables([waiting, table])
        while len(waiting) >= BLOCK_WINDOWS:
            write(waiting.slice(0, BLOCK_WINDOWS).combine_chunks())
            waiting = waiting.slice(BLOCK_WINDOWS)
    if len(waiting):
        write(waiting.combine_chunks())
    return blocks


class _Collector:
    """What must be known of all training windows together, gathered while they pass."""

    def __init__(self, taxonomy: Taxonomy, positive_weight_limit: float) -> None:
        self._taxonomy, self._limit = taxonomy, positive_weight_limit
        self.n_windows: Counter[str] = Counter()
        self._moments: dict[str, list[Any]] = {}  # modality: [count, sum [D], sum of squares [D]]
        self._positives: dict[str, list[Any]] = {}  # task: [count, positives [L]]

    def seen(self, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        from safetensors.numpy import load

        for table in tables:
            for row in table.to_pylist():
                self.n_windows[row["split"]] += 1
                arrays = load(row["arrays"])
                if row["split"] == Split.TRAIN:
                    self._features(row["key"], arrays)
                    self._targets(arrays)
            yield table

    def _features(self, key: str, arrays: Mapping[str, Any]) -> None:
        for name in ("vision", "audio"):
            if name not in arrays:
                continue
            values = arrays[name][arrays[f"{name}_mask"].astype(bool)].astype(np.float64)
            count, total, squares = self._moments.setdefault(name, [0, np.zeros(1), np.zeros(1)])
            if count and total.shape != values.shape[1:]:
                raise ConfigError(
                    f"{key}: {name} features are {values.shape[1]} wide, other videos have {len(total)}; "
                    "one feature set has one width: import them apart"
                )
            self._moments[name] = [count + len(values), total + values.sum(axis=0), squares + (values**2).sum(axis=0)]

    def _targets(self, arrays: Mapping[str, Any]) -> None:
        for task in self._taxonomy.tasks:
            kind = "steps" if task.kind in (TaskKind.SPAN, TaskKind.STEP) else "video"
            target = arrays.get(f"target.{kind}.{task.name}")
            if target is None or task.kind is TaskKind.SINGLE_LABEL:
                continue
            rows = target.reshape(-1, len(task.labels)).astype(np.int64)
            count, positives = self._positives.setdefault(task.name, [0, np.zeros(rows.shape[1], np.int64)])
            self._positives[task.name] = [count + len(rows), positives + rows.sum(axis=0)]

    def spec(self, feature_set: str, step_us: int) -> FusionSpec:
        statistics = {}
        for name, (count, total, squares) in self._moments.items():
            mean = total / count
            std = np.sqrt(np.maximum(squares / count - mean**2, MIN_STD**2))
            statistics[name] = FeatureStatistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()))
        weights = {
            name: tuple(float(np.clip((n - p) / max(p, 1), 1.0, self._limit)) for p in positives.tolist())
            for name, (n, positives) in self._positives.items()
        }
        return FusionSpec(
            taxonomy=self._taxonomy,
            feature_set=feature_set,
            step_us=step_us,
            vision=statistics.get("vision"),
            audio=statistics.get("audio"),
            positive_weights=weights,
        )
