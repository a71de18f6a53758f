"""The feature store: decode once, tag and train many times (design section 5).

`<output>/features/<feature_set>/part-*.parquet`, one row per segment in the schema `schemas.FEATURES`. Rows are keyed
by (video_id, fingerprint, segment_index): a row that a retry wrote twice is harmless. Only the driver writes, so parts
are few and large; a part appears whole or not at all.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vca.core.errors import ConfigError, PublishError, one_line
from vca.core.records import TextPiece, VideoFeatures
from vca.core.schemas import FEATURES, STEP_FEATURES
from vca.core.timeline import Span, step_spans
from vca.media.output import Output
from vca.media.shots import join_shots

INDEX = pa.schema(
    [
        pa.field("video_id", pa.string()),
        pa.field("fingerprint", pa.string()),
        pa.field("segment_index", pa.int32()),
        pa.field("n_segments", pa.int32()),
        pa.field("part", pa.string()),
    ]
)
"""Where each segment lies; small enough to hold for a whole archive."""

VIDEOS = pa.schema([pa.field(name, pa.string()) for name in ("video_id", "key", "fingerprint")])
"""Who is in a feature set."""

ROW_GROUP_ROWS = 64


@dataclass(frozen=True, slots=True)
class Dims:
    """Widths of a step's features; 0 for a modality that no encoder makes."""

    vision: int
    audio: int


