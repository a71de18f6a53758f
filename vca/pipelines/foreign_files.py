"""Files of feature arrays as videos: `.npz` (a file per video) and `.parquet` (a row per step), see
docs/features_import.md for both layouts.

The files come from elsewhere. Arrays are read without NumPy's loader: an object array is a pickle, and a header may
claim terabytes. Sizes are checked before memory is taken. Whatever is wrong is a `ConfigError` of one line that names
file and array.
Shape letters: N vectors, D features.
"""

import io
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vca.core.errors import ConfigError, MediaError, one_line
from vca.core.records import FloatArray, TextPiece
from vca.core.storage import StorageConfig, is_s3
from vca.media.s3 import S3Location, storage_error, storage_exceptions
from vca.media.storage import normalise_uri
from vca.pipelines.annotations import input_error, json_lines, parse_json, read_file
from vca.pipelines.foreign_video import (
    MAX_STEP_S,
    MIN_STEP_S,
    PIECE,
    ForeignVideo,
    Track,
    checked_values,
    make_video,
    text_piece,
    timed_track,
)

MODALITIES = ("vision", "audio")
ARRAYS = frozenset(
    {"key", "text", "times", "step_s"}
    | {f"{m}{suffix}" for m in MODALITIES for suffix in ("", "_mask", "_times", "_step_s")}
)
BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is read at once, and how buckets are reached."""

    file_bytes: int
    storage: StorageConfig


def read_videos(sources: Sequence[str], limits: Limits) -> Iterator[ForeignVideo]:
    """All videos of files and folders, in order of the sources and of the names below them."""
    for source in sources:
        for file in _list_files(source, limits.storage):
            if file.uri.lower().endswith(".npz"):
                yield _read_npz(file, limits)
            else:
                yield from _read_parquet(file.uri, limits)


# ------------------------------------------------------------------------------------------------------------ listing


@dataclass(frozen=True, slots=True)
class _File:
    uri: str
    key: str
    """Path below the source, without .npz."""
    text_uri: str | None = None
    """The .jsonl beside an .npz."""


def _list_files(source: str, storage: StorageConfig) -> list[_File]:
    try:
        uri = normalise_uri(source)
    except ValueError as error:
        raise ConfigError(f"sources = {source!r}: {error}") from error
    try:
        if uri.lower().endswith((".npz", ".parquet")) and (is_s3(uri) or not Path(uri).is_dir()):
            folder, _, name = uri.rpartition("/")
            text = f"{uri[:-4]}.jsonl"
            beside = S3Location(folder, storage).exists(f"{name[:-4]}.jsonl") if is_s3(uri) else Path(text).is_file()
            return [_File(uri, name[:-4], text if beside and name.lower().endswith(".npz") else None)]
        names = _names_below(uri, storage)
    except MediaError as error:
        raise input_error(error, uri, "sources") from error
    except storage_exceptions() as error:
        raise input_error(storage_error(error, uri), uri, "sources") from error
    found = set(names)
    files = [name for name in sorted(names) if name.lower().endswith((".npz", ".parquet"))]
    texts = {name: f"{name[:-4]}.jsonl" for name in files}
    return [_File(f"{uri}/{n}", n[:-4], f"{uri}/{texts[n]}" if texts[n] in found else None) for n in files]


def _names_below(uri: str, storage: StorageConfig) -> list[str]:
    if is_s3(uri):
        place = S3Location(uri, storage)
        return [entry["Key"][len(place.prefix) :] for page in place.pages() for entry in page]
    root = Path(uri).expanduser()
    if not root.is_dir():
        raise ConfigError(f"sources = {uri!r}: no such folder or file; give .npz or .parquet files or their folder")
    return [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]


# ---------------------------------------------------------------------------------------------------------------- npz


def _read_npz(file: _File, limits: Limits) -> ForeignVideo:
    where = file.uri
    arrays = _load_arrays(where, read_file(file.uri, limits.storage, limits.file_bytes, "sources"), limits.file_bytes)
    key = _text_of(arrays, "key", where) if "key" in arrays else file.key
    tracks = {m: t for m in MODALITIES if (t := _npz_track(arrays, m, where)) is not None}
    if not tracks:
        raise ConfigError(f"{where}: neither vision nor audio has a vector; give one of them")
    text = _npz_text(arrays, where)
    if file.text_uri is not None:
        lines = read_file(file.text_uri, limits.storage, limits.file_bytes, "sources")
        text += [text_piece(row, at) for at, row in json_lines(file.text_uri, lines)]
    return make_video(where, key, tracks, text)


def _npz_track(arrays: Mapping[str, npt.NDArray[Any]], modality: str, where: str) -> Track | None:
    name = f"{where}: {modality}"
    values = arrays.get(modality)
    if values is None:
        stray = next((n for n in sorted(arrays) if n.startswith(f"{modality}_")), None)
        if stray is not None:
            raise ConfigError(f"{where}: {stray} without {modality}; give both or none")
        return None
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise ConfigError(f"{name} is {values.dtype} {list(values.shape)}; it must be numbers [steps, width]")
    n_steps, width = values.shape
    if n_steps == 0 or width == 0:
        raise ConfigError(f"{name} is {list(values.shape)}: no steps or no width; leave the array out")
    mask = arrays.get(f"{modality}_mask")
    if mask is None:
        mask = np.ones(n_steps, np.bool_)
    if mask.shape != (n_steps,) or mask.dtype != np.bool_:
        raise ConfigError(f"{name}_mask is {mask.dtype} {list(mask.shape)}; it must be bool [{n_steps}]")
    if not mask.any():
        return None
    kept = checked_values(values[mask], name)
    times = arrays.get(f"{modality}_times")
    step = arrays.get(f"{modality}_step_s")
    if times is None and step is None:
        times, step = arrays.get("times"), arrays.get("step_s")
    if (times is None) == (step is None):
        raise ConfigError(f"{name}: give step_s or times, and not both")
    if step is not None:
        return Track(kept, n_steps, _step_s(step, name), positions=np.flatnonzero(mask))
    assert times is not None
    if times.shape != (n_steps, 2) or times.dtype.kind not in "fiu":
        raise ConfigError(
            f"{name}: its times are {times.dtype} {list(times.shape)}; they must be [{n_steps}, 2] seconds"
        )
    return timed_track(kept, times.astype(np.float64), mask, name)


def _step_s(step: npt.NDArray[Any], name: str) -> float:
    if step.shape not in ((), (1,)) or step.dtype.kind not in "fiu":
        raise ConfigError(f"{name}: step_s is {step.dtype} {list(step.shape)}; it must be one number")
    step_s = float(step.reshape(-1)[0])
    if not MIN_STEP_S <= step_s <= MAX_STEP_S:  # false for NaN
        raise ConfigError(f"{name}: step_s = {step_s:g}; it must lie between {MIN_STEP_S:g} and {MAX_STEP_S:g} seconds")
    return step_s


def _load_arrays(where: str, data: bytes, limit_bytes: int) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz file. Memory is taken only for what is really in the file, and nothing is unpickled."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    with _damage(where), zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        unknown = [m.filename for m in members if m.filename.removesuffix(".npy") not in ARRAYS]
        if unknown:
            known = ", ".join(sorted(ARRAYS))
            raise ConfigError(f"{where}: unknown array {one_line(unknown[0].removesuffix('.npy'))!r}; known: {known}")
        if len({m.filename for m in members}) < len(members):
            raise ConfigError(f"{where}: an array is there twice; save the file anew")
        if sum(m.file_size for m in members) > limit_bytes:
            raise ConfigError(f"{where}: unpacks to over {limit_bytes >> 20} MB; split it or raise max_file_mb")
        for member in members:
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as file:
                arrays[name] = _load_array(file, member.file_size, f"{where}: {name}")
    return arrays


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """What `zipfile` and NumPy raise for files that are not what they seem."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        tokenize.TokenError,
        EOFError,
        MemoryError,
        NotImplementedError,
        OSError,
        RecursionError,
        RuntimeError,
        SyntaxError,
        ValueError,
    ) as error:
        raise ConfigError(f"{where}: not a readable .npz file ({one_line(str(error))}); save it anew") from error


