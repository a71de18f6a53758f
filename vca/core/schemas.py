"""The schema of every Parquet file the project writes. `docs/tables.md` is generated from the descriptions here."""

from dataclasses import dataclass
from enum import StrEnum

import pyarrow as pa


class Status(StrEnum):
    """The state in which a run leaves an object (design section 7)."""

    TAGGED = "tagged"
    PARTIAL = "partial"
    UNCHANGED = "unchanged"
    QUARANTINED = "quarantined"
    DEFERRED = "deferred"
    GONE = "gone"


class TextSource(StrEnum):
    SUBTITLE = "subtitle"
    """An embedded subtitle stream."""
    SIDECAR = "sidecar"
    """A subtitle file beside the video."""
    CAPTION = "caption"
    """CEA-608/708 captions inside the picture data."""
    SPEECH = "speech"
    """Somebody speaks here; the words are unknown (text is null)."""
    ASR = "asr"
    """Words recognised from speech."""
    OCR = "ocr"
    """Words read from the picture."""


def _field(name: str, kind: pa.DataType, description: str, *, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": description})


def required(name: str, kind: pa.DataType, description: str) -> pa.Field:
    return _field(name, kind, description, nullable=False)


def optional(name: str, kind: pa.DataType, description: str) -> pa.Field:
    return _field(name, kind, description)


TIMESTAMP = pa.timestamp("us", tz="UTC")

EVIDENCE = pa.struct(
    [
        pa.field("vision", pa.float32(), nullable=False),
        pa.field("audio", pa.float32(), nullable=False),
        pa.field("text", pa.float32(), nullable=False),
    ]
)
"""Shares of the modalities behind a score; they sum to 1, or are all 0 where there is no evidence."""

ERROR_COUNTS = pa.list_(
    pa.field("element", pa.struct([pa.field("error_code", pa.string()), pa.field("count", pa.int64())]))
)

LABEL_SCORES = pa.list_(
    pa.field("element", pa.struct([pa.field("label", pa.string()), pa.field("score", pa.float32())]))
)

TEXT_PIECE = pa.struct(
    [
        pa.field("start_us", pa.int64(), nullable=False),
        pa.field("end_us", pa.int64(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("stream", pa.string()),
        pa.field("language", pa.string()),
        pa.field("text", pa.string()),
        pa.field("confidence", pa.float32()),
    ]
)

SHOT = pa.struct([pa.field("start_us", pa.int64(), nullable=False), pa.field("end_us", pa.int64(), nullable=False)])

MEDIA_INFO = pa.struct(
    [
        pa.field("duration_us", pa.int64(), nullable=False),
        pa.field("declared_duration_us", pa.int64()),
        pa.field("container", pa.string(), nullable=False),
        pa.field("video_codec", pa.string()),
        pa.field("audio_codec", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("rotation", pa.int32()),
        pa.field("fps", pa.float64()),
        pa.field("variable_fps", pa.bool_()),
        pa.field("hdr", pa.bool_()),
        pa.field("has_video", pa.bool_(), nullable=False),
        pa.field("has_audio", pa.bool_(), nullable=False),
        pa.field("n_video_streams", pa.int32(), nullable=False),
        pa.field("n_audio_streams", pa.int32(), nullable=False),
        pa.field("n_subtitle_streams", pa.int32(), nullable=False),
        pa.field("n_frames", pa.int64()),
    ]
)
"""What the probe found, carried with every feature row so that tables can be remade without the video."""

STEP_FEATURES = pa.list_(pa.field("element", pa.list_(pa.field("element", pa.float16()))))
"""[steps, dim]; a step without this modality is a null inside the list."""

FEATURES = pa.schema(
    [
        required("video_id", pa.string(), "stable id of the video"),
        required("key", pa.string(), "archive-relative key"),
        required("fingerprint", pa.string(), "content identity of the video and its sidecars"),
        required("segment_index", pa.int32(), "number of this segment, from 0"),
        required("n_segments", pa.int32(), "segments of this video; all are needed for it to be complete"),
        required("start_us", pa.int64(), "start of the segment on the presentation clock, microseconds"),
        required("end_us", pa.int64(), "end of the segment (exclusive), microseconds"),
        required("step_us", pa.int64(), "length of a grid step, microseconds"),
        required("coverage_us", pa.int64(), "how much of the segment could be decoded, microseconds"),
        optional("error_code", pa.string(), "why the segment (or its rest) could not be decoded"),
        optional("error_message", pa.string(), "one line for a person"),
        required("media", MEDIA_INFO, "what the probe found"),
        optional("vision", STEP_FEATURES, "vision features [steps, dim], null without video"),
        optional("audio", STEP_FEATURES, "audio features [steps, dim], null without sound"),
        required("text", pa.list_(pa.field("element", TEXT_PIECE)), "text in time: subtitles, speech, on-screen text"),
        required("shots", pa.list_(pa.field("element", SHOT)), "shots that touch this segment, cut at its ends"),
    ]
)

_ID = required("video_id", pa.string(), "stable id of the video, derived from its key")
_KEY = required("key", pa.string(), "key of the video relative to the archive")
_RUN = required("run_id", pa.string(), "run that wrote the row; ids sort by time")


@dataclass(frozen=True, slots=True)
class Table:
    """A published table: what a row is, its columns, and the order in which rows are stored.

    A later version may add optional columns, null in the rows written before, but never a field to a struct.
    """

    name: str
    row: str
    schema: pa.Schema
    sort_by: tuple[str, ...]


TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "videos",
            "a video in the run that last touched it",
            pa.schema(
                [
                    _ID,
                    _KEY,
                    _RUN,
                    required("uri", pa.string(), "where the video was read from"),
                    required("fingerprint", pa.string(), "content identity: size, etag or time of change, sidecars"),
                    required("status", pa.string(), "tagged, partial, quarantined, deferred or gone"),
                    optional("error_code", pa.string(), "stable code of the failure, see the list of codes"),
                    optional("error_message", pa.string(), "one line for a person"),
                    required("attempts", pa.int32(), "runs that tried this content"),
                    required("size_bytes", pa.int64(), "size of the object"),
                    optional("duration_s", pa.float64(), "length of the presentation, seconds"),
                    optional("coverage_s", pa.float64(), "how much of it could be decoded, seconds"),
                    optional("width", pa.int32(), "upright display width, pixels"),
                    optional("height", pa.int32(), "upright display height, pixels"),
                    optional("fps", pa.float64(), "mean frame rate"),
                    optional("n_frames", pa.int64(), "video frames found by the probe; null if not counted"),
                    optional("container", pa.string(), "container format"),
                    optional("codecs", pa.string(), "video and audio codec, joined by +"),
                    optional("has_video", pa.bool_(), "a decodable video stream exists"),
                    optional("has_audio", pa.bool_(), "a decodable audio stream exists"),
                    optional("text_sources", pa.list_(pa.field("element", pa.string())), "kinds of text found"),
                    optional("feature_set", pa.string(), "id of the feature set the tags come from"),
                    optional("model_version", pa.string(), "model that wrote the tags"),
                    optional("taxonomy_version", pa.string(), "label space of the tags"),
                    required("tagged_at", TIMESTAMP, "when the run that wrote the row started, UTC"),
                ]
            ),
            ("key",),
        ),
        Table(
            "video_categories",
            "a video and a label of a video-level task",
            pa.schema(
                [
                    _ID,
                    _KEY,
                    _RUN,
                    required("task", pa.string(), "task of the taxonomy"),
                    required("label", pa.string(), "label of the task"),
                    required("score", pa.float32(), "calibrated score, 0 to 1"),
                    required("threshold", pa.float32(), "score from which the label is selected"),
                    required("selected", pa.bool_(), "the decision"),
                    required("rank", pa.int32(), "place of the label within its task, from 1"),
                    required("evidence", EVIDENCE, "share of vision, audio and text behind the score"),
                ]
            ),
            ("key", "task", "rank"),
        ),
        Table(
            "event_spans",
            "an event in a video",
            pa.schema(
                [
                    _ID,
                    _KEY,
                    _RUN,
                    required("event_id", pa.string(), "stable id of the event"),
                    required("task", pa.string(), "span task of the taxonomy"),
                    required("label", pa.string(), "kind of event"),
                    required("start_s", pa.float64(), "start, seconds"),
                    required("end_s", pa.float64(), "end (exclusive), seconds"),
                    required("score", pa.float32(), "calibrated score, 0 to 1"),
                    optional("place", pa.string(), "where it happens, null if unknown"),
                    optional("place_score", pa.float32(), "score of the place"),
                    required("participants", LABEL_SCORES, "who takes part"),
                    required("evidence", EVIDENCE, "share of vision, audio and text behind the score"),
                ]
            ),
            ("key", "start_s", "task", "label"),
        ),
        Table(
            "transcripts",
            "a piece of text in time",
            pa.schema(
                [
                    _ID,
                    _KEY,
                    _RUN,
                    required("source", pa.string(), "subtitle, sidecar, caption, speech, asr or ocr"),
                    optional("stream", pa.string(), "stream number, caption channel or sidecar key"),
                    optional("language", pa.string(), "language tag where the source names one"),
                    required("start_s", pa.float64(), "start, seconds"),
                    required("end_s", pa.float64(), "end (exclusive), seconds"),
                    optional("text", pa.string(), "the words; null for speech whose words are unknown"),
                    optional("confidence", pa.float32(), "0 to 1 where the source gives one"),
                ]
            ),
            ("key", "start_s", "source"),
        ),
        Table(
            "shots",
            "a shot",
            pa.schema(
                [
                    _ID,
                    _KEY,
                    _RUN,
                    required("shot_index", pa.int32(), "number of the shot, from 0"),
                    required("start_s", pa.float64(), "start, seconds"),
                    required("end_s", pa.float64(), "end (exclusive), seconds"),
                ]
            ),
            ("key", "shot_index"),
        ),
        Table(
            "step_scores",
            "a video, a task and a step of the time grid",
            pa.schema(
                [
                    _ID,
                    _KEY,
                    _RUN,
                    required("task", pa.string(), "span or step task of the taxonomy"),
                    required("start_s", pa.float64(), "start of the step, seconds"),
                    required(
                        "scores",
                        pa.list_(pa.field("element", pa.float32())),
                        "score of every label, in the order of the taxonomy",
                    ),
                ]
            ),
            ("key", "task", "start_s"),
        ),
        Table(
            "video_embeddings",
            "a video",
            pa.schema(
                [
                    _ID,
                    _KEY,
                    _RUN,
                    required(
                        "embedding",
                        pa.list_(pa.field("element", pa.float32())),
                        "vision, audio and text side by side, length 1; a missing modality is zeros",
                    ),
                ]
            ),
            ("key",),
        ),
        Table(
            "quarantine",
            "a file that could not be tagged",
            pa.schema(
                [
                    _ID,
                    _KEY,
                    _RUN,
                    required("uri", pa.string(), "where the file lies"),
                    required("fingerprint", pa.string(), "content identity of the failed object"),
                    required("stage", pa.string(), "list, probe or read"),
                    required("error_code", pa.string(), "stable code of the failure, see the list of codes"),
                    required("error_message", pa.string(), "one line for a person"),
                    required("attempts", pa.int32(), "runs that tried this content"),
                    required("first_failed_at", TIMESTAMP, "start of the first run that failed on this content, UTC"),
                    required("last_failed_at", TIMESTAMP, "start of the last run that failed on this content, UTC"),
                    required("will_retry", pa.bool_(), "the next run tries again without a new version of the file"),
                ]
            ),
            ("key",),
        ),
        Table(
            "runs",
            "a run",
            pa.schema(
                [
                    _RUN,
                    required("started_at", TIMESTAMP, "start, UTC"),
                    required("ended_at", TIMESTAMP, "end of the work before publishing, UTC"),
                    required("status", pa.string(), "ok or over_budget"),
                    required("listed", pa.int64(), "objects the archive listed"),
                    required("tagged", pa.int64(), "videos tagged whole"),
                    required("partial", pa.int64(), "videos tagged up to a damage"),
                    required("unchanged", pa.int64(), "objects skipped because nothing changed"),
                    required("quarantined", pa.int64(), "files that could not be tagged"),
                    required("deferred", pa.int64(), "objects left for the next run"),
                    required("gone", pa.int64(), "objects deleted from the archive"),
                    required("ignored", pa.int64(), "objects whose name is not that of a video or sound file"),
                    required("decoded_s", pa.float64(), "media decoded in this run, seconds"),
                    required("wall_s", pa.float64(), "duration of the run, seconds"),
                    required("realtime_factor", pa.float64(), "media seconds decoded per second of the run"),
                    required("error_counts", ERROR_COUNTS, "quarantined files by error code"),
                    required("feature_set", pa.string(), "feature set in force"),
                    required("model_version", pa.string(), "model in force"),
                    required("taxonomy_version", pa.string(), "label space in force"),
                    required("config", pa.string(), "resolved configuration, JSON"),
                    required("code_version", pa.string(), "version of vca and git commit where known"),
                    optional("mlflow_run_id", pa.string(), "run in MLflow, null if tracking was off or failed"),
                ]
            ),
            ("run_id",),
        ),
    )
}
