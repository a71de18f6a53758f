"""Events against events: hand-worked matches, and the ActivityNet evaluator written down step by step."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vca.core.metrics import (
    Detections,
    detect,
    detection_average_precision,
    f1_of_counts,
    match_spans,
)
from vca.core.timeline import Span, iou

Found = list[tuple[Span, float]]

span = st.tuples(st.integers(0, 20), st.integers(1, 10)).map(lambda p: Span(p[0], p[0] + p[1]))
truths = st.lists(st.lists(span, max_size=4), min_size=1, max_size=4)
TIOUS = (0.25, 0.5, 0.75)


@st.composite
def splits(draw: st.DrawFn, different_scores: bool = False) -> tuple[list[list[Span]], list[Found]]:
    """A few videos with events and predictions of one class; scores often equal unless asked otherwise."""
    truth = draw(truths)
    found = [draw(st.lists(st.tuples(span, st.integers(0, 3).map(lambda s: s / 4)), max_size=5)) for _ in truth]
    if different_scores:
        order = list(range(sum(map(len, found))))
        draw(st.randoms()).shuffle(order)
        places = iter(order)
        found = [[(s, next(places) / 100) for s, _ in predictions] for predictions in found]
    return truth, found


def activitynet(truth: list[list[Span]], found: list[Found], tiou: float) -> float:
    """AP of one class as eval_detection.py computes it, with the tie rule of this project; slow and literal."""
    n_truth = sum(map(len, truth))
    if not n_truth:
        return math.nan
    rows = sorted(
        ((score, v, s) for v, predictions in enumerate(found) for s, score in predictions),
        key=lambda row: (-row[0], row[1], row[2]),
    )
    locked: set[tuple[int, int]] = set()
    true_positive, false_positive = np.zeros(len(rows)), np.zeros(len(rows))
    for i, (_, video, candidate) in enumerate(rows):
        overlaps = [iou(candidate, true) for true in truth[video]]
        for j in sorted(range(len(overlaps)), key=lambda j: -overlaps[j]):
            if overlaps[j] < tiou:
                false_positive[i] = 1
                break
            if (video, j) in locked:
                continue
            true_positive[i] = 1
            locked.add((video, j))
            break
        if not true_positive[i] and not false_positive[i]:
            false_positive[i] = 1
    hits, misses = np.cumsum(true_positive), np.cumsum(false_positive)
    recall = np.concatenate([[0.0], hits / n_truth, [1.0]])
    precision = np.concatenate([[0.0], hits / np.maximum(hits + misses, 1), [0.0]])
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    changes = np.where(recall[1:] != recall[:-1])[0] + 1
    return float(np.sum((recall[changes] - recall[changes - 1]) * precision[changes]))


def test_matching_by_hand() -> None:
    """Best ranked first; a taken event is not taken again; the second best counts if it still reaches the threshold."""
    a, b = Span(0, 10), Span(8, 18)
    first, second = Span(1, 11), Span(2, 12)
    # first: A 9/11 = 0.82, B 3/17 = 0.18. second: A 8/12 = 0.67, but A is taken; B 4/16 = 0.25.
    assert match_spans([a, b], [first, second], (0.25, 0.26, 0.9)).tolist() == [[0, 1], [0, -1], [-1, -1]]
    # Ranked the other way round the second takes A; the first falls to B with 0.18, which reaches neither threshold.
    assert match_spans([a, b], [second, first], (0.25, 0.26)).tolist() == [[0, -1], [0, -1]]
    assert match_spans([], [first], (0.5,)).tolist() == [[-1]]
    assert match_spans([a], [], (0.5,)).shape == (1, 0)


def test_a_threshold_is_reached_exactly() -> None:
    """On whole microseconds 3 of 10 is 0.3: no rounding of seconds decides."""
    assert iou(Span(0, 10), Span(0, 3)) == 0.3
    assert match_spans([Span(0, 10)], [Span(0, 3)], (0.3,)).tolist() == [[0]]
    big = match_spans([Span(0, 10_000_000)], [Span(0, 6_999_999), Span(0, 7_000_000)], (0.7,))
    assert big.tolist() == [[-1, 0]]


def test_average_precision_by_hand() -> None:
    """Two videos, three events, four predictions, two thresholds."""
    truth = [[Span(0, 10), Span(20, 30)], [Span(0, 10)]]
    found: list[Found] = [[(Span(0, 10), 0.9), (Span(21, 31), 0.6)], [(Span(50, 60), 0.8), (Span(0, 5), 0.7)]]
    # In ranking order: 0.9 is exact; 0.8 is nowhere; 0.7 has tIoU 5/10; 0.6 has 9/11.
    detections = detect(truth, found, (0.5, 0.75))
    assert detections.matches.tolist() == [[0, -1, 0, 1], [0, -1, -1, 1]]
    assert detections.videos.tolist() == [0, 1, 1, 0]
    assert detections.indices.tolist() == [0, 0, 1, 1]
    # At 0.5 yes no yes yes: precision 1, 1/2, 2/3, 3/4; the best from there on is 1, 3/4, 3/4: (1 + 3/4 + 3/4) / 3.
    # At 0.75 yes no no yes: precision 1 and 2/4, the third event is never found: (1 + 1/2) / 3.
    assert detection_average_precision(detections) == pytest.approx(np.array([[5 / 6, 1 / 2]]))
    # Segments at 0.5: video 0 found both; video 1 found one, invented one.
    assert detections.counts(0).tolist() == [[2, 0, 0], [1, 1, 0]]
    assert detections.counts(1).tolist() == [[2, 0, 0], [0, 2, 1]]
    total = detections.counts(0).sum(axis=0)
    assert f1_of_counts(total[:1], total[1:2], total[2:]) == pytest.approx([6 / 7])


def test_equal_scores_follow_video_and_start() -> None:
    """The documented tie rule: score, then video, then start; the order of the lists does not matter."""
    truth = [[Span(0, 10)], []]
    first: Found = [(Span(0, 10), 0.5), (Span(40, 50), 0.5)]
    # Video 0 at 0 (yes), video 0 at 40 (no), video 1 (no): the only event is found first.
    assert detection_average_precision(detect(truth, [first, [(Span(0, 9), 0.5)]], (0.5,))) == pytest.approx(1.0)
    assert detection_average_precision(detect(truth, [first[::-1], [(Span(0, 9), 0.5)]], (0.5,))) == pytest.approx(1.0)
    # Put the event into video 1: two wrong ones are ranked before it.
    other = detect([[], [Span(0, 10)]], [first, [(Span(0, 9), 0.5)]], (0.5,))
    assert detection_average_precision(other) == pytest.approx(1 / 3)


def test_a_class_without_events_is_unknown() -> None:
    """It is left out of the mean, however much is invented."""
    empty = detect([[], []], [[(Span(0, 1), 0.9)], []], (0.5,))
    assert np.isnan(detection_average_precision(empty)).all()
    assert detect([[Span(0, 1)]], [[]], (0.5,)).counts(0).tolist() == [[0, 0, 1]]
    assert detection_average_precision(detect([[Span(0, 1)]], [[]], (0.5,))) == pytest.approx(0.0)


@settings(deadline=None)
@given(splits())
def test_is_the_activitynet_evaluator(split: tuple[list[list[Span]], list[Found]]) -> None:
    """Any split, equal scores and overlapping events included."""
    truth, found = split
    ours = detection_average_precision(detect(truth, found, TIOUS))[0]
    expected = [activitynet(truth, found, tiou) for tiou in TIOUS]
    assert ours == pytest.approx(expected, abs=1e-6, nan_ok=True)


@settings(deadline=None)
@given(splits(different_scores=True), st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_a_weight_is_a_repeated_video(split: tuple[list[list[Span]], list[Found]], drawn: list[int]) -> None:
    """The bootstrap weighs videos where the evaluator would be run on a list that repeats them."""
    truth, found = split
    repeats = drawn[: len(truth)]
    weighted = detection_average_precision(detect(truth, found, TIOUS), np.array([repeats], np.float64))[0]
    again = [v for v, n in enumerate(repeats) for _ in range(n)]
    expected = [activitynet([truth[v] for v in again], [found[v] for v in again], tiou) for tiou in TIOUS]
    assert weighted == pytest.approx(expected, abs=1e-6, nan_ok=True)


@settings(deadline=None)
@given(splits(different_scores=True), st.randoms())
def test_properties(split: tuple[list[list[Span]], list[Found]], chance: random.Random) -> None:
    """Bounded, falling with the threshold, 1 for the truth itself, blind to order and to a doubled archive."""
    truth, found = split

    def precision(truth: list[list[Span]], found: list[Found]) -> np.ndarray:
        return detection_average_precision(detect(truth, found, TIOUS))[0]

    values = precision(truth, found)
    if not any(truth):
        assert np.isnan(values).all()
        return
    assert ((values >= 0) & (values <= 1)).all()
    perfect: list[Found] = [[(s, 0.5) for s in spans] for spans in truth]
    assert precision(truth, perfect) == pytest.approx(np.ones(len(TIOUS)))
    assert precision(truth * 2, found * 2) == pytest.approx(values)
    order = list(range(len(truth)))
    chance.shuffle(order)
    shuffled = [chance.sample(found[v], len(found[v])) for v in order]
    assert precision([truth[v] for v in order], shuffled) == pytest.approx(values)


@settings(deadline=None)
@given(splits())
def test_counts_add_up(split: tuple[list[list[Span]], list[Found]]) -> None:
    """Every prediction is right or wrong, every event found or missed, and none is found twice."""
    truth, found = split
    detections: Detections = detect(truth, found, TIOUS)
    for row in range(len(TIOUS)):
        counts = detections.counts(row)
        assert (counts >= 0).all()
        assert (counts[:, 0] + counts[:, 1]).tolist() == [len(p) for p in found]
        assert (counts[:, 0] + counts[:, 2]).tolist() == [len(t) for t in truth]
        hit = detections.matches[row] >= 0
        pairs = list(zip(detections.videos[hit], detections.matches[row][hit], strict=True))
        assert len(set(pairs)) == len(pairs)
