"""Native decoders in a child process that can be killed: they crash, hang and eat memory on hostile files.

The child lives on between requests, because starting one costs about half a second, and is replaced when it dies or
breaks a limit. What it says is checked before use.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

import vca
from vca.core.errors import ConfigError, ErrorCode, Failure, MediaError, one_line
from vca.core.records import TextPiece
from vca.core.timeline import Span, step_spans
from vca.media.audio import samples_between
from vca.media.confinement import Confinement
from vca.media.decode_config import DecodeConfig
from vca.media.probe import MediaInfo
from vca.media.read import ReadPlan, Segment
from vca.media.source import LocalSource, RangeSource, Source
from vca.media.wire import (
    Broken,
    Channel,
    Failed,
    GoneError,
    Probed,
    RangeRequest,
    Ready,
    Reply,
    SegmentReply,
    read_array,
    shared_file,
)

__all__ = ["DecoderProcess", "LocalSource", "RangeSource", "Source"]

_START_LIMIT_S = 120.0
_LOOK_EVERY_S = 0.2
_MEMORY_WORDS = ("bad_alloc", "MemoryError", "allocate memory")
_OUTPUT_LIMIT = 1024 * 1024
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV", "TZ")
"""All that is handed on: no credentials, no proxies, nothing of Ray or MLflow."""
_REPLY: TypeAdapter[RangeRequest | Failed | Probed | SegmentReply | Broken] = TypeAdapter(Reply)
_INFO = TypeAdapter(MediaInfo)


class DecoderProcess:
    """One decoding child. For one request at a time; a lock makes others wait.

    Requests raise `MediaError` with the code of what went wrong with this file; the next request finds a fresh child.
    Bugs inside the child raise `RuntimeError` here. Where the system cannot confine a child as `decode.isolation` asks,
    that is a `ConfigError`.
    """

    def __init__(self, config: DecodeConfig, places: Sequence[str] | None = None) -> None:
        """`places` are the folders in which local sources lie: the child can read no other. None: it reads any file."""
        self._config = config
        self._places = None if places is None else [os.path.realpath(place) for place in places]
        self._lock = threading.Lock()
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the child; None before the first request and after a death."""
        return None if self._child is None else self._child.pid

    def confinement(self) -> Confinement:
        """What the child is cut off from, to start it if need be."""
        with self._lock:
            return self._ready().confinement

    def probe(self, source: Source) -> MediaInfo:
        """What the object holds. Raises `MediaError`."""
        with self._lock, self._request({"kind": "probe", "source": _describe(source)}, source) as (reply, _):
            if not isinstance(reply, Probed):
                raise GoneError("a probe answered with something else")
            return _INFO.validate_json(json.dumps(reply.info), strict=True)

    def read(self, source: Source, info: MediaInfo, span: Span, plan: ReadPlan) -> Segment:
        """Decode one segment. Raises `MediaError` where nothing of it can be had."""
        request = {
            "kind": "read",
            "source": _describe(source),
            "info": info.to_row(),
            "span": [span.start_us, span.end_us],
            "plan": asdict(plan),
        }
        with self._lock, self._request(request, source) as (reply, child):
            if not isinstance(reply, SegmentReply):
                raise GoneError("a read answered with something else")
            return _segment(reply, child.shared_fd, span, plan, self._config)

    def close(self) -> None:
        with self._lock:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _request(self, request: dict[str, Any], source: Source) -> Iterator[tuple[Any, "_Child"]]:
        """Send, serve byte ranges, hand out the reply while the shared file still holds its arrays.

        Leaves the child ready for the next request, or gone.
        """
        child = self._ready()
        try:
            yield child.ask(request, source), child
            child.tidy()
        except (GoneError, ValidationError) as error:
            verdict = child.verdict(error)
            self._drop()
            raise verdict from error
        except MediaError as error:
            if child.usable() and error.code is not ErrorCode.DECODE_MEMORY:
                child.tidy()
            else:  # libraries that ran out of memory are not trusted to be whole
                self._drop()
            raise
        except BaseException:  # an interrupt or a bug: nobody knows what the child will say next
            self._drop()
            raise

    def _ready(self) -> "_Child":
        if self._child is not None and not self._child.usable():
            self._drop()
        if self._child is None:
            self._child = _Child(self._config, self._places)
        return self._child

    def _drop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


