"""Which frame is on screen when, in which colours, which way up."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vca.media.frames import (
    Picture,
    PyavPicture,
    ScreenSampler,
    Shaper,
    clockwise_turn,
    display_size,
    orientation,
    scaled_size,
    turn_upright,
)

_NO_PIXELS: Any = object()  # a picture that nobody looks at


def _sample(times: list[int], frames: list[tuple[int, int]], **how: Any) -> list[int | None]:
    """Time of the frame given to every sample time."""
    got: list[int | None] = [None] * len(times)

    def take(indices: range, _picture: Picture, time_us: int) -> None:
        for i in indices:
            assert got[i] is None, "a sample was answered twice"
            got[i] = time_us

    settings = {"hold_before_us": None, "stale_after_us": 10**9} | how
    sampler = ScreenSampler(np.array(times, dtype=np.int64), take, **settings)
    for start, duration in frames:
        sampler.show(_NO_PIXELS, start, duration)
    sampler.finish(at_end=True)
    return got


@given(
    gaps=st.lists(st.integers(1, 90), min_size=1, max_size=30),
    start=st.integers(0, 50),
    times=st.lists(st.integers(0, 3000), min_size=1, max_size=40, unique=True),
    last=st.integers(1, 60),
)
def test_sampler_agrees_with_the_definition(gaps: list[int], start: int, times: list[int], last: int) -> None:
    """The frame on screen is the last one that started, whatever the rate; past the end there is none."""
    times.sort()
    starts = [start + sum(gaps[:k]) for k in range(len(gaps))]
    ends = [*starts[1:], starts[-1] + last]
    got = _sample(times, [(s, e - s) for s, e in zip(starts, ends, strict=True)])
    for t, frame in zip(times, got, strict=True):
        if t >= ends[-1] + last:
            assert frame is None
        else:
            assert frame == max((s for s in starts if s <= t), default=starts[0])


def test_late_first_frame_is_not_shown_early() -> None:
    """In a later segment, times before a frame that starts after the first step have no picture."""
    assert _sample([10, 30, 50, 70], [(45, 40)], hold_before_us=20) == [None, None, 45, 45]
    assert _sample([10, 30, 50], [(15, 60)], hold_before_us=20) == [15, 15, 15]


def test_stale_frame_after_damage_is_masked() -> None:
    """Where packets were lost, an old frame is not sold as what is on screen."""
    got: dict[int, int] = {}
    sampler = ScreenSampler(
        np.arange(5, 1000, 10, dtype=np.int64),
        lambda indices, _p, t: got.update(dict.fromkeys(indices, t)),
        hold_before_us=None,
        stale_after_us=100,
    )
    sampler.show(_NO_PIXELS, 0, 10)
    sampler.damage()
    sampler.show(_NO_PIXELS, 500, 500)
    sampler.finish(at_end=True)
    assert got[0] == 0
    assert got[9] == 0
    assert 10 not in got
    assert 49 not in got
    assert got[50] == 500


MATRICES = {(1, 0, 0, 1): 0, (-1, 0, 0, -1): 180, (0, 1, -1, 0): 90, (0, -1, 1, 0): 270}


@pytest.mark.parametrize(("matrix", "degrees"), MATRICES.items())
def test_turns_by_the_display_matrix(matrix: tuple[int, int, int, int], degrees: int) -> None:
    """The matrix of the container and NumPy's rotation agree."""
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert clockwise_turn(matrix) == degrees
    np.testing.assert_array_equal(turn_upright(image, matrix), np.rot90(image, -degrees // 90))


def test_mirrors_are_applied() -> None:
    """A mirrored selfie video comes out as it is seen."""
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    np.testing.assert_array_equal(turn_upright(image, (-1, 0, 0, 1)), image[:, ::-1])
    np.testing.assert_array_equal(turn_upright(image, (0, 1, 1, 0)), image.transpose(1, 0, 2))


def test_sizes_keep_the_display_aspect() -> None:
    """Anamorphic video is widened, portrait stays portrait, sizes are even."""
    assert display_size(720, 576, Fraction(16, 11)) == (1047, 576)
    assert display_size(480, 270, None, (0, -1, 1, 0)) == (270, 480)
    assert display_size(640, 480, Fraction(1000, 1)) == (640, 480)
    assert scaled_size(1920, 1080, 224) == (398, 224)
    assert scaled_size(1080, 1921, 225) == (226, 400)


@pytest.mark.parametrize(
    ("name", "kr", "kb", "full"),
    [
        ("bt601_full_range.mp4", 0.299, 0.114, True),
        ("bt601_limited_range.mp4", 0.299, 0.114, False),
        ("bt709_full_range.mp4", 0.2126, 0.0722, True),
        ("bt2020_10bit.mp4", 0.2627, 0.0593, False),
        ("testsrc2.mp4", 0.299, 0.114, False),  # declares nothing: taken as BT.601
    ],
)
def test_colours_follow_the_stream(media_dir: Path, name: str, kr: float, kb: float, full: bool) -> None:
    """Matrix and range of the stream are applied: compared with the formulas of ITU-T H.273 in floating point."""
    with av.open(str(media_dir / "torchcodec" / name)) as container:
        frame = next(f for k, f in enumerate(container.decode(video=0)) if k == 5)
    deep = frame.format.components[0].bits > 8
    kind, scale = (np.uint16, 4.0) if deep else (np.uint8, 1.0)
    planes = [
        np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : plane.width].astype(np.float64) / scale
        for plane in frame.planes
    ]
    luma, blue, red = planes[0], *(p.repeat(2, 0).repeat(2, 1) for p in planes[1:])
    y = luma / 255 if full else (luma - 16) / 219
    pb, pr = ((c - 128) / (255 if full else 224) for c in (blue, red))
    r, b = y + 2 * (1 - kr) * pr, y + 2 * (1 - kb) * pb
    expected = np.clip(np.stack([r, (y - kr * r - kb * b) / (1 - kr - kb), b], axis=-1) * 255, 0, 255)
    got = Shaper(frame.height, frame.width)(PyavPicture(frame))
    # swscale interpolates colour at edges, the formula does not: compare where neighbours are alike
    around = np.ones((5, 5), np.uint8)
    flat = np.all([cv2.dilate(plane, around) - cv2.erode(plane, around) < 1 for plane in (luma, blue, red)], axis=0)
    assert flat.mean() > 0.1
    assert np.abs(got - expected)[flat].mean() < 0.5
    assert np.abs(got - expected)[flat].max() < 3


def test_white_stays_white_when_scaled(media_dir: Path) -> None:
    """swscale's fast way gives 253, and features of a white slide that nobody's training has seen."""
    with av.open(str(media_dir / "mp4parse/white.mp4")) as container:
        frame = next(container.decode(video=0))
    got = Shaper(frame.height // 2, frame.width // 2)(PyavPicture(frame))
    assert got.min() == 255


@pytest.mark.parametrize("name", ["torchcodec/nasa_13013_rotated.mp4", "streamio-ffmpeg/sideways_movie.mov"])
def test_turned_files_agree_with_decord(media_dir: Path, name: str) -> None:
    """Another program that turns pictures upright (decord) gets the same pixels, but for rounding."""
    decord = pytest.importorskip("decord")
    path = str(media_dir / name)
    with av.open(path) as container:
        frame = next(container.decode(video=0))
    assert orientation(frame) is not None
    reference = decord.VideoReader(path, num_threads=1)[0].asnumpy()
    height, width = reference.shape[:2]
    got = Shaper(height, width)(PyavPicture(frame))
    assert np.abs(got.astype(int) - reference).mean() < 2.5