class FeatureStore:
    """One feature set inside an output."""

    def __init__(self, output: Output, feature_set: str) -> None:
        self.output = output
        self.feature_set = feature_set
        self.folder = f"features/{feature_set}"

    def describe(self, definition: dict[str, Any], dims: Dims) -> None:
        """Write `feature_set.json` once: what the features are made of, for people, importers and predictors."""
        if not self.described():
            content = {"feature_set": self.feature_set, "definition": definition, "dims": asdict(dims)}
            self.output.write_bytes(self._description, json.dumps(content, indent=2, sort_keys=True).encode())

    def described(self) -> bool:
        """Whether there is such a feature set."""
        return self.output.exists(self._description)

    def dims(self) -> Dims:
        """Widths of the features. Raises `ConfigError` if the description is missing or damaged."""
        with self._description_errors():
            dims = self._read_description()["dims"]
            return Dims(vision=int(dims["vision"]), audio=int(dims["audio"]))

    def definition(self) -> dict[str, Any]:
        """What the features are made of; `step_us` is always there, `imported` in sets that somebody else computed.

        Raises `ConfigError` if the description is missing or damaged.
        """
        with self._description_errors():
            definition = self._read_description()["definition"]
            return {**definition, "step_us": int(definition["step_us"])}

    def _read_description(self) -> Any:
        return json.loads(self.output.read_bytes(self._description))

    @contextmanager
    def _description_errors(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"output: {self._description} is missing or damaged ({type(error).__name__}); restore it, "
                f"or delete {self.folder} to make the features again"
            ) from error

    @property
    def _description(self) -> str:
        return f"{self.folder}/feature_set.json"

    def parts(self) -> list[str]:
        return [name for name in self.output.list(self.folder) if name.endswith(".parquet")]

    def index(self, fingerprints: Mapping[str, str]) -> pa.Table:
        """Where the segments of these contents (video_id to fingerprint) lie, schema `INDEX`, oldest part first.

        Reads four narrow columns of every part. Raises `PublishError` for a part that is damaged.
        """
        wanted = pa.table(
            {"video_id": list(fingerprints), "fingerprint": list(fingerprints.values())},
            schema=pa.schema([("video_id", pa.string()), ("fingerprint", pa.string())]),
        )
        tables = [INDEX.empty_table()]
        for part in self.parts():
            keys = self._read_part(part, columns=INDEX.names[:-1])
            keys = keys.join(wanted, ["video_id", "fingerprint"], join_type="inner")
            tables.append(keys.append_column("part", pa.array([part] * len(keys), pa.string())).cast(INDEX))
        return pa.concat_tables(tables)

    def contents(self) -> pa.Table:
        """Where the segments of all complete videos lie, schema `INDEX`, oldest part first.

        Of a video that was stored with several contents (a changed file, another cut into segments) the one written
        last counts. What is published may lag behind: `index` asks for a fingerprint, this takes it from the rows.
        Reads four narrow columns of every part, no vectors. Raises `PublishError` for a part that is damaged.
        """
        tables = [INDEX.empty_table()]
        for part in self.parts():
            keys = self._read_part(part, columns=INDEX.names[:-1])
            tables.append(keys.append_column("part", pa.array([part] * len(keys), pa.string())).cast(INDEX))
        rows = pa.concat_tables(tables)
        rows = rows.append_column("row", pa.array(np.arange(len(rows), dtype=np.int64)))
        content = ["video_id", "fingerprint", "n_segments"]
        found = rows.group_by(content).aggregate([("segment_index", "count_distinct"), ("row", "max")])
        found = found.filter(pc.equal(found.column("segment_index_count_distinct"), found.column("n_segments")))
        newest = found.group_by("video_id").aggregate([("row_max", "max")]).column("row_max_max")
        found = found.filter(pc.is_in(found.column("row_max"), newest.combine_chunks())).select(content)
        return rows.join(found, content, join_type="inner").sort_by("row").select(INDEX.names).cast(INDEX)

    def videos(self) -> pa.Table:
        """One row (schema `VIDEOS`) for every video of `contents`, sorted by key."""
        names = VIDEOS.names
        found = [self._read_part(part, columns=names).select(names).cast(VIDEOS) for part in self.parts()]
        rows = pa.concat_tables([VIDEOS.empty_table(), *found]).group_by(names).aggregate([])
        content = ["video_id", "fingerprint"]
        complete = self.contents().group_by(content).aggregate([])
        return rows.join(complete, content, join_type="inner").sort_by("key").select(names).cast(VIDEOS)

    def read(self, parts: Iterable[str], video_ids: Iterable[str]) -> pa.Table:
        """The rows of some videos (schema `FEATURES`)."""
        wanted = pa.array(list(video_ids), pa.string())
        found = [self._read_part(part, filters=pc.field("video_id").isin(wanted)).cast(FEATURES) for part in parts]
        return pa.concat_tables([FEATURES.empty_table(), *found])

    def _read_part(self, part: str, **options: Any) -> pa.Table:
        try:
            with self.output.errors(part), self.output.filesystem.open(self.output.path(part), "rb") as file:
                return pq.read_table(file, **options)
        except pa.ArrowException as error:
            raise PublishError(
                f"output: {part} is damaged ({one_line(str(error))}); delete it, its videos are decoded again"
            ) from error


class FeatureWriter:
    """Buffers rows on the driver and writes parts by size and by age, looked at whenever a row comes.

    `written` knows what is safely stored (tables of schema `INDEX`).
    """

    def __init__(self, store: FeatureStore, run_id: str, part_bytes: int, flush_s: float) -> None:
        self._store = store
        self._run_id = run_id
        self._part_bytes = part_bytes
        self._flush_s = flush_s
        self._buffer: list[pa.Table] = []
        self._buffered_bytes = 0
        self._oldest = 0.0
        self._n_parts = 0
        self.written: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        if not self._buffer:
            self._oldest = time.monotonic()
        self._buffer.append(rows)
        self._buffered_bytes += rows.nbytes
        if self._buffered_bytes >= self._part_bytes or time.monotonic() - self._oldest >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        if not self._buffer:
            return
        rows = pa.concat_tables(self._buffer).cast(FEATURES)
        name = f"{self._store.folder}/part-{self._run_id}-{self._n_parts:05d}.parquet"
        with self._store.output.open_write(name) as file:
            pq.write_table(rows, file, row_group_size=ROW_GROUP_ROWS, compression="zstd")
        keys = rows.select(INDEX.names[:-1])
        self.written.append(keys.append_column("part", pa.array([name] * len(keys), pa.string())).cast(INDEX))
        self._n_parts += 1
        self._buffer = []
        self._buffered_bytes = 0