class _Child:
    """The process, its socket, its shared file, and the limits that are watched from outside."""

    def __init__(self, config: DecodeConfig, places: Sequence[str] | None) -> None:
        self._config = config
        self._deadline = time.monotonic() + _START_LIMIT_S
        self._broken_limit: MediaError | None = None
        self._next_look = 0.0
        self._starter = threading.current_thread()
        self.shared_fd = shared_file()
        # Native libraries print to stdout and stderr: kept in a file without a name, of which the end is of use.
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        fcntl.fcntl(self._output, fcntl.F_SETFL, fcntl.fcntl(self._output, fcntl.F_GETFL) | os.O_APPEND)
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [str(theirs.fileno()), str(self.shared_fd), str(os.getpid())]
            self._process = subprocess.Popen(  # noqa: S603 - our own module, our own arguments
                # -P: a file named like a library in the working directory must not become code here
                [sys.executable, "-P", "-m", "vca.media.child", *arguments],
                pass_fds=(theirs.fileno(), self.shared_fd),
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                env=_environment(),
            )
        self._channel = Channel(ours, self._watch)
        try:
            self._channel.send({"config": config.model_dump(mode="json"), "places": places})
            ready = Ready.model_validate(self._channel.receive())
        except (GoneError, MediaError, ValidationError) as error:
            last_words = self._last_words()
            self.end()
            raise RuntimeError(f"the decoding child does not start: {last_words or error}") from error
        self.confinement = Confinement(tuple(ready.taken), tuple(ready.missing))
        if config.isolation == "required" and self.confinement.missing:
            self.end()
            raise ConfigError(
                f"decode.isolation = 'required': {self.confinement.text}; use a system that allows it, or set auto"
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def usable(self) -> bool:
        # The kernel kills the child with the thread that started it (PR_SET_PDEATHSIG goes by thread, not by process).
        return self._broken_limit is None and self._process.poll() is None and self._starter.is_alive()

    def ask(self, request: dict[str, Any], source: Source) -> Probed | SegmentReply:
        """One request. Raises `MediaError` (from child or storage), `GoneError`, `RuntimeError` for our bugs."""
        self._deadline = time.monotonic() + self._config.wall_limit_s
        self._channel.send(request)
        storage_error: MediaError | None = None
        while True:
            reply = _REPLY.validate_python(self._channel.receive())
            if isinstance(reply, RangeRequest):
                storage_error = self._serve(reply, source, storage_error)
            elif storage_error is not None:
                raise storage_error  # whatever the child made of the hole
            elif isinstance(reply, Failed):
                raise MediaError(reply.code, reply.message)
            elif isinstance(reply, Broken):
                raise RuntimeError(f"the decoding child failed:\n{reply.traceback}")
            else:
                return reply

    def _serve(self, request: RangeRequest, source: Source, failed: MediaError | None) -> MediaError | None:
        """Read a byte range for the child, which has no access of its own. The time it takes is not the decoder's."""
        if not isinstance(source, RangeSource) or request.offset + request.size > source.size_bytes:
            raise GoneError("a byte range that is not to be had")
        start = time.monotonic()
        data = b""
        if failed is None:
            try:
                data = source.read_range(request.offset, request.size)
            except MediaError as error:
                failed = error
            else:
                if len(data) != request.size:
                    failed = MediaError(ErrorCode.OBJECT_CHANGED, "the object is not as long as it was when listed")
        self._deadline += time.monotonic() - start
        if failed is not None:
            self._channel.send({"abort": True})
        else:
            self._channel.send({"abort": False}, data)
        return failed

    def tidy(self) -> None:
        """Give the memory of the shared file back and forget what was printed."""
        os.ftruncate(self.shared_fd, 0)
        os.ftruncate(self._output.fileno(), 0)

    def verdict(self, error: Exception) -> MediaError:
        """Why the child went silent or spoke nonsense, as this file's failure."""
        if self._broken_limit is not None:
            return self._broken_limit
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5.0)
        status = self._process.returncode
        words = self._last_words()
        if status is None:
            return MediaError(ErrorCode.DECODE_CRASH, f"the decoder answered nonsense: {one_line(str(error))}")
        if status == -signal.SIGXCPU:
            message = f"more than decode.cpu_limit_s = {self._config.cpu_limit_s:g} of CPU time"
            return MediaError(ErrorCode.DECODE_CPU_LIMIT, message)
        if any(word in words for word in _MEMORY_WORDS):
            return MediaError(ErrorCode.DECODE_MEMORY, self._memory_message())
        how = f"killed by {_signal_name(-status)}" if status < 0 else f"ended with status {status}"
        return MediaError(ErrorCode.DECODE_CRASH, f"the decoder was {how}" + (f": {words}" if words else ""))

    def end(self) -> None:
        self._channel.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self.shared_fd)
        self._output.close()

    def _watch(self) -> None:
        now = time.monotonic()
        if now > self._deadline:
            message = f"more than decode.wall_limit_s = {self._config.wall_limit_s:g}"
            self._break(MediaError(ErrorCode.DECODE_TIMEOUT, message))
        if now >= self._next_look:
            self._next_look = now + _LOOK_EVERY_S
            # RLIMIT_DATA stops most; this catches what it does not count, such as files mapped privately
            if _private_memory_bytes(self.pid) > self._config.memory_limit_mb * 1024 * 1024:
                self._break(MediaError(ErrorCode.DECODE_MEMORY, self._memory_message()))
            if os.fstat(self._output.fileno()).st_size > _OUTPUT_LIMIT:
                os.ftruncate(self._output.fileno(), 0)

    def _break(self, error: MediaError) -> None:
        self._broken_limit = error
        self._process.kill()
        raise error

    def _memory_message(self) -> str:
        return f"the decoder asked for more than decode.memory_limit_mb = {self._config.memory_limit_mb}"

    def _last_words(self) -> str:
        size = os.fstat(self._output.fileno()).st_size
        tail = os.pread(self._output.fileno(), 4096, max(0, size - 4096)).decode("utf-8", "replace")
        lines = [line for line in tail.splitlines() if line.strip()]
        return one_line(lines[-1]) if lines else ""


