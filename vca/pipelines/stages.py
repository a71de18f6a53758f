"""The stages of the tagging job as plain callables over Arrow tables. Nothing here knows Ray.

Tasks and results cross process borders as Arrow rows; arrays travel as raw bytes with a shape beside them, so that a
decoded segment is copied once into shared memory and never pickled.
Shape letters: S steps, K frames a step, H W picture, M frames to read text from.
"""

import ctypes
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vca.core.errors import CODES, ErrorCode, MediaError
from vca.core.records import TextPiece
from vca.core.schemas import FEATURES, MEDIA_INFO
from vca.core.timeline import Span, segment_spans
from vca.media.decode_config import DecodeConfig, SamplingConfig
from vca.media.isolation import DecoderProcess, Source
from vca.media.probe import MediaInfo
from vca.media.read import ReadPlan, Segment
from vca.media.sidecars import sidecar_language
from vca.media.storage import Archive
from vca.media.subtitles import parse_sidecar
from vca.models.encode import EncodersConfig, SegmentEncoder
from vca.pipelines.features import encode_steps
from vca.pipelines.plan import SIDECAR
from vca.pipelines.predict import hide_gpus
from vca.pipelines.watch import Told, work_here

TASKS = pa.schema(
    [
        pa.field("video_id", pa.string()),
        pa.field("key", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("version", pa.string()),
        pa.field("fingerprint", pa.string()),
        pa.field("sidecars", pa.list_(SIDECAR)),
        pa.field("media", MEDIA_INFO),
        pa.field("segment_index", pa.int32()),
        pa.field("n_together", pa.int32()),
        pa.field("attempts", pa.int32()),
    ]
)
"""What to read: videos not probed yet (`media` null), or `n_together` segments of a probed one, from `segment_index`
on. Each of them goes on where the one before ended."""

_OUTCOME = [
    pa.field("outcome", pa.string()),  # "read", "probed" (more segments to come), "failed" or "deferred"
    pa.field("stage", pa.string()),
    pa.field("transient", pa.bool_()),
    pa.field("read_s", pa.float64()),
    pa.field("confinement", pa.string()),  # what the decoding child of this row is cut off from
]
_ARRAYS = [
    pa.field("frames", pa.large_binary()),
    pa.field("frames_shape", pa.list_(pa.int64())),
    pa.field("frame_mask", pa.binary()),
    pa.field("pcm", pa.large_binary()),
    pa.field("pcm_mask", pa.binary()),
    pa.field("ocr_frames", pa.large_binary()),
    pa.field("ocr_shape", pa.list_(pa.int64())),
    pa.field("ocr_spans", pa.binary()),
]
_ENCODED_ONLY = [
    pa.field("encode_s", pa.float64()),
    pa.field("vision_dim", pa.int32()),  # widths of the encoders, whether or not this segment has the modality
    pa.field("audio_dim", pa.int32()),
]
_KEPT = [f for f in FEATURES if f.name not in ("vision", "audio")]
_NULLABLE = [pa.field(f.name, f.type) for f in _KEPT]
READ = pa.schema([*_NULLABLE, *_OUTCOME, *_ARRAYS])
ENCODED = pa.schema([*(pa.field(f.name, f.type) for f in FEATURES), *_OUTCOME, *_ENCODED_ONLY])

SIDECAR_LIMIT_BYTES = 8 << 20

KEPT_BYTES, LARGE_BYTES = 128 << 20, 32 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


@dataclass(frozen=True, slots=True)
class ReadSettings:
    """Everything a reading slot needs; travels to the workers."""

    archive: Archive
    sampling: SamplingConfig
    decode: DecodeConfig
    plan: ReadPlan
    max_attempts: int


class ReadStage:
    """Reads one task at a time in its own decoding child. A short video is probed and read in one opening, segments of
    a long one that are read together in another.
    """

    def __init__(self, settings: ReadSettings, watch: Told) -> None:
        self._settings = settings
        self._watch = watch
        self._archive = settings.archive
        self._archive.check_node()  # a node without the mount must not report its videos as missing
        self._decoder = DecoderProcess(settings.decode, self._archive.places())
        self._confinement = self._decoder.confinement().text  # a node that cannot give it must not take the first task

    def __call__(self, tasks: pa.Table) -> Iterator[pa.Table]:
        yield from _as_tables(tasks, self.rows(tasks))

    def rows(self, tasks: pa.Table) -> Iterator[pa.Table]:
        """What comes of a task, one row a table."""
        for task in tasks.to_pylist():
            with _Opened(self._archive, task, self._settings.decode.stage_limit_mb << 20) as opened:
                if task["segment_index"] is None:
                    yield self._one(task, opened)
                    continue
                for i in range(task["n_together"]):
                    yield self._one(task | {"segment_index": task["segment_index"] + i}, opened)

    def _one(self, task: dict[str, Any], opened: "_Opened") -> pa.Table:
        started = time.monotonic()
        work = work_here("read", task["key"], task["segment_index"])
        if not self._watch.begin(work, may_defer=True):
            return pa.Table.from_pylist([self._empty_row(task) | {"outcome": "deferred"}], schema=READ)
        decoded_us = 0
        try:
            row, segment = self._read(task, opened)
            decoded_us = row["coverage_us"]
        except Exception as error:
            raise RuntimeError(f"{task['key']} segment {task['segment_index']}: {error!r}") from error
        finally:
            self._watch.end(work, decoded_us)
        row["read_s"] = time.monotonic() - started
        table = pa.Table.from_pylist([row], schema=READ)
        return table if segment is None else _with_arrays(table, segment)

    def _empty_row(self, task: dict[str, Any]) -> dict[str, Any]:
        row = {name: task[name] for name in ("video_id", "key", "fingerprint", "media", "segment_index")}
        row |= {"step_us": self._settings.plan.step_us, "confinement": self._confinement}
        return row | {"text": [], "shots": [], "coverage_us": 0}

    def _read(self, task: dict[str, Any], opened: "_Opened") -> tuple[dict[str, Any], Segment | None]:
        """The narrow columns of a `READ` row, and the decoded arrays where there are any."""
        row = self._empty_row(task)
        info = None if task["media"] is None else MediaInfo.from_row(task["media"])
        stage = "probe" if info is None else "read"
        try:
            source = opened.source()
            if info is None:
                info = self._decoder.probe(source)
                row |= {"media": info.to_row(), "segment_index": 0}
                stage = "read"
            spans = segment_spans(info.duration_us, self._settings.sampling.segment_s * 1_000_000)
            row["n_segments"] = len(spans)
            if task["segment_index"] is None and len(spans) > 1:
                return row | {"outcome": "probed", "stage": stage}, None
            span = spans[row["segment_index"]]
            row |= {"start_us": span.start_us, "end_us": span.end_us}
            segment = self._decoder.read(source, info, span, self._settings.plan)
            sidecar_text, notes = self._sidecars(task, span, info.duration_us)
        except MediaError as error:
            failure = error.failure(stage)
            row |= {"stage": stage, "error_code": str(failure.code), "error_message": failure.message}
            # One lost segment must not cost the others: it becomes a stored row without coverage. A transient
            # failure is not stored, so that the next run reads this segment again and only this one; on the last
            # try a segment that breaks the decoder is given up, so that the rest of the video gets its tags.
            last_try = task["attempts"] + 1 >= self._settings.max_attempts and failure.code.startswith("decode_")
            is_segment = task["segment_index"] is not None and "end_us" in row
            lost = is_segment and (not failure.transient or last_try)
            return row | {"outcome": "read" if lost else "failed", "transient": failure.transient}, None
        return row | _segment_columns(segment, sidecar_text, notes) | {"outcome": "read", "stage": stage}, segment

    def _sidecars(self, task: dict[str, Any], span: Span, duration_us: int) -> tuple[list[TextPiece], list[str]]:
        """Text of the sidecar files that starts in `span`. A file that cannot be parsed is a note, not a failure."""
        pieces: list[TextPiece] = []
        notes: list[str] = []
        if not self._settings.plan.text:
            return pieces, notes
        for sidecar in task["sidecars"] or []:
            language = sidecar_language(task["key"], sidecar["key"])
            try:
                data = self._archive.read_bytes(sidecar["key"], SIDECAR_LIMIT_BYTES, sidecar["version"])
                found = parse_sidecar(data, sidecar["key"].rpartition("/")[2])
            except MediaError as error:
                if error.code == ErrorCode.OBJECT_MISSING:
                    message = f"sidecar {sidecar['key']} was deleted after the listing"
                    raise MediaError(ErrorCode.OBJECT_CHANGED, message) from error
                if CODES[error.code].transient:
                    raise
                notes.append(f"sidecar {sidecar['key']}: {error.message}")
                continue
            pieces += [
                replace(piece, end_us=min(piece.end_us, duration_us), language=piece.language or language)
                for piece in found
                if span.start_us <= piece.start_us < span.end_us
            ]
        return pieces, notes


def _as_tables(tasks: pa.Table, rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """`rows` of one task as the tables that it gives: segments one each, videos one together.

    A task that is done again must give as many tables as before, whatever has become of its videos: Ray only counts
    them.
    """
    if tasks.column("segment_index")[0].is_valid:
        yield from rows
    else:
        yield pa.concat_tables(rows)


class _Opened:
    """The object of a task, opened when it is first asked for and closed with the block."""

    def __init__(self, archive: Archive, task: dict[str, Any], stage_limit_bytes: int) -> None:
        self._archive = archive
        self._task = task
        self._limit_bytes = stage_limit_bytes
        self._stack = ExitStack()
        self._source: Source | None = None

    def source(self) -> Source:
        """Raises `MediaError`; asked again, it tries again."""
        if self._source is None:
            task = self._task
            opening = self._archive.open(
                task["key"],
                task["size_bytes"],
                task["version"],
                stage_limit_bytes=self._limit_bytes,
                whole=task["media"] is None,
            )
            self._source = self._stack.enter_context(opening)
        return self._source

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _segment_columns(segment: Segment, sidecar_text: list[TextPiece], notes: list[str]) -> dict[str, Any]:
    failure = segment.failure
    message = failure.message if failure is not None else "; ".join(notes) or None
    return {
        "coverage_us": segment.coverage_us,
        "error_code": None if failure is None else str(failure.code),
        "error_message": message,
        "text": [piece.to_row() for piece in (*segment.text, *sidecar_text)],
        "shots": [{"start_us": shot.start_us, "end_us": shot.end_us} for shot in segment.shots],
    }


def _with_arrays(row: pa.Table, segment: Segment) -> pa.Table:
    """Put the arrays of a segment into the null cells of a `READ` row, without a copy on this side."""
    cells: dict[str, pa.Array] = {}
    if segment.frames is not None:
        cells["frames"] = _bytes_cell(segment.frames, READ.field("frames").type)
        cells["frames_shape"] = pa.array([list(segment.frames.shape)], READ.field("frames_shape").type)
        cells["frame_mask"] = pa.array([segment.frame_mask.tobytes()])
    if segment.audio is not None:
        cells["pcm"] = _bytes_cell(segment.audio, READ.field("pcm").type)
        cells["pcm_mask"] = pa.array([segment.audio_mask.tobytes()])
    if len(segment.ocr_frames):
        cells["ocr_frames"] = _bytes_cell(segment.ocr_frames, READ.field("ocr_frames").type)
        cells["ocr_shape"] = pa.array([list(segment.ocr_frames.shape)], READ.field("ocr_shape").type)
        cells["ocr_spans"] = pa.array([segment.ocr_spans.tobytes()])
    for name, cell in cells.items():
        row = row.set_column(row.schema.get_field_index(name), name, cell)
    return row


def _bytes_cell(array: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    """One large-binary cell over the memory of `array`."""
    data = np.ascontiguousarray(array)
    offsets = np.array([0, data.nbytes], np.int64)
    return pa.Array.from_buffers(kind, 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


class EncodeStage:
    """Turns decoded segments into rows of the feature store, a table into a table. Rows without arrays pass through."""

    def __init__(self, encoders: EncodersConfig, step_us: int, gpus: float, watch: Told) -> None:
        if gpus == 0:
            hide_gpus()
        keep_freed_memory()
        self._watch = watch
        self._encoder = SegmentEncoder(encoders, step_us)

    def __call__(self, segments: pa.Table) -> Iterator[pa.Table]:
        yield pa.concat_tables(self.row(segments.slice(i, 1)) for i in range(len(segments)))

    def row(self, segment: pa.Table) -> pa.Table:
        """One row of `READ` as one of `ENCODED`."""
        where = segment.select(["key", "segment_index"]).to_pylist()[0]
        work = work_here("encode", where["key"], where["segment_index"])
        self._watch.begin(work, may_defer=False)
        try:
            return self._encode(segment)
        except Exception as error:
            raise RuntimeError(f"{where['key']} segment {where['segment_index']}: {error!r}") from error
        finally:
            self._watch.end(work)

    def _encode(self, segment: pa.Table) -> pa.Table:
        started = time.monotonic()
        kept = segment.drop_columns([f.name for f in _ARRAYS])
        vision, audio = pa.nulls(1, ENCODED.field("vision").type), pa.nulls(1, ENCODED.field("audio").type)
        if segment.column("outcome")[0].as_py() == "read":
            encoded = self._encoder(
                frames=_array(segment, "frames", np.uint8, "frames_shape"),
                frame_mask=_array(segment, "frame_mask", np.bool_),
                audio=_array(segment, "pcm", np.float32),
                audio_mask=_array(segment, "pcm_mask", np.bool_),
                ocr_frames=_array(segment, "ocr_frames", np.uint8, "ocr_shape"),
                ocr_spans=_pairs(_array(segment, "ocr_spans", np.int64)),
                start_us=segment.column("start_us")[0].as_py(),
            )
            vision = encode_steps(encoded.vision, encoded.vision_mask)
            audio = encode_steps(encoded.audio, encoded.audio_mask)
            text = segment.column("text")[0].as_py() + [piece.to_row() for piece in encoded.text]
            kept = kept.set_column(
                kept.schema.get_field_index("text"), "text", pa.array([text], ENCODED.field("text").type)
            )
        kept = kept.append_column("vision", vision).append_column("audio", audio)
        kept = kept.append_column("encode_s", pa.array([time.monotonic() - started]))
        kept = kept.append_column("vision_dim", pa.array([self._encoder.vision_dim], pa.int32()))
        kept = kept.append_column("audio_dim", pa.array([self._encoder.audio_dim], pa.int32()))
        return kept.select(ENCODED.names).cast(ENCODED)


class ReadAndEncodeStage:
    """Both in one worker, so that decoded pictures never leave it; for encoders without a GPU, which nothing has to
    keep busy. The next piece of a task is read while one is encoded: with storage far away, reading is mostly waiting.
    """

    def __init__(self, settings: ReadSettings, encoders: EncodersConfig, watch: Told) -> None:
        self._reading = ReadStage(settings, watch)
        self._encoding = EncodeStage(encoders, settings.plan.step_us, 0.0, watch)
        self._reader = ThreadPoolExecutor(1)  # lives as long as the stage: a decoder ends with its thread

    def __call__(self, tasks: pa.Table) -> Iterator[pa.Table]:
        yield from _as_tables(tasks, map(self._encoding.row, self._ahead(self._reading.rows(tasks))))

    def _ahead(self, rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
        coming = self._reader.submit(next, rows, None)
        while (row := coming.result()) is not None:
            coming = self._reader.submit(next, rows, None)
            yield row


def keep_freed_memory() -> None:
    """Have the C library keep up to `KEPT_BYTES` that this process has freed, in place of giving them back.

    Every segment needs the same arrays again. Ray runs a stage in a thread, whose memory glibc gives back at once, and
    fresh pages were a quarter of what encoding took. Other C libraries have no such knob and are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, n_bytes in ((_M_TRIM_THRESHOLD, KEPT_BYTES), (_M_MMAP_THRESHOLD, LARGE_BYTES)):
            mallopt(parameter, n_bytes)


def _array(row: pa.Table, name: str, dtype: Any, shape_name: str | None = None) -> npt.NDArray[Any] | None:
    """A view on the bytes of one cell, in shape; None for a null cell."""
    cell = row.column(name)[0]
    if not cell.is_valid:
        return None
    flat = np.frombuffer(cell.as_buffer(), dtype=dtype)
    return flat if shape_name is None else flat.reshape(row.column(shape_name)[0].as_py())


def _pairs(flat: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
    return None if flat is None else flat.reshape(-1, 2)
