"""Annotation files: JSON Lines, Parquet, CSV and ActivityNet-style JSON in, one stored table per version out.

What the rows mean is settled in `core.annotations`; here files become rows, each with a name that leads back to its
line. Nothing in a file is trusted: sizes, encodings, types and numbers are checked, and the first file that cannot be
read at all ends the reading with one line.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from vca.core.annotations import (
    COLUMNS,
    Split,
    SplitConfig,
    TrueEvent,
    VideoTruth,
    annotation_version,
    read_rows,
)
from vca.core.config import Config
from vca.core.errors import ConfigError, ErrorCode, MediaError, one_line
from vca.core.storage import StorageConfig, is_s3
from vca.core.taxonomy import Name, Taxonomy
from vca.core.timeline import Span, seconds_to_us, us_to_seconds
from vca.media.output import Output
from vca.media.s3 import S3Location, storage_error, storage_exceptions
from vca.media.sidecars import media_stem
from vca.media.storage import normalise_uri

Row = tuple[str, Mapping[str, Any]]
"""Where a row comes from, and its columns."""

SUFFIXES = (".jsonl", ".parquet", ".csv", ".json")
_SUBSETS: dict[str, Split | None] = {
    "training": Split.TRAIN,
    "validation": Split.VALIDATION,
    "testing": Split.TEST,
}


class AnnotationsConfig(Config):
    files: tuple[str, ...] = Field(min_length=1)
    """Annotation files, local or s3://: .jsonl, .parquet, .csv, or .json as ActivityNet has it. Rows of several files
    are put together."""
    splits: SplitConfig = SplitConfig()
    """How videos are dealt out whose rows name no split."""
    activitynet_task: Name | None = None
    """Task of the taxonomy that the labels of .json files belong to."""
    activitynet_subsets: dict[str, Split | None] = Field(default_factory=lambda: dict(_SUBSETS))
    """Split of each `subset` of .json files; null deals its videos out by `splits`."""
    max_mb: int = Field(1024, ge=1)
    """Largest file that is read, MB."""
    max_rows: int = Field(20_000_000, ge=1)
    """Most rows of all files together."""
    storage: StorageConfig = StorageConfig()
    """How to reach the bucket; no meaning for local files."""

    @field_validator("files")
    @classmethod
    def _check_files(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for file in value:
            if not file.lower().endswith(SUFFIXES):
                raise ValueError(f"{file!r} is none of {', '.join(SUFFIXES)}; convert it to one of these")
        return tuple(normalise_uri(file) for file in value)


def load_annotations(
    config: AnnotationsConfig, taxonomy: Taxonomy, keys: Iterable[str] | None = None
) -> list[VideoTruth]:
    """All files together as truths, sorted by video id.

    `keys` are the keys of the archive (or of a feature set, `FeatureStore.videos`): ActivityNet-style files name videos
    without folder and extension, and are matched with them. Raises `ConfigError` with one line for every problem, each
    naming file and line.
    """
    stems = None if keys is None else _keys_by_name(keys)
    rows = chain.from_iterable(_rows_of(file, config, taxonomy, stems) for file in config.files)
    truths = read_rows(_bounded(rows, config.max_rows), taxonomy, config.splits)
    if not truths:
        raise ConfigError(f"annotations.files = {', '.join(config.files)}: no rows; give files that hold annotations")
    return truths


def _bounded(rows: Iterator[Row], limit: int) -> Iterator[Row]:
    for number, row in enumerate(rows):
        if number == limit:
            raise ConfigError(f"{row[0]}: more than annotations.max_rows = {limit} rows; raise it or leave rows out")
        yield row


def _rows_of(
    file: str, config: AnnotationsConfig, taxonomy: Taxonomy, stems: Mapping[str, list[str]] | None
) -> Iterator[Row]:
    data = read_file(file, config.storage, config.max_mb << 20, "annotations.files")
    name = file.lower()
    if name.endswith(".jsonl"):
        return _jsonl_rows(file, data)
    if name.endswith(".parquet"):
        return _parquet_rows(file, data)
    if name.endswith(".csv"):
        return _csv_rows(file, data)
    if config.activitynet_task is None:
        raise ConfigError(f"{file}: set annotations.activitynet_task to the task that its labels belong to")
    return _activitynet_rows(file, data, config, taxonomy, stems)


def read_file(uri: str, storage: StorageConfig, limit_bytes: int, field: str) -> bytes:
    """A whole file, local or s3://. `ConfigError` naming `field` if it is not there or larger than the limit."""
    try:
        if is_s3(uri):
            folder, _, name = uri.rpartition("/")
            data = S3Location(folder, storage).read_start(name, limit_bytes + 1)
        else:
            with Path(uri).expanduser().open("rb") as file:
                data = file.read(limit_bytes + 1)
    except MediaError as error:
        raise input_error(error, uri, field) from error
    except storage_exceptions() as error:
        raise input_error(storage_error(error, uri), uri, field) from error
    if len(data) > limit_bytes:
        raise ConfigError(f"{field} = {uri!r}: larger than {limit_bytes >> 20} MB; split the file or raise the limit")
    return data


