"""SQL over the published tables: DuckDB views that follow the manifest and show the newest rows of every video."""

import csv
import io
import json
import math
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from datetime import UTC, date, datetime
from functools import lru_cache, partial
from typing import Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.spec import AbstractFileSystem

from vca.core.errors import CODES, ConfigError, ErrorCode, one_line
from vca.core.schemas import TABLES, Status
from vca.tables.manifest import Manifest, ManifestFile, OutputReader, config_errors

SCHEME = "published"
"""Scheme under which DuckDB sees the files that the manifest names."""

THREADS = 4
"""Enough to overlap requests to object storage; a query is a guest on the machine."""

WHOLE_FILE_BYTES = 4 << 20
"""Files up to this size are fetched in one request; larger ones by the ranges that a query needs."""


def connect(reader: OutputReader) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB with the views of `create_views`, closed to everything else.

    SQL can read the manifest's files and nothing more: no other file, no network, no extension, no Python variable,
    no change of settings. The files themselves are read-only. Timestamps are UTC. The views show the manifest of this
    moment; a run published later needs a new connection.
    """
    connection = duckdb.connect(
        config={
            "threads": THREADS,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,
        }
    )
    try:
        connection.execute("SET TimeZone = 'UTC'")
        create_views(connection, reader)
        connection.execute(f"SET allowed_directories = ['{SCHEME}://']")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
    except BaseException:
        connection.close()
        raise
    return connection


def create_views(connection: duckdb.DuckDBPyConnection, reader: OutputReader) -> None:
    """Create two views for every table: `all_<table>` with every live row, and `<table>` with the newest ones.

    - `videos`: the row of the newest run per video. A row with status deferred only says that a run did not get to the
      video, so it counts only where there is no other. Videos that are gone are left out.
    - other tables: the rows that belong to the row in `videos`; `quarantine` only where that row is quarantined.
    - `runs`: all rows.

    The views have the columns of `core.schemas`, also over files of another version of vca, and without any file. Once
    per connection. No file is read yet; so that queries raise `ConfigError` for one that cannot be, run them inside
    `one_line_errors`.
    """
    manifest = reader.current()
    connection.register_filesystem(_PublishedFiles(reader, manifest))
    for name, table in TABLES.items():
        files = () if manifest is None else manifest.files(name)
        with one_line_errors(reader.uri):
            connection.execute(f"CREATE VIEW all_{name} AS {_read(files, table.schema)}")
    for name in TABLES:
        with one_line_errors(reader.uri):
            connection.execute(f"CREATE VIEW {name} AS {_NEWEST.get(name, _BESIDE_VIDEO.format(name=name))}")


_NEWEST = {
    "videos": """
        SELECT * FROM (
            SELECT * FROM all_videos
            QUALIFY row_number() OVER (PARTITION BY video_id ORDER BY status = 'deferred', run_id DESC) = 1
        ) WHERE status <> 'gone'""",
    "quarantine": """
        SELECT q.* FROM all_quarantine q
        SEMI JOIN (SELECT * FROM videos WHERE status = 'quarantined') v USING (video_id, run_id)""",
    "runs": "SELECT * FROM all_runs",
}
_BESIDE_VIDEO = "SELECT t.* FROM all_{name} t SEMI JOIN videos v USING (video_id, run_id)"
assert next(iter(TABLES)) == "videos", "the other views look at videos"


def _read(files: Sequence[ManifestFile], schema: pa.Schema) -> str:
    """All rows of some files, with the columns of `schema`: null where a file was written without one.

    Named like this, no file is opened before a query wants its rows. DuckDB would else take the columns of the first
    file, or open all of them (`union_by_name`). The price: it plans joins without knowing how many rows there are, and
    it takes the fields of a struct by their place, so structs must never change.
    """
    if not files:
        return "SELECT " + ", ".join(f'CAST(NULL AS {kind}) AS "{n}"' for n, kind in _columns(schema)) + " WHERE false"
    # The manifest's paths hold no quotes or pattern characters; those of the output itself never reach DuckDB.
    paths = ", ".join(f"'{SCHEME}://{file.path}'" for file in files)
    columns = ", ".join(
        f"'{n}': {{'name': '{n}', 'type': '{kind}', 'default_value': NULL}}" for n, kind in _columns(schema)
    )
    # run_id is a column of the files; taking it from the path as well would make it a second, untyped truth.
    return f"FROM read_parquet([{paths}], hive_partitioning = false, schema = MAP {{{columns}}})"


@lru_cache(maxsize=len(TABLES))  # opening and closing a DuckDB costs more than a query
def _columns(schema: pa.Schema) -> list[tuple[str, str]]:
    """Names and DuckDB's types."""
    with closing(duckdb.connect()) as connection:
        relation = connection.from_arrow(schema.empty_table())
        return [(name, str(kind)) for name, kind in zip(relation.columns, relation.types, strict=True)]


