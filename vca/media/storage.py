"""The archive: what lies in a folder or a bucket, and how one object's bytes reach the decoder.

The key of an object is its path below the archive, with `/` between folders. Everything here is read-only.
"""

import errno
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import field_validator

from vca.core.config import Config
from vca.core.errors import ConfigError, ErrorCode, MediaError
from vca.core.identity import display_key, is_plain_key, object_version
from vca.core.storage import StorageConfig, check_uri, is_s3
from vca.media.s3 import (
    S3Location,
    lacks_credentials,
    preflight_error,
    storage_error,
    storage_errors,
    storage_exceptions,
)
from vca.media.sidecars import SIDECAR_EXTENSIONS
from vca.media.source import LocalSource, RangeSource, Source, staging_folder

__all__ = [
    "LISTING",
    "MEDIA_GLOBS",
    "Archive",
    "ArchiveConfig",
    "compile_globs",
    "normalise_uri",
    "storage_error",
]

logger = logging.getLogger(__name__)

_EXTENSIONS = """
3g2 3gp 3gpp aac ac3 ac4 adts aif aifc aiff alac amr amv ape asf au avi awb caf divx dts dv eac3 ec3 f4a f4v flac flv
gif gxf h264 h265 hevc ismv ivf ivr m1v m2p m2t m2ts m2v m4a m4b m4s m4v mj2 mjpeg mjpg mk3d mka mkv mod mov mp2 mp3
mp4 mp4v mpa mpe mpeg mpg mpv mqv mts mxf nsv nut oga ogg ogm ogv ogx opus qt ra ram rm rmvb roq spx tod trp ts tts vob
voc w64 wav wave weba webm wma wmv wtv wv xesc y4m
"""
MEDIA_GLOBS: tuple[str, ...] = tuple(f"*.{extension}" for extension in _EXTENSIONS.split())

LISTING = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # `display_key` of it where not plain
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("version", pa.string(), nullable=False),  # `identity.object_version`
        pa.field("kind", pa.string(), nullable=False),  # "media" | "sidecar" | "ignored"
        pa.field("plain", pa.bool_(), nullable=False),  # False: the key cannot be used to open the object
    ]
)

FETCH_BYTES = 8 << 20  # one request of a staged download; also what a broken connection costs
_FEATURES = re.compile(r"features://[0-9a-f]{24}")
STAGE_RESERVE_BYTES = 256 << 20  # a staged copy leaves at least this much of the disk to the rest of the machine


class ArchiveConfig(Config):
    uri: str
    """Local folder, s3://bucket/prefix, or features://<id> for a feature set that was imported into the output."""
    include: tuple[str, ...] = MEDIA_GLOBS
    """Which keys are media, case apart. As in gitignore files, a pattern without a slash is about the file name in any
    folder, one with a slash about the whole key, and `**` crosses folders. Sidecar extensions are never media."""
    exclude: tuple[str, ...] = ()
    """Keys to leave out, sidecars too; patterns like those of `include`, which they win over."""
    sidecars: bool = True
    """Read subtitle files beside the media."""
    storage: StorageConfig = StorageConfig()
    """How to reach the bucket; no meaning for a folder."""

    @field_validator("uri")
    @classmethod
    def _check_uri(cls, value: str) -> str:
        return value if _FEATURES.fullmatch(value) else normalise_uri(value)

    @property
    def feature_set(self) -> str | None:
        """Id of the feature set that stands for the archive."""
        return self.uri.removeprefix("features://") if _FEATURES.fullmatch(self.uri) else None

    @field_validator("include", "exclude")
    @classmethod
    def _check_globs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        compile_globs(value)
        return value


def normalise_uri(uri: str) -> str:
    """`check_uri`, then one spelling: `s3://` for s3a, plain paths for file://, no slash at the end."""
    uri = check_uri(uri)
    if is_s3(uri):
        return "s3://" + uri.split("://", 1)[1].rstrip("/")
    uri = uri.removeprefix("file://")
    return uri.rstrip("/") or "/"


