"""A large archive as rows, without media: what it lists, what was published of it, what a tagger says about it.

Everything follows from the number of a video, so that any part can be made again without keeping the rest.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vca.core import identity
from vca.core.schemas import MEDIA_INFO, TABLES, TEXT_PIECE, Status
from vca.media.output import Output
from vca.media.storage import Archive, ArchiveConfig
from vca.pipelines.plan import Versions
from vca.pipelines.predict import PREDICTIONS
from vca.pipelines.publish import Spool, publish, stage_tables
from vca.tables.manifest import open_output

URI = "/an/archive/that/nobody/opens"
VERSIONS = Versions("5f0c6e3b9a7d1c2e4f8a0b6d", "zeroshot-4f0c21aa93d1", "taxonomy-77b0f4c2")
FIRST_NIGHT = datetime(2026, 1, 1, 1, 30, tzinfo=UTC)
SUBJECTS = ("news", "sports", "music", "politics", "food", "weather", "travel", "animals", "health", "gaming")
EVENTS = ("interview", "goal_or_score", "applause", "speech_to_audience", "cooking_step", "weather_report")
PLACES = ("studio", "stadium", "stage", "kitchen", "street", None)
WHO = ("presenter", "athlete", "musician", "politician", "cook", "crowd")
_SAID = tuple(
    f"{opening} {middle} {ending}"
    for opening in ("Good evening, and", "Tomorrow", "In the second half", "Members of the parliament,", "Thank you,")
    for middle in ("we talk about", "they want to see", "nobody expected", "he puts it in the back of", "let us add")
    for ending in ("the garlic and the butter.", "the budget of this year.", "the heavy rain in the north.", "the net!")
)
LINES = (*_SAID, "Chop the onions finely.")
EVERY_N_SIDECAR = 20
"""One video in so many has a subtitle file beside it."""
TASK_VIDEOS = 64
"""Videos of one task of the tagging job: rows come to the books in tables of this size."""


def night(number: int) -> tuple[str, datetime]:
    """Id and start of a run."""
    at = FIRST_NIGHT + timedelta(days=number)
    return f"{at:%Y%m%dT%H%M%SZ}-{number:06x}", at


def key_of(number: int) -> str:
    return f"{2015 + number % 11}/{SUBJECTS[number % 10]}/{SUBJECTS[number % 10]}_{number:08d}.mp4"


def version_of(number: int, edition: int = 0) -> str:
    size_bytes = 1_000_000 + number * 7919 % 900_000_007 + edition
    return identity.object_version(size_bytes, f"{number * 2654435761 + edition:032x}", None)


def sidecar_of(number: int) -> tuple[str, str] | None:
    """Key and version of the subtitle file of a video."""
    if number % EVERY_N_SIDECAR:
        return None
    return key_of(number).removesuffix(".mp4") + ".en.srt", identity.object_version(40_000, f"{number:032x}", None)


def size_of(version: str) -> int:
    return int(version.partition("/")[0])


def fingerprint_of(number: int, edition: int = 0) -> str:
    sidecar = sidecar_of(number)
    return identity.fingerprint(version_of(number, edition), [] if sidecar is None else [sidecar])


@dataclass(frozen=True, slots=True)
class Change:
    """How an archive of `n_videos` differs from what was published: `n_each` videos are changed, new and gone."""

    n_videos: int
    n_each: int = 0

    def listed(self) -> Iterator[tuple[int, int]]:
        """Number and edition of every video that is there now."""
        for number in range(self.n_each, self.n_videos + self.n_each):
            yield number, int(number < 2 * self.n_each)


class ListedArchive(Archive):
    """An archive whose listing is made up here instead of read from a disk or a bucket; all else is the real one."""

    def __init__(self, change: Change) -> None:
        super().__init__(ArchiveConfig(uri=URI))
        self._change = change

    def _entries(self) -> Iterator[tuple[str, int, str, bool]]:
        for number, edition in self._change.listed():
            version = version_of(number, edition)
            yield key_of(number), size_of(version), version, True
            sidecar = sidecar_of(number)
            if sidecar is not None:
                yield sidecar[0], 40_000, sidecar[1], True


def parts(numbers: range, size: int = 50_000) -> Iterator[range]:
    for first in range(0, len(numbers), size):
        yield numbers[first : first + size]


def video_rows(numbers: range, run_id: str, at: datetime) -> pa.Table:
    """Rows of `videos` as a run publishes them."""
    return video_rows_of(
        [
            {
                "video_id": identity.video_id(key_of(k)),
                "key": key_of(k),
                "fingerprint": fingerprint_of(k),
                "size_bytes": size_of(version_of(k)),
            }
            for k in numbers
        ],
        run_id,
        at,
        VERSIONS,
    )


def video_rows_of(planned: list[dict[str, Any]], run_id: str, at: datetime, versions: Versions) -> pa.Table:
    """Rows of `videos` for rows of a plan, as if all had been tagged."""
    n = len(planned)
    columns: dict[str, Any] = {
        **{name: [row[name] for row in planned] for name in ("video_id", "key", "fingerprint", "size_bytes")},
        "run_id": [run_id] * n,
        "uri": [f"{URI}/{row['key']}" for row in planned],
        "status": [str(Status.TAGGED)] * n,
        "attempts": [1] * n,
        "duration_s": [600.0] * n,
        "coverage_s": [600.0] * n,
        "codecs": ["h264+aac"] * n,
        "text_sources": [["ocr", "subtitle"]] * n,
        **{name: [value] * n for name, value in versions.as_dict().items()},
        "tagged_at": [at] * n,
    }
    schema = TABLES["videos"].schema
    return pa.table({f.name: pa.array(columns.get(f.name, [None] * n), f.type) for f in schema}, schema=schema)


def runs_row(run_id: str, at: datetime, listed: int, uri: str = URI) -> pa.Table:
    """The run's own row, counts other than `listed` left at 0."""
    schema = TABLES["runs"].schema
    row: dict[str, Any] = {}
    for field in schema:
        plain = "" if pa.types.is_string(field.type) else 0
        row[field.name] = at if pa.types.is_timestamp(field.type) else [] if pa.types.is_list(field.type) else plain
    row |= {"run_id": run_id, "config": json.dumps({"archive": {"uri": uri}}), "listed": listed}
    return pa.Table.from_pylist([row], schema=schema)


