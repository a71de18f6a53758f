"""What is published: one JSON manifest per run and `manifests/current.json`, which names the one in force.

A manifest lists every live file, those of its parents included, so one read tells a reader all there is. Readers never
list `tables/`: a file that no manifest names is not published.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import fsspec
from pydantic import (
    AfterValidator,
    AwareDatetime,
    Field,
    StringConstraints,
    ValidationError,
    field_serializer,
    model_validator,
)

from vca.core.config import Config
from vca.core.errors import ConfigError, one_line
from vca.core.storage import StorageConfig, check_uri, is_s3

FORMAT: Final = 1
"""Version of both JSON files. A reader refuses any other."""
CURRENT = "manifests/current.json"

_TABLE = r"[a-z][a-z0-9_]{0,62}"
_RUN = r"(?!current$)[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.parquet"
_FILE = re.compile(
    rf"tables/(?P<table>{_TABLE})/run_id=(?P<run>[A-Za-z0-9._-]+)/[A-Za-z0-9][A-Za-z0-9._-]{{0,99}}\.parquet"
)


def _check_run_id(value: str) -> str:
    if not re.fullmatch(_RUN, value):
        raise ValueError("a run id is 1 to 100 of A-Z a-z 0-9 . _ - and not 'current'")
    return value


RunId = Annotated[str, AfterValidator(_check_run_id)]
TableName = Annotated[str, StringConstraints(pattern=f"^{_TABLE}$")]
Count = Annotated[int, Field(ge=0)]


def manifest_path(run_id: str) -> str:
    """Where the manifest of a run lies, relative to the output."""
    return f"manifests/{run_id}.json"


def table_file_path(table: str, run_id: str, name: str) -> str:
    """Where a published file lies, relative to the output."""
    return f"tables/{table}/run_id={run_id}/{name}"


class ManifestFile(Config):
    """One Parquet file. `path` is relative to the output."""

    path: Annotated[str, StringConstraints(max_length=400)]
    run_id: RunId
    rows: Count
    size_bytes: Annotated[int, Field(gt=0)]


class ManifestTable(Config):
    """All live files of one table."""

    rows: Count
    files: tuple[ManifestFile, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        counted = sum(file.rows for file in self.files)
        if counted != self.rows:
            raise ValueError(f"rows = {self.rows}, but the files hold {counted}")
        return self


class Manifest(Config):
    """What the output holds once this run is in force.

    Every path has the one form `tables/<table>/run_id=<run>/<name>.parquet`. A closed form is easier to trust than a
    list of what is forbidden: nothing outside the output, no pattern characters, no quotes.
    """

    format: Literal[1] = 1
    run_id: RunId
    parent: RunId | None = None
    created_at: AwareDatetime
    feature_set: str
    model_version: str
    taxonomy_version: str
    counts: dict[str, Count]
    """Objects by state at the end of the run."""
    tables: dict[TableName, ManifestTable]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.parent == self.run_id:
            raise ValueError(f"run {self.run_id} is its own parent")
        seen: set[str] = set()
        for name, table in self.tables.items():
            for file in table.files:
                parts = _FILE.fullmatch(file.path)
                if parts is None or (parts["table"], parts["run"]) != (name, file.run_id):
                    expected = table_file_path(name, file.run_id, "<name>.parquet")
                    raise ValueError(f"path {file.path!r} of table {name} is not of the form {expected}")
                if file.path in seen:
                    raise ValueError(f"path {file.path!r} is listed twice")
                seen.add(file.path)
        return self

    @field_serializer("created_at")
    def _utc(self, value: AwareDatetime) -> str:
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")

    def files(self, table: str) -> tuple[ManifestFile, ...]:
        """Live files of a table, oldest run first; none for a table without rows."""
        entry = self.tables.get(table)
        return () if entry is None else tuple(sorted(entry.files, key=lambda file: (file.run_id, file.path)))

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "manifest") -> "Manifest":
        """Parse and check; anything unexpected is a `ConfigError` that names `source`."""
        return _parse(cls, text, source)


class Pointer(Config):
    """`manifests/current.json`."""

    format: Literal[1] = 1
    run_id: RunId
    manifest: str

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.manifest != manifest_path(self.run_id):
            raise ValueError(f"manifest {self.manifest!r} is not {manifest_path(self.run_id)!r}")
        return self

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> "Pointer":
        return _parse(cls, text, source)

    @classmethod
    def to(cls, run_id: str) -> "Pointer":
        return cls(run_id=run_id, manifest=manifest_path(run_id))


@dataclass(frozen=True)
class OutputReader:
    """Reads one output through an fsspec filesystem. Holds no state: every call sees the manifest of that moment."""

    uri: str
    fs: Any
    root: str
    run_id: str | None = None
    """The run to read as if it were in force; None follows the pointer."""

    def at(self, run_id: str) -> "OutputReader":
        """The output as it was after this run, for queries on older states."""
        return replace(self, run_id=run_id)

    def current(self) -> Manifest | None:
        """The manifest in force; None where nothing has been published yet."""
        if self.run_id is not None:
            return self.manifest(self.run_id)
        source = self._source(CURRENT)
        text = self._read(CURRENT)
        if text is None:
            return None
        return self.manifest(Pointer.from_json(text, source).run_id)

    def manifest(self, run_id: str) -> Manifest:
        """The manifest of a run, in force or not. Raises `ConfigError` for an unknown run."""
        try:
            path = manifest_path(_check_run_id(run_id))
        except ValueError as error:
            raise ConfigError(f"run {run_id!r}: {error}") from error
        text = self._read(path)
        if text is None:
            known = self.runs()
            newest = f"; newest: {', '.join(known[-3:])}" if known else ""
            raise ConfigError(f"{self._source(path)}: no such run{newest}")
        manifest = Manifest.from_json(text, self._source(path))
        if manifest.run_id != run_id:
            raise ConfigError(f"{self._source(path)}: holds run {manifest.run_id!r}; restore the file")
        return manifest

    def runs(self) -> list[str]:
        """Every run that has a manifest, oldest first, those that a rollback left behind included."""
        with config_errors(self._source("manifests")):
            try:
                names = self.fs.ls(f"{self.root}/manifests", detail=False)
            except FileNotFoundError:
                return []
        stems = [re.fullmatch(rf"({_RUN})\.json", name.rpartition("/")[2]) for name in names]
        return sorted(stem[1] for stem in stems if stem and stem[1] != "current")

    def files(self, table: str) -> list[str]:
        """Live files of a table as local paths or s3:// addresses, oldest run first."""
        manifest = self.current()
        return [] if manifest is None else [self.location(file.path) for file in manifest.files(table)]

    def location(self, path: str) -> str:
        """A path relative to the output, as other programs want it: a local path or an s3:// address."""
        full = f"{self.root}/{path}"
        return f"s3://{full}" if is_s3(self.uri) else full

    def _source(self, path: str) -> str:
        return f"{self.uri.rstrip('/')}/{path}"

    def _read(self, path: str) -> bytes | None:
        with config_errors(self._source(path)):
            try:
                return bytes(self.fs.cat_file(f"{self.root}/{path}"))
            except (FileNotFoundError, NotADirectoryError):
                return None