def query(reader: OutputReader, sql: str) -> pa.Table:
    """Run one SELECT (or DESCRIBE, SUMMARIZE, SHOW, EXPLAIN) over the views.

    Raises `ConfigError`, one line with DuckDB's hint, for wrong SQL, for other statements and for an output without a
    published run: a mistyped location must not look like an empty archive.
    """
    with one_line_errors(reader.uri):
        statements = duckdb.extract_statements(sql)
    if len(statements) != 1:
        raise ConfigError(f"query: {len(statements)} statements; give one")
    if statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
        raise ConfigError(f"query: {statements[0].type.name} is not a SELECT; the tables are read-only")
    _published(reader)
    with closing(connect(reader)) as connection:
        return _run(connection, sql, reader.uri)


_QUERY_COPY = "\n\nLINE "
"""DuckDB ends its messages with a copy of the query that starts so."""


def _run(connection: duckdb.DuckDBPyConnection, sql: str, uri: str) -> pa.Table:
    with one_line_errors(uri):
        return connection.sql(sql).to_arrow_table()


@contextmanager
def one_line_errors(uri: str) -> Iterator[None]:
    """Turn what DuckDB and its Arrow readers raise about the views into a `ConfigError` of one line.

    Files are read when rows are, so put this around the reading of results too, not only around `create_views`. A
    published file of the output at `uri` that is lost or damaged is told apart from wrong SQL.
    """
    try:
        yield
    except (duckdb.Error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the machine; what Arrow makes of DuckDB's errors has no number
        text = str(error)
        _, ours, said = text.rpartition(f"{ConfigError.__name__}: ")
        if ours:  # raised by `_PublishedFiles.fetch`: DuckDB hands on the whole traceback, of which this is the end
            raise ConfigError(one_line(said)) from error
        # Views are the only files in reach; what has no class of its own comes from inside the Parquet reader.
        if f"{SCHEME}://" in text or type(error) in (duckdb.Error, OSError):
            raise ConfigError(f"{uri}: a published file is damaged ({one_line(text)}); {_WAY_OUT}") from error
        raise ConfigError(f"query: {one_line(text.partition(_QUERY_COPY)[0])}") from error


_WAY_OUT = "restore the file or roll back to an older run"


def _published(reader: OutputReader) -> Manifest:
    manifest = reader.current()
    if manifest is None:
        raise ConfigError(f"{reader.uri}: no run has been published here; check the location or run `vca tag` first")
    return manifest


def format_table(table: pa.Table, limit: int | None = 50, style: Literal["text", "csv", "json"] = "text") -> str:
    """A result as text: a box for terminals, CSV with a header, or JSON, one object a line.

    Shows at most `limit` rows (None: all); ends without a line break. Control characters in a box and in JSON are shown
    as escapes. In CSV, lists and structs are JSON, and texts that a spreadsheet would run as a formula start with an
    apostrophe. Times are ISO 8601 in UTC.
    """
    shown = table if limit is None else table.slice(0, limit)
    if style == "text":
        return _box(shown, table.num_rows)
    rows = [[_plain(value) for value in row.values()] for row in _unique_names(shown).to_pylist()]
    if style == "json":
        names = _unique_names(shown).column_names
        lines = (json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, allow_nan=False) for row in rows)
        return _UNSAFE.sub(_json_escape, "\n".join(lines))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.column_names)
    for row in rows:
        writer.writerow([_csv_cell(value) for value in row])
    text = buffer.getvalue().rstrip("\n")
    return _UNSAFE.sub(_escape, text) if sys.stdout.isatty() else text


