"""The place where results go: a folder or a bucket, written so that a reader never sees half a file."""

import errno
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from pydantic import field_validator

from vca.core.config import Config
from vca.core.errors import ConfigError, ErrorCode, MediaError
from vca.core.storage import StorageConfig, is_s3
from vca.media.s3 import ConditionsUnknownError, S3Location, preflight_error, storage_error, storage_exceptions
from vca.media.storage import normalise_uri

logger = logging.getLogger(__name__)

TEMPORARY = ".vca-tmp-"
"""Start of the names of unfinished local files and of the S3 probe; `list` leaves them out."""

DELETE_BATCH = 1000  # most keys that one DeleteObjects request may name


class OutputConfig(Config):
    uri: str
    """Local folder (made on first write) or s3://bucket/prefix."""
    storage: StorageConfig = StorageConfig()
    """How to reach the bucket; no meaning for a folder."""

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, value: str) -> str:
        return normalise_uri(value)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in the output. `path` is relative to it."""

    path: str
    size_bytes: int
    modified_at: datetime


class Output:
    """Files below one root, named by relative paths with `/`. Cheap to make and to pickle.

    All methods raise OSError (FileNotFoundError for what is not there) with one clean line for every failure of the
    storage, and ConfigError for a path that leads out of the root: such paths can come from a damaged manifest.
    """

    def __init__(self, config: OutputConfig) -> None:
        # Made absolute here and not in the worker, which has another working directory.
        uri = config.uri if is_s3(config.uri) else str(Path(config.uri).expanduser().absolute())
        self.config = config
        self._s3 = S3Location(uri, config.storage) if is_s3(uri) else None
        self.root: str = self._s3.root if self._s3 is not None else uri
        """Root of all paths in `filesystem`, without a slash at the end."""

    @property
    def s3(self) -> S3Location | None:
        """The place in the bucket, for what only object storage has; None for a folder."""
        return self._s3

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem of this process, for pyarrow and DuckDB."""
        if self._s3 is not None:
            return self._s3.filesystem
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem()

    def path(self, *parts: str) -> str:
        """Full path of a file or folder for `filesystem`."""
        relative = self._relative("/".join(parts))
        return f"{self.root.rstrip('/')}/{relative}" if relative else self.root

    def uri_of(self, relative: str) -> str:
        """Where the file lies, for people and manifests."""
        return f"s3://{self.path(relative)}" if self._s3 is not None else self.path(relative)

    @staticmethod
    def _relative(relative: str) -> str:
        relative = relative.rstrip("/")
        if relative and any(part in ("", ".", "..") or "\0" in part for part in relative.split("/")):
            raise ConfigError(f"output: {relative!r} is not a path inside the output")
        return relative

    def _local(self, relative: str) -> Path:
        return Path(self.path(relative))

    @contextmanager
    def errors(self, relative: str) -> Iterator[None]:
        """Turn what the storage raises inside the block into an OSError with one clean line about `relative`."""
        try:
            yield
        except MediaError as error:
            raise _os_error(error, relative) from error
        except storage_exceptions() as error:
            raise _os_error(storage_error(error, relative), relative) from error

    # ------------------------------------------------------------------------------------------------ pre-flight

    def check_writable(self) -> None:
        """`ConfigError` with one line and the way out if results could not be written. Leaves nothing behind.

        Locally nothing is made: the nearest folder that exists must be writable. On S3 only a write can tell, so an
        empty probe object is put under the prefix and deleted again (a versioned bucket keeps its delete marker).
        """
        if self._s3 is None:
            self._check_local()
            return
        place = self._s3.preflight()
        probe = f"{place.prefix}{TEMPORARY}{uuid.uuid4().hex}"
        try:
            place.call("put_object", Key=probe, Body=b"")
            place.call("delete_object", Key=probe)
        except storage_exceptions() as error:
            raise preflight_error(error, "output", self.config.uri, self.config.storage) from error

    def _check_local(self) -> None:
        where = f"output.uri = {self.config.uri!r}"
        folder = Path(self.root)
        try:
            while not folder.exists() and not folder.is_symlink():
                folder = folder.parent
            is_folder = folder.is_dir()
        except OSError as error:
            raise ConfigError(f"{where}: {os.strerror(error.errno or 0)}; check the path and its mount") from error
        if not is_folder:
            raise ConfigError(f"{where}: {folder.name!r} in this path is no folder; choose another place")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"{where}: this user may not write there; give the permission or choose another place")

    # ------------------------------------------------------------------------------------------------ whole files

    def write_bytes(self, relative: str, data: bytes) -> None:
        """Create or replace a file in one step: rename of a synced temporary file, or one PUT."""
        if self._s3 is not None:
            with self.errors(relative):
                self._s3.call("put_object", Key=self._key(relative), Body=data)
            return
        with self.open_write(relative) as file:
            file.write(data)

    def version(self, relative: str) -> str | None:
        """What `write_bytes_if` compares. None where there is no such file, and for a folder on a disk."""
        if self._s3 is None:
            return None
        with self.errors(relative):
            return self._s3.etag(self._relative(relative))

    def write_bytes_if(self, relative: str, data: bytes, version: str | None) -> bool:
        """Replace a file in one step unless it is another one than `version` by now; returns whether it was replaced.

        On a disk, and on servers without conditional writes, it is always replaced.
        """
        if self._s3 is None:
            self.write_bytes(relative, data)
            return True
        key = self._relative(relative)
        with self.errors(relative):
            try:
                if self._s3.put_if(key, data, version) is not None:
                    return True
            except ConditionsUnknownError:
                self._s3.call("put_object", Key=self._s3.prefix + key, Body=data)
                return True
            # botocore repeats a request whose answer got lost: then it is our own first try that stands in the way.
            there = self._s3.stored(key, len(data) + 1)
            return there is not None and there.data == data

    def read_bytes(self, relative: str) -> bytes:
        with self.errors(relative):
            if self._s3 is None:
                return self._local(relative).read_bytes()
            return self._s3.read_start(self._relative(relative), sys.maxsize)

    def exists(self, relative: str) -> bool:
        """Whether there is such a file, or a folder with anything in it."""
        with self.errors(relative):
            if self._s3 is None:
                path = self._local(relative)
                return path.is_file() or (path.is_dir() and any(path.iterdir()))
            key = self._key(relative)
            page = self._s3.call("list_objects_v2", Prefix=key, MaxKeys=1)
            # In key order "a" is first, but "a-b" comes before "a/": a second look decides about the folder.
            if any(entry["Key"] == key for entry in page.get("Contents", [])):
                return True
            return bool(self._s3.call("list_objects_v2", Prefix=key + "/", MaxKeys=1).get("Contents"))

    def list(self, relative_prefix: str = "") -> list[str]:
        """Sorted relative paths of all files below a folder; empty if there is no such folder."""
        folder = self._relative(relative_prefix)
        with self.errors(folder):
            return sorted(name for name in self._walk(folder) if not name.rpartition("/")[2].startswith(TEMPORARY))

    def folders(self, relative: str) -> tuple[str, ...]:
        """Sorted names of the folders directly in a folder, also of those that hold unfinished files only."""
        folder = self._relative(relative)
        with self.errors(folder):
            depth = len(folder) + 1
            return tuple(sorted({name[depth:].split("/")[0] for name in self._walk(folder) if "/" in name[depth:]}))

    def entries(self, relative: str) -> Iterator[Entry]:
        """All files below a folder with size and time of change, unfinished ones included, in no order."""
        folder = self._relative(relative)
        with self.errors(folder):
            if self._s3 is not None:
                for page in self._s3.pages(folder + "/"):
                    for found in page:
                        name = found["Key"][len(self._s3.prefix) :]
                        if not name.endswith("/"):
                            yield Entry(name, int(found["Size"]), found["LastModified"])
                return
            for name in self._walk(folder):
                with suppress(FileNotFoundError):  # gone since it was listed
                    status = (Path(self.root) / name).lstat()
                    yield Entry(name, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))

    def _walk(self, folder: str) -> Iterator[str]:
        if self._s3 is not None:
            for page in self._s3.pages(folder + "/" if folder else ""):
                for entry in page:
                    name = entry["Key"][len(self._s3.prefix) :]
                    if name and not name.endswith("/"):
                        yield name
            return
        root = Path(self.root)
        if not (root / folder).is_dir():
            return

        def fail(error: OSError) -> None:
            raise error  # os.walk passes over folders that it cannot read, which would make a short list

        for parent, _, names in os.walk(root / folder, onerror=fail):
            for name in names:
                yield (Path(parent) / name).relative_to(root).as_posix()

    # ------------------------------------------------------------------------------------------------ streams and moves

    @contextmanager
    def open_write(self, relative: str) -> Iterator[BinaryIO]:
        """A binary file that appears under its name when the block ends, whole, or not at all if the block raises.

        For writing only. What its own methods raise is an OSError with one clean line, as everywhere here; other errors
        of the block are the caller's and pass as they are.
        """
        with self.errors(relative):
            pending: _Pending = (
                _LocalPending(self._local(relative))
                if self._s3 is None
                # autocommit=False: closing uploads the last part, and only commit() makes the object appear.
                else _S3Pending(self.filesystem.open(self.path(relative), "wb", autocommit=False))
            )
        try:
            # Duck typing is all that pyarrow asks for. The proxy has no base class, because io's would close it in its
            # destructor and so upload what was given up.
            yield cast(BinaryIO, _Written(self, relative, pending.file))
            with self.errors(relative):
                pending.commit()
        except BaseException:
            try:
                with self.errors(relative):
                    pending.discard()
            except OSError as error:  # the failure that led here matters more
                logger.warning("an unfinished file was left behind: %s", error)
            raise

    def move(self, source_relative: str, target_relative: str) -> None:
        """Move one file, replacing the target: a rename, or on S3 (which has none) a server-side copy and a delete."""
        with self.errors(source_relative):
            if self._s3 is not None:
                self.filesystem.cp_file(self.path(source_relative), self.path(target_relative))
                self._s3.call("delete_object", Key=self._key(source_relative))
                return
            source, target = self._local(source_relative), self._local(target_relative)
            if not source.is_file():
                raise FileNotFoundError(source_relative)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
            _sync(target.parent)

    def delete(self, relative: str) -> None:
        """Delete one file; it is fine if there is none."""
        with self.errors(relative):
            if self._s3 is not None:
                self._s3.call("delete_object", Key=self._key(relative))
            else:
                self._local(relative).unlink(missing_ok=True)

    def delete_files(self, relatives: Iterable[str]) -> None:
        """Delete files in this order; it is fine if some are not there. Folders on a disk that become empty go too."""
        if self._s3 is not None:
            names = list(relatives)
            for first in range(0, len(names), DELETE_BATCH):
                with self.errors(names[first]):
                    self._delete_keys([self._key(name) for name in names[first : first + DELETE_BATCH]])
            return
        for relative in relatives:
            self.delete(relative)
            with suppress(OSError):  # not empty yet
                for folder in self._local(relative).relative_to(self.root).parents[:-2]:
                    (Path(self.root) / folder).rmdir()

    def _delete_keys(self, keys: Sequence[str]) -> None:
        assert self._s3 is not None
        assert len(keys) <= DELETE_BATCH
        answer = self._s3.call("delete_objects", Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True})
        if answer.get("Errors"):
            raise PermissionError(f"{len(answer['Errors'])} objects could not be deleted")

    def delete_unfinished(self, relative: str) -> None:
        """Delete the unfinished files that a killed process left directly in a folder."""
        folder = self._relative(relative)
        start = f"{folder}/{TEMPORARY}" if folder else TEMPORARY
        with self.errors(folder):
            if self._s3 is not None:
                for page in self._s3.pages(start):
                    for entry in page:
                        self._s3.call("delete_object", Key=entry["Key"])
            else:
                for path in self._local(folder).glob(f"{TEMPORARY}*"):
                    path.unlink(missing_ok=True)

    def delete_tree(self, relative: str) -> None:
        """Delete everything below a folder; it is fine if there is none. The root itself is refused."""
        folder = self._relative(relative)
        assert folder, "the whole output is never deleted"
        with self.errors(folder):
            if self._s3 is None:
                if self._local(folder).is_dir():
                    shutil.rmtree(self._local(folder))
                return
            for page in self._s3.pages(folder + "/"):
                if page:
                    self._delete_keys([entry["Key"] for entry in page])

    def _key(self, relative: str) -> str:
        assert self._s3 is not None
        return self._s3.prefix + self._relative(relative)


