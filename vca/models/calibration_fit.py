"""Fitting of probabilities and decisions, on a split of its own.

Probabilities: one temperature for a task, or a slope and an offset for a label that was seen often enough (Platt,
1999). Decisions: a threshold for each label where F1 is best, drawn towards that of the whole task where examples are
few; for events also how scores become spans.

Targets of both fits are Platt's: (P+1)/(P+2) for P positives, 1/(N+2) for N negatives. On a small split that a model
separates without error, plain likelihood would make every probability 0 or 1.

Shape letters: V videos, L labels, Q kinds of participants, S steps, E events, N examples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vca.core.annotations import TrueEvent, VideoTruth
from vca.core.metrics import (
    Bools,
    Floats,
    Ints,
    detect,
    detection_average_precision,
    f1_of_counts,
    mean_of_known,
    step_mask,
)
from vca.core.records import VideoLogits
from vca.core.spans import SpanDecoding
from vca.core.taxonomy import Task, TaskKind, Taxonomy
from vca.models.calibration import Calibration, Platt, TaskCalibration, find_spans, logistic, task_probabilities

PLATT_EXAMPLES = 50
"""Positives, and negatives, from which on a label gets a curve of its own."""
FULL_TRUST = 30
"""Positives from which on a label's own threshold counts alone."""
LOWEST, HIGHEST = 0.01, 0.99  # thresholds stay inside: 0 and 1 would decide without looking
TEMPERATURES = (0.1, 10.0)
FIT_CELLS = 2_000_000  # logits behind a temperature at most; more do not move it
GRID = tuple(
    SpanDecoding(smooth_ms=smooth, low_ratio=low, merge_gap_ms=gap)
    for smooth in (1500, 0, 3000)
    for low in (0.5, 0.75, 1.0)
    for gap in (1000, 0)
)
"""What is tried for events, the default first: it stays where nothing is better."""
SCALES = (1.0, 0.7, 0.5)
PYRAMID_THRESHOLDS = (0.3, 0.25, 0.35, 0.2, 0.4, 0.15, 0.5, 0.1, 0.6)
"""What is tried for candidates, one for all labels: they have too few events to choose one each."""
GRID_TIOU = 0.5


def fit_calibration(
    logits: Sequence[VideoLogits], truths: Sequence[VideoTruth], steps: Sequence[Ints], taxonomy: Taxonomy
) -> Calibration:
    """Fit on exactly these videos, [V] each in one order; `steps` [S, 2] in microseconds. Nothing else is looked at.

    The order of the videos does not matter. A task that none of them is annotated for stays as the model says it, with
    thresholds of 0.5.
    """
    assert len(logits) == len(truths) == len(steps), (len(logits), len(truths), len(steps))
    found = [_Case(*case) for case in zip(logits, truths, steps, strict=True)]
    cases = sorted(found, key=lambda case: case.truth.video_id)
    return Calibration(tasks={task.name: _fit_task(task, cases) for task in taxonomy.tasks})


@dataclass(frozen=True, slots=True)
class _Case:
    logits: VideoLogits
    truth: VideoTruth
    steps: Ints


def _fit_task(task: Task, cases: Sequence[_Case]) -> TaskCalibration:
    start = TaskCalibration(kind=task.kind, labels=tuple(task.label_names()))
    if task.kind is TaskKind.MULTI_LABEL:
        return _fit_multi_label(task, start, [c for c in cases if task.name in c.truth.labels])
    if task.kind is TaskKind.SINGLE_LABEL:
        return _fit_single_label(task, start, [c for c in cases if task.name in c.truth.labels])
    return _fit_in_time(task, start, [c for c in cases if task.name in c.truth.events])


def _fit_multi_label(task: Task, start: TaskCalibration, cases: Sequence[_Case]) -> TaskCalibration:
    if not cases:
        return start
    logits = np.stack([c.logits.video[task.name] for c in cases]).astype(np.float64)  # [V, L]
    truth = np.array([[name in c.truth.labels[task.name] for name in start.labels] for c in cases], np.bool_)
    n_positive = truth.sum(axis=0)
    scaled = _fit_probabilities(start, logits, truth, n_positive).model_copy(update={"n_videos": len(cases)})
    thresholds = _thresholds(start.labels, task_probabilities(scaled, logits), truth, n_positive)
    return scaled.model_copy(update={"thresholds": thresholds})


