"""From stored features to rows of the tables: grouping videos by part, tagging them, flattening the result.

Nothing here knows Ray: `PredictStage` is a callable over Arrow tables.
"""

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vca.core import identity
from vca.core.records import BoolArray, Evidence, FloatArray, Prediction, VideoFeatures
from vca.core.schemas import EVIDENCE, LABEL_SCORES, MEDIA_INFO, SHOT, TABLES, TEXT_PIECE
from vca.core.taxonomy import Taxonomy
from vca.core.timeline import us_to_seconds
from vca.media.output import Output
from vca.models.fusion_tagger import FusionTagger
from vca.models.tagger import ComposedTagger
from vca.models.text import TextModel, TextModelConfig, text_definition
from vca.models.vision import VisionConfig, image_text_tower, vision_definition
from vca.models.zeroshot import ALGORITHM, ZeroShotConfig, ZeroShotTagger, zeroshot_version
from vca.pipelines.features import Dims, FeatureStore, join_segments
from vca.pipelines.model_store import local_folder
from vca.pipelines.watch import Told, work_here

VIDEO = pa.struct([("video_id", pa.string()), ("fingerprint", pa.string()), ("n_segments", pa.int32())])
GROUPS = pa.schema([pa.field("parts", pa.list_(pa.string())), pa.field("videos", pa.list_(VIDEO))])
GROUP_VIDEOS = 64


@dataclass(frozen=True, slots=True)
class StoredVideo:
    """A video whose segments are all in the feature store."""

    fingerprint: str
    n_segments: int
    parts: tuple[str, ...]


def complete_videos(index: pa.Table) -> dict[str, StoredVideo]:
    """The videos of an index whose segments are all stored, by id.

    `index` holds one fingerprint per video. Two cuts of one content into segments may lie in the store (another probe
    found another length): the cut that was completed last counts.
    """
    found: dict[tuple[str, str, int], dict[int, str]] = defaultdict(dict)
    complete: dict[str, StoredVideo] = {}
    for batch in index.to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            video_id, fingerprint, n_segments = row["video_id"], row["fingerprint"], row["n_segments"]
            part = sys.intern(row["part"])  # thousands of videos share one
            if n_segments == 1:  # most of a large archive: nothing to wait for
                complete[video_id] = StoredVideo(fingerprint, 1, (part,))
                continue
            segments = found[video_id, fingerprint, n_segments]
            segments[row["segment_index"]] = part
            if len(segments) == n_segments:
                complete[video_id] = StoredVideo(fingerprint, n_segments, tuple(sorted(set(segments.values()))))
    return complete


def group_by_part(videos: dict[str, StoredVideo]) -> pa.Table:
    """Tasks for `PredictStage` (schema `GROUPS`): videos that share parts go together, so a part is read few times."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for video_id, stored in videos.items():
        member = {"video_id": video_id, "fingerprint": stored.fingerprint, "n_segments": stored.n_segments}
        groups[stored.parts].append(member)
    rows = [
        {"parts": list(parts), "videos": members[i : i + GROUP_VIDEOS]}
        for parts, members in sorted(groups.items())
        for i in range(0, len(members), GROUP_VIDEOS)
    ]
    return pa.Table.from_pylist(rows, schema=GROUPS)


def stored_videos(store: FeatureStore, groups: pa.Table) -> Iterator[pa.Table]:
    """The segments (schema `FEATURES`) of every video of some groups (schema `GROUPS`), one table a video."""
    for group in groups.to_pylist():
        rows = store.read(group["parts"], [video["video_id"] for video in group["videos"]])
        for video in group["videos"]:
            mine = rows
            for name, value in video.items():
                mine = mine.filter(pc.equal(mine.column(name), value))
            yield mine


_CATEGORY = pa.struct(
    [
        pa.field("task", pa.string()),
        pa.field("label", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("threshold", pa.float32()),
        pa.field("selected", pa.bool_()),
        pa.field("rank", pa.int32()),
        pa.field("evidence", EVIDENCE),
    ]
)
_EVENT = pa.struct(
    [
        pa.field("event_id", pa.string()),
        pa.field("task", pa.string()),
        pa.field("label", pa.string()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("score", pa.float32()),
        pa.field("place", pa.string()),
        pa.field("place_score", pa.float32()),
        pa.field("participants", LABEL_SCORES),
        pa.field("evidence", EVIDENCE),
    ]
)
_STEP = pa.struct(
    [pa.field("task", pa.string()), pa.field("start_s", pa.float64()), pa.field("scores", pa.list_(pa.float32()))]
)

PREDICTIONS = pa.schema(
    [
        pa.field("video_id", pa.string()),
        pa.field("key", pa.string()),
        pa.field("fingerprint", pa.string()),
        pa.field("deferred", pa.bool_()),  # not tagged: the deadline is over
        pa.field("media", MEDIA_INFO),
        pa.field("coverage_us", pa.int64()),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("categories", pa.list_(_CATEGORY)),
        pa.field("events", pa.list_(_EVENT)),
        pa.field("text", pa.list_(TEXT_PIECE)),
        pa.field("shots", pa.list_(SHOT)),
        pa.field("step_scores", pa.list_(_STEP)),
        pa.field("embedding", pa.list_(pa.float32())),
    ]
)
"""One row per tagged video; `child_tables` cuts it into rows of the tables."""


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """Everything a predictor needs; travels to the workers."""

    output: Output
    feature_set: str
    taxonomy: Taxonomy
    text_model: TextModelConfig
    vision: VisionConfig
    zeroshot: ZeroShotConfig
    gpus: float
    model: str | None = None
    """Place of a trained model in the output; None tags zero-shot."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """The user's, over those fitted with the model."""


