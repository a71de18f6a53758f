"""Hostile files end a child process, not the run: every limit is broken here on a real process."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from tests.support.clips import make_clip
from vca.core.errors import ErrorCode, MediaError
from vca.core.timeline import Span
from vca.media.decode_config import DecodeConfig
from vca.media.isolation import DecoderProcess, LocalSource, RangeSource
from vca.media.read import ReadPlan
from vca.media.wire import ArrayRef, GoneError, read_array, shared_file, write_arrays

pytestmark = pytest.mark.integration

PLAN = ReadPlan(step_us=500_000, frames_per_step=1, frame_size=32, audio=True, text=True, ocr_frames_per_minute=0.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 50, tone=[(0.0, 2.0)])


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Takes some seconds to decode, and at 4K each picture needs 12 MB."""
    return make_clip(
        tmp_path_factory.mktemp("clips") / "heavy.mp4", 40, size=(3840, 2160), options={"preset": "ultrafast"}
    )


def _read(decoder: DecoderProcess, path: Path, plan: ReadPlan = PLAN) -> int:
    source = LocalSource(str(path))
    info = decoder.probe(source)
    return decoder.read(source, info, Span(0, info.duration_us), plan).coverage_us


def _later(delay_s: float, action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=lambda: (time.sleep(delay_s), action()), daemon=True)
    thread.start()
    return thread


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_one_child_serves_many_requests(clip: Path) -> None:
    """Starting a child is dear: it stays between requests and ends with `close`."""
    with DecoderProcess(DecodeConfig()) as decoder:
        assert _read(decoder, clip) == 2_000_000
        pid = decoder.pid
        assert _read(decoder, clip) == 2_000_000
        assert decoder.pid == pid
        assert pid is not None
    assert not _alive(pid)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_crash_is_a_code_and_the_next_request_works(clip: Path, number: signal.Signals) -> None:
    """A crash of native code names its signal and costs one file."""
    with DecoderProcess(DecodeConfig()) as decoder:
        plain = _ranges(clip, [])
        info = decoder.probe(plain)
        first = decoder.pid
        assert first is not None

        def crash() -> None:
            os.kill(first, number)
            if number is not signal.SIGKILL:
                os.kill(first, signal.SIGCONT)  # a stopped process takes no other signal

        def stop_midway(offset: int, size: int) -> bytes:
            """Stands still in the middle of a read until it crashes: a fast machine is not done before."""
            os.kill(first, signal.SIGSTOP)
            _later(0.3, crash)
            return plain.read_range(offset, size)

        source = replace(plain, read_range=stop_midway)
        with pytest.raises(MediaError) as caught:
            decoder.read(source, info, Span(0, info.duration_us), PLAN)
        assert caught.value.code is ErrorCode.DECODE_CRASH
        assert number.name in caught.value.message
        assert _read(decoder, clip) == 2_000_000
        assert decoder.pid != first


def test_death_between_requests_is_not_noticed(clip: Path) -> None:
    """A child that died while idle (the kernel was short of memory) is replaced in silence."""
    with DecoderProcess(DecodeConfig()) as decoder:
        assert _read(decoder, clip) == 2_000_000
        assert decoder.pid is not None
        os.kill(decoder.pid, signal.SIGKILL)
        time.sleep(0.2)
        assert _read(decoder, clip) == 2_000_000


def test_hang_is_killed(clip: Path) -> None:
    """A decoder that stands still is killed at the wall limit."""
    with DecoderProcess(DecodeConfig(wall_limit_s=1.0)) as decoder:
        info = decoder.probe(LocalSource(str(clip)))
        pid = decoder.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(MediaError) as caught:
            decoder.read(LocalSource(str(clip)), info, Span(0, info.duration_us), PLAN)
        assert caught.value.code is ErrorCode.DECODE_TIMEOUT
        assert time.monotonic() - start < 3.0
        assert not _alive(pid)
        assert _read(decoder, clip) == 2_000_000


def test_cpu_limit(clip: Path, heavy: Path) -> None:
    """A file that eats CPU time is stopped, although the wall limit is far."""
    source = LocalSource(str(heavy))
    with DecoderProcess(DecodeConfig()) as unlimited:
        info = unlimited.probe(source)
    # The kernel counts in whole seconds from the start of a process: a request may have anything from 0.01 s to 1 s.
    with DecoderProcess(DecodeConfig(cpu_limit_s=0.01)) as decoder:
        with pytest.raises(MediaError) as caught:
            [decoder.read(source, info, Span(0, info.duration_us), PLAN) for _ in range(20)]
        assert caught.value.code is ErrorCode.DECODE_CPU_LIMIT
        results: list[int | ErrorCode] = []
        while len(results) < 5 and 2_000_000 not in results:
            try:
                results.append(_read(decoder, clip))
            except MediaError as error:
                results.append(error.code)
        assert results[-1] == 2_000_000, results
        assert set(results) <= {2_000_000, ErrorCode.DECODE_CPU_LIMIT}


