"""The figures of one task, one class for each kind of task: what `vca.models.evaluation` draws again and reports.

`figures` are computed for all weightings of the videos at once, from counts and matches that are made once. `details`
come from scikit-learn where it has the figure; tests hold both equal.

Shape letters: V videos, L labels, C labels and "none", T thresholds of tIoU, R weightings of the videos, S steps.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from vca.core.annotations import TrueEvent
from vca.core.metrics import (
    Bools,
    Detections,
    Floats,
    Ints,
    average_precision,
    brier_score,
    detect,
    detection_average_precision,
    expected_calibration_error,
    f1_of_counts,
    global_average_precision,
    mask_counts,
    mean_of_known,
    ratio,
    reliability_bins,
    step_mask,
)
from vca.core.records import Event
from vca.core.taxonomy import Task

if TYPE_CHECKING:
    from vca.models.evaluation import EvaluationConfig, Judged

SEGMENT_TIOUS = (0.1, 0.25, 0.5)
ATTRIBUTE_TIOU = 0.5  # an event's place and participants are judged if it is found at least this well
CURVE_POINTS = 200
NONE = "(none)"  # no label's name: names are lower case letters, digits and _


class Judgement(Protocol):
    """One task on the videos in which it is annotated."""

    task: Task
    main: str
    """The figure that counts for the score."""
    n_videos: int

    def figures(self, weights: Floats) -> dict[str, Floats]:
        """Figures [R] under weights of the videos [R, V]."""

    def details(self) -> dict[str, Any]:
        """Everything that has no interval."""


# --- labels of the whole video ---------------------------------------------------------------------------------------


class MultiLabel:
    main = "map_macro"

    def __init__(self, task: Task, videos: Sequence["Judged"], config: "EvaluationConfig") -> None:
        self.task, self.n_videos, self._gap_k = task, len(videos), config.gap_k
        names = task.label_names()
        self._truth = np.array([[n in v.truth.labels[task.name] for n in names] for v in videos], np.bool_)  # [V, L]
        self._scores, self._selected, _ = _categories(task, videos)

    def figures(self, weights: Floats) -> dict[str, Floats]:
        n_labels = self._truth.shape[1]
        columns = zip(self._scores.T, self._truth.T, strict=True)
        by_label = np.stack([average_precision(s, t, weights) for s, t in columns], axis=1)  # [R, L]
        pooled = np.repeat(weights, n_labels, axis=1)
        counts = [mask_counts(t, s) for t, s in zip(self._truth, self._selected, strict=True)]
        return {
            "map_macro": mean_of_known(by_label),
            "ap_micro": average_precision(self._scores.ravel(), self._truth.ravel(), pooled),
            f"gap_at_{self._gap_k}": global_average_precision(self._scores, self._truth, self._gap_k, weights),
            "f1_micro": _f1(weights @ np.stack(counts)),
        }

    def details(self) -> dict[str, Any]:
        """Decisions at the system's thresholds and at 0.5; macro figures leave out labels without positives."""
        labels = {
            name: _binary(self._truth[:, j], self._scores[:, j], self._selected[:, j])
            for j, name in enumerate(self.task.label_names())
        }
        present = [found for found in labels.values() if found["n_positive"]]
        pooled = _binary(self._truth.ravel(), self._scores.ravel(), self._selected.ravel())
        return {
            "n_labels": len(labels),
            "n_labels_without_positives": len(labels) - len(present),
            "f1_macro": _mean([found["at_decision"]["f1"] for found in present]),
            "f1_macro_at_half": _mean([found["at_half"]["f1"] for found in present]),
            "roc_auc_macro": _mean([found["roc_auc"] for found in present]),
            "ece_macro": _mean([found["ece"] for found in labels.values()]),
            "brier_macro": _mean([found["brier"] for found in labels.values()]),
            "pooled": pooled,
            "labels": labels,
        }


class SingleLabel:
    main = "accuracy"

    def __init__(self, task: Task, videos: Sequence["Judged"], config: "EvaluationConfig") -> None:  # noqa: ARG002
        self.task, self.n_videos = task, len(videos)
        names = task.label_names()
        self._scores, selected, ranks = _categories(task, videos)
        ranks = np.where(selected, ranks, np.inf)
        self._found = np.where(selected.any(axis=1), ranks.argmin(axis=1), len(names))
        held = [next((i for i, n in enumerate(names) if n in v.truth.labels[task.name]), len(names)) for v in videos]
        self._truth = np.array(held, np.int64)
        self._confusions = np.stack(
            [_confusion(t, f, len(names) + 1) for t, f in zip(self._truth, self._found, strict=True)]
        )

    def figures(self, weights: Floats) -> dict[str, Floats]:
        return _confusion_figures(self._confusions, weights)

    def details(self) -> dict[str, Any]:
        best, right = self._scores.max(axis=1), self._scores.argmax(axis=1) == self._truth
        truth = np.eye(self._scores.shape[1] + 1)[self._truth][:, :-1]
        return _confusion_details(self.task, self._confusions) | {
            "n_without_decision": int((self._found == self._scores.shape[1]).sum()),
            "ece": _number(expected_calibration_error(best, right)),
            "brier": _number(((self._scores - truth) ** 2).sum(axis=1).mean()),
            "reliability": _reliability(best, right),
        }