def _os_error(failure: MediaError, relative: str) -> OSError:
    if failure.code == ErrorCode.OBJECT_MISSING:
        return FileNotFoundError(f"output: no such file: {relative}")
    return OSError(f"output: {failure.message}")


class _Written:
    """The file that `open_write` hands out: an upload goes on while it is written, and so may fail there."""

    def __init__(self, output: Output, relative: str, file: BinaryIO) -> None:
        self._output, self._relative, self._file = output, relative, file

    def write(self, data: Any) -> int:
        with self._output.errors(self._relative):
            return self._file.write(data)

    def flush(self) -> None:
        with self._output.errors(self._relative):
            self._file.flush()

    def close(self) -> None:
        with self._output.errors(self._relative):
            self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False


class _LocalPending:
    """A temporary file in the target's folder, renamed over the target."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._temporary = target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        target.parent.mkdir(parents=True, exist_ok=True)
        # Not the tempfile module: its files are for the owner only, and results are for others to read.
        self.file: BinaryIO = self._temporary.open("xb")

    def commit(self) -> None:
        self.file.close()
        # By path, because a writer such as pyarrow may have closed the file before us.
        _sync(self._temporary)
        self._temporary.replace(self._target)
        _sync(self._target.parent)

    def discard(self) -> None:
        try:
            self.file.close()
        finally:
            self._temporary.unlink(missing_ok=True)


class _S3Pending:
    """An s3fs file opened with autocommit=False."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def commit(self) -> None:
        self.file.close()
        self.file.commit()

    def discard(self) -> None:
        self.file.closed = True  # or the destructor would upload what is left in the buffer
        self.file.discard()


_Pending = _LocalPending | _S3Pending


def _sync(path: Path) -> None:
    """Have the disk hold the content (of a file) or the names (of a folder) before the next step builds on them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # network file systems that cannot sync a folder
            raise
    finally:
        os.close(descriptor)
