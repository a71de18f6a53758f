"""The decoding child: `python -P -m vca.media.child <socket> <shared file> <parent pid>`. Started by `isolation` only.

It limits and confines itself before it sees the first byte, has no credentials, and ends with its parent.
"""

import contextlib
import ctypes
import gc
import math
import os
import resource
import signal
import socket
import sys
import traceback
from collections import OrderedDict
from pathlib import Path
from typing import Any

import av

from vca.core.config import build_config
from vca.core.errors import ErrorCode, MediaError
from vca.core.timeline import Span
from vca.media.confinement import Confinement, confine
from vca.media.container import HEAD_BYTES, Media, open_media
from vca.media.decode_config import DecodeConfig
from vca.media.probe import MediaInfo, probe_media
from vca.media.read import ReadPlan, Segment, SegmentReader
from vca.media.wire import ALIGNMENT, Channel, GoneError, write_arrays

_BLOCK = 64 << 10
_BEYOND_BYTES = 256 << 10
"""Fetched at a time behind what was said to be needed."""
_FIRST_READ, _LARGEST_READ = 1 << 20, 8 << 20
_LARGEST_INDEX_READ = 2 << 20
"""Where an index ends is not known: what is read beyond it may never be wanted."""
_CACHE_BLOCKS = (48 << 20) // _BLOCK
_INDEX_BLOCKS = (32 << 20) // _BLOCK
_PR_SET_PDEATHSIG = 1


class RangeAbortError(Exception):
    """The parent could not read the storage; it knows why."""