def _categories(task: Task, videos: Sequence["Judged"]) -> tuple[Floats, Bools, Floats]:
    """Scores, decisions and ranks [V, L] of a task; 0, no and last where a prediction lacks a label."""
    place = {name: j for j, name in enumerate(task.label_names())}
    shape = (len(videos), len(place))
    scores, selected, ranks = np.zeros(shape), np.zeros(shape, np.bool_), np.full(shape, np.inf)
    for i, video in enumerate(videos):
        for row in video.prediction.categories:
            if row.task == task.name and row.label in place:
                j = place[row.label]
                scores[i, j], selected[i, j], ranks[i, j] = row.score, row.selected, row.rank
    return scores, selected, ranks


# --- events ----------------------------------------------------------------------------------------------------------


class Spans:
    def __init__(self, task: Task, videos: Sequence["Judged"], config: "EvaluationConfig") -> None:
        self.task, self.n_videos = task, len(videos)
        self.main = "map_at_0.5" if 0.5 in config.tious else "map_average"
        self._tious = config.tious
        names = task.label_names()
        tious = (*config.tious, *SEGMENT_TIOUS, ATTRIBUTE_TIOU)
        self._detections: list[Detections] = []
        self._ranked: list[Detections] = []
        self._place, self._people = np.zeros((len(videos), 2)), np.zeros((len(videos), 3))
        for name in names:
            truth = [[e for e in v.truth.events[task.name] if e.label == name] for v in videos]
            found = [[e for e in v.prediction.events if (e.task, e.label) == (task.name, name)] for v in videos]
            detections = detect(
                [[e.span for e in events] for events in truth], [[(e.span, e.score) for e in ev] for ev in found], tious
            )
            self._detections.append(detections)
            ranked = [[e for e in v.prediction.ranked if (e.task, e.label) == (task.name, name)] for v in videos]
            self._ranked.append(
                detect(
                    [[e.span for e in events] for events in truth],
                    [[(e.span, e.score) for e in more or decided] for more, decided in zip(ranked, found, strict=True)],
                    config.tious,
                )
            )
            self._judge_attributes(detections, truth, found)
        self._truth_masks = [_masks(names, v.truth.events[task.name], v.steps) for v in videos]
        of_task = [[e for e in v.prediction.events if e.task == task.name] for v in videos]
        self._found_masks = [_masks(names, events, v.steps) for events, v in zip(of_task, videos, strict=True)]
        self._step_scores = [_step_scores(task, v) for v in videos]

    def _judge_attributes(
        self, detections: Detections, truth: Sequence[Sequence[TrueEvent]], found: Sequence[Sequence[Event]]
    ) -> None:
        for video, index, match in zip(detections.videos, detections.indices, detections.matches[-1], strict=True):
            if match < 0:
                continue
            true, event = truth[video][match], found[video][index]
            if true.place is not None:
                self._place[video] += (event.place == true.place, 1)
            if true.participants is not None:
                named = {name for name, _ in event.participants}
                common = len(named & true.participants)
                self._people[video] += (common, len(named) - common, len(true.participants) - common)

    def figures(self, weights: Floats) -> dict[str, Floats]:
        maps = mean_of_known(self._precisions(weights).transpose(0, 2, 1))  # [R, T]
        found = {f"map_at_{tiou:g}": maps[:, i] for i, tiou in enumerate(self._tious)}
        found["map_average"] = maps.mean(axis=1)
        for i, tiou in enumerate(SEGMENT_TIOUS, start=len(self._tious)):
            found[f"segment_f1_at_{tiou:g}"] = _f1(weights @ sum(d.counts(i) for d in self._detections))
        place = weights @ self._place
        frames = [mask_counts(t, f) for t, f in zip(self._truth_masks, self._found_masks, strict=True)]
        return found | {
            "place_accuracy": ratio(place[:, 0], place[:, 1]),
            "participants_f1": _f1(weights @ self._people),
            "frame_f1": _f1(weights @ np.stack(frames)),
        }

    def _precisions(self, weights: Floats | None = None) -> Floats:
        """Average precision [R, L, T]."""
        return np.stack([detection_average_precision(d, weights) for d in self._ranked], axis=1)

    def details(self) -> dict[str, Any]:
        """`ap` of a label is by tIoU; `step_*` figures judge the scores of single steps, events or not."""
        truth, scores = np.concatenate(self._truth_masks), np.concatenate(self._step_scores)
        precisions = self._precisions()[0]  # [L, T]
        labels: dict[str, dict[str, Any]] = {}
        for j, name in enumerate(self.task.label_names()):
            detections = self._detections[j]
            hit, wrong, missed = detections.counts(len(self._tious) + SEGMENT_TIOUS.index(0.5)).sum(axis=0)
            labels[name] = {
                "n_truth": int(detections.n_truth.sum()),
                "n_found": len(detections.scores),
                "ap": {f"{tiou:g}": _number(precisions[j, i]) for i, tiou in enumerate(self._tious)},
                "at_decision": _rates(hit, wrong, missed),
                "step_ap": _sk_average_precision(truth[:, j], scores[:, j]),
            }
        return {
            "n_labels": len(labels),
            "n_labels_without_truth": sum(not found["n_truth"] for found in labels.values()),
            "n_found_without_truth": sum(found["n_found"] for found in labels.values() if not found["n_truth"]),
            "place": {"n_events": int(self._place[:, 1].sum()), "n_correct": int(self._place[:, 0].sum())},
            "participants": _rates(*self._people.sum(axis=0)),
            "step_map": _mean([found["step_ap"] for found in labels.values()]),
            "step_ece": _number(expected_calibration_error(scores, truth)),
            "step_brier": _number(brier_score(scores, truth)),
            "reliability": _reliability(scores, truth),
            "labels": labels,
        }