def open_output(uri: str, storage: StorageConfig) -> OutputReader:
    """A reader of the output at `uri` (a local path or s3://bucket/prefix). Touches nothing yet."""
    try:
        check_uri(uri)
    except ValueError as error:
        raise ConfigError(f"output {uri!r}: {error}") from error
    with config_errors(uri):
        fs, root = fsspec.core.url_to_fs(uri, **storage.options(uri))
    return OutputReader(uri, fs, str(root).rstrip("/"))


@contextmanager
def config_errors(source: str) -> Iterator[None]:
    """Turn a refusal, a broken connection and the like into a `ConfigError` of one line; other errors pass.

    A missing file passes too: what that means, the caller knows.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        # s3fs translates most answers to OSError; the rest are botocore's own, which this room does not import.
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("botocore.", "aiohttp.")):
            raise
        raise ConfigError(f"{source}: {_reason(error)}; check the address and the storage settings") from error


def _reason(error: BaseException) -> str:
    """Class, errno text and bare S3 code: what servers write may hold signed addresses and account names."""
    said = [type(error).__name__]
    if isinstance(error, OSError) and error.errno is not None:
        said.append(os.strerror(error.errno))
    for candidate in (error, error.__cause__):  # s3fs keeps botocore's error as the cause of its own
        response = getattr(candidate, "response", None)
        code = str(response.get("Error", {}).get("Code", "")) if isinstance(response, Mapping) else ""
        if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", code):
            said.append(code)
            break
    return ", ".join(said)


FileT = TypeVar("FileT", Manifest, Pointer)


def _parse(model: type[FileT], text: str | bytes, source: str) -> FileT:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, absurd nesting
        raise ConfigError(f"{source}: not valid JSON ({one_line(str(error))}); restore the file") from error
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise ConfigError(f"{source}: format {found!r} is unknown, this version reads {FORMAT}; install a newer vca")
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or model.__name__.lower()
        problem = one_line(first["msg"].removeprefix("Value error, "))
        raise ConfigError(f"{source}: {field}: {problem}; the file was damaged or written by something else") from error
