"""From step scores to spans: hysteresis on the shared grid. Pure. Shape letters: S steps."""

from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from vca.core.config import Config
from vca.core.records import FloatArray
from vca.core.timeline import Span


class SpanDecoding(Config):
    """How scores become spans. Times in milliseconds, so that a change of the grid keeps their meaning."""

    smooth_ms: int = Field(default=1500, ge=0)
    """Width of the median filter; it removes lone steps up to half as long. 0: off, 600000 at most."""
    low_ratio: float = Field(default=0.5, gt=0.0, le=1.0)
    """A span that reached the threshold goes on while the score is at least `low_ratio * threshold`."""
    merge_gap_ms: int = Field(default=1000, ge=0)
    """Spans at most this far apart become one."""
    min_ms: int = Field(default=500, ge=0)
    """Shorter spans are dropped, unless they reach the end of the video."""
    max_spans: int | None = Field(default=None, gt=0)
    """Keep only the best spans; None keeps all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.smooth_ms > 600_000:
            raise ValueError("smooth_ms is longer than ten minutes; the filter would erase every event")
        return self


def decode_spans(
    scores: FloatArray, steps: npt.NDArray[np.int64], threshold: float, config: SpanDecoding
) -> list[tuple[Span, float]]:
    """Spans of one label from scores [S] on steps [S, 2] (microseconds, sorted), with their scores.

    Hysteresis: median smoothing; a step at or above `threshold` starts a span, which extends both ways over steps at or
    above `low_ratio * threshold`; near spans merge; short ones go. The score of a span is the mean of the unsmoothed
    scores over its steps. A hole in the grid longer than `merge_gap_ms` always ends a span. The result is sorted and
    disjoint. A score that is not finite is an error of the caller.
    """
    assert scores.ndim == 1, scores.shape
    assert steps.shape == (scores.shape[0], 2), (scores.shape, steps.shape)
    assert 0.0 < threshold < 1.0, threshold
    if scores.shape[0] == 0:
        return []
    assert bool(np.isfinite(scores).all()), "scores must be finite"
    if not bool((scores >= threshold).any()):  # a running median is never above all values; most labels end here
        return []
    smooth = median_filter(scores, _window(steps, config.smooth_ms * 1000))
    groups = _hysteresis(smooth, steps, threshold, config.low_ratio * threshold)
    merged: list[list[int]] = []
    for first, last in groups:
        if merged and steps[first, 0] - steps[merged[-1][1], 1] <= config.merge_gap_ms * 1000:
            merged[-1][1] = last
        else:
            merged.append([first, last])
    end_of_video = int(steps[-1, 1])
    spans: list[tuple[Span, float]] = []
    for first, last in merged:
        span = Span(int(steps[first, 0]), int(steps[last, 1]))
        if span.duration_us >= config.min_ms * 1000 or span.end_us == end_of_video:
            mean = float(scores[first : last + 1].astype(np.float64).mean())
            spans.append((span, mean))
    if config.max_spans is not None and len(spans) > config.max_spans:
        best = sorted(range(len(spans)), key=lambda i: (-spans[i][1], i))[: config.max_spans]
        spans = [spans[i] for i in sorted(best)]
    return spans


def soft_nms(
    spans: npt.NDArray[np.int64], scores: FloatArray, sigma: float, keep: int
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """At most `keep` spans [K, 2] of one label with scores [K], best first, from candidates [N, 2] and [N].

    A candidate loses the more of its score, the more it overlaps one that was taken: Gaussian soft-NMS (Bodla et al.,
    2017), by `exp(-tiou**2 / sigma)`. Ties keep the order of the candidates.
    """
    assert spans.shape == (len(scores), 2), (spans.shape, scores.shape)
    assert sigma > 0, sigma
    left = scores.astype(np.float64)
    taken, values = [], []
    for _ in range(min(keep, len(left))):
        best = int(left.argmax())
        taken.append(best)
        values.append(left[best])
        inner = np.minimum(spans[:, 1], spans[best, 1]) - np.maximum(spans[:, 0], spans[best, 0])
        outer = np.maximum(spans[:, 1], spans[best, 1]) - np.minimum(spans[:, 0], spans[best, 0])
        tiou = np.maximum(inner, 0) / np.maximum(outer, 1)  # of spans that do not overlap it is 0 in any case
        left = left * np.exp(-(tiou**2) / sigma)
        left[best] = -1.0
    return spans[taken], np.array(values, np.float32)


def median_filter(values: FloatArray, window: int) -> FloatArray:
    """Running median [S] of odd `window`, the ends repeated: an event at the very start or end is not faded out."""
    assert window % 2 == 1, window
    if window == 1 or values.shape[0] == 0:
        return values
    half = window // 2
    padded = np.pad(values, half, mode="edge")
    median: FloatArray = np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)
    return median.astype(np.float32)


def _window(steps: npt.NDArray[np.int64], width_us: int) -> int:
    """Number of steps, odd, nearest to `width_us`; the first step gives the length (the last may be clipped)."""
    step_us = max(1, int(steps[0, 1] - steps[0, 0]))
    half = int((width_us / step_us - 1) / 2 + 0.5) if width_us > step_us else 0
    return 2 * min(half, int(steps.shape[0])) + 1


def _hysteresis(smooth: FloatArray, steps: npt.NDArray[np.int64], high: float, low: float) -> list[tuple[int, int]]:
    """Runs of steps >= low without a hole in the grid, kept where one step is >= high; inclusive indices."""
    runs: list[tuple[int, int]] = []
    first: int | None = None
    count = smooth.shape[0]
    for i in range(count + 1):
        inside = i < count and bool(smooth[i] >= low)
        joined = 0 < i < count and steps[i, 0] == steps[i - 1, 1]
        if first is not None and (not inside or not joined):
            if bool((smooth[first:i] >= high).any()):
                runs.append((first, i - 1))
            first = None
        if inside and first is None:
            first = i
    return runs