def _load_array(file: Any, size_bytes: int, name: str) -> npt.NDArray[Any]:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ConfigError(f"{name} has array format {version}; save it with numpy.savez")
    shape, fortran, dtype = readers[version](file)
    if dtype.kind not in "fiubU":
        raise ConfigError(f"{name} is an array of {dtype}; arrays of objects are refused, save numbers or text")
    n_bytes = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or n_bytes != size_bytes - file.tell():
        raise ConfigError(f"{name} says {list(shape)} {dtype}, but has {size_bytes - file.tell()} bytes; save it anew")
    if n_bytes == 0:
        return np.zeros(shape, dtype)
    return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran else "C")


def _text_of(arrays: Mapping[str, npt.NDArray[Any]], name: str, where: str) -> str:
    value = arrays[name]
    if value.shape not in ((), (1,)) or value.dtype.kind != "U":
        raise ConfigError(f"{where}: {name} is {value.dtype} {list(value.shape)}; it must be one text")
    return str(value.reshape(-1)[0])


# --------------------------------------------------------------------------------------------------------------- text


def _npz_text(arrays: Mapping[str, npt.NDArray[Any]], where: str) -> list[TextPiece]:
    """The array `text`: a JSON list of objects in one string, or a string of JSON for each object."""
    if "text" not in arrays:
        return []
    value = arrays["text"]
    if value.ndim > 1 or value.dtype.kind != "U":
        raise ConfigError(f"{where}: text is {value.dtype} {list(value.shape)}; it must be JSON strings")
    try:
        rows = parse_json(str(value)) if value.ndim == 0 else [parse_json(str(item)) for item in value]
    except ValueError as error:
        raise ConfigError(f"{where}: text: {one_line(str(error))}; write it with json.dumps") from error
    if not isinstance(rows, list):
        raise ConfigError(f"{where}: text is a JSON {type(rows).__name__}; it must be a list of objects")
    return [text_piece(row, f"{where}: text {number}") for number, row in enumerate(rows, 1)]