_FORMULA = re.compile(r"[=+\-@\t\r](?!\.?\d[\d.]*(?:[eE][+-]?\d+)?\Z)")
"""How a cell starts that a spreadsheet runs; a number with its sign is none."""


def _csv_cell(value: Any) -> Any:
    """The price of the apostrophe: such a text is not quite what the table holds. JSON has it unchanged."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _unique_names(table: pa.Table) -> pa.Table:
    """SQL may name two columns alike; a row as a dictionary would lose one."""
    seen: dict[str, int] = {}
    names = []
    for name in table.column_names:
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return table.rename_columns(names)


def _plain(value: Any) -> Any:
    """A value of `to_pylist` as JSON knows it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z") if value.tzinfo else value.isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _box(table: pa.Table, total: int) -> str:
    if table.column_names == ["explain_key", "explain_value"]:
        return "\n".join(table.column("explain_value").to_pylist())
    # Columns that do not fit a terminal are left out, which the box says; a pipe or a file gets them all.
    width = max(100, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 10_000
    with closing(duckdb.connect()) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        buffer = io.StringIO()
        with redirect_stdout(buffer):
            connection.from_arrow(table).show(max_rows=max(1, table.num_rows), max_width=width, max_col_width=80)
    note = f"\n{table.num_rows} of {total} rows shown" if table.num_rows < total else ""
    return f"{_UNSAFE.sub(_escape, buffer.getvalue().rstrip())}{note}"


_UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What moves a terminal's cursor or turns the direction of text. DuckDB escapes most of it, but not all."""


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _json_escape(found: re.Match[str]) -> str:
    """Still the same value. Python leaves the second block of control characters and marks of direction as they are."""
    return f"\\u{ord(found[0]):04x}"


_VIDEOS = """
    SELECT status, count(*) AS n, coalesce(sum(duration_s), 0) / 3600 AS hours
    FROM videos GROUP BY ALL ORDER BY n DESC, status"""
_FAILURES = """
    SELECT error_code, count(*) AS n, count_if(will_retry) AS retried
    FROM quarantine GROUP BY ALL ORDER BY n DESC, error_code"""
_RUNS = """
    SELECT run_id, status, listed, tagged, partial, unchanged, quarantined, deferred, gone, wall_s
    FROM runs ORDER BY run_id DESC LIMIT 5"""


def status(reader: OutputReader) -> str:
    """One screen for a person: the run in force, how it balanced, the videos, the quarantine and the newest runs."""
    manifest = _published(reader)
    with closing(connect(reader)) as connection:
        videos, failures, runs = (_run(connection, sql, reader.uri) for sql in (_VIDEOS, _FAILURES, _RUNS))
    counts = ", ".join(f"{n} {state}" for state, n in manifest.counts.items() if n)
    lines = [
        f"output         {reader.uri}",
        f"last run       {manifest.run_id}, published {manifest.created_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC",
        f"  counts       {counts or 'none'}",
        f"  feature set  {manifest.feature_set}",
        f"  model        {manifest.model_version}",
        f"  taxonomy     {manifest.taxonomy_version}",
        "",
        f"videos         {pc.sum(videos.column('n')).as_py() or 0}",
    ]
    lines += [f"  {row['status']:<19}{row['n']:>9}{row['hours']:>10.1f} h" for row in videos.to_pylist()]
    lines += ["", f"quarantine     {pc.sum(failures.column('n')).as_py() or 0}"]
    for row in failures.to_pylist():
        code = row["error_code"]
        meaning = CODES[ErrorCode(code)].meaning if code in set(ErrorCode) else "code of another version"
        again = f"; {row['retried']} will be tried again" if row["retried"] else ""
        lines.append(f"  {code:<19}{row['n']:>9}  {meaning}{again}")
    lines += ["", "newest runs"]
    for row in runs.to_pylist():
        states = ", ".join(f"{row[state]} {state}" for state in map(str, Status) if row[state])
        lines.append(f"  {row['run_id']}  {row['status']}, {row['wall_s']:.0f} s: {row['listed']} listed, {states}")
    newer = [run_id for run_id in reader.runs() if run_id > manifest.run_id]
    lines += [f"  {run_id}  rolled back; `vca rollback {run_id}` goes forward to it" for run_id in newer[-5:]]
    return "\n".join(lines)


class _PublishedFiles(AbstractFileSystem):  # type: ignore[misc]
    """The manifest's files as a read-only filesystem for DuckDB, the same for local disks and object storage.

    Handing DuckDB the storage's own fsspec filesystem instead was measured and rejected: it asks for the metadata of
    every file seven times a query, treats brackets in a path as a pattern, lets COPY overwrite a table, and lets
    threads share one file position between seek and read, which returned bytes of the wrong place. The price: reads of
    local files pass through Python; a scan of 4 million rows took the same time.
    """

    protocol = SCHEME
    cachable = False

    def __init__(self, reader: OutputReader, manifest: Manifest | None) -> None:
        super().__init__()
        tables = manifest.tables.values() if manifest is not None else ()
        self._sizes = {file.path: file.size_bytes for table in tables for file in table.files}
        self._reader = reader
        # Every view opens the first file of its tables again. At most 16 * WHOLE_FILE_BYTES of memory.
        self._whole_file = lru_cache(maxsize=16)(self._fetch_whole)

    def _fetch_whole(self, path: str) -> bytes:
        return self.fetch(path, 0, self._sizes[path])

    def fetch(self, path: str, start: int, end: int) -> bytes:
        """Bytes `[start, end)` of a file, all of them or a `ConfigError`: a lost file must not shrink an answer."""
        source = f"{self._reader.uri.rstrip('/')}/{path}"
        try:
            with config_errors(source):  # with a range, s3fs does not ask for the size first
                data = bytes(self._reader.fs.cat_file(f"{self._reader.root}/{path}", start=start, end=end))
        except FileNotFoundError as error:
            raise ConfigError(f"{source}: a published file is missing; {_WAY_OUT}") from error
        if len(data) != end - start:
            raise ConfigError(f"{source}: a published file is shorter than it was; {_WAY_OUT}")
        return data

    def _size(self, path: str) -> int:
        size = self._sizes.get(self._strip_protocol(path))
        if size is None:
            raise FileNotFoundError(f"{path} is not in the manifest")
        return size

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": self._strip_protocol(path), "size": self._size(path), "type": "file"}

    def modified(self, path: str) -> datetime:  # noqa: ARG002
        """Published files never change: any constant is true. DuckDB compares it to validate its cache."""
        return datetime.fromtimestamp(0, UTC)

    def glob(self, path: str, **_: Any) -> list[str]:
        """Exact names only."""
        name = self._strip_protocol(path)
        return [name] if name in self._sizes else []

    def open(self, path: str, mode: str = "rb", **_: Any) -> "_PublishedFile":
        if mode != "rb":
            raise PermissionError(f"{path}: the tables are read-only")
        name, size = self._strip_protocol(path), self._size(path)
        if size > WHOLE_FILE_BYTES:
            return _PublishedFile(size, partial(self.fetch, name))
        return _PublishedFile(size, lambda start, end: self._whole_file(name)[start:end])


class _PublishedFile:
    """One open file. Every thread has its own position: DuckDB seeks and reads from several threads on one handle."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._fetch = fetch
        self._position = threading.local()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._size}[whence]
        self._position.at = base + offset
        return base + offset

    def tell(self) -> int:
        return int(getattr(self._position, "at", 0))

    def read(self, n_bytes: int = -1) -> bytes:
        start = self.tell()
        end = self._size if n_bytes < 0 else min(start + n_bytes, self._size)
        if start >= end:
            return b""
        data = self._fetch(start, end)
        self._position.at = start + len(data)
        return data

    def seekable(self) -> bool:
        return True

    def flush(self) -> None:
        """Nothing to do; DuckDB calls it on every handle."""

    def close(self) -> None:
        """Nothing is held open."""
