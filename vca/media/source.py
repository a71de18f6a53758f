"""How the bytes of one media object reach the decoder: a file, or ranges served on request."""

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vca.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LocalSource:
    """The whole object is a file that may be opened by path."""

    path: str
    version: str | None = None
    """Equal for equal content: what was read of it for one request may serve the next. None: it may have changed."""


@dataclass(frozen=True, slots=True)
class RangeSource:
    """`read_range(offset, length)` returns the bytes there, shorter only at the end of the object.

    It raises `MediaError` for expected storage failures. `name` is for messages and the container's extension hint.
    """

    read_range: Callable[[int, int], bytes]
    size_bytes: int
    name: str
    version: str | None = None
    """As for `LocalSource`."""


Source = LocalSource | RangeSource


def staging_folder() -> str:
    """One folder of this user for all staged copies, so that a decoding child need not see the temporary folder.

    Its name can be guessed: on a shared machine it may have been made by somebody else, which is a `ConfigError`.
    """
    folder = Path(tempfile.gettempdir(), f"vca-stage-{os.getuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o022:
        raise ConfigError(f"{folder} is not a folder that only this user can write; remove it or set TMPDIR")
    return str(folder)
