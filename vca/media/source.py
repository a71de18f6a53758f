"""How the bytes of one media object reach the decoder: a file, or ranges served on request."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LocalSource:
    """The whole object is a file that may be opened by path."""

    path: str


@dataclass(frozen=True, slots=True)
class RangeSource:
    """`read_range(offset, length)` returns the bytes there, shorter only at the end of the object.

    It raises `MediaError` for expected storage failures. `name` is for messages and the container's extension hint.
    """

    read_range: Callable[[int, int], bytes]
    size_bytes: int
    name: str


Source = LocalSource | RangeSource