def _fit_single_label(task: Task, start: TaskCalibration, cases: Sequence[_Case]) -> TaskCalibration:
    """The best label is taken unless that is wrong more often than saying nothing, which only videos without a label
    can teach: without any, thresholds are as low as they go.
    """
    place = {name: j for j, name in enumerate(start.labels)}
    known = [c for c in cases if not c.truth.labels[task.name] or c.truth.labels[task.name] & set(place)]
    if not known:
        return start
    logits = np.stack([c.logits.video[task.name] for c in known]).astype(np.float64)
    truth = np.array(
        [next((place[n] for n in c.truth.labels[task.name] if n in place), -1) for c in known], np.int64
    )  # -1: no label
    labelled = truth >= 0
    temperature = _fit_softmax(logits[labelled], truth[labelled])
    scaled = start.model_copy(update={"temperature": temperature, "n_videos": len(known)})
    probabilities = task_probabilities(scaled, logits).astype(np.float64)
    best = probabilities.argmax(axis=1)
    thresholds = {}
    for j, name in enumerate(start.labels):
        claimed = best == j
        if (truth == j).any():
            right, silent = truth[claimed] == j, truth[claimed] == -1
            thresholds[name] = _accurate_threshold(probabilities[claimed, j], right, silent)
        else:
            thresholds[name] = 0.5
    return scaled.model_copy(update={"thresholds": thresholds})


def _fit_in_time(task: Task, start: TaskCalibration, cases: Sequence[_Case]) -> TaskCalibration:
    """Span and step tasks. Steps of one event are hardly more than one example, so positives are counted by events."""
    if not cases:
        return start
    logits = np.concatenate([c.logits.steps[task.name] for c in cases]).astype(np.float64)  # [S of all, L]
    truth = np.concatenate([_step_truth(start.labels, c.truth.events[task.name], c.steps) for c in cases])
    events = [event.label for c in cases for event in c.truth.events[task.name]]
    n_positive = np.array([events.count(name) for name in start.labels]) * truth.any(axis=0)
    scaled = _fit_probabilities(start, logits, truth, n_positive).model_copy(update={"n_videos": len(cases)})
    thresholds = _thresholds(start.labels, task_probabilities(scaled, logits), truth, n_positive)
    scaled = scaled.model_copy(update={"thresholds": thresholds})
    if task.kind is TaskKind.STEP:
        return scaled
    return _fit_decoding(task, _fit_attributes(task, scaled, cases), cases)


def _step_truth(labels: Sequence[str], events: Sequence[TrueEvent], steps: Ints) -> Bools:
    """Which steps belong to events of each label [S, L]."""
    return np.stack([step_mask([e.span for e in events if e.label == name], steps) for name in labels], axis=1)


def _fit_attributes(task: Task, start: TaskCalibration, cases: Sequence[_Case]) -> TaskCalibration:
    """Places and participants, from the steps inside annotated events."""
    found: dict[str, Any] = {}
    place, people = task.attributes.place, task.attributes.participants
    inside = [
        (c, event, mask)
        for c in cases
        for event in c.truth.events[task.name]
        if (mask := step_mask([event.span], c.steps)).any()
    ]
    if place is not None:
        names = [label.name for label in place.labels]
        known = [(c.logits.places[task.name][mask], e.place) for c, e, mask in inside if e.place in names]
        if known:
            targets = np.concatenate([np.full(len(x), names.index(str(name))) for x, name in known])
            found["place_temperature"] = _fit_softmax(np.concatenate([x for x, _ in known]), targets)
    if people is not None:
        names = [label.name for label in people.labels]
        seen = [
            (c.logits.participants[task.name][mask], np.array([name in e.participants for name in names]))
            for c, e, mask in inside
            if e.participants is not None
        ]
        if seen:
            held = np.concatenate([np.broadcast_to(truth, x.shape) for x, truth in seen])
            temperature = _fit_logistic(np.concatenate([x for x, _ in seen]), held)
            means = np.stack([logistic(x / temperature).mean(axis=0) for x, _ in seen])  # [E, Q]
            truth = np.stack([held for _, held in seen])
            found["participants_temperature"] = temperature
            found["participants"] = _thresholds(names, means, truth, truth.sum(axis=0))
    return start.model_copy(update=found)


