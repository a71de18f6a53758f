"""Rankings, counts and probabilities: hand-worked cases, agreement with scikit-learn, and a brute-force count."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss

from vca.core.metrics import (
    average_precision,
    bootstrap_weights,
    brier_score,
    expected_calibration_error,
    f1_of_counts,
    global_average_precision,
    interpolated_average_precision,
    mask_counts,
    mean_of_known,
    reliability_bins,
    speech_activity_error,
    step_mask,
)
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


@settings(deadline=None)
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


@settings(deadline=None)
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


# --- rankings --------------------------------------------------------------------------------------------------------

# Few different scores, so that many are equal.
rankings = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30).filter(
    lambda rows: any(held for _, held in rows)
)


def columns(rows: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([s for s, _ in rows]) / 6, np.array([held for _, held in rows])


def test_average_precision_by_hand() -> None:
    """Both definitions, on a ranking where they differ, and on equal scores."""
    # no, yes, yes: precision is 0, 1/2, 2/3. By steps: 1/2 * 1/2 + 1/2 * 2/3 = 7/12.
    scores, held = [0.9, 0.8, 0.7], [False, True, True]
    assert average_precision(scores, held) == pytest.approx([7 / 12])
    # Interpolated: at recall 1/2 the best precision at this recall or beyond is 2/3, so 1/2 * 2/3 + 1/2 * 2/3 = 2/3.
    assert interpolated_average_precision(scores, held) == pytest.approx([2 / 3])
    # Equal scores are one threshold with precision 1/2; interpolated, they are two places of the ranking: 1 first.
    assert average_precision([0.5, 0.5], [True, False]) == pytest.approx([0.5])
    assert interpolated_average_precision([0.5, 0.5], [True, False]) == pytest.approx([1.0])


def test_average_precision_without_positives_is_unknown() -> None:
    """Never 0: a label that does not occur says nothing about a model."""
    for function in (average_precision, interpolated_average_precision):
        assert np.isnan(function([0.5, 0.1], [False, False])).all()
        assert np.isnan(function([], [])).all()


@settings(deadline=None)
@given(rankings, st.integers(0, 2**32))
def test_average_precision_is_that_of_sklearn(rows: list[tuple[int, bool]], seed: int) -> None:
    """Equal scores and weights included: what the intervals rest on is the published definition."""
    scores, held = columns(rows)
    assert average_precision(scores, held)[0] == pytest.approx(average_precision_score(held, scores), abs=1e-6)
    weights = np.random.default_rng(seed).integers(0, 4, (3, len(rows))).astype(np.float64)
    for row, found in zip(weights, average_precision(scores, held, weights), strict=True):
        if (row * held).any():
            expected = average_precision_score(held, scores, sample_weight=row)
            assert found == pytest.approx(expected, abs=1e-6)
        else:
            assert np.isnan(found)


@settings(deadline=None)
@given(rankings, st.integers(0, 2**32))
def test_a_weight_is_a_repetition(rows: list[tuple[int, bool]], seed: int) -> None:
    """To weigh an example by 3 is to have it three times, in both definitions."""
    scores, held = columns(rows)
    weights = np.random.default_rng(seed).integers(0, 4, len(rows))
    repeated = np.repeat(scores, weights), np.repeat(held, weights)
    for function in (average_precision, interpolated_average_precision):
        if function is interpolated_average_precision:  # here equal scores keep their order, so make them different
            places = -np.arange(len(rows), dtype=np.float64)
            repeated = np.repeat(places, weights), np.repeat(held, weights)
            found = function(places, held, weights[None].astype(np.float64))
        else:
            found = function(scores, held, weights[None].astype(np.float64))
        assert found == pytest.approx(function(*repeated), nan_ok=True)


@settings(deadline=None)
@given(rankings, st.randoms())
def test_average_precision_properties(rows: list[tuple[int, bool]], chance: object) -> None:
    """Between 0 and 1, 1 for a perfect ranking, blind to the order of the rows and to a monotone change of scores."""
    scores, held = columns(rows)
    found = average_precision(scores, held)[0]
    assert 0.0 < found <= 1.0
    assert average_precision(held, held) == pytest.approx([1.0])
    assert interpolated_average_precision(held, held) == pytest.approx([1.0])
    shuffled = list(rows)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert average_precision(*columns(shuffled))[0] == pytest.approx(found)
    assert average_precision(np.exp(3 * scores), held)[0] == pytest.approx(found)
    different = np.linspace(1, 0, len(rows))
    assert interpolated_average_precision(different, held)[0] >= average_precision(different, held)[0] - 1e-12


def test_long_rankings_are_cut_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Working through the weightings in parts saves memory and nothing else."""
    draw = np.random.default_rng(0)
    scores, held, weights = draw.random(40), draw.random(40) < 0.3, draw.integers(0, 3, (7, 40)).astype(np.float64)
    whole = average_precision(scores, held, weights)
    monkeypatch.setattr("vca.core.metrics.PART_CELLS", 50)
    assert average_precision(scores, held, weights) == pytest.approx(whole, abs=1e-12)


GAP_SCORES = np.array([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]])
GAP_TARGETS = np.array([[True, False, True], [False, True, False]])