class RangeFile:
    """A remote object as a file: reads ahead in growing blocks and keeps the last 48 MiB, and the index besides."""

    def __init__(self, channel: Channel, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.needed_bytes = size_bytes
        """Where the current request will end, as far as can be told: what lies behind is not read ahead."""
        self._largest_read = _LARGEST_INDEX_READ
        self._channel = channel
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._index: dict[int, bytes] = {}
        self._ahead = 0
        self._expected_block = -1

    def keep_index(self) -> None:
        """Call it once the container is open: what that took is wanted at each opening and never given up."""
        if not self._index and len(self._blocks) <= _INDEX_BLOCKS:
            self._index = dict(self._blocks)
            self._blocks.clear()
        self._largest_read = _LARGEST_READ

    def read(self, size: int, /) -> bytes:
        """Less than `size` where needed bytes end: FFmpeg fills whole buffers and is content with what it gets."""
        size = max(0, min(size, self.size_bytes - self._position))
        parts: list[bytes] = []
        while size > 0:
            index, start = divmod(self._position, _BLOCK)
            if parts and self._position >= self.needed_bytes and not (index in self._blocks or index in self._index):
                break
            part = self._block(index)[start : start + size]
            parts.append(part)
            self._position += len(part)
            size -= len(part)
        return b"".join(parts)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size_bytes}[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def _block(self, index: int) -> bytes:
        if index in self._index:
            return self._index[index]
        if index in self._blocks:
            self._blocks.move_to_end(index)
            return self._blocks[index]
        # Sequential reads double what is fetched at once; a jump starts small again: it may be a look at an index.
        goes_on = index == self._expected_block
        self._ahead = min(2 * self._ahead, self._largest_read) if goes_on else _FIRST_READ
        start = index * _BLOCK
        needed_bytes = self.needed_bytes - start
        size = min(self._ahead, needed_bytes if needed_bytes > 0 else _BEYOND_BYTES, self.size_bytes - start)
        size = min(-(-size // _BLOCK) * _BLOCK, self.size_bytes - start)
        self._channel.send({"kind": "range", "offset": start, "size": size})
        reply = self._channel.receive()
        if reply.get("abort"):
            raise RangeAbortError
        data = self._channel.receive_bytes(size)
        for i in range(0, size, _BLOCK):
            self._blocks[index + i // _BLOCK] = data[i : i + _BLOCK]
        self._expected_block = index + -(-size // _BLOCK)
        while len(self._blocks) > _CACHE_BLOCKS:
            self._blocks.popitem(last=False)
        return self._blocks[index]


class _Object:
    """The object of one request, or of several in a row, opened as often as needed."""

    def __init__(self, channel: Channel, source: dict[str, Any], config: DecodeConfig) -> None:
        self.source = source
        self.path: str | None = source.get("path")
        self._config = config
        self._file: RangeFile | None = None
        if self.path is not None:
            try:
                self.size_bytes = Path(self.path).stat().st_size
                with Path(self.path).open("rb") as file:
                    self._head = file.read(HEAD_BYTES)
            except FileNotFoundError as error:
                raise MediaError(ErrorCode.OBJECT_MISSING, "the file is gone") from error
            except PermissionError as error:
                raise MediaError(ErrorCode.ACCESS_DENIED, "the file may not be read") from error
            except OSError as error:
                raise MediaError(ErrorCode.STORAGE_ERROR, error.strerror or "the file cannot be read") from error
        else:
            self.size_bytes = source["size_bytes"]
            self._file = RangeFile(channel, self.size_bytes)
            self._head = self._file.read(HEAD_BYTES)
        self._reader = SegmentReader(self.open, self.path)
        self._media: Media | None = None
        self._end_us, self._guess_bytes = 0, self.size_bytes

    def open(self) -> Media:
        if self._file is not None:
            self._file.seek(0)
        media = open_media(self._file or self.path or "", self._head, self.size_bytes, self._config.max_pixels)
        if self._file is not None:
            self._file.keep_index()
            self._media = media
            self._tell_end(self._file)
        return media

    def read(self, info: MediaInfo, span: Span, plan: ReadPlan) -> Segment:
        if self._file is not None and info.duration_us > 0:
            # From the mean bit rate. Wrong, it costs a few more requests or some megabytes for nothing.
            self._guess_bytes = int(self.size_bytes * span.end_us / info.duration_us) + _BEYOND_BYTES
            self._end_us = span.end_us
            self._tell_end(self._file)
        return self._reader.read(info, span, plan, self._config)

    def _tell_end(self, file: RangeFile) -> None:
        """Tell the file where the span ends: the index of the container knows, if there is one."""
        if self._end_us == 0:  # nothing was asked for yet
            return
        ends = [] if self._media is None else self._media.bytes_until(self._end_us)
        file.needed_bytes = min(self.size_bytes, max(ends) if ends else self._guess_bytes)

    def close(self) -> None:
        self._reader.close()


class _Objects:
    """Keeps the object of the last request: the next segment of the same content goes on where that one ended."""

    def __init__(self, channel: Channel, config: DecodeConfig) -> None:
        self._channel = channel
        self._config = config
        self._last: _Object | None = None

    def get(self, source: dict[str, Any]) -> _Object:
        last = self._last
        if last is None or source["version"] is None or last.source != source:
            self.drop()
            self._last = last = _Object(self._channel, source, self._config)
        return last

    def drop(self) -> None:
        if self._last is not None:
            self._last.close()
        self._last = None


def serve(channel: Channel, shared_fd: int, config: DecodeConfig, confinement: Confinement) -> None:
    """Say what was given up, then answer requests until the parent closes the socket."""
    gc.collect()
    gc.freeze()  # what was imported is never garbage: the collection after each request looks at little
    channel.send({"kind": "ready", "taken": confinement.taken, "missing": confinement.missing})
    objects = _Objects(channel, config)
    while True:
        try:
            request = channel.receive()
        except GoneError:
            return
        _allow_cpu(config.cpu_limit_s)
        try:
            reply = _answer(objects, shared_fd, config, request)
        except GoneError:
            return
        except MediaError as error:
            reply = {"kind": "failed", "code": error.code, "message": error.message}
        except RangeAbortError:
            reply = {"kind": "failed", "code": ErrorCode.STORAGE_ERROR, "message": "the storage could not be read"}
        except MemoryError:
            reply = {"kind": "failed", "code": ErrorCode.DECODE_MEMORY, "message": _memory_message(config)}
        except Exception:  # noqa: BLE001 - handed to the parent, which raises it
            reply = {"kind": "broken", "traceback": traceback.format_exc()[-8000:]}
        if reply["kind"] not in ("probed", "segment"):
            objects.drop()
        # PyAV containers and streams hold each other: a few small objects for Python, hundreds of megabytes for FFmpeg.
        gc.collect()
        channel.send(reply)


def _answer(objects: _Objects, shared_fd: int, config: DecodeConfig, request: dict[str, Any]) -> dict[str, Any]:
    source = objects.get(request["source"])
    if request["kind"] == "probe":
        media = source.open()
        try:
            info = probe_media(media, scan_all=source.path is not None, max_duration_h=config.max_duration_h)
        finally:
            media.close()
        return {"kind": "probed", "info": info.to_row()}
    info = MediaInfo.from_row(request["info"])
    segment = source.read(info, Span(*request["span"]), ReadPlan(**request["plan"]))
    return _segment_reply(segment, shared_fd, config)


def _segment_reply(segment: Segment, shared_fd: int, config: DecodeConfig) -> dict[str, Any]:
    arrays = {
        name: value
        for name in ("frames", "frame_mask", "frame_times_us", "audio", "audio_mask", "ocr_frames", "ocr_spans")
        if (value := getattr(segment, name)) is not None
    }
    size = sum(array.nbytes + ALIGNMENT for array in arrays.values())
    if size > config.max_output_mb * 1024 * 1024:
        message = (
            f"{size // 2**20 + 1} MB of pictures and sound are above decode.max_output_mb = {config.max_output_mb}"
        )
        raise MediaError(ErrorCode.OUTPUT_LIMIT, message)
    failure = segment.failure
    return {
        "kind": "segment",
        "arrays": {name: ref.model_dump() for name, ref in write_arrays(shared_fd, arrays).items()},
        "text": [piece.to_row() for piece in segment.text],
        "shots": [[shot.start_us, shot.end_us] for shot in segment.shots],
        "coverage_us": segment.coverage_us,
        "failure": None
        if failure is None
        else {"code": failure.code, "stage": failure.stage, "message": failure.message},
    }


def _memory_message(config: DecodeConfig) -> str:
    return f"the decoder asked for more than decode.memory_limit_mb = {config.memory_limit_mb}"


def _allow_cpu(limit_s: float) -> None:
    """Move the soft limit on: it counts from the birth of the process. SIGXCPU ends the child, also in native code."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(usage.ru_utime + usage.ru_stime + limit_s)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _limit_all(config: DecodeConfig, parent_pid: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:  # it died before the line above
            sys.exit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_DATA, config.memory_limit_mb * 1024 * 1024)
    _limit(resource.RLIMIT_FSIZE, config.max_output_mb * 1024 * 1024)


def main(arguments: list[str]) -> None:
    socket_fd, shared_fd, parent_pid = (int(value) for value in arguments)
    channel = Channel(socket.socket(fileno=socket_fd))
    with contextlib.suppress(GoneError):
        start = channel.receive()
        config = build_config(DecodeConfig, start["config"], "decode")
        av.logging.set_level(av.logging.PANIC)  # nothing is printed, but errors are counted, for `unseen`
        if config.backend == "decord":  # now: once confined, the child can load no library
            import decord

            decord.logging.set_level(decord.logging.QUIET)
        _limit_all(config, parent_pid)
        off = config.isolation == "off"
        serve(channel, shared_fd, config, Confinement((), ()) if off else confine(start["places"]))


if __name__ == "__main__":
    main(sys.argv[1:])
