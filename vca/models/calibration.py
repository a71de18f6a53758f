"""From logits to probabilities to decisions, by numbers that `vca.models.calibration_fit` found and a model ships with.

`step` tasks are trained and read as independent labels, because "none of them" is an answer too: a softmax over the
labels could not give it.

Shape letters: L labels, S steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vca.core.config import Config
from vca.core.metrics import Bools, Floats, Ints, reliability_bins, step_mask
from vca.core.records import CategoryScore, Event, Evidence, FloatArray, Prediction, VideoLogits
from vca.core.spans import SpanDecoding, decode_spans, soft_nms
from vca.core.taxonomy import Attribute, Score, Task, TaskKind, Taxonomy
from vca.core.timeline import Span


class Platt(Config):
    """probability = logistic(slope * logit + offset)."""

    slope: float = Field(gt=0.0)
    """Above 0: the ranking of a label's scores stays."""
    offset: float
    """Added after the slope."""


class PyramidDecoding(Config):
    """How the candidates of one label become events."""

    sigma: float = Field(0.1, gt=0.0)
    """Of the Gaussian soft-NMS: the smaller, the more an overlapping candidate loses. The 0.5 of the paper keeps second
    answers to the same event, which a ranking forgives and a table does not."""
    keep: int = Field(100, ge=1)
    """Events of one label in a video, at most."""
    lowest: float = Field(0.001, gt=0.0, lt=1.0)
    """Candidates below this are not looked at."""
    most: int = Field(2000, ge=1)
    """Candidates of one label in a video that are looked at, at most."""


class TaskCalibration(Config):
    """What was fitted for one task."""

    kind: TaskKind
    """single_label is a softmax, all others are independent logistic functions."""
    labels: tuple[str, ...]
    """Order of the logits."""
    n_videos: int = Field(0, ge=0)
    """Annotated videos behind it."""
    temperature: float = Field(1.0, gt=0.0)
    """Divides the logits."""
    platt: dict[str, Platt] = Field(default_factory=dict)
    """Labels that have a curve of their own in place of the temperature."""
    thresholds: dict[str, Score] = Field(default_factory=dict)
    """By label; 0.5 where missing."""
    decoding: SpanDecoding = SpanDecoding()
    """How the scores of a `span` task become events."""
    pyramid: PyramidDecoding = PyramidDecoding()
    """How candidates become events, where the model has a pyramid. Thresholds then are those of candidates."""
    place_temperature: float = Field(1.0, gt=0.0)
    """Divides the logits of places."""
    participants_temperature: float = Field(1.0, gt=0.0)
    """Divides the logits of participants."""
    participants: dict[str, Score] = Field(default_factory=dict)
    """Thresholds of participants; the taxonomy's where missing."""


class Calibration(Config):
    """`calibration.json` of a saved model."""

    tasks: dict[str, TaskCalibration]
    """By name of the task."""

    def probabilities(self, logits: VideoLogits) -> VideoLogits:
        """The same arrays as probabilities, float32; shares of evidence are passed on."""
        tasks = self.tasks
        return replace(
            logits,
            video={name: task_probabilities(tasks[name], x) for name, x in logits.video.items()},
            steps={name: task_probabilities(tasks[name], x) for name, x in logits.steps.items()},
            places={name: _f32(softmax(x / tasks[name].place_temperature)) for name, x in logits.places.items()},
            participants={
                name: _f32(logistic(x / tasks[name].participants_temperature))
                for name, x in logits.participants.items()
            },
            candidates={name: _f32(logistic(x)) for name, x in logits.candidates.items()},
        )

    def thresholds(self) -> dict[str, float]:
        """By `task.label`, as `Judged.thresholds` and `Taxonomy.with_thresholds` take them."""
        return {f"{name}.{label}": t for name, task in self.tasks.items() for label, t in task.thresholds.items()}


def uncalibrated(taxonomy: Taxonomy) -> Calibration:
    """The identity: what a model says before anything is fitted, with the taxonomy's own thresholds."""
    return Calibration(
        tasks={
            task.name: TaskCalibration(
                kind=task.kind,
                labels=tuple(task.label_names()),
                thresholds={label.name: task.threshold_of(label) for label in task.labels},
            )
            for task in taxonomy.tasks
        }
    )


