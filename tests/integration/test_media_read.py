"""A segment holds what was on screen and to be heard, and says how much of it is real."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from tests.support.clips import LEVELS, make_clip, shown
from vca.core.errors import ErrorCode, MediaError
from vca.core.timeline import Span, sample_times, segment_spans
from vca.media.decode_config import DecodeConfig
from vca.media.isolation import DecoderProcess, LocalSource
from vca.media.probe import MediaInfo
from vca.media.read import ReadPlan, Segment

pytestmark = pytest.mark.integration

PLAN = ReadPlan(500_000, 1, 32, audio=True, text=True, ocr_frames_per_minute=0.0)
DENSE = replace(PLAN, step_us=100_000, frames_per_step=2)


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(DecodeConfig(backend="decord")) as process:
        yield process


@pytest.fixture(scope="module")
def pyav() -> Iterator[DecoderProcess]:
    with DecoderProcess(DecodeConfig(backend="pyav")) as process:
        yield process


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 s, a key frame every 5 s, sound with a hole from 8 to 14 s."""
    path = tmp_path_factory.mktemp("clips") / "long.mp4"
    return make_clip(path, 600, gop=125, tone=[(0.0, 8.0), (14.0, 24.0)])


def _whole(decoder: DecoderProcess, path: Path, plan: ReadPlan = PLAN) -> tuple[MediaInfo, Segment]:
    info = decoder.probe(LocalSource(str(path)))
    return info, decoder.read(LocalSource(str(path)), info, Span(0, info.duration_us), plan)


def _numbers(segment: Segment) -> list[int]:
    assert segment.frames is not None
    return [shown(float(frame.mean())) for frame in segment.frames]


