"""One tagger for the whole taxonomy: a trained model for the labels it was trained on, zero-shot for all others.

A team that annotates five categories must not lose the rest of its tags the night its model becomes champion. Scores of
the two are calibrated apart: ranks across them are a hint.

Shape letters: S steps, L labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vca.core.errors import ConfigError
from vca.core.records import CategoryScore, FloatArray, Prediction, VideoFeatures
from vca.core.taxonomy import Task, TaskKind, Taxonomy
from vca.models.calibration import Calibration
from vca.models.fusion_tagger import FusionTagger
from vca.models.zeroshot import ZeroShotTagger


class ComposedTagger:
    """See the module. `thresholds` are a user's, by `task.label` or `task`, over those that were fitted."""

    def __init__(
        self, taxonomy: Taxonomy, fusion: FusionTagger, zeroshot: ZeroShotTagger, thresholds: Mapping[str, float]
    ) -> None:
        check_taxonomies(fusion.taxonomy, taxonomy)
        self._taxonomy, self._fusion, self._zeroshot = taxonomy, fusion, zeroshot
        self._fusion.calibration = with_thresholds(fusion.calibration, thresholds)
        self._trained = trained_labels(fusion.taxonomy, taxonomy)

    def __call__(self, video: VideoFeatures) -> Prediction:
        plain, learned = self._zeroshot(video), self._fusion(video)
        categories: list[CategoryScore] = []
        step_scores: dict[str, FloatArray] = {}
        for task in self._taxonomy.tasks:
            trained = self._trained.get(task.name, frozenset())
            if task.kind in (TaskKind.MULTI_LABEL, TaskKind.SINGLE_LABEL):
                rows = [c for c in plain.categories if c.task == task.name and c.label not in trained]
                categories += _ranked(
                    [*rows, *(c for c in learned.categories if c.task == task.name and c.label in trained)]
                )
            else:
                step_scores[task.name] = self._steps(task, plain, learned, trained)
        events = [e for e in plain.events if e.label not in self._trained.get(e.task, ())]
        events += [e for e in learned.events if e.label in self._trained.get(e.task, ())]
        events.sort(key=lambda e: (e.span, e.task, e.label))
        return Prediction(tuple(categories), tuple(events), step_scores, plain.embedding)

    def _steps(self, task: Task, plain: Prediction, learned: Prediction, trained: frozenset[str]) -> FloatArray:
        """[S, L] in the order of the taxonomy."""
        scores = plain.step_scores[task.name].copy()
        if trained:
            names = self._fusion.taxonomy.task(task.name).label_names()
            for j, label in enumerate(task.label_names()):
                if label in trained:
                    scores[:, j] = learned.step_scores[task.name][:, names.index(label)]
        return np.ascontiguousarray(scores)


def trained_labels(model: Taxonomy, taxonomy: Taxonomy) -> dict[str, frozenset[str]]:
    """Labels of the taxonomy that the model answers for. In a single_label task the labels compete: all or none."""
    found: dict[str, frozenset[str]] = {}
    known = {task.name: set(task.label_names()) for task in model.tasks}
    for task in taxonomy.tasks:
        labels = frozenset(task.label_names()) & known.get(task.name, set())
        if task.kind is TaskKind.SINGLE_LABEL and labels:
            labels = frozenset(task.label_names())
        if labels:
            found[task.name] = labels
    return found


def is_complete(model: Taxonomy, taxonomy: Taxonomy) -> bool:
    """Whether the model answers for every label, so that zero-shot has no part in the tags."""
    trained = trained_labels(model, taxonomy)
    return all(trained.get(task.name) == frozenset(task.label_names()) for task in taxonomy.tasks)


def check_taxonomies(model: Taxonomy, taxonomy: Taxonomy) -> None:
    """Refuse a taxonomy in which a trained task means something else. Raises `ConfigError`."""
    kinds = {task.name: task.kind for task in taxonomy.tasks}
    for task in model.tasks:
        if kinds.get(task.name, task.kind) is not task.kind:
            raise ConfigError(
                f"taxonomy: task {task.name} is {kinds[task.name]}, the model was trained on it as {task.kind}; "
                "rename the task, or train again"
            )
    if not trained_labels(model, taxonomy):
        raise ConfigError(
            f"taxonomy: it has none of the model's tasks ({', '.join(t.name for t in model.tasks)}); "
            "use the taxonomy of the training, or predict.model=zeroshot"
        )


def with_thresholds(calibration: Calibration, thresholds: Mapping[str, float]) -> Calibration:
    """Fitted thresholds replaced where a user set one; that of a task holds for labels that have none of their own."""
    tasks = dict(calibration.tasks)
    for name, task in calibration.tasks.items():
        own = dict(task.thresholds)
        for label in task.labels:
            wanted = thresholds.get(f"{name}.{label}", thresholds.get(name))
            if wanted is not None:
                own[label] = wanted
        tasks[name] = task.model_copy(update={"thresholds": own})
    return calibration.model_copy(update={"tasks": tasks})


def _ranked(rows: Sequence[CategoryScore]) -> list[CategoryScore]:
    best_first = sorted(rows, key=lambda c: -c.score)
    return [replace(row, rank=rank) for rank, row in enumerate(best_first, start=1)]
