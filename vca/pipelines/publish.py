"""Publishing a run: spool, validate, sort, stage, move, swap one manifest (design sections 6 and 7).

The order of the steps is the guarantee. Until `staging/<run>/manifest.json` exists, a crash leaves only staging files,
and the next run removes them. From then on the run is complete and valid, and the next run finishes the moves and the
swap (`recover`). Readers follow `manifests/current.json`, which is replaced in one step: they see a run whole or not at
all.
"""

import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from vca.core.config import without_secrets
from vca.core.errors import ConfigError, PublishError, one_line
from vca.core.schemas import TABLES, Table
from vca.media.output import Output
from vca.media.s3 import storage_exceptions
from vca.tables.manifest import (
    CURRENT,
    Manifest,
    ManifestFile,
    ManifestTable,
    OutputReader,
    Pointer,
    manifest_path,
    table_file_path,
)

log = logging.getLogger(__name__)

RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}")
FILE_ROWS = 4_000_000
ROW_GROUP_ROWS = 128_000
ROW_GROUP_BYTES = 8 << 20
SPOOL_BYTES = 64 << 20
LOOSE_ROWS = 1000
SORT_MEMORY = ("192MB", "512MB", "2GB", "80%")
"""Of DuckDB; what does not fit is sorted on the driver's disk. Left to itself it takes most of the machine, which on
the driver belongs to others. Very wide rows make it give up with little memory: then it gets more, in the end all."""


@contextmanager
def storage_failures_end_the_work(output: Output) -> Iterator[None]:
    """A storage that fails while the driver writes or reads its own files is an expected failure: one line, code 3."""
    try:
        yield
    except storage_exceptions() as error:
        where = f"output.uri = {output.config.uri!r}"
        if not str(error).startswith("output: "):  # as `Output` says it; else it may be the disk of this machine
            where += f" or the temporary folder {tempfile.gettempdir()!r}"
        raise PublishError(
            f"{where}: {one_line(without_secrets(str(error)))}; nothing is lost, run again when the storage works"
        ) from error