def reliability(probabilities: npt.ArrayLike, targets: npt.ArrayLike, bins: int = 15) -> list[tuple[float, float, int]]:
    """Points of a reliability diagram: mean probability, share of positives and number, of bins that hold something."""
    points, numbers = reliability_bins(probabilities, targets, bins)
    return [(float(points[i, 0]), float(points[i, 1]), int(n)) for i, n in enumerate(numbers) if n]


# --- deciding --------------------------------------------------------------------------------------------------------


def decide(
    probabilities: VideoLogits, steps: Ints, taxonomy: Taxonomy, calibration: Calibration, rank: bool = False
) -> Prediction:
    """Probabilities of one video on its grid [S, 2] to categories, events and step scores.

    A video in which no modality has evidence gets scores, but nothing is selected and no event found. `rank` also gives
    the events below their thresholds, which evaluation wants and the tables do not.
    """
    categories: list[CategoryScore] = []
    events: list[Event] = []
    ranked: list[Event] = []
    for task in taxonomy.tasks:
        fitted = calibration.tasks[task.name]
        if task.kind in (TaskKind.MULTI_LABEL, TaskKind.SINGLE_LABEL):
            categories += _decide_labels(task, fitted, probabilities)
        elif task.kind is TaskKind.SPAN:
            events += _decide_events(task, fitted, probabilities, steps)
            ranked += _rank_events(task, fitted, probabilities, steps) if rank else []
    events.sort(key=lambda e: (e.span, e.task, e.label))
    return Prediction(tuple(categories), tuple(events), dict(probabilities.steps), ranked=tuple(ranked))


def _decide_labels(task: Task, fitted: TaskCalibration, probabilities: VideoLogits) -> list[CategoryScore]:
    """Rows of a task, best first; ties keep the order of the taxonomy."""
    scores, shares = probabilities.video[task.name], probabilities.video_shares.get(task.name)
    assert scores.shape == (len(task.labels),), (task.name, scores.shape)
    rows = []
    for rank, j in enumerate(map(int, np.argsort(-scores, kind="stable")), start=1):
        name, score = task.labels[j].name, float(scores[j])
        threshold = fitted.thresholds.get(name, 0.5)
        seen = shares is None or bool(shares[j].sum() > 0)
        allowed = seen and (task.kind is TaskKind.MULTI_LABEL or rank == 1)
        evidence = Evidence() if shares is None else _evidence(shares[j])
        rows.append(CategoryScore(task.name, name, score, threshold, allowed and score >= threshold, rank, evidence))
    return rows


def _decide_events(task: Task, fitted: TaskCalibration, probabilities: VideoLogits, steps: Ints) -> list[Event]:
    scores, shares = probabilities.steps[task.name], probabilities.step_shares
    assert scores.shape == (len(steps), len(task.labels)), (task.name, scores.shape, len(steps))
    if shares is not None and not shares.any():
        return []
    events = []
    for j, label in enumerate(task.labels):
        for span, score in find_spans(fitted, probabilities, steps, task.name, j):
            inside = _inside_span(steps, span)
            place, place_score = _place(task, probabilities, inside)
            people = _participants(task, fitted, probabilities, inside)
            evidence = Evidence() if shares is None else _evidence(shares[inside].mean(axis=0))
            events.append(Event(task.name, label.name, span, score, place, place_score, people, evidence))
    return events


def find_spans(
    fitted: TaskCalibration, probabilities: VideoLogits, steps: Ints, task: str, label: int
) -> list[tuple[Span, float]]:
    """Events of one label with their scores: from the candidates of a pyramid where there are any, else from steps."""
    threshold = fitted.thresholds.get(fitted.labels[label], 0.5)
    if task not in probabilities.candidates:
        scores = probabilities.steps[task][:, label]
        # Smoothing never raises the maximum, so most labels of most videos are known to have no event.
        return decode_spans(scores, steps, threshold, fitted.decoding) if (scores >= threshold).any() else []
    return sorted(_candidates(fitted, probabilities, task, label, threshold))