def _fit_decoding(task: Task, start: TaskCalibration, cases: Sequence[_Case]) -> TaskCalibration:
    """Choose how spans are made. The first choice wins ties."""
    calibration = Calibration(tasks={task.name: start})
    probabilities = [calibration.probabilities(_only(task.name, c.logits)) for c in cases]
    by_pyramid = task.name in probabilities[0].candidates

    def quality(candidate: TaskCalibration) -> float:
        f1, precision = _span_quality(task, candidate, probabilities, cases)
        # A threshold for candidates leaves the ranking as it is; hysteresis makes both.
        return f1 if by_pyramid else (f1 + precision) / 2

    if by_pyramid:
        levels = [dict.fromkeys(start.labels, t) for t in PYRAMID_THRESHOLDS]
        return _best([start.model_copy(update={"thresholds": thresholds}) for thresholds in levels], quality)
    decoded = _best([start.model_copy(update={"decoding": decoding}) for decoding in GRID], quality)
    seen = {event.label for c in cases for event in c.truth.events[task.name]}

    def scaled(factor: float) -> dict[str, float]:
        # A step is judged with more steps around it than the threshold of single steps knows of.
        return {name: _inside(factor * t) if name in seen else t for name, t in decoded.thresholds.items()}

    return _best([decoded.model_copy(update={"thresholds": scaled(factor)}) for factor in SCALES], quality)