class Spool:
    """Rows of a run on the driver's disk, table by table, until they are sorted and staged."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._buffers: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
        self._buffered_bytes = 0
        self._files: dict[str, list[Path]] = {name: [] for name in TABLES}
        self._loose: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        self.rows = dict.fromkeys(TABLES, 0)
        self.bytes = dict.fromkeys(TABLES, 0)

    def add_row(self, name: str, row: dict[str, Any]) -> None:
        """One row; gathered first, since a table of one row costs kilobytes."""
        self._loose[name].append(row)
        self.rows[name] += 1
        if len(self._loose[name]) >= LOOSE_ROWS:
            self._gather(name)

    def _gather(self, name: str) -> None:
        if self._loose[name]:
            self._buffer(name, pa.Table.from_pylist(self._loose[name], schema=TABLES[name].schema))
            self._loose[name] = []

    def add(self, name: str, rows: pa.Table) -> None:
        if len(rows) == 0:
            return
        assert rows.schema.equals(TABLES[name].schema), f"rows for {name} do not have its schema"
        self.rows[name] += len(rows)
        self._buffer(name, rows)

    def _buffer(self, name: str, rows: pa.Table) -> None:
        self._buffers[name].append(rows)
        self.bytes[name] += rows.nbytes
        self._buffered_bytes += rows.nbytes
        # All tables at once: rows cut out of a larger table hold on to all of it, and some tables grow slowly.
        if self._buffered_bytes > SPOOL_BYTES:
            self._flush()

    def files(self, name: str) -> list[str]:
        self._gather(name)
        self._flush()
        return [str(path) for path in self._files[name]]

    def _flush(self) -> None:
        for name, buffered in self._buffers.items():
            if buffered:
                path = self._folder / f"{name}-{len(self._files[name]):05d}.parquet"
                pq.write_table(pa.concat_tables(buffered).combine_chunks(), path, compression="zstd")
                self._files[name].append(path)
                self._buffers[name] = []
        self._buffered_bytes = 0


def stage_tables(spool: Spool, output: Output, run_id: str, work_dir: Path) -> dict[str, list[ManifestFile]]:
    """Write the sorted, final files of a run under `staging/<run>/`. Returns what the manifest will say of them."""
    staged: dict[str, list[ManifestFile]] = {}
    with closing(duckdb.connect(config={"temp_directory": str(work_dir / "duckdb"), "threads": 2})) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name in TABLES:
            staged[name] = []
            for memory in SORT_MEMORY:
                connection.execute(f"SET memory_limit = '{memory}'")
                try:
                    staged[name] = _stage_table(connection, spool, name, output, run_id)
                    break
                except duckdb.OutOfMemoryException:
                    if memory == SORT_MEMORY[-1]:
                        raise
            written = sum(f.rows for f in staged[name])
            if written != spool.rows[name]:
                raise PublishError(
                    f"table {name}: {spool.rows[name]} rows made but {written} staged; nothing published"
                )
    return staged


def _stage_table(
    connection: duckdb.DuckDBPyConnection, spool: Spool, name: str, output: Output, run_id: str
) -> list[ManifestFile]:
    table, paths = TABLES[name], spool.files(name)
    if not paths:
        return []
    _refuse_doubles(connection, table, paths)
    staged = []
    batch_rows = _row_group_rows(spool.bytes[name] / spool.rows[name])
    batches = _sorted_batches(connection, table, paths, batch_rows)
    for number, file_batches in enumerate(_chunks(batches)):
        target = table_file_path(name, run_id, f"part-{number:05d}.parquet")
        rows = 0
        staging_name = _staging_name(run_id, target)
        with (
            output.open_write(staging_name) as file,
            pq.ParquetWriter(file, table.schema, compression="zstd") as writer,
        ):
            for batch in file_batches:
                writer.write_table(batch, row_group_size=batch_rows)
                rows += len(batch)
        size = output.filesystem.size(output.path(staging_name))
        staged.append(ManifestFile(path=target, run_id=run_id, rows=rows, size_bytes=size))
    return staged


def _refuse_doubles(connection: duckdb.DuckDBPyConnection, table: Table, files: list[str]) -> None:
    if table.name not in ("videos", "quarantine", "video_embeddings"):
        return
    relation = connection.from_parquet(files)
    doubled = relation.aggregate("video_id, count(*) AS n").filter("n > 1").limit(3).fetchall()
    if doubled:
        raise PublishError(f"table {table.name}: video {doubled[0][0]} has {doubled[0][1]} rows; nothing published")


def _row_group_rows(bytes_a_row: float) -> int:
    """Few enough that some copies of a row group fit memory well: a row with an embedding is as large as a hundred
    others.
    """
    return max(1, min(ROW_GROUP_ROWS, int(ROW_GROUP_BYTES / bytes_a_row)))


def _sorted_batches(
    connection: duckdb.DuckDBPyConnection, table: Table, files: list[str], batch_rows: int
) -> Iterator[pa.Table]:
    columns = ", ".join(f'"{name}"' for name in table.schema.names)
    order = ", ".join(f'"{name}"' for name in (*table.sort_by, *_tie_breakers(table)))
    relation = connection.from_parquet(files)
    # Column names come from core.schemas, never from data.
    ordered = relation.query("spooled", f"SELECT {columns} FROM spooled ORDER BY {order}")  # noqa: S608
    assert ordered is not None, "a SELECT gives a relation"
    try:
        for batch in ordered.to_arrow_reader(batch_rows):
            yield pa.Table.from_batches([batch]).cast(table.schema)
    except OSError as error:  # how pyarrow hands on what DuckDB raises while rows are fetched
        if "Out of Memory Error" not in str(error):
            raise
        raise duckdb.OutOfMemoryException(str(error)) from error


def _tie_breakers(table: Table) -> list[str]:
    """Plain columns that make the order of rows total, so that equal runs give equal files."""
    plain = (pa.types.is_string, pa.types.is_integer, pa.types.is_floating)
    return [f.name for f in table.schema if f.name not in table.sort_by and any(check(f.type) for check in plain)]


def _chunks(batches: Iterator[pa.Table]) -> Iterator[Iterator[pa.Table]]:
    """Cut a stream of batches into files of about `FILE_ROWS` rows; each inner iterator must be used up in turn."""
    first = next(batches, None)
    while first is not None:
        state: dict[str, pa.Table | None] = {"next": None}

        def one_file(head: pa.Table = first, state: dict[str, pa.Table | None] = state) -> Iterator[pa.Table]:
            rows = len(head)
            yield head
            for batch in batches:
                if rows >= FILE_ROWS:
                    state["next"] = batch
                    return
                rows += len(batch)
                yield batch

        yield one_file()
        first = state["next"]


def publish(
    output: Output,
    published: OutputReader,
    planned_on: str | None,
    staged: dict[str, list[ManifestFile]],
    run_id: str,
    created_at: datetime,
    versions: dict[str, str],
    counts: dict[str, int],
    still_ours: Callable[[], None] | None = None,
) -> Manifest:
    """Make a staged run the current one. Raises `PublishError`; until the last step the tables are as before.

    `planned_on` is the run that was current when this one was planned: if another was published meanwhile, the plan is
    stale and its counts are wrong. `still_ours` raises if the lock of the output was lost; it is asked before anything
    is moved and before the manifest is swapped.
    """
    before = output.version(CURRENT)
    parent = published.current()
    if (parent.run_id if parent else None) != planned_on:
        raise PublishError(f"run {parent.run_id if parent else None} was published meanwhile; run again")
    tables = {}
    for name in TABLES:
        files = [*(parent.tables[name].files if parent and name in parent.tables else ()), *staged[name]]
        tables[name] = ManifestTable(rows=sum(f.rows for f in files), files=tuple(files))
    manifest = Manifest(
        run_id=run_id,
        parent=parent.run_id if parent else None,
        created_at=created_at,
        feature_set=versions["feature_set"],
        model_version=versions["model_version"],
        taxonomy_version=versions["taxonomy_version"],
        counts=counts,
        tables=tables,
    )
    try:
        if still_ours is not None:
            still_ours()
        output.write_bytes(_intent(run_id), manifest.to_json().encode())
        _finish(output, manifest, before, still_ours)
    except OSError as error:
        raise PublishError(f"output.uri = {output.config.uri!r}: {error}; run again to finish publishing") from error
    return manifest


def _finish(
    output: Output, manifest: Manifest, before: str | None, still_ours: Callable[[], None] | None = None
) -> None:
    """Move the run's files to their places and swap the manifest. Safe to repeat after a crash at any point."""
    for table in manifest.tables.values():
        for file in table.files:
            if file.run_id == manifest.run_id:
                staging_name = _staging_name(manifest.run_id, file.path)
                if output.exists(staging_name):
                    output.move(staging_name, file.path)
                elif not output.exists(file.path):
                    raise PublishError(
                        f"{file.path} is neither staged nor in place; run {manifest.run_id} is not published"
                    )
    output.write_bytes(manifest_path(manifest.run_id), manifest.to_json().encode())
    if still_ours is not None:
        still_ours()
    point_to(output, manifest.run_id, before)
    try:
        output.delete_tree(f"staging/{manifest.run_id}")
    except OSError as error:
        log.warning("staging of run %s could not be removed, the next run tries again: %s", manifest.run_id, error)