RANKING_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Hysteresis gives spans for one threshold only; those of many are put together for a ranking."""


def _rank_events(task: Task, fitted: TaskCalibration, probabilities: VideoLogits, steps: Ints) -> list[Event]:
    """Events of every score, without place and participants."""
    shares = probabilities.step_shares
    if shares is not None and not shares.any():
        return []
    found = []
    for j, label in enumerate(task.label_names()):
        if task.name in probabilities.candidates:
            spans = _candidates(fitted, probabilities, task.name, j, fitted.pyramid.lowest)
        else:
            scores = probabilities.steps[task.name][:, j]
            used = [t for t in RANKING_THRESHOLDS if (scores >= t).any()]
            decoded = {item for t in used for item in decode_spans(scores, steps, t, fitted.decoding)}
            spans = _thinned(sorted(decoded), fitted.pyramid)
        found += [Event(task.name, label, span, score) for span, score in spans]
    return found


def _candidates(
    fitted: TaskCalibration, probabilities: VideoLogits, task: str, label: int, threshold: float
) -> list[tuple[Span, float]]:
    scores, how = probabilities.candidates[task][:, label], fitted.pyramid
    order = np.argsort(-scores, kind="stable")[: how.most]
    order = order[scores[order] >= min(how.lowest, threshold)]
    rows = probabilities.candidate_spans[task][order].tolist()
    found = [(Span(a, b), float(score)) for (a, b), score in zip(rows, scores[order], strict=True)]
    return [(span, score) for span, score in _thinned(found, how) if score >= threshold]


def _thinned(found: Sequence[tuple[Span, float]], how: PyramidDecoding) -> list[tuple[Span, float]]:
    spans = np.array([(span.start_us, span.end_us) for span, _ in found], np.int64).reshape(-1, 2)
    kept, values = soft_nms(spans, np.array([score for _, score in found], np.float32), how.sigma, how.keep)
    return [(Span(a, b), float(score)) for (a, b), score in zip(kept.tolist(), values, strict=True)]


def _inside_span(steps: Ints, span: Span) -> Bools:
    """Steps of which the span covers half, or the one around its middle."""
    inside = step_mask([span], steps)
    if not inside.any():
        inside[np.abs(steps.sum(axis=1) - span.start_us - span.end_us).argmin()] = True
    return inside


def _place(task: Task, probabilities: VideoLogits, inside: Bools) -> tuple[str | None, float | None]:
    attribute, scores = task.attributes.place, probabilities.places.get(task.name)
    if attribute is None or scores is None:
        return None, None
    mean = scores[inside].mean(axis=0)
    best = int(mean.argmax())
    return attribute.labels[best].name, float(mean[best])


def _participants(
    task: Task, fitted: TaskCalibration, probabilities: VideoLogits, inside: Bools
) -> tuple[tuple[str, float], ...]:
    attribute, scores = task.attributes.participants, probabilities.participants.get(task.name)
    if attribute is None or scores is None:
        return ()
    mean = scores[inside].mean(axis=0)
    own = [fitted.participants.get(name, default) for name, default in _defaults(attribute).items()]
    found = [(la.name, float(p)) for la, p, t in zip(attribute.labels, mean, own, strict=True) if p >= t]
    return tuple(sorted(found, key=lambda item: -item[1]))


def _defaults(attribute: Attribute) -> Mapping[str, float]:
    return {la.name: attribute.threshold if la.threshold is None else la.threshold for la in attribute.labels}


def _evidence(shares: npt.NDArray[Any]) -> Evidence:
    """Shares that sum to 1, or are all 0."""
    total = float(shares.sum())
    return Evidence(*(float(share) / total for share in shares)) if total > 0 else Evidence()


# --- functions -------------------------------------------------------------------------------------------------------


def task_probabilities(task: TaskCalibration, logits: npt.NDArray[Any]) -> FloatArray:
    """Logits [..., L] of one task as probabilities, float32."""
    assert logits.shape[-1] == len(task.labels), (logits.shape, task.labels)
    scaled = logits.astype(np.float64) / task.temperature
    if task.kind is TaskKind.SINGLE_LABEL:
        return _f32(softmax(scaled))
    for j, name in enumerate(task.labels):
        if name in task.platt:
            scaled[..., j] = task.platt[name].slope * logits[..., j] + task.platt[name].offset
    return _f32(logistic(scaled))


def logistic(x: npt.NDArray[Any]) -> Floats:
    return 1.0 / (1.0 + np.exp(-np.clip(x.astype(np.float64), -60.0, 60.0)))


def softmax(x: npt.NDArray[Any]) -> Floats:
    powers = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    share: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return share


def _f32(x: Floats) -> FloatArray:
    return x.astype(np.float32)
