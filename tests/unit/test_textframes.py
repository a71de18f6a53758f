"""Frames for text recognition: every readable text gets its frame, within the budget, and moving pictures get none."""

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vca.core.timeline import Span
from vca.media.textframes import TextFramePicker

STEP_US = 500_000
Image = npt.NDArray[np.uint8]
HEIGHT, WIDTH = 224, 398
CLOUDS = np.random.default_rng(3).integers(0, 200, (12, 80), dtype=np.uint8)
TEXTURE = cv2.resize(CLOUDS, (2400, 360), interpolation=cv2.INTER_CUBIC)
for _x in range(25, 2400, 90):  # posts with hard edges
    cv2.rectangle(TEXTURE, (_x, 40), (_x + 20, 300), 15, -1)


def picture(position: int, text: str = "", noise: int = 0) -> Image:
    """A part of a large texture that moves with `position`, and white outlined text that stands."""
    left = 39 * position
    frame = np.ascontiguousarray(np.repeat(TEXTURE[:HEIGHT, left : left + WIDTH, None], 3, axis=2))
    if noise:
        dirt = np.random.default_rng(noise).integers(-4, 5, frame.shape)
        frame = np.asarray(np.clip(frame.astype(np.int32) + dirt, 0, 255), dtype=np.uint8)
    for color, width in (((0, 0, 0), 4), ((255, 255, 255), 1)):
        cv2.putText(frame, text, (60, 200), cv2.FONT_HERSHEY_SIMPLEX, 0.6, color, width, cv2.LINE_AA)
    return frame


def pick(frames: list[Image], per_minute: float = 60, height: int = 480) -> tuple[Image, list[tuple[float, float]]]:
    span = Span(0, STEP_US * len(frames))
    picker = TextFramePicker(span, per_minute, height)
    for i, frame in enumerate(frames):
        picker.offer(STEP_US // 2 + STEP_US * i, cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), lambda frame=frame: frame)
    pictures, spans = picker.result()
    assert len(pictures) == len(spans)
    return pictures, [(start / 1e6, end / 1e6) for start, end in spans.tolist()]


def screenplay(*parts: tuple[int, str], moving: bool = True) -> list[Image]:
    texts = [text for count, text in parts for _ in range(count)]
    return [picture(i if moving else 0, text, noise=i + 1) for i, text in enumerate(texts)]


def line(seed: int) -> str:
    """Sixteen letters that no other line has in the same order."""
    return "".join(np.random.default_rng(seed).choice(list("ABCDEFGHJKLMNOPRSTUVXYZ"), 16))


def test_subtitles_on_a_moving_picture() -> None:
    """Each subtitle gives one frame with its own text and a span from when it came until it went."""
    frames = screenplay((4, ""), (5, "WHERE ARE YOU GOING"), (4, ""), (4, "TO THE STATION NOW"), (3, ""))
    pictures, spans = pick(frames)
    assert spans == [(2.25, 4.75), (6.75, 8.75)]
    assert any(np.array_equal(pictures[0], frame) for frame in frames[4:9])
    assert any(np.array_equal(pictures[1], frame) for frame in frames[13:17])


def test_text_that_changes_at_once() -> None:
    """A subtitle that replaces another without a pause is a new text, also on a still picture."""
    for moving in (True, False):
        _, spans = pick(screenplay((5, ""), (5, "WHERE ARE YOU GOING"), (5, "TO THE STATION NOW"), moving=moving))
        texts = [span for span in spans if span[0] > 1]
        assert texts == [(2.75, 5.25), (5.25, 7.5)]


def test_nothing_new_is_nothing_to_read() -> None:
    """A still picture is read once, however long it stands and however it is compressed; a moving one is not."""
    still, _ = pick(screenplay((24, "A SIGN ON THE WALL"), moving=False))
    assert len(still) == 1
    moving, _ = pick(screenplay((24, "")))
    assert len(moving) == 0


def test_text_that_never_stands_still() -> None:
    """A clock that shows another time in every sample gives one frame, from the middle of the segment."""
    frames = [picture(2 * i, line(20 + i), noise=i + 1) for i in range(8)]
    pictures, _ = pick(frames)
    assert len(pictures) == 1
    assert np.array_equal(pictures[0], frames[4])


def test_budget_is_kept_and_spread() -> None:
    """New text in every second cannot ask for more than the budget, and the end of the segment gets its share."""
    parts = [(2, line(i)) for i in range(60)]
    for per_minute, allowed in ((6, 6), (12, 12), (1, 1)):
        pictures, spans = pick(screenplay(*parts, moving=False), per_minute)
        assert len(pictures) == allowed
        if allowed >= 6:
            assert spans[-1][0] > 45


def test_text_waits_for_budget() -> None:
    """A text that stays is read as soon as there is budget again."""
    parts = [(2, line(i)) for i in range(5)]
    _, spans = pick(screenplay(*parts, (110, "THE LAST WORD STAYS"), moving=False), per_minute=6)
    assert len(spans) == 5
    assert spans[-1][1] == 60.0


def test_only_chosen_frames_are_fetched_and_bounded() -> None:
    """Full pictures are made for chosen frames only, and come back no higher than asked, in one shape."""
    fetched: list[int] = []

    def fetch(i: int) -> Callable[[], Image]:
        def full() -> Image:
            fetched.append(i)
            return np.full((1080 if i < 12 else 720, 1920, 3), i, np.uint8)

        return full

    frames = screenplay((4, ""), (5, "WHERE ARE YOU GOING"), (4, ""), (5, "TO THE STATION NOW"))
    picker = TextFramePicker(Span(0, 9_000_000), 60, 360)
    for i, frame in enumerate(frames):
        picker.offer(STEP_US // 2 + STEP_US * i, cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), fetch(i))
    pictures, spans = picker.result()
    assert pictures.shape == (2, 360, 640, 3)
    assert len(fetched) == len(spans) == 2
    assert [int(p[0, 0, 0]) for p in pictures] == fetched


def test_small_luma_may_change_its_size() -> None:
    """A stream that changes its size in the middle ends what was seen, and goes on."""
    frames = screenplay((5, "WHERE ARE YOU GOING"), moving=False)
    half = [np.asarray(cv2.resize(frame, None, fx=0.5, fy=0.5), dtype=np.uint8) for frame in frames]
    _, spans = pick(frames + half)
    assert spans[0] == (0.25, 2.75)


def test_very_short_video() -> None:
    """A video of one sample has its text read."""
    assert pick(screenplay((1, "ONE SINGLE PICTURE")))[1] == [(0.25, 0.5)]


def test_nothing_offered() -> None:
    """A segment without pictures gives empty arrays of the right rank."""
    pictures, spans = TextFramePicker(Span(0, 10), 6, 480).result()
    assert pictures.shape[0] == 0
    assert pictures.ndim == 4
    assert spans.shape == (0, 2)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.sampled_from(["", "SOME WORDS HERE", "OTHER TEXT NOW"])), max_size=12))