def model_version(zeroshot: ZeroShotConfig, text_model: TextModelConfig, vision: VisionConfig, step_us: int) -> str:
    """Name of the zero-shot model: algorithm, configuration and weights. Loads no weights.

    The vision encoder counts because frames are compared with the labels where it has a text tower.
    """
    text_version = identity.canonical_json(text_definition(text_model, "predict.text_model"))
    frames = vision_definition(vision, step_us) if vision.kind == "huggingface" else None
    version = identity.digest(zeroshot_version(zeroshot, text_version), identity.canonical_json(frames))
    return f"{ALGORITHM}-{version[:12]}"


def hide_gpus() -> None:
    """Keep models off GPUs that this worker was not given; `device: auto` would take any it can see."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


class PredictStage:
    """Reads the features of a group of videos and tags each of them.

    What this run has decoded is tagged whatever the time (`may_defer` false); tagging stored videos again can wait.
    """

    def __init__(self, settings: PredictSettings, watch: Told, may_defer: bool) -> None:
        if settings.gpus == 0:
            hide_gpus()
        self._watch, self._may_defer = watch, may_defer
        self._store = FeatureStore(settings.output, settings.feature_set)
        text_model = TextModel(settings.text_model, "predict.text_model")
        image_text = image_text_tower(settings.vision)
        zeroshot = ZeroShotTagger(settings.taxonomy, settings.zeroshot, text_model, image_text)
        self._tagger: Callable[[VideoFeatures], Prediction] = zeroshot
        if settings.model is not None:
            with local_folder(settings.output, settings.model) as folder:
                self._tagger = ComposedTagger(settings.taxonomy, FusionTagger(folder), zeroshot, settings.thresholds)
        self._dims = self._store.dims()
        self._text_dim = text_model.dim

    def __call__(self, groups: pa.Table) -> Iterator[pa.Table]:
        for rows in stored_videos(self._store, groups):
            first = rows.select(["video_id", "key", "fingerprint"]).slice(0, 1).to_pylist()[0]
            work = work_here("tag", first["key"], None)
            if not self._watch.begin(work, self._may_defer):
                yield pa.Table.from_pylist([first | {"deferred": True}], schema=PREDICTIONS)
                continue
            try:
                row = self._predict(rows)
            except Exception as error:
                raise RuntimeError(f"video {rows.column('video_id')[0]}: {error!r}") from error
            finally:
                self._watch.end(work)
            yield pa.Table.from_pylist([row], schema=PREDICTIONS)

    def _predict(self, rows: pa.Table) -> dict[str, Any]:
        video = join_segments(rows)
        prediction = self._tagger(video)
        embedding = video_embedding(video, prediction.embedding, self._dims, self._text_dim)
        return _video_columns(video, rows) | _prediction_columns(video, prediction, embedding)


def video_embedding(video: VideoFeatures, text: FloatArray | None, dims: Dims, text_dim: int) -> FloatArray | None:
    """One vector of length 1 for a video: vision, audio and text side by side, [vision + audio + text_dim].

    Each part is the mean over the steps, scaled to length 1, so that the cosine of two videos weighs the modalities
    they have alike; a missing modality is zeros. None for a video with nothing in it.
    """
    parts = [
        _mean_direction(video.vision, video.vision_mask, dims.vision),
        _mean_direction(video.audio, video.audio_mask, dims.audio),
        np.zeros(text_dim, np.float32) if text is None else text,
    ]
    joined = np.concatenate(parts)
    length = float(np.linalg.norm(joined))
    return (joined / length).astype(np.float32) if length > 0 else None


def _mean_direction(values: FloatArray | None, mask: BoolArray | None, dim: int) -> FloatArray:
    if values is None or mask is None or not mask.any():
        return np.zeros(dim, np.float32)
    assert values.shape[1] == dim, f"features are {values.shape[1]} wide, the feature set says {dim}"
    mean: FloatArray = values[mask].mean(axis=0)
    length = np.float32(np.linalg.norm(mean))
    return mean if length == 0 else np.divide(mean, length)


def _video_columns(video: VideoFeatures, rows: pa.Table) -> dict[str, Any]:
    by_index = {
        row["segment_index"]: row for row in rows.drop_columns(["vision", "audio", "text", "shots"]).to_pylist()
    }
    segments = [by_index[i] for i in sorted(by_index)]
    damaged = next((s for s in segments if s["error_code"] is not None), None)
    note = damaged or next((s for s in segments if s["error_message"] is not None), segments[0])
    return {
        "video_id": video.video_id,
        "key": video.key,
        "fingerprint": segments[0]["fingerprint"],
        "deferred": False,
        "media": segments[0]["media"],
        "coverage_us": sum(s["coverage_us"] for s in segments),
        "error_code": note["error_code"],
        "error_message": note["error_message"],
        "text": [piece.to_row() for piece in video.text],
        "shots": [{"start_us": s.start_us, "end_us": s.end_us} for s in video.shots],
    }


def _prediction_columns(video: VideoFeatures, prediction: Prediction, embedding: FloatArray | None) -> dict[str, Any]:
    starts = [us_to_seconds(int(start)) for start in video.steps[:, 0]]
    return {
        "categories": [
            {
                "task": c.task,
                "label": c.label,
                "score": c.score,
                "threshold": c.threshold,
                "selected": c.selected,
                "rank": c.rank,
                "evidence": _evidence(c.evidence),
            }
            for c in prediction.categories
        ],
        "events": [
            {
                "event_id": identity.event_id(video.video_id, e.task, e.label, e.span.start_us, e.span.end_us),
                "task": e.task,
                "label": e.label,
                "start_s": us_to_seconds(e.span.start_us),
                "end_s": us_to_seconds(e.span.end_us),
                "score": e.score,
                "place": e.place,
                "place_score": e.place_score,
                "participants": [{"label": label, "score": score} for label, score in e.participants],
                "evidence": _evidence(e.evidence),
            }
            for e in prediction.events
        ],
        "step_scores": [
            {"task": task, "start_s": start, "scores": row.tolist()}
            for task, scores in prediction.step_scores.items()
            for start, row in zip(starts, scores, strict=True)
        ],
        "embedding": None if embedding is None else embedding.tolist(),
    }


def _evidence(evidence: Evidence) -> dict[str, float]:
    return {"vision": evidence.vision, "audio": evidence.audio, "text": evidence.text}


def child_tables(predictions: pa.Table, run_id: str) -> dict[str, pa.Table]:
    """Rows of the tables that hang on a video, cut out of `PREDICTIONS` rows; schemas are those of `TABLES`."""
    tables = {
        "video_categories": _unnest(predictions, "categories"),
        "event_spans": _unnest(predictions, "events"),
        "transcripts": _seconds(_unnest(predictions, "text")),
        "shots": _numbered(_seconds(_unnest(predictions, "shots"))),
        "step_scores": _unnest(predictions, "step_scores"),
        "video_embeddings": predictions.filter(predictions.column("embedding").is_valid()),
    }
    return {
        name: conform(table.append_column("run_id", pa.array([run_id] * len(table), pa.string())), name)
        for name, table in tables.items()
    }


def conform(table: pa.Table, name: str) -> pa.Table:
    """The columns of `TABLES[name]` in order and type; a null in a required column is a bug and raises."""
    schema = TABLES[name].schema
    return table.select(schema.names).cast(schema)


def _unnest(predictions: pa.Table, column: str) -> pa.Table:
    """One row per element of a list of structs, with the video's id and key."""
    lists = predictions.column(column).combine_chunks()
    parents = pc.list_parent_indices(lists)
    elements = pc.list_flatten(lists)
    ids = predictions.select(["video_id", "key"]).take(parents)
    for i in range(elements.type.num_fields):
        field = elements.type.field(i)
        ids = ids.append_column(field.name, pc.struct_field(elements, [i]))
    return ids.append_column("parent", parents)


def _seconds(table: pa.Table) -> pa.Table:
    for name in ("start", "end"):
        seconds = pc.divide(table.column(f"{name}_us").cast(pa.float64()), 1_000_000.0)
        table = table.append_column(f"{name}_s", seconds)
    return table


def _numbered(table: pa.Table) -> pa.Table:
    """Number the rows of each parent from 0; rows of a parent are adjacent."""
    parents = np.asarray(table.column("parent"))
    starts = np.searchsorted(parents, parents, side="left") if len(parents) else parents
    return table.append_column("shot_index", pa.array((np.arange(len(parents)) - starts).astype(np.int32), pa.int32()))