def test_global_average_precision_by_hand() -> None:
    """The best k of every video in one ranking; positives that did not make it count as missed."""
    # k = 2 pools 0.9 yes, 0.8 no, 0.6 no, 0.5 yes; all 3 positives are in the denominator: (1/1 + 2/4) / 3 = 1/2.
    assert global_average_precision(GAP_SCORES, GAP_TARGETS, 2) == pytest.approx([1 / 2])
    # k = 3 pools everything: yes no yes no yes no, (1/1 + 2/3 + 3/5) / 3 = 34/45.
    assert global_average_precision(GAP_SCORES, GAP_TARGETS, 3) == pytest.approx([34 / 45])
    # The second video alone, k = 2: no, yes: (1/2) / 1. Twice the first, never the second, k = 2: (1 + 1) / 4.
    weights = np.array([[0.0, 1.0], [2.0, 0.0]])
    assert global_average_precision(GAP_SCORES, GAP_TARGETS, 2, weights) == pytest.approx([1 / 2, 1 / 2])


def test_global_average_precision_of_all_labels_is_micro() -> None:
    """With k at least the number of labels GAP is scikit-learn's micro average precision."""
    draw = np.random.default_rng(1)
    scores, targets = draw.random((20, 5)).round(1), draw.random((20, 5)) < 0.3
    expected = average_precision_score(targets, scores, average="micro")
    assert global_average_precision(scores, targets, 20)[0] == pytest.approx(expected, abs=1e-6)


# --- counts, steps, resamples ----------------------------------------------------------------------------------------


def test_f1_and_means_by_hand() -> None:
    """2 found, 1 wrong, 1 missed: F1 = 4 / 6. Nothing true and nothing found is unknown, and left out of a mean."""
    found = f1_of_counts(np.array([2.0, 0.0, 0.0]), np.array([1.0, 0.0, 3.0]), np.array([1.0, 0.0, 0.0]))
    assert found == pytest.approx([2 / 3, math.nan, 0.0], nan_ok=True)
    assert mean_of_known(np.array([[0.5, math.nan], [math.nan, math.nan]])) == pytest.approx(
        [0.5, math.nan], nan_ok=True
    )


def test_frames_by_hand() -> None:
    """A step belongs to a span that covers at least half of it; masks are compared step by step."""
    steps = np.array([[0, 10], [10, 20], [20, 30], [30, 34]])  # the last one is clipped by the end of the video
    truth = step_mask([Span(5, 15)], steps)
    assert truth.tolist() == [True, True, False, False]  # 5 of 10 each
    found = step_mask([Span(6, 25), Span(32, 34)], steps)
    assert found.tolist() == [False, True, True, True]  # 4, 10, 5 of 10, and 2 of 4
    assert mask_counts(truth, found).tolist() == [1, 2, 1]  # F1 = 2 / 5
    assert step_mask([], steps).sum() == 0


def test_resamples_of_videos() -> None:
    """Row 0 is the data; every resample draws as many videos as there are; equal seeds draw alike."""
    weights = bootstrap_weights(7, 50, seed=3)
    assert weights.shape == (51, 7)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 7).all()
    assert np.array_equal(weights, bootstrap_weights(7, 50, seed=3))
    assert not np.array_equal(weights, bootstrap_weights(7, 50, seed=4))


# --- probabilities ---------------------------------------------------------------------------------------------------


def test_calibration_by_hand() -> None:
    """Bins of 0.1: |0.1 - 1/2| for two of four, |0.9 - 1| for the others: 0.25. Brier: (0.01 + 0.81 + 0.02) / 4."""
    probabilities, held = [0.1, 0.1, 0.9, 0.9], [0, 1, 1, 1]
    assert expected_calibration_error(probabilities, held) == pytest.approx(0.25)
    assert brier_score(probabilities, held) == pytest.approx(0.21)
    points, numbers = reliability_bins(probabilities, held, bins=2)
    assert points == pytest.approx(np.array([[0.1, 0.5], [0.9, 1.0]]))
    assert numbers.tolist() == [2, 2]
    assert math.isnan(expected_calibration_error([], []))
    assert math.isnan(brier_score([], []))


def test_brier_score_is_that_of_sklearn() -> None:
    """The published definition."""
    draw = np.random.default_rng(2)
    probabilities, held = draw.random(100), draw.random(100) < 0.4
    assert brier_score(probabilities, held) == pytest.approx(brier_score_loss(held, probabilities), abs=1e-6)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(1, 20))
def test_calibration_error_bounds(rows: list[tuple[float, bool]], bins: int) -> None:
    """Between 0 and 1; every example is in one bin; who predicts the share of positives is calibrated."""
    probabilities, held = np.array([p for p, _ in rows]), np.array([h for _, h in rows])
    assert 0.0 <= expected_calibration_error(probabilities, held, bins) <= 1.0
    assert reliability_bins(probabilities, held, bins)[1].sum() == len(rows)
    constant = np.full(len(rows), held.mean())
    assert expected_calibration_error(constant, held, bins) == pytest.approx(0.0, abs=1e-12)


def test_a_probability_outside_its_range_is_found() -> None:
    """A logit taken for a probability would give a figure that looks like one."""
    with pytest.raises(AssertionError, match="outside"):
        expected_calibration_error([1.5], [1])