def test_memory_limit(clip: Path, heavy: Path) -> None:
    """Pictures that do not fit into the limit are a code, not a machine out of memory."""
    with DecoderProcess(DecodeConfig(memory_limit_mb=192)) as decoder:
        with pytest.raises(MediaError) as caught:
            _read(decoder, heavy, replace(PLAN, frame_size=2160))
        assert caught.value.code is ErrorCode.DECODE_MEMORY
        assert _read(decoder, clip) == 2_000_000


def test_pixel_limit(clip: Path, heavy: Path) -> None:
    """Large pictures are refused before anything is decoded."""
    with DecoderProcess(DecodeConfig(max_pixels=1920 * 1080)) as decoder:
        with pytest.raises(MediaError) as caught:
            decoder.probe(LocalSource(str(heavy)))
        assert caught.value.code is ErrorCode.TOO_MANY_PIXELS
        assert _read(decoder, clip) == 2_000_000


def test_output_limit(clip: Path) -> None:
    """A plan that asks for more pictures than the limit allows is refused."""
    with DecoderProcess(DecodeConfig(max_output_mb=1)) as decoder:
        source = LocalSource(str(clip))
        info = decoder.probe(source)
        dense = ReadPlan(10_000, 4, 128, audio=False, text=False, ocr_frames_per_minute=0.0)
        with pytest.raises(MediaError) as caught:
            decoder.read(source, info, Span(0, info.duration_us), dense)
        assert caught.value.code is ErrorCode.OUTPUT_LIMIT
        assert _read(decoder, clip) == 2_000_000


def test_shared_memory_is_given_back(clip: Path) -> None:
    """Between requests the shared file is empty: many idle slots cost nothing."""
    with DecoderProcess(DecodeConfig()) as decoder:
        _read(decoder, clip)
        files = list(Path(f"/proc/{decoder.pid}/fd").iterdir())
        assert [file.stat().st_size for file in files if "vca-arrays" in str(file.readlink())] == [0]


