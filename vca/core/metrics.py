"""Measures of quality, exact on integer spans."""

from collections.abc import Iterable
from dataclasses import dataclass

from vca.core.timeline import US_PER_S, Span, merge_spans


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