def publish_rows(
    output: Output, rows: Iterable[dict[str, pa.Table]], number: int, versions: Versions, work_dir: Path
) -> None:
    """Publish rows as one run, on top of what is in force."""
    reader = open_output(output.config.uri, output.config.storage)
    current = reader.current()
    run_id, at = night(number)
    with tempfile.TemporaryDirectory(dir=work_dir) as folder:
        spool = Spool(Path(folder))
        for tables in rows:
            for name, table in tables.items():
                spool.add(name, table)
        staged = stage_tables(spool, output, run_id, Path(folder))
    publish(output, reader, current.run_id if current else None, staged, run_id, at, versions.as_dict(), {})


PER_VIDEO = {"video_categories": 5, "event_spans": 2, "transcripts": 2, "shots": 1}
"""Rows that hang on a video, ten in all."""


def predictions(numbers: range, embedding_dim: int = 0) -> pa.Table:
    """What the tagger says about some videos: `PREDICTIONS`, with `PER_VIDEO` rows each."""
    n = len(numbers)
    draw = np.random.default_rng(numbers.start)
    keys = [key_of(k) for k in numbers]
    media = dict.fromkeys(f.name for f in MEDIA_INFO) | {
        "duration_us": 600_000_000,
        "container": "mov,mp4",
        "video_codec": "h264",
        "audio_codec": "aac",
        "width": 1280,
        "height": 720,
        "fps": 25.0,
        "has_video": True,
        "has_audio": True,
        "n_video_streams": 1,
        "n_audio_streams": 1,
        "n_subtitle_streams": 1,
    }
    columns: dict[str, pa.Array] = {
        "video_id": pa.array([identity.video_id(key) for key in keys]),
        "key": pa.array(keys),
        "fingerprint": pa.array([fingerprint_of(k) for k in numbers]),
        "deferred": pa.array([False] * n),
        "media": pa.array([media] * n, MEDIA_INFO),
        "coverage_us": pa.array([600_000_000] * n, pa.int64()),
        "error_code": pa.nulls(n, pa.string()),
        "error_message": pa.nulls(n, pa.string()),
        "categories": _categories(n, draw),
        "events": _events(n, draw),
        "text": _text(n, draw),
        "shots": _lists(PREDICTIONS.field("shots").type, n, {"start_us": np.zeros(n), "end_us": np.full(n, 600e6)}),
        "step_scores": pa.array([[]] * n, PREDICTIONS.field("step_scores").type),
        "embedding": pa.nulls(n, PREDICTIONS.field("embedding").type),
    }
    if embedding_dim:
        vectors = draw.standard_normal(n * embedding_dim, np.float32)
        columns["embedding"] = pa.ListArray.from_arrays(
            np.arange(n + 1, dtype=np.int32) * embedding_dim, pa.array(vectors)
        )
    return pa.table(columns, schema=PREDICTIONS)


