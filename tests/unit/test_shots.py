"""Shots: real cuts are found where they are, and light, flashes and motion are not taken for cuts."""

from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vca.core.timeline import Span
from vca.media.shots import find_shots, join_shots

STEP_US = 500_000
Frames = npt.NDArray[np.uint8]


def scene(seed: int) -> Frames:
    """A still picture of its own colours and layout, [90, 160, 3]."""
    coarse = np.random.default_rng(seed).integers(20, 236, (5, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (160, 90), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def times(count: int, start_us: int = 0) -> npt.NDArray[np.int64]:
    return start_us + STEP_US // 2 + STEP_US * np.arange(count, dtype=np.int64)


def cuts(frames: list[Frames], mask: list[bool] | None = None, start_us: int = 0) -> list[int]:
    span = Span(start_us, start_us + STEP_US * len(frames))
    there = np.ones(len(frames), bool) if mask is None else np.array(mask)
    shots = find_shots(np.stack(frames), times(len(frames), start_us), span, there)
    assert (shots[0].start_us, shots[-1].end_us) == (span.start_us, span.end_us)
    return [shot.start_us for shot in shots[1:]]


def sample(path: Path) -> tuple[Frames, npt.NDArray[np.int64], Span]:
    """The frames on screen at 0.25 s, 0.75 s, ... at 224 px."""
    kept: list[Frames] = []
    with av.open(str(path)) as container:
        zero = container.start_time or 0
        picture: Frames | None = None
        for frame in container.decode(video=0):
            now = round((frame.time or 0.0) * 1e6) - zero
            while picture is not None and now > STEP_US // 2 + STEP_US * len(kept):
                kept.append(picture)
            size = (round(frame.width * 224 / frame.height), 224)
            rgb = frame.to_ndarray(format="rgb24")
            picture = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return np.stack(kept), times(len(kept)), Span(0, STEP_US * len(kept))


@pytest.mark.media
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("caption-inspector/BigBuckBunny_256x144-24fps.ts", [12.0, 15.5, 23.0]),  # fades in from black
        ("katna/pos_video.mp4", [2.5, 7.5, 13.0]),  # a burst of fire is no cut; the half second before 0.5 s is missed
        ("torchcodec/nasa_13013.mp4", [5.0, 8.0]),  # the first is a dissolve
        ("torchcodec/dog_eating_854132.mp4", []),
        ("file-type/fixture.asf", []),  # shaken by hand, an elephant walks in
    ],
)
def test_real_videos(media_dir: Path, path: str, expected: list[float]) -> None:
    """The cuts that a person sees in the pictures, within half a step."""
    frames, at, span = sample(media_dir / path)
    shots = find_shots(frames, at, span, np.ones(len(frames), bool))
    assert [shot.start_us / 1e6 for shot in shots[1:]] == expected


def test_cut_is_halfway_between_the_frames() -> None:
    """A cut between the samples at 1.75 s and 2.25 s is put at 2.0 s, also in a later segment and across a gap."""
    a, b = scene(1), scene(2)
    assert cuts([a] * 4 + [b] * 4) == [2_000_000]
    assert cuts([a] * 4 + [b] * 4, start_us=60_000_000) == [62_000_000]
    blank = np.zeros_like(a)
    mask = [True] * 4 + [False] * 2 + [True] * 4
    assert cuts([a] * 4 + [blank] * 2 + [b] * 4, mask) == [2_500_000]


def test_fades_and_light_are_no_cuts() -> None:
    """Fading in from black and a lamp switched on change every pixel, not the scene."""
    a = scene(1)
    faded = [np.asarray(a * level, dtype=np.uint8) for level in (0.0, 0.02, 0.3, 0.65, 1.0, 1.0)]
    assert cuts(faded) == []
    lit = np.asarray(np.minimum(a.astype(np.int32) + 70, 255), dtype=np.uint8)
    assert cuts([a] * 4 + [lit] * 4) == []


def test_black_between_two_scenes_is_one_cut() -> None:
    """A fade through black ends one shot; the black is not a shot of its own."""
    a, b = scene(1), scene(2)
    assert cuts([a] * 4 + [np.zeros_like(a)] * 3 + [b] * 4) == [3_500_000]


def test_flash_is_no_cut() -> None:
    """A picture that comes back within a second was covered, not cut away; one that stays away was cut."""
    a, b = scene(1), scene(2)
    assert cuts([a] * 4 + [b] + [a] * 4) == []
    assert cuts([a] * 4 + [b] * 4 + [a] * 4) == [2_000_000, 4_000_000]


def test_nothing_decoded_is_one_shot() -> None:
    """A segment without frames still has shots that cover it."""
    assert cuts([scene(1)] * 3, [False] * 3) == []
    empty = np.zeros((0, 90, 160, 3), np.uint8)
    assert find_shots(empty, times(0), Span(0, 10), np.zeros(0, bool)) == (Span(0, 10),)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=24))
def test_shots_cover_the_span(plan: list[tuple[int, bool]]) -> None:
    """Whatever is shown, shots have no gap, no overlap and, between cuts, at least one second."""
    frames = np.stack([scene(seed) for seed, _ in plan])
    span = Span(0, STEP_US * len(plan))
    shots = find_shots(frames, times(len(plan)), span, np.array([there for _, there in plan]))
    assert (shots[0].start_us, shots[-1].end_us) == (0, span.end_us)
    assert all(a.end_us == b.start_us for a, b in pairwise(shots))
    assert all(shot.duration_us >= 1_000_000 for shot in shots[1:-1])


def test_join_shots_across_segments() -> None:
    """A shot goes on over a segment border unless the border is known as a cut or a segment is missing."""
    first, second = (Span(0, 4), Span(4, 10)), (Span(10, 13), Span(13, 20))
    assert join_shots([first, second]) == (Span(0, 4), Span(4, 13), Span(13, 20))
    assert join_shots([first, second], cut_borders_us={10}) == (*first, *second)
    assert join_shots([first, (Span(20, 30),)]) == (*first, Span(20, 30))
    assert join_shots([(Span(0, 10),), (Span(10, 20),), (), (Span(20, 30),)]) == (Span(0, 30),)
    assert join_shots([]) == ()
