"""Time on the video's presentation clock: integer microseconds, half-open spans `[start, end)`.

The zero of the clock is the container's start time, the convention of players and of FFmpeg.
Shape letters: N spans, S steps of the shared grid, D features.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

US_PER_S = 1_000_000


def seconds_to_us(seconds: float) -> int:
    """Nearest microsecond."""
    return round(seconds * US_PER_S)


def us_to_seconds(us: int) -> float:
    return us / US_PER_S


def ticks_to_us(ticks: int, time_base: Fraction) -> int:
    """A stream timestamp in microseconds, rounded to nearest, halves to even; exact, no float drift.

    This is `round(ticks * time_base * US_PER_S)` without making fractions, which was an eighth of the time of reading.
    """
    whole, rest = divmod(ticks * time_base.numerator * US_PER_S, time_base.denominator)
    return whole + (2 * rest + (whole & 1) > time_base.denominator)


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A half-open piece of time. Empty spans are refused: nothing in the tables lasts no time."""

    start_us: int
    end_us: int

    def __post_init__(self) -> None:
        if self.end_us <= self.start_us:
            raise ValueError(f"span [{self.start_us}, {self.end_us}) is empty")

    @property
    def duration_us(self) -> int:
        return self.end_us - self.start_us


def segment_spans(duration_us: int, segment_us: int) -> list[Span]:
    """Cut `[0, duration)` into bounded segments; the last partial one is kept."""
    if duration_us <= 0 or segment_us <= 0:
        raise ValueError(f"duration {duration_us} us and segment {segment_us} us must be positive")
    return [Span(s, min(s + segment_us, duration_us)) for s in range(0, duration_us, segment_us)]


def step_spans(span: Span, step_us: int) -> npt.NDArray[np.int64]:
    """The grid steps inside `span`, shape [S, 2]; the last one is clipped to the end of the span.

    Segments start on multiples of the step, so the grids of neighbouring segments join without a seam.
    """
    starts = np.arange(span.start_us, span.end_us, step_us, dtype=np.int64)
    return np.stack([starts, np.minimum(starts + step_us, span.end_us)], axis=1)


def sample_times(span: Span, step_us: int, per_step: int = 1) -> npt.NDArray[np.int64]:
    """Presentation times to sample, shape [S * per_step]: centres of `per_step` equal parts of every step."""
    steps = step_spans(span, step_us)
    parts = (2 * np.arange(per_step, dtype=np.int64) + 1)[None, :]
    lengths = (steps[:, 1] - steps[:, 0])[:, None]
    return (steps[:, :1] + lengths * parts // (2 * per_step)).reshape(-1)


def merge_spans(spans: Iterable[Span], gap_us: int = 0) -> list[Span]:
    """Union of spans, sorted; spans at most `gap_us` apart become one."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start_us - merged[-1].end_us <= gap_us:
            merged[-1] = Span(merged[-1].start_us, max(merged[-1].end_us, span.end_us))
        else:
            merged.append(span)
    return merged


def total_us(spans: Iterable[Span]) -> int:
    """Length of the union."""
    return sum(s.duration_us for s in merge_spans(spans))


def iou(a: Span, b: Span) -> float:
    """Temporal intersection over union, 0..1."""
    intersection = max(0, min(a.end_us, b.end_us) - max(a.start_us, b.start_us))
    return intersection / (a.duration_us + b.duration_us - intersection)


def overlap_us(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Pairwise overlap of spans a [N, 2] and b [S, 2] in microseconds, shape [N, S]."""
    start = np.maximum(a[:, None, 0], b[None, :, 0])
    end = np.minimum(a[:, None, 1], b[None, :, 1])
    overlap: npt.NDArray[np.int64] = np.maximum(end - start, 0)
    return overlap


def resample_mean(
    features: npt.NDArray[np.float32], spans: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Bring features [N, D] with their own spans [N, 2] onto the grid [S, 2] by overlap-weighted mean.

    Returns values [S, D] and a mask [S]; a step that no span touches is zero and masked out.
    """
    weights = overlap_us(spans, steps).astype(np.float64)  # [N, S]
    totals = weights.sum(axis=0)  # [S]
    mask = totals > 0
    mean = weights.T @ features.astype(np.float64) / np.where(mask, totals, 1.0)[:, None]
    return mean.astype(np.float32), mask