def _only(task: str, logits: VideoLogits) -> VideoLogits:
    """What spans of one task are made from."""

    def of(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {task: arrays[task]} if task in arrays else {}

    return VideoLogits(
        video={},
        steps=of(logits.steps),
        candidates=of(logits.candidates),
        candidate_spans=of(logits.candidate_spans),
    )


def _best(candidates: Sequence[TaskCalibration], quality: Callable[[TaskCalibration], float]) -> TaskCalibration:
    qualities = [quality(candidate) for candidate in candidates]
    return next(c for c, q in zip(candidates, qualities, strict=True) if q >= max(qualities) - 1e-9)


def _span_quality(
    task: Task, candidate: TaskCalibration, probabilities: Sequence[VideoLogits], cases: Sequence[_Case]
) -> tuple[float, float]:
    """Segment F1 and mAP at tIoU 0.5 of what is decided; 0 where undefined."""
    counts, precisions = np.zeros(3), []
    for j, name in enumerate(candidate.labels):
        found = [find_spans(candidate, p, c.steps, task.name, j) for p, c in zip(probabilities, cases, strict=True)]
        truth = [[e.span for e in c.truth.events[task.name] if e.label == name] for c in cases]
        detections = detect(truth, found, (GRID_TIOU,))
        counts += detections.counts(0).sum(axis=0)
        precisions.append(detection_average_precision(detections)[0, 0])
    f1 = f1_of_counts(counts[:1], counts[1:2], counts[2:])
    return float(np.nan_to_num(f1)[0]), float(np.nan_to_num(mean_of_known(np.array(precisions))))


def _fit_probabilities(start: TaskCalibration, logits: Floats, truth: Bools, n_positive: Ints) -> TaskCalibration:
    """A temperature from all labels [N, L], and curves of their own for those with enough examples."""
    platt = {}
    for j, name in enumerate(start.labels):
        if n_positive[j] >= PLATT_EXAMPLES and (~truth[:, j]).sum() >= PLATT_EXAMPLES:
            curve = _fit_platt(logits[:, j], truth[:, j])
            if curve is not None:
                platt[name] = curve
    return start.model_copy(update={"temperature": _fit_logistic(logits, truth), "platt": platt})


def _fit_logistic(logits: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    """Temperature of independent labels; 1 where only positives or only negatives are known."""
    x, held = _thinned(logits.ravel().astype(np.float64), truth.ravel().astype(np.bool_))
    if not held.any() or held.all():
        return 1.0
    targets = _platt_targets(held)
    return _minimise_temperature(lambda t: float((np.logaddexp(0.0, x / t) - targets * x / t).mean()))


def _fit_softmax(logits: npt.NDArray[Any], truth: Ints) -> float:
    """Temperature of exclusive labels [N, L]; targets give 1/(N+2) away, evenly, as Platt's do for two labels."""
    if not len(truth) or logits.shape[1] < 2:
        return 1.0
    x, held = _thinned(logits.astype(np.float64), truth)
    given = 1.0 / (len(held) + 2)
    targets = np.full(x.shape, given / x.shape[1])
    targets[np.arange(len(held)), held] += 1.0 - given

    def loss(t: float) -> float:
        scaled = x / t
        return float((np.logaddexp.reduce(scaled, axis=1) - (targets * scaled).sum(axis=1)).mean())

    return _minimise_temperature(loss)


def _minimise_temperature(loss: Callable[[float], float]) -> float:
    from scipy.optimize import minimize_scalar

    bounds = np.log(TEMPERATURES)
    found = minimize_scalar(lambda s: loss(np.exp(s)), bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def _fit_platt(logits: Floats, truth: Bools) -> Platt | None:
    """None where the slope would turn the ranking around: then the label learned nothing that a curve could mend."""
    from scipy.optimize import minimize

    x, held = _thinned(logits, truth)
    targets = _platt_targets(held)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        z = parameters[0] * x + parameters[1]
        error = logistic(z) - targets
        value = float((np.logaddexp(0.0, z) - targets * z).mean())
        return value, np.array([(error * x).mean(), error.mean()])

    slope, offset = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return Platt(slope=float(slope), offset=float(offset)) if slope > 1e-3 and np.isfinite(offset) else None


def _platt_targets(held: Bools) -> Floats:
    n_positive, n_negative = int(held.sum()), int((~held).sum())
    return np.where(held, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))


def _thinned(x: npt.NDArray[Any], truth: npt.NDArray[Any]) -> tuple[Floats, npt.NDArray[Any]]:
    """Every k-th example, where there are more than a fit needs."""
    stride = max(1, -(-x.size // FIT_CELLS))
    return x[::stride], truth[::stride]


# --- thresholds ------------------------------------------------------------------------------------------------------


def _thresholds(
    names: Sequence[str], probabilities: npt.NDArray[Any], truth: Bools, n_positive: Ints
) -> dict[str, float]:
    """By label, from probabilities and truth [N, L]; 0.5 for a label that no example has."""
    seen = np.flatnonzero(n_positive)
    if not seen.size:
        return dict.fromkeys(names, 0.5)
    of_task = best_f1_threshold(probabilities[:, seen].ravel(), truth[:, seen].ravel())
    found = {}
    for j, name in enumerate(names):
        trust = min(1.0, int(n_positive[j]) / FULL_TRUST)
        own = best_f1_threshold(probabilities[:, j], truth[:, j]) if trust else 0.5
        found[name] = _inside(trust * own + (1.0 - trust) * of_task) if trust else 0.5
    return found


def best_f1_threshold(probabilities: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """The threshold with the largest F1, midway to the next lower probability; of equal ones, that nearest to 0.5.

    Needs a positive.
    """
    cuts, taken, hit, total = _cuts(probabilities, truth)
    assert total > 0, "no positive"
    f1 = 2 * hit / (taken + total)
    best = cuts[f1 >= f1.max() - 1e-12]
    return _inside(float(best[np.abs(best - 0.5).argmin()]))


def _accurate_threshold(probabilities: Floats, right: Bools, silent: Bools) -> float:
    """The lowest threshold of a label with the most right answers among videos [N] whose best label it is.

    Above it an answer is right where the label holds (`right`), below it where no label does (`silent`).
    """
    if not silent.any():
        return LOWEST
    cuts, _, hit, _ = _cuts(probabilities, right)
    _, _, wrongly_taken, n_silent = _cuts(probabilities, silent)
    everything = np.append(hit + n_silent - wrongly_taken, n_silent)  # the last: nothing is taken
    candidates = np.append(cuts, HIGHEST)
    return _inside(float(candidates[everything >= everything.max() - 1e-12].min()))


def _cuts(probabilities: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[Floats, Floats, Floats, int]:
    """All cuts of a ranking: the threshold, how many are taken, and how many of them are positive; and the positives.

    A threshold lies midway between the lowest that is taken and the highest that is not (0 where all are).
    """
    p, held = np.asarray(probabilities, np.float64), np.asarray(truth, np.float64)
    order = np.argsort(-p, kind="stable")
    ranked = p[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])
    lower = np.append(ranked[last[1:]], 0.0)[: len(last)]
    cuts: Floats = (ranked[last] + lower) / 2
    return cuts, (last + 1).astype(np.float64), np.cumsum(held[order])[last], int(held.sum())


def _inside(threshold: float) -> float:
    return min(max(threshold, LOWEST), HIGHEST)