def _categories(n: int, draw: np.random.Generator) -> pa.Array:
    k = PER_VIDEO["video_categories"]
    scores = -np.sort(-draw.random((n, k), np.float32), axis=1)
    kind = PREDICTIONS.field("categories").type
    labels = draw.permuted(np.tile(np.arange(len(SUBJECTS)), (n, 1)), axis=1)[:, :k]
    columns = {
        "task": _words(("content",), np.zeros(n * k, np.int64)),
        "label": _words(SUBJECTS, labels.ravel()),
        "score": scores.ravel(),
        "threshold": np.full(n * k, 0.5, np.float32),
        "selected": scores.ravel() >= 0.5,
        "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), n),
        "evidence": _evidence(n * k, draw),
    }
    return _lists(kind, n, columns)


def _events(n: int, draw: np.random.Generator) -> pa.Array:
    k = PER_VIDEO["event_spans"]
    kind = PREDICTIONS.field("events").type
    starts = np.round(draw.random(n * k) * 1100) / 2
    who = kind.value_type.field("participants").type
    columns = {
        "event_id": pa.array([f"{value:024x}" for value in draw.integers(2**62, size=n * k)]),
        "task": _words(("events",), np.zeros(n * k, np.int64)),
        "label": _words(EVENTS, draw.integers(len(EVENTS), size=n * k)),
        "start_s": starts,
        "end_s": starts + draw.integers(4, 60, size=n * k),
        "score": draw.random(n * k, np.float32),
        "place": _words(PLACES, draw.integers(len(PLACES), size=n * k)),
        "place_score": draw.random(n * k, np.float32),
        "participants": _lists(
            who,
            n * k,
            {
                "label": _words(WHO, draw.integers(len(WHO), size=2 * n * k)),
                "score": draw.random(2 * n * k, np.float32),
            },
        ),
        "evidence": _evidence(n * k, draw),
    }
    return _lists(kind, n, columns)


def _text(n: int, draw: np.random.Generator) -> pa.Array:
    k = PER_VIDEO["transcripts"]
    starts = draw.integers(0, 600_000_000, size=n * k)
    # One video in some hundred says it: an answer of a size that somebody would look at.
    said = np.where(draw.random(n * k) < 0.001, len(LINES) - 1, draw.integers(len(LINES) - 1, size=n * k))
    columns = {
        "start_us": starts,
        "end_us": starts + 2_500_000,
        "source": _words(("subtitle", "asr"), draw.integers(2, size=n * k)),
        "stream": _words(("2",), np.zeros(n * k, np.int64)),
        "language": _words(("en",), np.zeros(n * k, np.int64)),
        "text": _words(LINES, said),
        "confidence": draw.random(n * k, np.float32),
    }
    return _lists(pa.list_(TEXT_PIECE), n, columns)


def _evidence(n: int, draw: np.random.Generator) -> pa.Array:
    shares = draw.dirichlet((1.0, 1.0, 1.0), n).astype(np.float32)
    names = ("vision", "audio", "text")
    return pa.StructArray.from_arrays(
        [pa.array(shares[:, i]) for i in range(3)],
        fields=[pa.field(name, pa.float32(), nullable=False) for name in names],
    )


def _words(words: tuple[str | None, ...], which: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(words, pa.string()).take(pa.array(which))


def _lists(kind: pa.DataType, n: int, columns: dict[str, Any]) -> pa.Array:
    """`n` lists of equally many structs."""
    fields = list(kind.value_type)
    values = [pa.array(columns[f.name]).cast(f.type) for f in fields]
    structs = pa.StructArray.from_arrays(values, fields=fields)
    offsets = pa.array(np.linspace(0, len(structs), n + 1).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, structs).cast(kind)
