"""The talk between a parent and its decoding child: JSON over one socket, arrays in a shared file.

No pickle: the child runs native decoders over hostile bytes, and whatever it says is only data.
"""

import json
import os
import select
import socket
import tempfile
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from vca.core.errors import ErrorCode
from vca.core.schemas import TextSource

MAX_MESSAGE = 32 * 1024 * 1024
"""Largest JSON message; an hour of dense subtitles is below one megabyte."""
ALIGNMENT = 64
_TICK_S = 0.2


class GoneError(Exception):
    """The other side closed the socket or said something that is no message."""


class Channel:
    """One end of the socket. `watch`, if given, is called before every wait and at least five times a second."""

    def __init__(self, end: socket.socket, watch: Callable[[], None] | None = None) -> None:
        self._socket = end
        self._socket.setblocking(False)
        self._watch = watch

    def send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        """A message, and raw bytes that it announces."""
        body = json.dumps(message, ensure_ascii=True, allow_nan=False).encode()
        assert len(body) <= MAX_MESSAGE, "a message above the limit would be refused by the other side"
        self._write(len(body).to_bytes(4, "big") + body)
        if payload:
            self._write(payload)

    def receive(self) -> dict[str, Any]:
        size = int.from_bytes(self.receive_bytes(4), "big")
        if size > MAX_MESSAGE:
            raise GoneError(f"a message of {size} bytes")
        try:
            message = json.loads(self.receive_bytes(size))
        except (ValueError, RecursionError) as error:
            raise GoneError("a message that is not JSON") from error
        if not isinstance(message, dict):
            raise GoneError("a message that is not an object")
        return message

    def receive_bytes(self, size: int) -> bytes:
        data = bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            self._wait(select.POLLIN)
            try:
                count = self._socket.recv_into(view[filled:])
            except BlockingIOError:
                continue
            except OSError as error:
                raise GoneError(str(error)) from error
            if count == 0:
                raise GoneError("closed")
            filled += count
        return bytes(data)

    def close(self) -> None:
        self._socket.close()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._wait(select.POLLOUT)
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise GoneError(str(error)) from error

    def _wait(self, event: int) -> None:
        poller = select.poll()
        poller.register(self._socket, event)
        while True:
            if self._watch is not None:
                self._watch()
            if poller.poll(_TICK_S * 1000):
                return


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ArrayRef(_Message):
    """Where an array lies in the shared file."""

    dtype: Literal["uint8", "float32", "int64", "bool"]
    shape: Annotated[list[Annotated[int, Field(ge=0, le=2**40)]], Field(min_length=1, max_length=4)]
    offset: Annotated[int, Field(ge=0)]

    def size_bytes(self) -> int:
        size = np.dtype(self.dtype).itemsize
        for length in self.shape:
            size *= length
        return size


class Ready(_Message):
    """The greeting: what the child gave up, see `confinement.Confinement`."""

    kind: Literal["ready"]
    taken: list[str]
    missing: list[str]


class RangeRequest(_Message):
    kind: Literal["range"]
    offset: Annotated[int, Field(ge=0)]
    size: Annotated[int, Field(ge=1, le=64 * 1024 * 1024)]


class Failed(_Message):
    kind: Literal["failed"]
    code: Annotated[ErrorCode, Field(strict=False)]
    message: str


class Probed(_Message):
    kind: Literal["probed"]
    info: dict[str, str | int | float | bool | None]


class FailureField(_Message):
    code: Annotated[ErrorCode, Field(strict=False)]
    stage: Literal["read"]
    message: str


class TextField(_Message):
    start_us: int
    end_us: int
    source: Annotated[TextSource, Field(strict=False)]
    text: str | None
    stream: str | None
    language: str | None
    confidence: float | None


class SegmentReply(_Message):
    """A `read.Segment` without its pixels and samples."""

    kind: Literal["segment"]
    arrays: dict[str, ArrayRef]
    text: list[TextField]
    shots: list[Annotated[list[int], Field(min_length=2, max_length=2)]]
    coverage_us: Annotated[int, Field(ge=0)]
    failure: FailureField | None


class Broken(_Message):
    """A bug in our own code inside the child; it must stop the run in the parent too."""

    kind: Literal["broken"]
    traceback: str


Reply = Annotated[RangeRequest | Failed | Probed | SegmentReply | Broken, Field(discriminator="kind")]


def shared_file() -> int:
    """A file without a name that lives in memory (or, where the system lacks that, in the temporary folder)."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vca-arrays")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def write_arrays(fd: int, arrays: dict[str, npt.NDArray[Any]]) -> dict[str, ArrayRef]:
    """Put arrays into the shared file, one after the other."""
    refs, offset = {}, 0
    for name, array in arrays.items():
        refs[name] = ArrayRef.model_validate({"dtype": str(array.dtype), "shape": list(array.shape), "offset": offset})
        data = _bytes_of(np.ascontiguousarray(array))
        written = 0
        while written < len(data):
            written += os.pwrite(fd, data[written:], offset + written)
        offset += -(-len(data) // ALIGNMENT) * ALIGNMENT
    return refs


def read_array(fd: int, ref: ArrayRef, limit_bytes: int) -> npt.NDArray[Any]:
    """Copy an array out. By read calls: through a mapping, a child that cuts the file meanwhile could kill us.

    Raises `GoneError` where the reference does not fit the file or the limit.
    """
    size = ref.size_bytes()
    if ref.offset + size > limit_bytes + 16 * ALIGNMENT:
        raise GoneError(f"an array of {size} bytes at {ref.offset} is above the limit")
    array = np.empty(ref.shape, dtype=ref.dtype)
    if size == 0:
        return array
    view, filled = _bytes_of(array), 0
    while filled < size:
        count = os.preadv(fd, [view[filled:]], ref.offset + filled)
        if count == 0:
            raise GoneError("an array behind the end of the shared file")
        filled += count
    if ref.dtype == "bool" and array.view(np.uint8).max() > 1:
        raise GoneError("a mask with values other than 0 and 1")
    return array


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