def input_error(failure: MediaError, uri: str, field: str) -> ConfigError:
    """One line about a file of the user's that cannot be read."""
    missing = failure.code == ErrorCode.OBJECT_MISSING
    reason = "no such file" if missing else failure.message.rpartition(": ")[0]
    return ConfigError(f"{field} = {uri!r}: {reason}; check the path and the permissions")


# ------------------------------------------------------------------------------------------------------- JSON Lines


def parse_json(text: str | bytes) -> Any:
    """JSON without doubled keys, NaN and infinity. Raises ValueError with a short reason."""
    try:
        return json.loads(text, object_pairs_hook=_no_doubles, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg}, column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    except RecursionError as error:
        raise ValueError("not valid JSON (nested too deep)") from error


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is given twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def json_lines(file: str, data: bytes) -> Iterator[Row]:
    """The objects of a JSON Lines file; blank lines are skipped. The first bad line is a `ConfigError`."""
    # Cut at line feeds only: splitlines would also cut at separators that JSON texts may hold.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ConfigError(f"{where}: {one_line(str(error))}; fix the line") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{where}: {type(row).__name__} instead of an object; put each row in braces")
        yield where, row


def _jsonl_rows(file: str, data: bytes) -> Iterator[Row]:
    return json_lines(file, data)


# ---------------------------------------------------------------------------------------------------------- Parquet


def _parquet_rows(file: str, data: bytes) -> Iterator[Row]:
    number = 0
    try:
        with pq.ParquetFile(io.BytesIO(data)) as source:
            unknown = [name for name in source.schema_arrow.names if name not in COLUMNS.names]
            if unknown:
                raise ConfigError(f"{file}: unknown column {unknown[0]!r}; known: {', '.join(COLUMNS.names)}")
            for batch in source.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{file} row {number}", row
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise ConfigError(f"{file}: not a readable Parquet file ({one_line(str(error))}); write it anew") from error