def test_spans_are_real(parts: list[tuple[int, str]]) -> None:
    """Whatever is shown, spans lie in the segment, last some time, and keep to the budget."""
    frames = screenplay(*parts)
    if not frames:
        return
    end_s = STEP_US * len(frames) / 1e6
    _, spans = pick(frames, per_minute=12)
    assert len(spans) <= int(np.ceil(12 * end_s / 60))
    assert all(0 <= start < end <= end_s for start, end in spans)


@pytest.mark.media
@pytest.mark.parametrize(
    ("path", "titles", "most"),
    [
        ("mux.js/sintel-captions.ts", [(5.0, 6.5), (8.5, 9.5)], 4),  # two titles over a flight
        ("streamio-ffmpeg/awesome_movie.mov", [(3.0, 4.5)], 3),  # a sheet of paper held up
        ("caption-inspector/BigBuckBunny_256x144-24fps.ts", [(21.5, 22.5), (26.0, 28.0)], 5),  # two titles
    ],
)
def test_real_titles(media_dir: Path, path: str, titles: list[tuple[float, float]], most: int) -> None:
    """A frame is chosen within every title, and few besides."""
    frames: list[Image] = []
    shown: Image | None = None
    with av.open(str(media_dir / path)) as container:
        zero = container.start_time or 0
        for frame in container.decode(video=0):
            now = round((frame.time or 0.0) * 1e6) - zero
            while shown is not None and now > STEP_US // 2 + STEP_US * len(frames):
                frames.append(shown)
            size = (round(frame.width * 224 / frame.height), 224)
            rgb = frame.to_ndarray(format="rgb24")
            shown = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    pictures, spans = pick(frames, per_minute=20)
    at = [next(i for i, frame in enumerate(frames) if np.array_equal(frame, p)) * 0.5 + 0.25 for p in pictures]
    for start, end in titles:
        assert any(a <= end and b >= start for (a, b) in spans)
        assert any(start - 0.5 <= time <= end + 0.5 for time in at), (at, spans)
    assert len(pictures) <= most
