"""The probe tells what a file holds, and what is wrong with one that holds nothing."""

import csv
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.support.clips import make_clip
from vca.core.errors import ErrorCode, MediaError
from vca.core.schemas import MEDIA_INFO
from vca.media.decode_config import DecodeConfig
from vca.media.isolation import DecoderProcess, LocalSource, RangeSource
from vca.media.probe import MediaInfo


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(DecodeConfig()) as process:
        yield process


def _probe(decoder: DecoderProcess, path: Path) -> MediaInfo:
    return decoder.probe(LocalSource(str(path)))


def test_row_is_what_the_schema_says(decoder: DecoderProcess, tmp_path: Path) -> None:
    """Every field of the table schema is there, and a row read back is the same."""
    info = _probe(decoder, make_clip(tmp_path / "a.mp4", 25, tone=[(0.0, 1.0)]))
    row = pa.array([info.to_row()], type=MEDIA_INFO).to_pylist()[0]
    assert set(info.to_row()) == {field.name for field in MEDIA_INFO}
    assert MediaInfo.from_row(row) == info
    assert (info.width, info.height, info.fps, info.n_frames) == (64, 48, 25.0, 25)
    assert (info.has_video, info.has_audio, info.variable_fps, info.rotation) == (True, True, False, 0)


def test_variable_rate_is_seen(decoder: DecoderProcess, tmp_path: Path) -> None:
    """A screen recording with pictures at odd times is told apart from a constant rate."""
    info = _probe(decoder, make_clip(tmp_path / "v.mkv", 6, times_ms=[0, 40, 80, 2000, 2040, 3500]))
    assert info.variable_fps is True
    assert info.duration_us >= 3_500_000


BROKEN = [
    ("derived/zero.mp4", ErrorCode.EMPTY_FILE),
    ("derived/srt_named_as.mp4", ErrorCode.NOT_MEDIA),
    ("mediabunny/LICENSE", ErrorCode.NOT_MEDIA),
    ("subtitle_files/go-astisub/example-in.vtt", ErrorCode.NOT_MEDIA),
    ("derived/truncated_40pct.mp4", ErrorCode.HEADER_DAMAGED),
    ("streamio-ffmpeg/broken.mp4", ErrorCode.HEADER_DAMAGED),
    ("mp4parse/chunk_out_of_range.mp4", ErrorCode.HEADER_DAMAGED),
    ("file-type/fixture-corrupt.mkv", ErrorCode.HEADER_DAMAGED),
    ("mux.js/malformed-sei.m4s", ErrorCode.HEADER_DAMAGED),
    ("mux.js/malformed-sei-init.mp4", ErrorCode.NO_FRAMES),
    ("mp4parse/bipbop-cenc-audioinit.mp4", ErrorCode.NO_FRAMES),
    ("mp4parse/bipbop_cbcs_video_init.mp4", ErrorCode.NO_FRAMES),
    ("mp4parse/short-cenc.mp4", ErrorCode.ENCRYPTED),
]


@pytest.mark.parametrize(("name", "code"), BROKEN)
def test_the_code_tells_what_is_wrong(decoder: DecoderProcess, media_dir: Path, name: str, code: ErrorCode) -> None:
    """A person who reads the quarantine table knows what to do with the file."""
    with pytest.raises(MediaError) as caught:
        _probe(decoder, media_dir / name)
    assert caught.value.code is code
    assert str(media_dir) not in caught.value.message


def test_noise_is_not_media(decoder: DecoderProcess, tmp_path: Path) -> None:
    """Random bytes are not guessed to be some obscure format.

    The bytes are the same each time: FFmpeg takes one large draw in a hundred for raw H.263 or VVC, which then ends as
    a decoding error.
    """
    for size in (1, 100, 10_000, 300_000):
        path = tmp_path / f"{size}.mp4"
        path.write_bytes(random.Random(size).randbytes(size))
        with pytest.raises(MediaError) as caught:
            _probe(decoder, path)
        assert caught.value.code in (ErrorCode.NOT_MEDIA, ErrorCode.NO_FRAMES, ErrorCode.NO_STREAM)