def test_pictures_of_the_right_moment(decoder: DecoderProcess, pyav: DecoderProcess, tmp_path: Path) -> None:
    """Both backends show the picture whose time has come."""
    path = make_clip(tmp_path / "a.mp4", 50)
    segments = [_whole(process, path, DENSE)[1] for process in (decoder, pyav)]
    times = sample_times(Span(0, 2_000_000), 100_000, 2)
    for segment in segments:
        assert segment.frame_times_us.tolist() == [int(t) // 40_000 * 40_000 for t in times]
        assert _numbers(segment) == [int(t) // 40_000 % LEVELS for t in times]
        assert segment.coverage_us == 2_000_000
        assert segment.failure is None


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_segments_join_without_a_seam(pyav: DecoderProcess, tmp_path: Path, suffix: str) -> None:
    """Decoding from a key frame in the middle gives the same pictures and sound as decoding from the start."""
    codec = "mpeg4" if suffix == "avi" else "libx264"
    path = make_clip(tmp_path / f"c.{suffix}", 300, gop=60, codec=codec, tone=[(0.0, 12.0)])
    info, whole = _whole(pyav, path)
    parts = [pyav.read(LocalSource(str(path)), info, span, PLAN) for span in segment_spans(info.duration_us, 3_000_000)]
    parts = [part for part in parts if part.span.duration_us >= 500_000]
    n = sum(len(part.frame_mask) for part in parts)
    np.testing.assert_array_equal(np.concatenate([p.frame_times_us for p in parts]), whole.frame_times_us[:n])
    np.testing.assert_array_equal(np.concatenate([p.frames for p in parts if p.frames is not None]), whole.frames[:n])
    joined = np.concatenate([p.audio for p in parts if p.audio is not None])
    assert whole.audio is not None
    assert np.abs(joined - whole.audio[: len(joined)]).max() < 0.05


def test_long_pictures_are_covered_to_their_end(decoder: DecoderProcess, tmp_path: Path) -> None:
    """A screen recording in which nothing moves for seconds is whole, and the still picture is what was on screen."""
    path = make_clip(tmp_path / "v.mkv", 5, times_ms=[0, 40, 4000, 4040, 6000])
    info, _ = _whole(decoder, path)
    middle = decoder.read(LocalSource(str(path)), info, Span(2_000_000, 4_000_000), PLAN)
    assert middle.frame_times_us.tolist() == [40_000] * 4
    assert middle.coverage_us == 2_000_000
    assert middle.failure is None


def test_sound_keeps_its_holes(pyav: DecoderProcess, long_clip: Path) -> None:
    """Sound after a hole is not moved forward, and the mask knows the hole."""
    info = pyav.probe(LocalSource(str(long_clip)))
    part = pyav.read(LocalSource(str(long_clip)), info, Span(6_000_000, 18_000_000), PLAN)
    assert part.audio is not None
    assert len(part.audio) == 12 * 16_000
    loud = np.abs(part.audio).reshape(12, -1).max(axis=1) > 0.2
    assert loud.tolist() == [True] * 2 + [False] * 6 + [True] * 4
    assert part.audio_mask[:4].all()
    assert not part.audio_mask[5:15].any()
    assert part.coverage_us == 12_000_000


def test_keyframes_mode(pyav: DecoderProcess, long_clip: Path) -> None:
    """The cheap mode shows the key frame at or before each time, also across segments."""
    info = pyav.probe(LocalSource(str(long_clip)))
    plan = replace(PLAN, mode="keyframes", audio=False)
    part = pyav.read(LocalSource(str(long_clip)), info, Span(12_000_000, 24_000_000), plan)
    times = sample_times(part.span, 500_000)
    assert part.frame_times_us.tolist() == [int(t) // 5_000_000 * 5_000_000 for t in times]
    assert part.coverage_us == 12_000_000


def test_only_what_was_asked_for(decoder: DecoderProcess, long_clip: Path) -> None:
    """Encoders that want no pictures cost no picture decoding, and the other way round."""
    info = decoder.probe(LocalSource(str(long_clip)))
    span = Span(0, 4_000_000)
    sound = decoder.read(LocalSource(str(long_clip)), info, span, replace(PLAN, frames_per_step=0))
    assert sound.frames is None
    assert sound.frame_mask.shape == (0,)
    assert sound.audio is not None
    pictures = decoder.read(LocalSource(str(long_clip)), info, span, replace(PLAN, audio=False))
    assert pictures.audio is None
    assert pictures.frames is not None
    assert pictures.coverage_us == sound.coverage_us == 4_000_000


def test_cut_off_file_is_partial(decoder: DecoderProcess, tmp_path: Path) -> None:
    """A file that ends early (a broken upload) is read up to there and says how far that is."""
    path = tmp_path / "cut.mkv"
    data = make_clip(tmp_path / "whole.mkv", 500, gop=25, size=(160, 120)).read_bytes()
    whole = decoder.probe(LocalSource(str(tmp_path / "whole.mkv")))
    path.write_bytes(data[: len(data) // 2])
    info, segment = _whole(decoder, path)
    assert info.duration_us == whole.duration_us
    assert 0.2 * info.duration_us < segment.coverage_us < 0.8 * info.duration_us
    assert segment.failure is not None
    assert segment.failure.code == ErrorCode.TRUNCATED
    assert abs(int(segment.frame_mask.sum()) * 500_000 - segment.coverage_us) <= 500_000
    last = Span(info.duration_us - 1_000_000, info.duration_us)
    with pytest.raises(MediaError) as caught:
        decoder.read(LocalSource(str(path)), info, last, PLAN)
    assert caught.value.code in (ErrorCode.TRUNCATED, ErrorCode.DECODE_ERROR)


def test_damage_in_the_middle_is_survived(pyav: DecoderProcess, tmp_path: Path) -> None:
    """Zeros over a stretch of packets cost that stretch and not the rest."""
    path = make_clip(tmp_path / "d.ts", 500, gop=25, size=(160, 120))
    data = bytearray(path.read_bytes())
    data[len(data) * 4 // 10 : len(data) * 6 // 10] = bytes(len(data) * 6 // 10 - len(data) * 4 // 10)
    path.write_bytes(data)
    info, segment = _whole(pyav, path)
    assert segment.frame_mask[:10].all()
    assert segment.frame_mask[-10:].all()
    assert segment.coverage_us <= info.duration_us


def test_real_codes(decoder: DecoderProcess, media_dir: Path) -> None:
    """Where no packet decodes, the reader says so; where only sound does, the file is partial."""
    with pytest.raises(MediaError) as caught:
        _whole(decoder, media_dir / "androidx-media/vp9/invalid-bitstream.webm")
    assert caught.value.code is ErrorCode.DECODE_ERROR
    _, segment = _whole(decoder, media_dir / "mediabunny/test/public/annex-b.mp4")
    assert segment.failure is not None
    assert segment.coverage_us < 1_000_000


@pytest.mark.parametrize(
    ("name", "stream"),
    [("nasa_13013.mp4", 3), ("nasa_13013_rotated.mp4", 0), ("test_non_zero_start.mp4", 0)],
)
def test_times_are_those_of_the_ground_truth(
    decoder: DecoderProcess, pyav: DecoderProcess, media_dir: Path, name: str, stream: int
) -> None:
    """Against the list of presentation times that TorchCodec publishes for its files."""
    path = media_dir / "torchcodec" / name
    with (media_dir / "torchcodec" / f"{name}.stream{stream}.all_frames_info.json").open() as file:
        truth = [float(row["pts_time"]) for row in json.load(file)]
    with av.open(str(path)) as container:
        zero = container.start_time / 1e6
    starts = np.round((np.array(truth) - zero) * 1e6)
    for process in (decoder, pyav):
        _, segment = _whole(process, path, DENSE)
        times = sample_times(segment.span, 100_000, 2)
        expected = [starts[max(0, int(np.searchsorted(starts, t, "right")) - 1)] for t in times]
        valid = segment.frame_mask
        assert valid.mean() > 0.9
        assert np.abs(segment.frame_times_us - expected)[valid].max() <= 2


def test_same_result_from_both_backends(decoder: DecoderProcess, pyav: DecoderProcess, media_dir: Path) -> None:
    """Which library decodes must not show: the same pictures at the same times, but for how they are scaled."""
    for name in (
        "torchcodec/testsrc2_vp9.webm",
        "torchcodec/h265_video.mp4",  # open GOPs, on which decord seeks to the wrong picture
        "androidx-media/mp4/sample_with_invalid_nalu.mp4",
        "streamio-ffmpeg/awesome_movie.mov",
        "mediabunny/test/public/edts.mp4",
    ):
        (_, a), (_, b) = (_whole(process, media_dir / name, DENSE) for process in (decoder, pyav))
        np.testing.assert_array_equal(a.frame_times_us, b.frame_times_us, err_msg=name)
        assert a.frames is not None
        assert b.frames is not None
        assert np.abs(a.frames.astype(int) - b.frames).mean() < 2.5, name


def test_embedded_text(decoder: DecoderProcess, media_dir: Path) -> None:
    """Subtitle streams and captions in the pictures come with the segment in which they start, once."""
    srt = media_dir / "mediabunny/test/public/subtitles/test-mkv-srt.mkv"
    info, whole = _whole(decoder, srt)
    assert whole.text
    parts = [decoder.read(LocalSource(str(srt)), info, s, PLAN) for s in segment_spans(info.duration_us, 2_000_000)]
    assert [p.text for part in parts for p in part.text] == [p.text for p in whole.text]
    captions = media_dir / "caption-inspector/BigBuckBunny_256x144-24fps.ts"
    info, whole = _whole(decoder, captions)
    assert len(whole.text) > 10
    parts = [
        decoder.read(LocalSource(str(captions)), info, s, PLAN) for s in segment_spans(info.duration_us, 10_000_000)
    ]
    joined = {piece.text for part in parts for piece in part.text}
    assert len(joined & {piece.text for piece in whole.text}) > 0.8 * len({piece.text for piece in whole.text})


def test_text_frames_and_shots(decoder: DecoderProcess, media_dir: Path) -> None:
    """Frames for text recognition are larger than the encoder's, inside the budget, with spans; shots fill the time."""
    plan = replace(PLAN, ocr_frames_per_minute=12.0, ocr_height=240, frames_per_step=3)
    info, segment = _whole(decoder, media_dir / "torchcodec/nasa_13013.mp4", plan)
    assert 1 <= len(segment.ocr_frames) <= 3
    assert segment.ocr_frames.shape[1:] == (240, 426, 3)
    assert (segment.ocr_spans[:, 1] > segment.ocr_spans[:, 0]).all()
    assert segment.shots[0].start_us == 0
    assert segment.shots[-1].end_us == info.duration_us
