"""Span decoding: what hysteresis promises on any scores and any grid."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vca.core.records import FloatArray
from vca.core.spans import SpanDecoding, decode_spans, median_filter
from vca.core.timeline import Span, step_spans

STEP_US = 500_000
PLAIN = SpanDecoding(smooth_ms=0, merge_gap_ms=0, min_ms=0)

score_lists = st.lists(st.floats(0.0, 1.0, width=32), min_size=0, max_size=60)
configs = st.builds(
    SpanDecoding,
    smooth_ms=st.sampled_from([0, 500, 1500, 4000]),
    low_ratio=st.floats(0.1, 1.0),
    merge_gap_ms=st.sampled_from([0, 500, 2000]),
    min_ms=st.sampled_from([0, 500, 1600]),
)
thresholds = st.floats(0.05, 0.95)


def grid(n: int, clipped_us: int = STEP_US) -> npt.NDArray[np.int64]:
    """`n` steps, the last one `clipped_us` long."""
    if n == 0:
        return np.zeros((0, 2), np.int64)
    return step_spans(Span(0, (n - 1) * STEP_US + clipped_us), STEP_US)


def array(values: list[float]) -> FloatArray:
    return np.array(values, dtype=np.float32)


@settings(max_examples=200, deadline=None)
@given(score_lists, configs, thresholds, st.integers(1, STEP_US))
def test_spans_are_sound(values: list[float], config: SpanDecoding, threshold: float, clipped_us: int) -> None:
    """Spans lie on the grid, are sorted and apart, are long enough, and their score is a mean of given scores."""
    steps = grid(len(values), clipped_us)
    found = decode_spans(array(values), steps, threshold, config)
    starts, ends = set(steps[:, 0].tolist()), set(steps[:, 1].tolist())
    for span, score in found:
        assert span.start_us in starts
        assert span.end_us in ends
        assert span.duration_us >= config.min_ms * 1000 or span.end_us == int(steps[-1, 1])
        inside = [v for v, s in zip(values, steps, strict=True) if span.start_us <= s[0] < span.end_us]
        assert score == pytest.approx(np.mean(inside), abs=1e-6)
    for (a, _), (b, _) in itertools.pairwise(found):
        assert b.start_us - a.end_us > config.merge_gap_ms * 1000


@settings(max_examples=200, deadline=None)
@given(score_lists, configs, thresholds, thresholds)
def test_a_higher_threshold_finds_parts_of_what_a_lower_one_finds(
    values: list[float], config: SpanDecoding, one: float, other: float
) -> None:
    """Monotone: every span at the higher threshold lies inside a span at the lower one."""
    low, high = sorted((one, other))
    wide = decode_spans(array(values), grid(len(values)), low, config)
    for span, _ in decode_spans(array(values), grid(len(values)), high, config):
        assert any(w.start_us <= span.start_us and span.end_us <= w.end_us for w, _ in wide)


@settings(max_examples=100, deadline=None)
@given(score_lists, configs, thresholds, st.integers(0, 10**12))
def test_a_shift_in_time_shifts_the_spans(
    values: list[float], config: SpanDecoding, threshold: float, shift: int
) -> None:
    """The clock's zero has no influence on what is found."""
    steps = grid(len(values))
    here = decode_spans(array(values), steps, threshold, config)
    there = decode_spans(array(values), steps + shift, threshold, config)
    assert there == [(Span(s.start_us + shift, s.end_us + shift), score) for s, score in here]


@settings(max_examples=100, deadline=None)
@given(score_lists, configs, thresholds)
def test_scores_below_the_threshold_give_nothing(values: list[float], config: SpanDecoding, threshold: float) -> None:
    """No smoothing or joining may raise a score."""
    below = np.minimum(array(values), np.float32(threshold * 0.99))
    assert decode_spans(below, grid(len(values)), threshold, config) == []


@settings(max_examples=100, deadline=None)
@given(score_lists, thresholds)
def test_without_smoothing_every_high_step_is_covered(values: list[float], threshold: float) -> None:
    """Nothing that reaches the threshold is lost when no filter is asked for."""
    steps = grid(len(values))
    found = decode_spans(array(values), steps, threshold, PLAIN)
    for value, (start, end) in zip(array(values), steps, strict=True):
        if value >= threshold:
            assert any(s.start_us <= start and end <= s.end_us for s, _ in found)