class Steps:
    """A step has the label of the shortest event that covers half of it, a prediction its best one, both or none."""

    main = "accuracy"

    def __init__(self, task: Task, videos: Sequence["Judged"], config: "EvaluationConfig") -> None:  # noqa: ARG002
        self.task, self.n_videos = task, len(videos)
        n_labels = len(task.labels)
        self._truth = [_step_labels(task, v) for v in videos]
        self._scores = [_step_scores(task, v) for v in videos]
        confusions = []
        for video, truth, scores in zip(videos, self._truth, self._scores, strict=True):
            own = [video.thresholds.get(f"{task.name}.{la.name}", task.threshold_of(la)) for la in task.labels]
            best = scores.argmax(axis=1)
            found = np.where(scores.max(axis=1) >= np.array(own)[best], best, n_labels)
            confusions.append(_confusion(truth, found, n_labels + 1))
        self._confusions = np.stack(confusions)

    def figures(self, weights: Floats) -> dict[str, Floats]:
        total = np.tensordot(weights, self._confusions, axes=1)  # [R, C, C]
        hit = np.diagonal(total, axis1=1, axis2=2)[:, :-1].sum(axis=1)
        found, held = total[:, :, :-1].sum(axis=(1, 2)), total[:, :-1, :].sum(axis=(1, 2))
        return _confusion_figures(self._confusions, weights) | {"frame_f1": f1_of_counts(hit, found - hit, held - hit)}

    def details(self) -> dict[str, Any]:
        scores, truth = np.concatenate(self._scores), np.concatenate(self._truth)
        held = np.eye(len(self.task.labels) + 1, dtype=np.bool_)[truth][:, :-1]  # [S, L]
        by_label = [_sk_average_precision(held[:, j], scores[:, j]) for j in range(held.shape[1])]
        details = _confusion_details(self.task, self._confusions)
        for name, found in zip(self.task.label_names(), by_label, strict=True):
            details["labels"][name]["step_ap"] = found
        return details | {
            "step_map": _mean(by_label),
            "ece": _number(expected_calibration_error(scores, held)),
            "brier": _number(brier_score(scores, held)),
            "reliability": _reliability(scores, held),
        }


def _step_scores(task: Task, video: "Judged") -> Floats:
    """[S, L]; a task that the tagger does not know has score 0."""
    shape = (len(video.steps), len(task.labels))
    scores = video.prediction.step_scores.get(task.name)
    if scores is None:
        return np.zeros(shape)
    # Columns have no names: with other labels than the taxonomy's they would be mixed up.
    assert scores.shape == shape, f"step scores of {task.name} are {scores.shape}, steps and labels {shape}"
    return scores.astype(np.float64)


def _step_labels(task: Task, video: "Judged") -> Ints:
    """Place of the true label of every step [S]; the number of labels where there is none."""
    names = task.label_names()
    labels = np.full(len(video.steps), len(names), np.int64)
    for event in sorted(video.truth.events[task.name], key=lambda e: -e.span.duration_us):
        if event.label in names:
            labels[step_mask([event.span], video.steps)] = names.index(event.label)
    return labels