# ------------------------------------------------------------------------------------------------------------ parquet


_NEEDED = ("key", "start_s", "end_s")
_COLUMNS = (*_NEEDED, *MODALITIES, "text", "source", "language")


@dataclass(slots=True)
class _Gathered:
    """The rows of one video while a Parquet file is read."""

    key: str | None = None
    rows: list[pa.Table] = field(default_factory=list)
    n_bytes: int = 0


def _read_parquet(uri: str, limits: Limits) -> Iterator[ForeignVideo]:
    """The videos of a Parquet file with a row per step, in the order of their rows; one video is held at a time."""
    held = _Gathered()
    for batch in _batches(uri, limits.storage):
        keys = batch.column("key").to_pylist()
        if not keys:
            continue
        cuts = [0, *(i for i, (a, b) in enumerate(pairwise(keys), 1) if a != b), len(keys)]
        for start, end in pairwise(cuts):
            if keys[start] != held.key or not held.rows:
                if held.rows:
                    yield _parquet_video(uri, held)
                held = _Gathered(keys[start])
            held.rows.append(batch.slice(start, end - start))
            held.n_bytes += held.rows[-1].nbytes
            if held.n_bytes > limits.file_bytes:
                raise ConfigError(f"{uri}: key {held.key!r} has over {limits.file_bytes >> 20} MB; raise max_file_mb")
    if held.rows:
        yield _parquet_video(uri, held)


def _batches(uri: str, storage: StorageConfig) -> Iterator[pa.Table]:
    try:
        with _opened(uri, storage) as file, pq.ParquetFile(file) as source:
            schema = source.schema_arrow
            wrong = [name for name in schema.names if name not in _COLUMNS]
            missing = [name for name in _NEEDED if name not in schema.names]
            if wrong or missing:
                what = f"unknown column {wrong[0]!r}" if wrong else f"no column {missing[0]!r}"
                raise ConfigError(f"{uri}: {what}; a row is a step with {', '.join(_COLUMNS)}")
            for name in (n for n in MODALITIES if n in schema.names):
                if not _is_vectors(schema.field(name).type):
                    raise ConfigError(f"{uri}: {name} is {schema.field(name).type}; it must be lists of numbers")
            for batch in source.iter_batches(batch_size=BATCH_ROWS):
                yield pa.Table.from_batches([batch])
    except pa.ArrowException as error:
        raise ConfigError(f"{uri}: not a readable Parquet file ({one_line(str(error))}); write it anew") from error
    except storage_exceptions() as error:
        raise input_error(storage_error(error, uri), uri, "sources") from error


@contextmanager
def _opened(uri: str, storage: StorageConfig) -> Iterator[BinaryIO]:
    if is_s3(uri):
        folder, _, name = uri.rpartition("/")
        place = S3Location(folder, storage)
        with place.filesystem.open(f"{place.root}/{name}", "rb") as file:
            yield file
    else:
        with Path(uri).expanduser().open("rb") as file:
            yield file


def _is_vectors(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    return bool(pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def _parquet_video(uri: str, held: _Gathered) -> ForeignVideo:
    where = f"{uri} key {one_line(ascii(held.key))}"
    if not isinstance(held.key, str):
        raise ConfigError(f"{uri}: a key is {held.key!r}; every row needs one, as text")
    rows = pa.concat_tables(held.rows)
    try:
        columns = [rows.column(name).cast(pa.float64()) for name in ("start_s", "end_s")]
    except pa.ArrowException as error:
        raise ConfigError(f"{where}: start_s and end_s must be numbers of seconds") from error
    if any(column.null_count for column in columns):
        raise ConfigError(f"{where}: a row without start_s or end_s; every step needs both")
    times_s = np.stack([column.to_numpy() for column in columns], axis=1)
    tracks = {}
    for modality in (m for m in MODALITIES if m in rows.column_names):
        column = rows.column(modality).combine_chunks()
        mask = np.asarray(column.is_valid())
        if mask.any():
            values = _vectors(column, f"{where}: {modality}")
            tracks[modality] = timed_track(values, times_s, mask, f"{where}: {modality}")
    if not tracks:
        raise ConfigError(f"{where}: neither vision nor audio has a vector; give one of them")
    names = [name for name in PIECE if name in rows.column_names]
    pieces = [row for row in rows.select(names).to_pylist() if row.get("text") is not None]
    return make_video(where, held.key, tracks, [text_piece(row, f"{where} at {row['start_s']:g} s") for row in pieces])


def _vectors(column: pa.Array, name: str) -> FloatArray:
    """The vectors of a list column without its nulls, [N, D]."""
    column = column.drop_null()
    widths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(widths) > 1 or widths[0] == 0:
        raise ConfigError(f"{name} has vectors of widths {sorted(widths)[:5]}; all must have the same")
    flat = pc.list_flatten(column)
    if flat.null_count:
        raise ConfigError(f"{name} holds a null inside a vector; make the whole vector null")
    values = flat.to_numpy(zero_copy_only=False).reshape(-1, widths[0])
    return checked_values(values, name)
