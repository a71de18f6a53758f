"""Shots from the sampled frames: PySceneDetect's content measure, made fit for a few frames a second.

At 2 frames a second a fade changes as much from frame to frame as a cut does, and a flash or somebody walking past the
lens looks like two cuts. So a candidate of the detector counts only if the picture also has another layout and does not
come back within a second. Dissolves longer than the sampling are found where they change most, or not at all.
"""

from collections.abc import Collection, Sequence
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt
from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector

from vca.core.timeline import Span

Frames = npt.NDArray[np.uint8]

THRESHOLD = 30.5
"""Mean change of saturation and value (0..255) that makes a candidate.

Hue is left out: of grey pictures it is noise, and PySceneDetect 0.7 takes it for a line, not a circle. On the few clips
this was set on, hard cuts score 31 and more, a shaken camera 30, cars filling a third of a grey street 25 (with hue:
cuts from 27, cars 37).
"""
SAME_LAYOUT = 0.7
"""Correlation of the coarse luma from which on two pictures are the same scene under another light."""
MIN_SHOT_US = 1_000_000
DARK = 8
"""Mean luma under which a picture is black: its hue is noise. It belongs to the shot before it."""
_GRID = (16, 9)
_WEIGHTS = ContentDetector.Components(delta_hue=0.0, delta_sat=1.0, delta_lum=1.0, delta_edges=0.0)
_RATE = 2.0  # the detector wants some frame rate; its times are not used


def find_shots(
    frames: Frames, times_us: npt.NDArray[np.int64], span: Span, mask: npt.NDArray[np.bool_]
) -> tuple[Span, ...]:
    """Shots that cover `span` without gaps, cut at its ends.

    frames [S, H, W, 3] RGB, times_us [S] ascending inside `span`, mask [S] marks frames that are there. A cut is put
    halfway between the last frame before it and the first after it: the best guess from samples. No shot between two
    cuts is shorter than 1 s. Without frames the span is one shot.
    """
    assert len(frames) == len(times_us) == len(mask)
    index = [int(i) for i in np.flatnonzero(mask) if sum(cv2.sumElems(frames[i])) >= DARK * frames[i].size]
    detector = _detector()
    cuts: list[int] = []
    flash_end = -1
    for position, i in enumerate(index):
        changed = bool(detector.process_frame(FrameTimecode(position, fps=_RATE), _bgr(frames[i])))
        if not changed or position == 0 or i <= flash_end:
            continue
        before = index[position - 1]
        cut_us = int(times_us[i] - (times_us[i] - _last_time_before(times_us, mask, i)) // 2)
        if not span.start_us < cut_us < span.end_us or (cuts and cut_us - cuts[-1] < MIN_SHOT_US):
            continue
        if _same_layout(frames[before], frames[i]):
            continue
        later = [j for j in index[position + 1 : position + 5] if times_us[j] - times_us[i] <= MIN_SHOT_US]
        flash_end = next((j for j in later if _alike(frames[before], frames[j])), -1)
        if flash_end >= 0:
            continue
        cuts.append(cut_us)
    return tuple(Span(start, end) for start, end in pairwise([span.start_us, *cuts, span.end_us]))


def join_shots(per_segment: Sequence[Sequence[Span]], cut_borders_us: Collection[int] = ()) -> tuple[Span, ...]:
    """Shots of a video from those of its segments, in order of time.

    Frames are not compared across a segment border, so a shot that ends there and the one that starts there become one,
    unless the border is in `cut_borders_us`: at one cut in some seconds, a cut just there is the rare case. A missing
    segment leaves a gap, and shots on both sides of it stay apart.
    """
    joined: list[Span] = []
    for shots in per_segment:
        for position, shot in enumerate(shots):
            at_border = position == 0 and bool(joined) and joined[-1].end_us == shot.start_us
            if at_border and shot.start_us not in cut_borders_us:
                joined[-1] = Span(joined[-1].start_us, shot.end_us)
            else:
                joined.append(shot)
    return tuple(joined)


def _detector() -> ContentDetector:
    return ContentDetector(threshold=THRESHOLD, min_scene_len=0, weights=_WEIGHTS)


def _last_time_before(times_us: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_], i: int) -> int:
    return int(times_us[np.flatnonzero(mask[:i])[-1]])


def _bgr(frame: Frames) -> Frames:
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), dtype=np.uint8)


def _alike(a: Frames, b: Frames) -> bool:
    detector = _detector()
    detector.process_frame(FrameTimecode(0, fps=_RATE), _bgr(a))
    return not detector.process_frame(FrameTimecode(1, fps=_RATE), _bgr(b))


def _same_layout(a: Frames, b: Frames) -> bool:
    coarse = [_coarse(frame) for frame in (a, b)]
    return float((coarse[0] * coarse[1]).mean()) > SAME_LAYOUT


def _coarse(frame: Frames) -> npt.NDArray[np.float32]:
    luma = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), _GRID, interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.asarray((luma - luma.mean()) / (luma.std() + 2.0), dtype=np.float32)  # flat pictures correlate with none