def _describe(source: Source) -> dict[str, Any]:
    if isinstance(source, LocalSource):
        return {"path": str(Path(source.path).absolute()), "version": source.version}
    return {"size_bytes": source.size_bytes, "name": source.name, "version": source.version}


def _environment() -> dict[str, str]:
    """A short list instead of a filter: what a credential is called is not known beforehand."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # The parent may have got vca through sys.path alone (a checkout, a Ray working directory).
    paths = [str(Path(vca.__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    # Confinement binds one thread: OpenBLAS and the allocator of Arrow (jemalloc) must not have started another.
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    return environment | single | {"PYTHONUTF8": "1"}


def _segment(reply: SegmentReply, shared_fd: int, span: Span, plan: ReadPlan, config: DecodeConfig) -> Segment:
    """Rebuild a segment from what the child says, and hold every shape against the request. Raises `GoneError`."""
    limit = config.max_output_mb * 1024 * 1024
    arrays = {name: read_array(shared_fd, ref, limit) for name, ref in reply.arrays.items()}
    n_steps = len(step_spans(span, plan.step_us))
    n_frames = n_steps * plan.frames_per_step
    shapes: dict[str, tuple[str, tuple[int | None, ...], bool]] = {
        "frames": ("uint8", (n_frames, None, None, 3), False),
        "frame_mask": ("bool", (n_frames,), True),
        "frame_times_us": ("int64", (n_frames,), True),
        "audio": ("float32", (samples_between(span.start_us, span.end_us),), False),
        "audio_mask": ("bool", (n_steps,), True),
        "ocr_frames": ("uint8", (None, None, None, 3), True),
        "ocr_spans": ("int64", (None, 2), True),
    }
    if not arrays.keys() <= shapes.keys():
        raise GoneError("an unknown array")
    for name, (dtype, shape, needed) in shapes.items():
        array = arrays.get(name)
        if array is None:
            if needed:
                raise GoneError(f"{name} is missing")
            continue
        fits = len(array.shape) == len(shape) and all(
            w is None or h == w for h, w in zip(array.shape, shape, strict=True)
        )
        if str(array.dtype) != dtype or not fits:
            raise GoneError(f"{name} has shape {array.shape}")
    if len(arrays["ocr_frames"]) != len(arrays["ocr_spans"]):
        raise GoneError("as many spans as pictures are needed")
    failure = reply.failure
    try:
        shots = tuple(Span(start, end) for start, end in reply.shots)
    except ValueError as error:
        raise GoneError("an empty shot") from error
    return Segment(
        span=span,
        frames=arrays.get("frames"),
        frame_mask=arrays["frame_mask"],
        frame_times_us=arrays["frame_times_us"],
        audio=arrays.get("audio"),
        audio_mask=arrays["audio_mask"],
        text=tuple(TextPiece(**dict(piece)) for piece in reply.text),
        ocr_frames=arrays["ocr_frames"],
        ocr_spans=arrays["ocr_spans"],
        shots=shots,
        coverage_us=min(reply.coverage_us, span.duration_us),
        failure=None if failure is None else Failure(failure.code, failure.stage, one_line(failure.message)),
    )


def _private_memory_bytes(pid: int) -> int:
    """Resident private memory; 0 where the system does not tell."""
    try:
        with Path(f"/proc/{pid}/status").open(encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass  # not Linux, or the child is gone, which the socket tells in a moment
    return 0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