def test_low_scores_extend_but_do_not_start_a_span() -> None:
    """The point of hysteresis: one event with a weak middle stays one, a weak stretch alone is none."""
    scores = array([0.0, 0.4, 0.9, 0.4, 0.8, 0.4, 0.0, 0.4, 0.4, 0.0])
    found = decode_spans(scores, grid(10), 0.7, PLAIN)
    assert [s for s, _ in found] == [Span(500_000, 3_000_000)]
    assert found[0][1] == pytest.approx((0.4 + 0.9 + 0.4 + 0.8 + 0.4) / 5)


def test_near_spans_merge_and_far_ones_do_not() -> None:
    """A gap of exactly merge_gap_ms is bridged, a longer one is not."""
    scores = array([0.9, 0.9, 0.0, 0.9, 0.9, 0.0, 0.0, 0.0, 0.9, 0.9])
    config = SpanDecoding(smooth_ms=0, merge_gap_ms=500, min_ms=0)
    assert [s for s, _ in decode_spans(scores, grid(10), 0.5, config)] == [
        Span(0, 2_500_000),
        Span(4_000_000, 5_000_000),
    ]


def test_smoothing_removes_a_lone_step_and_keeps_a_longer_event() -> None:
    """The default filter of 1.5 s takes out flashes of one step; an event of two steps survives, also at the ends."""
    config = SpanDecoding()
    assert decode_spans(array([0, 0, 0, 1, 0, 0, 0]), grid(7), 0.5, config) == []
    assert [s for s, _ in decode_spans(array([0, 0, 1, 1, 0, 0]), grid(6), 0.5, config)] == [Span(1_000_000, 2_000_000)]
    assert [s for s, _ in decode_spans(array([1, 1, 0, 0, 0]), grid(5), 0.5, config)] == [Span(0, 1_000_000)]


def test_a_short_span_stays_only_at_the_end_of_the_video() -> None:
    """An event that the end of the video cuts off is not noise."""
    config = SpanDecoding(smooth_ms=0, min_ms=1000, merge_gap_ms=0)
    assert decode_spans(array([0, 1, 0, 0]), grid(4), 0.5, config) == []
    assert [s for s, _ in decode_spans(array([0, 0, 0, 1]), grid(4), 0.5, config)] == [Span(1_500_000, 2_000_000)]


def test_a_hole_in_the_grid_ends_a_span() -> None:
    """Time that was never decoded is not part of an event."""
    steps = np.concatenate([grid(2), grid(2) + 60_000_000])
    found = decode_spans(array([1, 1, 1, 1]), steps, 0.5, SpanDecoding())
    assert [s for s, _ in found] == [Span(0, 1_000_000), Span(60_000_000, 61_000_000)]


def test_the_best_spans_are_kept_in_order_of_time() -> None:
    """max_spans drops the weakest and keeps the result sorted."""
    config = SpanDecoding(smooth_ms=0, merge_gap_ms=0, min_ms=0, max_spans=2)
    found = decode_spans(array([0.7, 0, 0.6, 0, 0.9]), grid(5), 0.5, config)
    assert [s.start_us for s, _ in found] == [0, 2_000_000]


@given(score_lists, st.sampled_from([1, 3, 5, 9]))
def test_the_median_stays_within_its_window(values: list[float], window: int) -> None:
    """The filter keeps the length and never leaves the range of its neighbours."""
    scores, half = array(values), window // 2
    smooth = median_filter(scores, window)
    assert smooth.shape == scores.shape
    for i, value in enumerate(smooth):
        near = scores[max(0, i - half) : i + half + 1]
        assert near.min() <= value <= near.max()


def test_scores_that_are_no_numbers_are_refused() -> None:
    """A NaN from an encoder must not silently become "no event"."""
    with pytest.raises(AssertionError, match="finite"):
        decode_spans(array([0.1, float("nan")]), grid(2), 0.5, PLAIN)