def test_vanished_file(decoder: DecoderProcess, tmp_path: Path) -> None:
    """A file deleted after listing is not damaged media."""
    with pytest.raises(MediaError) as caught:
        _probe(decoder, tmp_path / "gone.mp4")
    assert caught.value.code is ErrorCode.OBJECT_MISSING


def test_details_of_real_files(decoder: DecoderProcess, media_dir: Path) -> None:
    """Turned, HDR, several streams, sound only, cover size: as the sources say."""
    turned = _probe(decoder, media_dir / "torchcodec/nasa_13013_rotated.mp4")
    assert (turned.width, turned.height, turned.rotation) == (270, 480, 270)
    assert _probe(decoder, media_dir / "torchcodec/nasa_13013_hdr.mp4").hdr is True
    assert _probe(decoder, media_dir / "torchcodec/testsrc2.mp4").hdr is False
    nasa = _probe(decoder, media_dir / "torchcodec/nasa_13013.mp4")
    assert (nasa.n_video_streams, nasa.n_audio_streams, nasa.width, nasa.height) == (2, 2, 480, 270)
    speech = _probe(decoder, media_dir / "whisper/jfk.flac")
    assert (speech.has_video, speech.has_audio, speech.duration_us) == (False, True, 11_000_000)


def test_duration_of_every_good_file(decoder: DecoderProcess, media_dir: Path) -> None:
    """Durations agree with the index of the files, but for those that FFmpeg guesses from the bit rate."""
    guessed = {"mux.js/test-aac-segment.aac", "file-type/fixture2.mpg", "file-type/fixture.ps.mpg"}
    with (media_dir / "INDEX.tsv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file, delimiter="\t") if r["duration_s"] and not r["decode_error"].strip()]
    assert len(rows) > 100
    for row in rows:
        if row["path"] in guessed or int(row["bytes"]) > 600_000:
            continue
        info = _probe(decoder, media_dir / row["path"])
        assert info.duration_us / 1e6 == pytest.approx(float(row["duration_s"]), abs=0.06), row["path"]


def test_byte_ranges_need_few_bytes(decoder: DecoderProcess, media_dir: Path) -> None:
    """With an index at the end of a large file, the probe reads the ends and not the middle."""
    path = media_dir / "intel_sample_videos/one-by-one-person-detection.mp4"
    data, read = path.read_bytes(), []

    def read_range(offset: int, size: int) -> bytes:
        read.append(size)
        return data[offset : offset + size]

    remote = decoder.probe(RangeSource(read_range, len(data), "x.mp4"))
    assert remote.duration_us == _probe(decoder, path).duration_us
    assert remote.n_frames is None
    assert sum(read) < len(data)


def _declaring_a_century(path: Path) -> bytes:
    """The Matroska file with another duration in its header, in milliseconds."""
    data = bytearray(path.read_bytes())
    duration = data.index(b"\x44\x89\x88") + 3
    data[duration : duration + 8] = struct.pack(">d", 100 * 365 * 86_400_000.0)
    return bytes(data)


def test_a_header_that_declares_a_century_is_not_believed(decoder: DecoderProcess, tmp_path: Path) -> None:
    """Beyond decode.max_duration_h the packets say how long it is: a task a minute would fill the driver's memory."""
    path = make_clip(tmp_path / "a.mkv", 25)
    path.write_bytes(_declaring_a_century(path))
    info = _probe(decoder, path)
    assert (info.duration_us, info.declared_duration_us) == (1_000_000, None)


def test_too_long_for_the_limit(tmp_path: Path) -> None:
    """What really is that long, or cannot be looked through, fails with its own code and names the setting."""
    path = make_clip(tmp_path / "a.mkv", 50)
    with DecoderProcess(DecodeConfig(max_duration_h=1 / 3600)) as short, pytest.raises(MediaError) as caught:
        _probe(short, path)
    assert caught.value.code == ErrorCode.TOO_LONG
    assert "decode.max_duration_h" in caught.value.message
    data = _declaring_a_century(path)
    source = RangeSource(lambda offset, length: data[offset : offset + length], len(data), "a.mkv")
    with DecoderProcess(DecodeConfig()) as remote, pytest.raises(MediaError) as caught:
        remote.probe(source)
    assert caught.value.code == ErrorCode.TOO_LONG
