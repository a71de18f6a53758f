"""Measures of quality, exact on integer spans. Pure numpy; every figure is defined here or in its named source.

Shape letters: V videos, L labels, N predictions in a ranking, T thresholds of tIoU, R weightings of the videos (the
data itself and its resamples), S steps.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vca.core.timeline import US_PER_S, Span, iou, merge_spans

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# --- activity --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ActivityError:
    """How far detected activity is from the truth, in seconds of the scored time."""

    false_alarm_s: float
    missed_s: float
    reference_s: float
    error_rate: float
    """(false alarm + missed) / reference: the detection error rate of the NIST speech activity evaluations. It can
    exceed 1; without reference it is 0 for a silent hypothesis and infinite otherwise."""


def speech_activity_error(reference: list[Span], hypothesis: list[Span], scored: Span) -> ActivityError:
    """Compare the unions of both lists inside `scored`; overlapping speakers count once. No forgiveness collar."""
    truth, found = _clip(reference, scored), _clip(hypothesis, scored)
    truth_us, found_us = _length(truth), _length(found)
    common_us = _common(truth, found)
    false_alarm_us, missed_us = found_us - common_us, truth_us - common_us
    rate_without_speech = float("inf") if false_alarm_us else 0.0
    rate = (false_alarm_us + missed_us) / truth_us if truth_us else rate_without_speech
    return ActivityError(false_alarm_us / US_PER_S, missed_us / US_PER_S, truth_us / US_PER_S, rate)


def _clip(spans: Iterable[Span], scored: Span) -> list[Span]:
    inside = [(max(s.start_us, scored.start_us), min(s.end_us, scored.end_us)) for s in spans]
    return merge_spans(Span(start, end) for start, end in inside if start < end)


def _length(disjoint: list[Span]) -> int:
    return sum(span.duration_us for span in disjoint)


def _common(a: list[Span], b: list[Span]) -> int:
    """Length of the intersection of two sorted lists of disjoint spans."""
    total, i, j = 0, 0, 0
    while i < len(a) and j < len(b):
        total += max(0, min(a[i].end_us, b[j].end_us) - max(a[i].start_us, b[j].start_us))
        if a[i].end_us < b[j].end_us:
            i += 1
        else:
            j += 1
    return total


# --- averages that can be drawn again --------------------------------------------------------------------------------


def bootstrap_weights(n_videos: int, samples: int, seed: int) -> Floats:
    """How often each video is in each resample, [1 + samples, V]; row 0 is the data itself, every video once.

    Every figure below takes such weights: to repeat a video is to weigh it, so that nothing is matched or sorted again.
    """
    drawn = np.random.default_rng(seed).multinomial(n_videos, [1.0 / n_videos] * n_videos, size=samples)
    return np.concatenate([np.ones((1, n_videos)), drawn], axis=0)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Elementwise quotient; NaN, and no warning, where there is nothing to divide by."""
    known = denominator > 0
    return np.where(known, numerator / np.where(known, denominator, 1.0), np.nan)


def f1_of_counts(true_positive: Floats, false_positive: Floats, false_negative: Floats) -> Floats:
    """F1 = 2 TP / (2 TP + FP + FN); NaN without truth and without predictions."""
    return ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative)