def test_child_has_no_credentials_and_few_rights(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever takes over the decoder finds no secret, leaves no core dump and fills no disk."""
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "SOME_SECRET"):
        monkeypatch.setenv(name, "do-not-hand-on")
    with DecoderProcess(DecodeConfig(max_output_mb=64)) as decoder:
        _read(decoder, clip)
        assert decoder.pid is not None
        environment = Path(f"/proc/{decoder.pid}/environ").read_bytes()
        assert b"do-not-hand-on" not in environment
        assert resource.prlimit(decoder.pid, resource.RLIMIT_CORE) == (0, 0)
        assert resource.prlimit(decoder.pid, resource.RLIMIT_FSIZE)[1] == 64 * 1024 * 1024


def test_child_dies_with_its_parent(clip: Path) -> None:
    """A killed Ray worker leaves no decoder behind."""
    code = (
        "import sys, time\n"
        "from vca.media.isolation import *\n"
        "from vca.media.decode_config import DecodeConfig\n"
        "d = DecoderProcess(DecodeConfig())\n"
        "d.probe(LocalSource(sys.argv[1]))\n"
        "print(d.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(clip)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert _alive(child)
        os.kill(child, signal.SIGSTOP)  # not even a child that cannot run may stay
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 5
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)


def _ranges(path: Path, calls: list[tuple[int, int]]) -> RangeSource:
    data = path.read_bytes()

    def read_range(offset: int, size: int) -> bytes:
        calls.append((offset, size))
        return data[offset : offset + size]

    return RangeSource(read_range, len(data), path.name)


def test_byte_ranges_give_the_same_as_the_file(heavy: Path) -> None:
    """A remote object read by ranges decodes to the same pictures, in few requests."""
    calls: list[tuple[int, int]] = []
    with DecoderProcess(DecodeConfig(backend="pyav")) as decoder:
        info = decoder.probe(LocalSource(str(heavy)))
        span = Span(0, info.duration_us)
        expected = decoder.read(LocalSource(str(heavy)), info, span, PLAN)
        got = decoder.read(_ranges(heavy, calls), info, span, PLAN)
    assert expected.frames is not None
    assert got.frames is not None
    np.testing.assert_array_equal(got.frames, expected.frames)
    np.testing.assert_array_equal(got.frame_times_us, expected.frame_times_us)
    assert len(calls) <= 3 + heavy.stat().st_size // 2**20


def test_the_index_says_where_a_span_ends(tmp_path: Path) -> None:
    """Most bytes lie in the first seconds, which by the mean bit rate would be a fortieth of the object."""
    path = tmp_path / "noise.mp4"
    noise = np.random.default_rng(1).integers(0, 256, (360, 640, 3), np.uint8)
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=1, options={"preset": "ultrafast", "qp": "4"})
        video.width, video.height, video.pix_fmt = 640, 360, "yuv420p"
        for k in range(800):
            pixels = np.roll(noise, 7 * k, axis=1) if k < 20 else np.full_like(noise, 80)
            out.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(video.encode(None))
    size_bytes = path.stat().st_size
    assert size_bytes > 4e6
    calls: list[tuple[int, int]] = []
    with DecoderProcess(DecodeConfig(backend="pyav")) as decoder:
        source = _ranges(path, calls)
        info = decoder.probe(source)
        decoder.read(source, info, Span(0, 20_000_000), PLAN)
    assert len(calls) <= 3 + size_bytes // 2**20, calls


def test_waiting_for_the_storage_is_not_the_decoders_time(clip: Path) -> None:
    """A slow storage does not break the wall limit."""
    plain = _ranges(clip, [])

    def slow(offset: int, size: int) -> bytes:
        time.sleep(1.5)
        return plain.read_range(offset, size)

    with DecoderProcess(DecodeConfig(wall_limit_s=1.0)) as decoder:
        assert decoder.probe(RangeSource(slow, plain.size_bytes, "slow.mp4")).duration_us == 2_000_000


def test_storage_failure_keeps_its_code(clip: Path) -> None:
    """What the storage says is not taken for damaged media, and the child goes on."""

    def refuse(offset: int, size: int) -> bytes:
        raise MediaError(ErrorCode.ACCESS_DENIED, "the bucket says no")

    with DecoderProcess(DecodeConfig()) as decoder:
        with pytest.raises(MediaError) as caught:
            decoder.probe(RangeSource(refuse, 1000, "refused.mp4"))
        assert caught.value.code is ErrorCode.ACCESS_DENIED
        pid = decoder.pid
        with pytest.raises(MediaError) as caught:
            decoder.probe(RangeSource(lambda offset, size: b"short", 1000, "changed.mp4"))
        assert caught.value.code is ErrorCode.OBJECT_CHANGED
        assert _read(decoder, clip) == 2_000_000
        assert decoder.pid == pid


def test_bugs_are_not_media_failures(clip: Path) -> None:
    """An exception in our own storage code stops the run instead of becoming a row."""

    def buggy(offset: int, size: int) -> bytes:
        raise KeyError("a bug")

    with DecoderProcess(DecodeConfig()) as decoder:
        with pytest.raises(KeyError):
            decoder.probe(RangeSource(buggy, 1000, "x.mp4"))
        assert _read(decoder, clip) == 2_000_000


def test_names_are_not_protocols(tmp_path: Path) -> None:
    """A file may be called like an address or an FFmpeg protocol, or not in UTF-8, and stays a file."""
    for name in ("concat:a|b.mp4", "http:x.mp4", os.fsdecode(b"bad-\xff.mp4")):
        path = tmp_path / name
        path.write_bytes(make_clip(tmp_path / "plain.mp4", 10).read_bytes())
        with DecoderProcess(DecodeConfig()) as decoder:
            assert decoder.probe(LocalSource(str(path))).has_video


def test_playlists_open_no_other_file(clip: Path, tmp_path: Path) -> None:
    """A playlist in the archive must not make the decoder read other files or the network."""
    for name, text in {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{clip}\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile '{clip}'\n",
    }.items():
        (tmp_path / name).write_text(text)
        with DecoderProcess(DecodeConfig()) as decoder, pytest.raises(MediaError) as caught:
            decoder.probe(LocalSource(str(tmp_path / name)))
        assert caught.value.code is ErrorCode.NOT_MEDIA


def test_lies_about_arrays_are_refused() -> None:
    """A taken-over child cannot make the parent read outside the shared file or allocate at will."""
    fd = shared_file()
    try:
        refs = write_arrays(fd, {"a": np.arange(10, dtype=np.int64), "m": np.array([True, False])})
        np.testing.assert_array_equal(read_array(fd, refs["a"], 1000), np.arange(10))
        np.testing.assert_array_equal(read_array(fd, refs["m"], 1000), [True, False])
        for ref in (
            ArrayRef(dtype="uint8", shape=[2**30, 2**30], offset=0),
            ArrayRef(dtype="int64", shape=[11], offset=2**20),
            ArrayRef(dtype="uint8", shape=[500], offset=0),
            ArrayRef(dtype="bool", shape=[80], offset=0),
        ):
            with pytest.raises(GoneError):
                read_array(fd, ref, 1000)
    finally:
        os.close(fd)