def encode_steps(values: npt.NDArray[np.float16] | None, mask: npt.NDArray[np.bool_] | None) -> pa.Array:
    """One cell of a `STEP_FEATURES` column from features [S, D] and their mask [S]."""
    if values is None or mask is None or not mask.any():
        return pa.nulls(1, STEP_FEATURES)
    n_steps, dim = values.shape
    kept = values[mask]
    offsets = np.concatenate([[0], np.cumsum(np.where(mask, dim, 0))]).astype(np.int32)
    inner = pa.ListArray.from_arrays(pa.array(offsets), pa.array(kept.reshape(-1), pa.float16()), mask=pa.array(~mask))
    return pa.ListArray.from_arrays(pa.array([0, n_steps], pa.int32()), inner, type=STEP_FEATURES)


def decode_steps(cell: pa.ListScalar) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]] | None:
    """Inverse of `encode_steps`: features [S, D] (zeros where masked) and the mask [S]; None for a null cell."""
    if not cell.is_valid:
        return None
    inner = cell.values
    mask = np.asarray(inner.is_valid())
    flat = inner.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    dim = len(flat) // int(mask.sum())
    values = np.zeros((len(mask), dim), np.float32)
    values[mask] = flat.reshape(-1, dim)
    return values, mask


def join_segments(rows: pa.Table) -> VideoFeatures:
    """All segments of one video as one `VideoFeatures`. `rows` may hold duplicates; the last one counts."""
    by_index = {number: position for position, number in enumerate(rows.column("segment_index").to_pylist())}
    order = [by_index[i] for i in sorted(by_index)]
    rows = rows.take(pa.array(order))
    assert len(rows) > 0, "prediction asked for a video without segments"
    first = rows.select(["video_id", "key", "n_segments", "step_us"]).slice(0, 1).to_pylist()[0]
    assert len(order) == first["n_segments"], f"{first['key']}: {len(order)} of {first['n_segments']} segments"
    starts, ends = rows.column("start_us").to_pylist(), rows.column("end_us").to_pylist()
    step_us = int(first["step_us"])
    grids = [step_spans(Span(s, e), step_us) for s, e in zip(starts, ends, strict=True)]
    vision, vision_mask = _join_modality(rows.column("vision"), grids)
    audio, audio_mask = _join_modality(rows.column("audio"), grids)
    text = [TextPiece.from_row(piece) for pieces in rows.column("text").to_pylist() for piece in pieces]
    return VideoFeatures(
        video_id=first["video_id"],
        key=first["key"],
        duration_us=int(ends[-1]),
        step_us=step_us,
        steps=np.concatenate(grids),
        vision=vision,
        vision_mask=vision_mask,
        audio=audio,
        audio_mask=audio_mask,
        text=tuple(sorted(text, key=lambda p: (p.start_us, p.end_us, p.source, p.stream or "", p.text or ""))),
        shots=join_shots(
            [[Span(s["start_us"], s["end_us"]) for s in shots] for shots in rows.column("shots").to_pylist()]
        ),
    )


def _join_modality(
    column: pa.ChunkedArray, grids: list[npt.NDArray[np.int64]]
) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.bool_] | None]:
    cells = [decode_steps(cell) for cell in column]
    dims = {values.shape[1] for values, _ in (c for c in cells if c is not None)}
    if not dims:
        return None, None
    assert len(dims) == 1, f"features of one video have several widths: {sorted(dims)}"
    dim = dims.pop()
    values, masks = [], []
    for cell, grid in zip(cells, grids, strict=True):
        absent = (np.zeros((len(grid), dim), np.float32), np.zeros(len(grid), np.bool_))
        part, mask = absent if cell is None else cell
        values.append(part)
        masks.append(mask)
    return np.concatenate(values), np.concatenate(masks)