def mean_of_known(values: Floats) -> Floats:
    """Mean over the last axis without its NaN; NaN where all are."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1).astype(np.float64))


# --- ranking ---------------------------------------------------------------------------------------------------------


PART_CELLS = 4_000_000


def average_precision(
    scores: npt.ArrayLike, targets: npt.ArrayLike, weights: Floats | None = None, positives: Floats | None = None
) -> Floats:
    """Step-wise average precision [R] of a ranking [N] under weights [R, N]; equal scores are one threshold.

    The definition of scikit-learn's `average_precision_score`, for many weightings at once. `positives` [R] replaces
    the weighted number of positives where some of them are outside the ranking (GAP). NaN without positives.
    """
    ranked, held, drawn = _ranking(scores, targets, weights)
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))

    def of_rows(rows: Floats, total: Floats | None) -> Floats:
        found = np.cumsum(rows * held, axis=1)[:, last]
        precision = found / np.maximum(np.cumsum(rows, axis=1)[:, last], 1e-12)
        gained = np.diff(found, axis=1, prepend=0.0)
        return ratio((gained * precision).sum(axis=1), rows @ held if total is None else total)

    return _by_parts(drawn, positives, of_rows)


def interpolated_average_precision(
    scores: npt.ArrayLike, targets: npt.ArrayLike, weights: Floats | None = None, positives: Floats | None = None
) -> Floats:
    """Average precision [R] as VOC 2010 and ActivityNet define it: precision is the best at this recall or beyond.

    Every place of the ranking is a threshold; equal scores keep the order in which they come. Never to be mixed with
    `average_precision`: on the same data it is larger.
    """
    _, held, drawn = _ranking(scores, targets, weights)

    def of_rows(rows: Floats, total: Floats | None) -> Floats:
        found = np.cumsum(rows * held, axis=1)
        precision = found / np.maximum(np.cumsum(rows, axis=1), 1e-12)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        return ratio((rows * held * best).sum(axis=1), rows @ held if total is None else total)

    return _by_parts(drawn, positives, of_rows)


def global_average_precision(scores: Floats, targets: Bools, k: int, weights: Floats | None = None) -> Floats:
    """GAP@k of YouTube-8M [R] from scores and targets [V, L] under weights [R, V].

    The k best labels of every video (the first label first where scores are equal) go into one ranking; positives
    outside it count as missed. With k >= L it is the micro average precision.
    """
    drawn = np.ones((1, len(scores))) if weights is None else weights
    kept = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    positives = drawn @ targets.sum(axis=1).astype(np.float64)
    return average_precision(
        np.take_along_axis(scores, kept, axis=1).ravel(),
        np.take_along_axis(targets, kept, axis=1).ravel(),
        np.repeat(drawn, kept.shape[1], axis=1),
        positives,
    )


def _ranking(scores: npt.ArrayLike, targets: npt.ArrayLike, weights: Floats | None) -> tuple[Floats, Floats, Floats]:
    values, held = np.asarray(scores, np.float64), np.asarray(targets, np.float64)
    assert values.ndim == 1, values.shape
    assert values.shape == held.shape, (values.shape, held.shape)
    assert not np.isnan(values).any(), "a score is NaN"
    order = np.argsort(-values, kind="stable")
    drawn = np.ones((1, len(values))) if weights is None else weights[:, order]
    assert drawn.shape[1] == len(values), (drawn.shape, values.shape)
    return values[order], held[order], drawn


def _by_parts(weights: Floats, positives: Floats | None, of_rows: Callable[[Floats, Floats | None], Floats]) -> Floats:
    """Some rows at a time, so that a long ranking under many weightings stays within about 100 MB."""
    if weights.shape[1] == 0:
        return np.full(len(weights), np.nan) if positives is None else ratio(np.zeros(len(weights)), positives)
    size = max(1, PART_CELLS // weights.shape[1])
    parts = []
    for first in range(0, len(weights), size):
        total = None if positives is None else positives[first : first + size]
        parts.append(of_rows(weights[first : first + size], total))
    return np.concatenate(parts)


# --- events ----------------------------------------------------------------------------------------------------------


def match_spans(truth: Sequence[Span], found: Sequence[Span], tious: Sequence[float]) -> Ints:
    """Which true span each found span [N] is, for every threshold: an index, or -1, as [T, N].

    `found` is in ranking order. Each takes the true span with the largest tIoU (the first one among equals) that no
    better-ranked one has taken, if the tIoU reaches the threshold: it may fall to its second best.
    """
    matches = np.full((len(tious), len(found)), -1, np.int64)
    if not truth:
        return matches
    overlaps = np.array([[iou(span, true) for true in truth] for span in found]).reshape(len(found), len(truth))
    preferred = np.argsort(-overlaps, axis=1, kind="stable")
    for row, tiou in enumerate(tious):
        taken: set[int] = set()
        for i in range(len(found)):
            for j in map(int, preferred[i]):
                if overlaps[i, j] < tiou:
                    break
                if j not in taken:
                    taken.add(j)
                    matches[row, i] = j
                    break
    return matches


@dataclass(frozen=True, slots=True)
class Detections:
    """The predictions of one class over a split of V videos, N in ranking order, matched at T thresholds."""

    scores: Floats
    """[N], descending. Equal scores are in order of video, start and end."""
    videos: Ints
    """[N], the place of the video in the split."""
    indices: Ints
    """[N], the place of the prediction in its video's list."""
    matches: Ints
    """[T, N], the place of the matched event in its video's list of true ones, or -1."""
    n_truth: Ints
    """[V]"""

    def counts(self, row: int) -> Floats:
        """True positives, false positives and false negatives of every video at one threshold, [V, 3]."""
        n_videos = len(self.n_truth)
        hit = np.bincount(self.videos[self.matches[row] >= 0], minlength=n_videos)
        found = np.bincount(self.videos, minlength=n_videos)
        return np.stack([hit, found - hit, self.n_truth - hit], axis=1).astype(np.float64)