def _masks(names: Sequence[str], events: Sequence[TrueEvent] | Sequence[Event], steps: Ints) -> Bools:
    """Which steps belong to events of each label [S, L]."""
    return np.stack([step_mask([e.span for e in events if e.label == name], steps) for name in names], axis=1)


# --- figures shared by kinds -----------------------------------------------------------------------------------------


def _f1(counts: npt.NDArray[Any]) -> Floats:
    """F1 [R] of counts [R, 3]."""
    return f1_of_counts(counts[:, 0], counts[:, 1], counts[:, 2])


def _confusion(truth: Ints, found: Ints, n: int) -> Floats:
    """Counts [C, C] of one video, rows the truth."""
    return np.bincount(np.ravel(truth * n + found), minlength=n * n).reshape(n, n).astype(np.float64)


def _confusion_figures(confusions: Floats, weights: Floats) -> dict[str, Floats]:
    total = np.tensordot(weights, confusions, axes=1)  # [R, C, C]
    hit, held, found = np.diagonal(total, axis1=1, axis2=2), total.sum(axis=2), total.sum(axis=1)
    f1 = np.nan_to_num(f1_of_counts(hit, found - hit, held - hit))
    return {
        "accuracy": ratio(hit.sum(axis=1), held.sum(axis=1)),
        "weighted_f1": ratio((f1 * held).sum(axis=1), held.sum(axis=1)),
    }


def _confusion_details(task: Task, confusions: Floats) -> dict[str, Any]:
    total = confusions.sum(axis=0)
    hit, held, found = np.diagonal(total), total.sum(axis=1), total.sum(axis=0)
    labels = {
        name: {"n_truth": int(held[j]), "at_decision": _rates(hit[j], found[j] - hit[j], held[j] - hit[j])}
        for j, name in enumerate(task.label_names())
    }
    confusion = {"labels": [*task.label_names(), NONE], "rows_are_truth": total.astype(int).tolist()}
    return {"confusion": confusion, "labels": labels}


def _rates(hit: float, wrong: float, missed: float) -> dict[str, Any]:
    """Precision is 0 where nothing is found and recall 0 where nothing is true, as `zero_division=0` says."""
    return {
        "precision": float(hit / (hit + wrong)) if hit + wrong else 0.0,
        "recall": float(hit / (hit + missed)) if hit + missed else 0.0,
        "f1": float(2 * hit / (2 * hit + wrong + missed)) if hit + wrong + missed else 0.0,
        "n_true_positive": int(hit),
        "n_false_positive": int(wrong),
        "n_false_negative": int(missed),
    }


def _binary(truth: Bools, scores: Floats, selected: Bools) -> dict[str, Any]:
    """All figures of one yes-or-no question."""
    from sklearn.metrics import precision_recall_curve, precision_recall_fscore_support, roc_auc_score, roc_curve

    found: dict[str, Any] = {"n_positive": int(truth.sum()), "ap": _sk_average_precision(truth, scores)}
    for name, decided in (("at_decision", selected), ("at_half", scores >= 0.5)):
        rates = precision_recall_fscore_support(truth, decided, average="binary", zero_division=0)
        found[name] = {"precision": float(rates[0]), "recall": float(rates[1]), "f1": float(rates[2])}
    both = bool(truth.any()) and not bool(truth.all())
    found["roc_auc"] = float(roc_auc_score(truth, scores)) if both else None
    found["ece"] = _number(expected_calibration_error(scores, truth))
    found["brier"] = _number(brier_score(scores, truth))
    found["reliability"] = _reliability(scores, truth)
    if truth.any():
        precision, recall, _ = precision_recall_curve(truth, scores)
        found["pr_curve"] = _curve("recall", recall[::-1], "precision", precision[::-1])
    if both:
        false, true, _ = roc_curve(truth, scores)
        found["roc_curve"] = _curve("false_positive_rate", false, "true_positive_rate", true)
    return found


def _sk_average_precision(truth: Bools, scores: Floats) -> float | None:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, scores)) if truth.any() else None


def _reliability(probabilities: Floats, outcomes: npt.NDArray[Any]) -> list[dict[str, float]]:
    points, numbers = reliability_bins(probabilities, outcomes)
    return [
        {"probability": float(points[i, 0]), "share": float(points[i, 1]), "n": int(n)}
        for i, n in enumerate(numbers)
        if n
    ]


def _curve(x_name: str, x: Floats, y_name: str, y: Floats) -> dict[str, list[float]]:
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), CURVE_POINTS)).round().astype(np.int64))
    return {x_name: np.round(x[kept], 5).tolist(), y_name: np.round(y[kept], 5).tolist()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
