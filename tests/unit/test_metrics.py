"""Speech activity error against a brute-force count on a grid."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vca.core.metrics import speech_activity_error
from vca.core.timeline import US_PER_S, Span

LENGTH = 60
spans = st.lists(
    st.tuples(st.integers(0, LENGTH - 1), st.integers(1, 20)).map(lambda p: Span(p[0], min(p[0] + p[1], LENGTH))),
    max_size=8,
)


def on_grid(items: list[Span]) -> np.ndarray:
    grid = np.zeros(LENGTH, np.bool_)
    for span in items:
        grid[span.start_us : span.end_us] = True
    return grid


@given(spans, spans, st.integers(0, LENGTH - 1), st.integers(1, LENGTH))
def test_matches_a_count_of_single_microseconds(
    reference: list[Span], hypothesis: list[Span], start: int, length: int
) -> None:
    """Exact for any overlapping, touching or nested spans and any scored part."""
    scored = Span(start, start + length)
    truth, found = on_grid(reference)[start : start + length], on_grid(hypothesis)[start : start + length]
    error = speech_activity_error(reference, hypothesis, scored)
    assert error.false_alarm_s == (found & ~truth).sum() / US_PER_S
    assert error.missed_s == (truth & ~found).sum() / US_PER_S
    assert error.reference_s == truth.sum() / US_PER_S
    if truth.any():
        assert error.error_rate == pytest.approx((truth != found).sum() / truth.sum())
    else:
        assert error.error_rate == (math.inf if found.any() else 0.0)


@given(spans, spans)
def test_perfect_and_swapped(reference: list[Span], hypothesis: list[Span]) -> None:
    """A perfect hypothesis has no error; swapping the roles swaps false alarm and miss."""
    scored = Span(0, LENGTH)
    assert speech_activity_error(reference, reference, scored).error_rate == 0.0
    there = speech_activity_error(reference, hypothesis, scored)
    back = speech_activity_error(hypothesis, reference, scored)
    assert (there.false_alarm_s, there.missed_s) == (back.missed_s, back.false_alarm_s)


def test_known_value() -> None:
    """Two overlapping speakers count once: 10 s of speech, 2 s missed, 1 s invented, is 30 %."""
    reference = [Span(0, 6_000_000), Span(4_000_000, 10_000_000)]
    error = speech_activity_error(reference, [Span(2_000_000, 11_000_000)], Span(0, 30_000_000))
    assert (error.false_alarm_s, error.missed_s, error.reference_s) == (1.0, 2.0, 10.0)
    assert error.error_rate == 0.3