def detect(
    truth: Sequence[Sequence[Span]], found: Sequence[Sequence[tuple[Span, float]]], tious: Sequence[float]
) -> Detections:
    """Match the predictions of one class with its events, video by video; both sequences are [V].

    The order of the videos decides between equal scores, so give them in order of their ids. Matching never leaves a
    video: a resample of videos can use the matches as they are.
    """
    assert len(truth) == len(found), (len(truth), len(found))
    rows: list[tuple[float, int, int, int, int]] = []
    matches: dict[tuple[int, int], Ints] = {}
    for video, (true_spans, predictions) in enumerate(zip(truth, found, strict=True)):
        ranked = sorted(range(len(predictions)), key=lambda i: (-predictions[i][1], predictions[i][0]))
        matched = match_spans(true_spans, [predictions[i][0] for i in ranked], tious)
        for place, i in enumerate(ranked):
            span, score = predictions[i]
            assert score == score, f"the score of {span} is NaN"
            rows.append((-score, video, span.start_us, span.end_us, i))
            matches[video, i] = matched[:, place]
    rows.sort()
    table = np.array([[row[1], row[4]] for row in rows], np.int64).reshape(len(rows), 2)
    columns = [matches[row[1], row[4]] for row in rows]
    return Detections(
        scores=-np.array([row[0] for row in rows], np.float64),
        videos=table[:, 0],
        indices=table[:, 1],
        matches=np.stack(columns, axis=1) if columns else np.full((len(tious), 0), -1, np.int64),
        n_truth=np.array([len(spans) for spans in truth], np.int64),
    )


def detection_average_precision(detections: Detections, weights: Floats | None = None) -> Floats:
    """AP of one class [R, T] under weights of the videos [R, V]; NaN where the split holds no event of it.

    mAP@tIoU of the ActivityNet evaluator is the mean of this over the classes that have events; a class without any is
    left out there too. Under weights the copies of a video are ranked side by side.
    """
    drawn = np.ones((1, len(detections.n_truth))) if weights is None else weights
    positives = drawn @ detections.n_truth.astype(np.float64)
    of_predictions = drawn[:, detections.videos]
    place = -np.arange(len(detections.scores))  # ranked already; equal scores keep their order
    columns = [interpolated_average_precision(place, hit >= 0, of_predictions, positives) for hit in detections.matches]
    return np.stack(columns, axis=1)


# --- steps -----------------------------------------------------------------------------------------------------------


def step_mask(spans: Iterable[Span], steps: Ints) -> Bools:
    """Which steps [S] of a grid [S, 2] belong to one of the spans: those of which it covers at least half."""
    mask = np.zeros(len(steps), np.bool_)
    for span in spans:
        covered = np.minimum(steps[:, 1], span.end_us) - np.maximum(steps[:, 0], span.start_us)
        mask |= 2 * covered >= steps[:, 1] - steps[:, 0]
    return mask


def mask_counts(truth: Bools, found: Bools) -> Floats:
    """True positives, false positives and false negatives [3] of two masks of one shape; see `f1_of_counts`."""
    assert truth.shape == found.shape, (truth.shape, found.shape)
    return np.array([(truth & found).sum(), (~truth & found).sum(), (truth & ~found).sum()], np.float64)


# --- probabilities ---------------------------------------------------------------------------------------------------


def reliability_bins(probabilities: npt.ArrayLike, outcomes: npt.ArrayLike, bins: int = 15) -> tuple[Floats, Ints]:
    """Mean probability and share of positives [bins, 2], NaN where empty, and numbers [bins], in bins of equal width.

    Bins are closed below; the last one also holds 1.
    """
    given, held = np.asarray(probabilities, np.float64).ravel(), np.asarray(outcomes, np.float64).ravel()
    assert given.shape == held.shape, (given.shape, held.shape)
    assert not given.size or (given.min() >= 0.0 and given.max() <= 1.0), "a probability is outside 0..1"
    place = np.minimum((given * bins).astype(np.int64), bins - 1)
    numbers = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=values, minlength=bins).astype(np.float64) for values in (given, held)]
    return np.stack([ratio(total, numbers.astype(np.float64)) for total in sums], axis=1), numbers


def expected_calibration_error(probabilities: npt.ArrayLike, outcomes: npt.ArrayLike, bins: int = 15) -> float:
    """Mean distance between probability and share of positives over the bins, weighted by their numbers; NaN if empty.

    For binary outcomes, or for the confidence in the best label and whether it is right. Guo et al., 2017.
    """
    points, numbers = reliability_bins(probabilities, outcomes, bins)
    filled = numbers > 0
    if not filled.any():
        return math.nan
    return float(np.average(np.abs(points[filled, 0] - points[filled, 1]), weights=numbers[filled]))


def brier_score(probabilities: npt.ArrayLike, outcomes: npt.ArrayLike) -> float:
    """Mean squared distance between probability and outcome; NaN if empty."""
    distance = np.asarray(probabilities, np.float64) - np.asarray(outcomes, np.float64)
    return float((distance**2).mean()) if distance.size else math.nan