def point_to(output: Output, run_id: str, before: str | None) -> None:
    """Put a run into force: replace the pointer, which is that of version `before` (`Output.version`)."""
    if not output.write_bytes_if(CURRENT, Pointer.to(run_id).to_json().encode(), before):
        raise PublishError(f"another run was published while {run_id} was; nothing published, run again")


def recover(output: Output, published: OutputReader, *written: str) -> str | None:
    """Clean up after a killed run: finish publishing one that was complete, drop what is left of one that was not.

    Only under the lock of the output: the staging of a run at work looks the same. A complete run that was planned on
    another one than that in force is dropped, too: it would bring back what was rolled back, or hide what was published
    meanwhile. `written` are folders beside `manifests` in which a killed run may have left unfinished files. Returns
    the id of a run that was finished now. Raises `ConfigError` for an output whose pointer is lost: it is not an empty
    one.
    """
    finished = None
    # Only folders that carry the name of a run are ours: somebody's output may hold other things.
    for run_id in (name for name in output.folders("staging") if RUN_ID.fullmatch(name)):
        before = output.version(CURRENT)
        current = published.current()  # the run before in this loop may have become it
        in_force = current.run_id if current is not None else None
        manifest = _complete(output, run_id) if run_id != in_force else None
        if manifest is not None and manifest.parent == in_force:
            _finish(output, manifest, before)
            finished = run_id
            log.warning("run %s was complete but not published when it stopped; published now", run_id)
            continue
        if manifest is not None:
            text = "run %s was complete when it stopped, but planned on run %s, and %s is in force now; dropped"
            log.warning(text, run_id, manifest.parent, in_force)
        _drop(output, run_id)
    for folder in ("", "manifests", *written):
        output.delete_unfinished(folder)
    runs = published.runs()
    if runs and published.current() is None:
        raise ConfigError(
            f"output.uri = {output.config.uri!r}: {CURRENT} is missing, and without it all older rows would be out of "
            f"sight; restore the file, or put a run into force: vca rollback {runs[-1]}"
        )
    return finished


def _complete(output: Output, run_id: str) -> Manifest | None:
    """The manifest of a staged run that can still be published; None where something of it is missing or damaged."""
    if not output.exists(_intent(run_id)):
        return None
    try:
        manifest = Manifest.from_json(output.read_bytes(_intent(run_id)), _intent(run_id))
    except ConfigError as error:
        log.warning("run %s was not published and is made again: %s", run_id, error)
        return None
    own = [file.path for table in manifest.tables.values() for file in table.files if file.run_id == run_id]
    lost = [path for path in own if not output.exists(_staging_name(run_id, path)) and not output.exists(path)]
    if lost or manifest.run_id != run_id:
        log.warning("run %s was not published and is made again: %d of its files are missing", run_id, len(lost))
        return None
    return manifest


def _drop(output: Output, run_id: str) -> None:
    """Remove what a run staged, and what it had moved already if it was never in force."""
    if not output.exists(manifest_path(run_id)):
        for name in TABLES:
            output.delete_tree(f"tables/{name}/run_id={run_id}")
    output.delete_tree(f"staging/{run_id}")


def _intent(run_id: str) -> str:
    return f"staging/{run_id}/manifest.json"


def _staging_name(run_id: str, target: str) -> str:
    return f"staging/{run_id}/{target}"