# -------------------------------------------------------------------------------------------------------------- CSV

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def _csv_rows(file: str, data: bytes) -> Iterator[Row]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file} line {line}: not UTF-8 text; save the file as UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ConfigError(f"{file} line {reader.line_num}: not valid CSV ({error}); fix the line") from error
        where = f"{file} line {reader.line_num}"
        if not any(cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            wrong = [name for name in header if name not in COLUMNS.names or header.count(name) > 1]
            if wrong:
                raise ConfigError(
                    f"{where}: column {wrong[0]!r} is unknown or doubled; known: {', '.join(COLUMNS.names)}"
                )
            continue
        if len(cells) != len(header):
            raise ConfigError(f"{where}: {len(cells)} cells, but the header has {len(header)}; quote cells with commas")
        yield where, {name: _csv_value(name, cell.strip(), where) for name, cell in zip(header, cells, strict=True)}


def _csv_value(name: str, cell: str, where: str) -> Any:
    if cell == "":
        return None
    if name == "participants":
        return [part.strip() for part in cell.split(";") if part.strip()]
    if name in ("start_s", "end_s"):
        if not _NUMBER.fullmatch(cell):
            raise ConfigError(f"{where}: {name} {one_line(repr(cell))} is no number of seconds; write it like 12.5")
        return float(cell)
    return cell


# ------------------------------------------------------------------------------------------------------ ActivityNet


def label_name(text: str) -> str:
    """The name that a label of elsewhere has in a taxonomy: lower case, `_` for what lies between words."""
    return re.sub(r"[\W_]+", "_", text.lower()).strip("_")


def _keys_by_name(keys: Iterable[str]) -> dict[str, list[str]]:
    """Keys by every name that may mean them: themselves, without extension, and the same without the folder."""
    found: dict[str, list[str]] = {}
    for key in keys:
        stem = media_stem(key)
        for name in {key, stem, key.rpartition("/")[2], stem.rpartition("/")[2]}:
            found.setdefault(name, []).append(key)
    return found


def _key_of(name: str, where: str, stems: Mapping[str, list[str]] | None) -> str:
    """ActivityNet names a video `abc`, and its file is usually `v_abc.mp4`. A name that matches nothing stays."""
    if stems is None:
        return name
    for candidate in (name, f"v_{name}"):
        found = stems.get(candidate, [])
        if candidate in found:
            return candidate
        if len(found) > 1:
            raise ConfigError(f"{where}: both {found[0]!r} and {found[1]!r} may be meant; use the whole key as name")
        if found:
            return found[0]
    return name


def _activitynet_rows(
    file: str, data: bytes, config: AnnotationsConfig, taxonomy: Taxonomy, stems: Mapping[str, list[str]] | None
) -> Iterator[Row]:
    assert config.activitynet_task is not None
    task = taxonomy.task(config.activitynet_task)
    try:
        content = parse_json(data.removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        raise ConfigError(f"{file}: {one_line(str(error))}; fix the file") from error
    database = content.get("database") if isinstance(content, dict) else None
    if not isinstance(database, dict):
        raise ConfigError(f'{file}: no object "database" in it; this is not ActivityNet-style JSON')
    withheld = _withheld_subsets(database)
    for name, video in database.items():
        where = f"{file} video {one_line(name)}"
        _require(isinstance(video, dict), where, "must be an object with subset and annotations")
        subset, found = video.get("subset"), video.get("annotations", [])
        _require(isinstance(subset, str), where, "subset must be text")
        _require(isinstance(found, list), where, "annotations must be a list")
        if subset in withheld:
            continue
        if subset not in config.activitynet_subsets:
            known = ", ".join(config.activitynet_subsets)
            raise ConfigError(f"{where}: subset {subset!r} is not in annotations.activitynet_subsets ({known}); add it")
        row = {"key": _key_of(name, where, stems), "task": task.name, "split": config.activitynet_subsets[subset]}
        yield where, row  # without a label: the video was looked at
        for number, annotation in enumerate(found, 1):
            here = f"{where} annotation {number}"
            _require(isinstance(annotation, dict), here, "must be an object with label and segment")
            label, segment = annotation.get("label"), annotation.get("segment")
            _require(isinstance(label, str), here, "label must be text")
            fact = row | {"label": label_name(label)}
            if task.kind in ("span", "step"):
                _require(isinstance(segment, list) and len(segment) == 2, here, "segment must be [start, end]")
                fact |= {"start_s": segment[0], "end_s": segment[1]}
            yield f"{here} ({one_line(label)})", fact


def _withheld_subsets(database: Mapping[str, Any]) -> set[str]:
    """Subsets "testing" without a single annotation: public files leave its labels out, which does not mean none."""
    seen: dict[str, bool] = {}
    for video in database.values():
        if isinstance(video, dict) and isinstance(video.get("subset"), str) and video["subset"].lower() == "testing":
            seen[video["subset"]] = seen.get(video["subset"], False) or bool(video.get("annotations"))
    return {subset for subset, annotated in seen.items() if not annotated}


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise ConfigError(f"{where}: {what}; fix the file")


# --------------------------------------------------------------------------------------------------- stored versions

_KINDS = b"vca.tasks"
"""Metadata of a stored file: which tasks are about the whole video and which have times. Rows without a label do not
tell, and the taxonomy of that day may be gone."""


def write_truths(output: Output, truths: Iterable[VideoTruth]) -> str:
    """Store truths with their splits as `annotations/<version>.parquet`; returns the version.

    The file has the columns of an annotation file and can be given as one.
    """
    truths = list(truths)
    version = annotation_version(truths)
    timed: dict[str, bool] = {}
    rows: list[dict[str, Any]] = []
    for truth in sorted(truths, key=lambda truth: truth.video_id):
        assert truth.labels or truth.events, f"{truth.video_id}: nothing is annotated, so there is no row to write"
        video = {"video_id": truth.video_id, "key": truth.key, "split": str(truth.split), "group": truth.group}
        for task, names in sorted(truth.labels.items()):
            assert not timed.setdefault(task, False), f"task {task} is timed in another video"
            rows += [video | {"task": task, "label": name} for name in sorted(names)]
            rows += [] if names else [video | {"task": task, "label": None}]
        for task, events in sorted(truth.events.items()):
            assert timed.setdefault(task, True), f"task {task} is not timed in another video"
            rows += [video | {"task": task} | _event_row(event) for event in events]
            rows += [] if events else [video | {"task": task, "label": None}]
    metadata = {_KINDS: json.dumps(timed, sort_keys=True).encode()}
    table = pa.Table.from_pylist(rows, schema=COLUMNS.with_metadata(metadata))
    with output.open_write(_place(version)) as file:
        pq.write_table(table, file, compression="zstd")
    return version


def _event_row(event: TrueEvent) -> dict[str, Any]:
    return {
        "label": event.label,
        "start_s": us_to_seconds(event.span.start_us),
        "end_s": us_to_seconds(event.span.end_us),
        "place": event.place,
        "participants": None if event.participants is None else sorted(event.participants),
    }


def read_truths(output: Output, version: str) -> list[VideoTruth]:
    """What `write_truths` stored, sorted by video id. `ConfigError` if it is missing or was changed."""
    where = f"output: {_place(version)}"
    try:
        table = pq.read_table(io.BytesIO(output.read_bytes(_place(version))), schema=COLUMNS)
        timed = json.loads(pq.read_schema(io.BytesIO(output.read_bytes(_place(version)))).metadata[_KINDS])
        truths = _truths_of(table, timed)
    except FileNotFoundError as error:
        raise ConfigError(f"{where}: no such file; name a version that was stored") from error
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where} is damaged ({type(error).__name__}); delete it and load the files anew") from error
    if annotation_version(truths) != version:
        raise ConfigError(f"{where} holds other annotations than its name says; delete it and load the files anew")
    return truths


def _truths_of(table: pa.Table, timed: Mapping[str, bool]) -> list[VideoTruth]:
    found: dict[str, VideoTruth] = {}
    labels: dict[str, dict[str, set[str]]] = {}
    events: dict[str, dict[str, list[TrueEvent]]] = {}
    for row in table.to_pylist():
        name, task = row["video_id"], row["task"]
        found[name] = VideoTruth(name, row["key"], Split(row["split"]), row["group"])
        held, happened = labels.setdefault(name, {}), events.setdefault(name, {})
        if timed[task]:
            happened.setdefault(task, [])
        else:
            held.setdefault(task, set())
        if row["label"] is None:
            continue
        if not timed[task]:
            held[task].add(row["label"])
            continue
        span = Span(seconds_to_us(row["start_s"]), seconds_to_us(row["end_s"]))
        people = row["participants"]
        people = None if people is None else frozenset(people)
        happened[task].append(TrueEvent(row["label"], span, row["place"], people))
    return [
        VideoTruth(
            video_id=name,
            key=truth.key,
            split=truth.split,
            group=truth.group,
            labels={task: frozenset(names) for task, names in labels[name].items()},
            events={task: tuple(happened) for task, happened in events[name].items()},
        )
        for name, truth in sorted(found.items())
    ]


def _place(version: str) -> str:
    return f"annotations/{version}.parquet"


def describe_truths(truths: Iterable[VideoTruth]) -> str:
    """A few lines for a person: version, videos by split, and what each task has."""
    truths = list(truths)
    splits = [f"{sum(truth.split is split for truth in truths)} {split}" for split in Split]
    lines = [f"annotations {annotation_version(truths)}: {len(truths)} videos ({', '.join(splits)})"]
    for task in sorted({name for truth in truths for name in (*truth.labels, *truth.events)}):
        marked = [truth for truth in truths if task in truth.labels or task in truth.events]
        facts = sum(len(truth.labels.get(task, ())) + len(truth.events.get(task, ())) for truth in marked)
        lines.append(f"  {task:<20} {len(marked):>8} videos {facts:>9} facts")
    return "\n".join(lines)