def compile_globs(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """A test whether a key matches any pattern; case does not matter.

    As in gitignore files: a pattern without a slash is about the file name in any folder, one with a slash about the
    whole key (a leading slash is allowed), one that ends in a slash about everything below that folder. `*`, `?` and
    `[...]` stay inside one folder, `**` as a whole component crosses them. A bad pattern is a ValueError.
    """
    from fsspec.utils import glob_translate

    suffixes: set[str] = set()
    names: list[str] = []
    paths: list[str] = []
    for pattern in patterns:
        text = pattern.removeprefix("/")
        if text.endswith("/"):
            text += "**"
        if not text:
            raise ValueError("an empty pattern; remove it")
        try:
            expression = glob_translate(text)
            re.compile(expression)
        except (ValueError, re.error) as error:
            raise ValueError(f"pattern {pattern!r}: {error}") from error
        if re.fullmatch(r"\*\.[a-z0-9]+", text, re.ASCII | re.IGNORECASE) and text == pattern:
            suffixes.add(text[2:].lower())
        else:
            (paths if "/" in pattern or text == "**" else names).append(expression)
    match_name = re.compile("|".join(names), re.IGNORECASE).match if names else None
    match_path = re.compile("|".join(paths), re.IGNORECASE).match if paths else None

    def matches(key: str) -> bool:
        name = key.rpartition("/")[2]
        # One set look-up for `*.ext` patterns: a hundred alternatives in a regular expression cost 0.1 ms a key.
        return (
            _extension(name) in suffixes
            or (match_name is not None and match_name(name) is not None)
            or (match_path is not None and match_path(key) is not None)
        )

    return matches


def _extension(name: str) -> str | None:
    _, dot, extension = name.rpartition(".")
    return extension.lower() if dot else None


class Archive:
    """Reads one archive. Cheap to make and to pickle; connections are made on first use in each process."""

    unreadable: list[str]
    """Folders (`display_key` of them, with a slash at the end) that the last local listing could not read. What lies
    below them is unknown, not gone."""

    def __init__(self, config: ArchiveConfig) -> None:
        # Made absolute here and not in the worker, which has another working directory.
        root = config.uri if is_s3(config.uri) else str(Path(config.uri).expanduser().absolute())
        self.__setstate__({"config": config, "root": root})

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "root": self._root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.config: ArchiveConfig = state["config"]
        self._root: str = state["root"]
        self._s3 = S3Location(self._root, self.config.storage) if is_s3(self._root) else None
        self._included = compile_globs(self.config.include)
        self._excluded = compile_globs(self.config.exclude)
        self.unreadable = []

    def uri_of(self, key: str) -> str:
        """Where the object lies, for people and tables."""
        return display_key(f"{self._root.rstrip('/')}/{key}")

    def places(self) -> tuple[str, ...]:
        """Folders below which `open` gives local sources. `ConfigError` if staged copies have no safe place."""
        return (self._root,) if self._s3 is None else (staging_folder(),)

    # ------------------------------------------------------------------------------------------------ pre-flight

    def check(self) -> None:
        """`ConfigError` with one line and the way out if the archive cannot be listed. Takes seconds."""
        if self._s3 is None:
            self._check_local()
            return
        place = self._s3.preflight()
        try:
            page = place.call("list_objects_v2", Prefix=place.prefix, MaxKeys=1)
        except storage_exceptions() as error:
            raise preflight_error(error, "archive", self.config.uri, self.config.storage) from error
        if place.prefix and not page.get("Contents"):
            raise ConfigError(f"archive.uri = {self.config.uri!r}: no object under this prefix; fix the prefix")

    def check_node(self) -> None:
        """`ConfigError` for what is wrong with this machine: a folder that is not mounted, missing credentials.

        A worker asks this once. What a bucket refuses or answers late is left to the objects, each of which gets its
        row: one hasty look, by hundreds of workers at once, must not end the night.
        """
        if self._s3 is None:
            self._check_local()
            return
        try:
            self._s3.preflight().call("list_objects_v2", Prefix=self._s3.prefix, MaxKeys=1)
        except storage_exceptions() as error:
            if lacks_credentials(error):
                raise preflight_error(error, "archive", self.config.uri, self.config.storage) from error

    def _check_local(self) -> None:
        where = f"archive.uri = {self.config.uri!r}"
        try:
            with os.scandir(self._root) as entries:
                next(entries, None)
        except FileNotFoundError as error:
            raise ConfigError(f"{where}: the folder does not exist; create it or fix the path") from error
        except NotADirectoryError as error:
            raise ConfigError(f"{where}: this is a file; give the folder that holds it") from error
        except PermissionError as error:
            raise ConfigError(f"{where}: the folder may not be read; give this user the permission") from error
        except OSError as error:
            raise ConfigError(f"{where}: {os.strerror(error.errno or 0)}; check the path and its mount") from error
        if not os.access(self._root, os.X_OK):
            raise ConfigError(f"{where}: files in the folder may not be opened; give this user the x permission")

    # ------------------------------------------------------------------------------------------------ listing

    def list_batches(self, rows_per_batch: int = 10_000) -> Iterator[pa.RecordBatch]:
        """Every object once, as `LISTING` batches. Memory is bounded by a batch and, locally, by the folder depth.

        A listing that breaks off is a `ConfigError`, never a short listing: what is missing would look deleted.
        """
        assert rows_per_batch > 0
        self.unreadable = []
        columns: list[list[Any]] = [[] for _ in LISTING]
        for key, size_bytes, version, regular in self._entries():
            plain = is_plain_key(key)
            row = (key if plain else display_key(key), size_bytes, version, self._kind(key, regular), plain)
            for column, value in zip(columns, row, strict=True):
                column.append(value)
            if len(columns[0]) == rows_per_batch:
                yield pa.record_batch(columns, schema=LISTING)
                columns = [[] for _ in LISTING]
        if columns[0]:
            yield pa.record_batch(columns, schema=LISTING)

    def _entries(self) -> Iterator[tuple[str, int, str, bool]]:
        """`(key, size_bytes, version, is a regular object)` of everything there is."""
        try:
            yield from self._entries_local() if self._s3 is None else self._entries_s3(self._s3)
        except storage_exceptions() as error:
            if self._s3 is not None:
                raise preflight_error(error, "archive", self.config.uri, self.config.storage) from error
            reason = os.strerror(getattr(error, "errno", None) or errno.EIO)
            raise ConfigError(f"archive.uri = {self.config.uri!r}: {reason}; check the path and its mount") from error

    def _kind(self, key: str, regular: bool) -> str:
        if not regular or self._excluded(key):
            return "ignored"
        if _extension(key.rpartition("/")[2]) in SIDECAR_EXTENSIONS:
            return "sidecar" if self.config.sidecars else "ignored"
        return "media" if self._included(key) else "ignored"

    @staticmethod
    def _entries_s3(place: S3Location) -> Iterator[tuple[str, int, str, bool]]:
        for page in place.pages():
            for entry in page:
                key = entry["Key"][len(place.prefix) :]
                if key:  # the empty one is the marker of the archive's own folder
                    size_bytes = int(entry["Size"])
                    yield key, size_bytes, place.version(entry, size_bytes), not key.endswith("/")

    def _entries_local(self) -> Iterator[tuple[str, int, str, bool]]:
        """Depth first over open directory handles: memory and handles grow with the depth, not with the archive.

        Links to folders are not followed, so there are no circles. A link that leads nowhere is listed as ignored: as
        media it would fail every night, and its content is gone. A folder that vanished meanwhile is gone; one that
        cannot be read is noted in `unreadable`.
        """
        stack: list[tuple[str, Any]] = [("", os.scandir(self._root))]
        try:
            while stack:
                prefix, entries = stack[-1]
                try:
                    entry = next(entries, None)
                except OSError:
                    if not prefix:
                        raise
                    self.unreadable.append(display_key(prefix))
                    entry = None
                if entry is None:
                    entries.close()
                    stack.pop()
                    continue
                key = prefix + entry.name
                try:
                    if entry.is_dir(follow_symlinks=False):
                        stack.append((key + "/", os.scandir(entry.path)))
                        continue
                except FileNotFoundError:
                    continue
                except OSError:
                    self.unreadable.append(display_key(key + "/"))
                    continue
                row = _local_entry(key, entry)
                if row is not None:
                    yield row
        finally:
            for _, entries in stack:
                entries.close()

    # ------------------------------------------------------------------------------------------------ reading

    def has(self, key: str) -> bool:
        """Whether there is still something under this key: a file, or a link wherever it leads.

        True and False are what the storage said just now; where it could not say, for example because the archive's
        own folder is away, that is a `MediaError`.
        """
        if not is_plain_key(key):
            raise MediaError(ErrorCode.BAD_KEY, f"the key cannot be opened by name: {key}")
        if self._s3 is not None:
            return self._s3.exists(key)
        self._check_below(key)
        with storage_errors(key):
            if not Path(self._root).is_dir():
                raise OSError(errno.ENODEV, "the folder of the archive is away")
            try:
                Path(self._root, key).lstat()  # not lexists, for which every failure means no
            except (FileNotFoundError, NotADirectoryError):
                return False
        return True

    @contextmanager
    def open(self, key: str, size_bytes: int, version: str, *, stage_limit_bytes: int, whole: bool) -> Iterator[Source]:
        """The listed object's bytes for the length of the `with` block.

        Local files are read in place. From S3, `whole` asks for a temporary copy, made if the object is not larger than
        `stage_limit_bytes` and fits on the disk, and deleted with the block; otherwise ranges are fetched on request.
        Raises `MediaError`; OBJECT_MISSING and OBJECT_CHANGED if the object is not the one that was listed.
        """
        if not is_plain_key(key):
            raise MediaError(ErrorCode.BAD_KEY, f"the key cannot be opened by name: {key}")
        if self._s3 is None:
            yield LocalSource(self._open_local(key, version), version)
            return
        if whole and size_bytes <= stage_limit_bytes:
            # An own folder, so that one deletion removes whatever a decoder leaves beside the copy.
            with tempfile.TemporaryDirectory(dir=staging_folder(), ignore_cleanup_errors=True) as folder:
                if shutil.disk_usage(folder).free - size_bytes >= STAGE_RESERVE_BYTES:
                    yield LocalSource(_stage(self._s3, key, size_bytes, version, Path(folder)))
                    return
                logger.warning("no room to stage %d bytes of %s; reading ranges instead", size_bytes, key)
        self._s3.check_version(key, version)
        yield RangeSource(_RangeReader(self._s3, key, size_bytes, version), size_bytes, key, version)

    def read_bytes(self, key: str, limit_bytes: int, version: str | None = None) -> bytes:
        """A whole small object. `MediaError` OUTPUT_LIMIT if it is larger than `limit_bytes`.

        With the version that was listed, another object under the same key is OBJECT_CHANGED.
        """
        if not is_plain_key(key):
            raise MediaError(ErrorCode.BAD_KEY, f"the key cannot be opened by name: {key}")
        if self._s3 is None:
            path = self._open_local(key, version)
            with storage_errors(key), Path(path).open("rb") as file:
                data = file.read(limit_bytes + 1)
        else:
            data = self._s3.read_start(key, limit_bytes + 1, version)
        if len(data) > limit_bytes:
            raise MediaError(ErrorCode.OUTPUT_LIMIT, f"larger than {limit_bytes} bytes: {key}")
        return data

    @staticmethod
    def _check_below(key: str) -> None:
        if any(part in ("", ".", "..") for part in key.split("/")):
            raise MediaError(ErrorCode.BAD_KEY, f"not a path below the archive: {key}")

    def _open_local(self, key: str, version: str | None) -> str:
        """The path of a regular file inside the archive; links may lead about the archive but not out of it."""
        self._check_below(key)
        path = Path(self._root, key)
        with storage_errors(key):
            # Not Path.resolve: for a circle of links it raises RuntimeError.
            if not Path(os.path.realpath(path, strict=True)).is_relative_to(os.path.realpath(self._root)):
                raise MediaError(ErrorCode.ACCESS_DENIED, f"a link that leads out of the archive: {key}")
            info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise MediaError(ErrorCode.NOT_MEDIA, f"not a regular file: {key}")
        if version is not None and _local_version(info) != version:
            raise MediaError(ErrorCode.OBJECT_CHANGED, f"the file changed after it was listed: {key}")
        return str(path)


def _local_version(info: os.stat_result) -> str:
    return object_version(info.st_size, None, info.st_mtime_ns // 1000)


def _local_entry(key: str, entry: "os.DirEntry[str]") -> tuple[str, int, str, bool] | None:
    link = entry.is_symlink()
    try:
        info = entry.stat()
    except OSError as error:
        nowhere = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        if nowhere and not link:
            return None  # deleted meanwhile
        # After a refusal listed as a file all the same, so that opening it can say what is wrong.
        return key, 0, object_version(0, None, 0), not nowhere
    if not stat.S_ISREG(info.st_mode):
        return key, 0, object_version(0, None, info.st_mtime_ns // 1000), False
    return key, info.st_size, _local_version(info), True


class _RangeReader:
    """Ranges of one S3 object, callable as `RangeSource.read_range`."""

    def __init__(self, place: S3Location, key: str, size_bytes: int, version: str) -> None:
        self._place, self._key, self._size_bytes, self._version = place, key, size_bytes, version

    def __call__(self, offset: int, length: int) -> bytes:
        length = min(length, self._size_bytes - offset)
        if offset < 0 or length <= 0:
            return b""
        data = self._place.read(self._key, offset, length, self._version)
        if len(data) != length:
            raise MediaError(ErrorCode.STORAGE_ERROR, f"{len(data)} of {length} bytes arrived: {self._key}")
        return data


def _stage(place: S3Location, key: str, size_bytes: int, version: str, folder: Path) -> str:
    """Copy the object into `folder` in ranges: bounded memory, and a broken connection repeats one range only."""
    extension = _extension(key.rpartition("/")[2]) or ""
    path = folder / ("object." + extension if re.fullmatch(r"[a-z0-9]{1,8}", extension) else "object")
    if size_bytes == 0 or "/" not in version:
        place.check_version(key, version)  # no range, or no etag, that the requests themselves could check
    read_range = _RangeReader(place, key, size_bytes, version)
    with storage_errors(key), path.open("wb") as file:
        for offset in range(0, size_bytes, FETCH_BYTES):
            file.write(read_range(offset, FETCH_BYTES))
    return str(path)
