"""How good predictions are: figures by task with bootstrap intervals by video, for any tagger.

A task is judged on the videos in which it is annotated. What a prediction does not say has score 0; what it says about
labels outside the taxonomy is not looked at. Intervals are percentiles over resamples of the videos; a resample only
weighs videos, so nothing is matched or sorted again.

Shape letters: V videos, R weightings of the videos (the data and its resamples), S steps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from vca.core.annotations import VideoTruth
from vca.core.config import Config
from vca.core.errors import ConfigError
from vca.core.metrics import Floats, Ints, bootstrap_weights
from vca.core.records import Prediction
from vca.core.taxonomy import Task, TaskKind, Taxonomy
from vca.models.task_figures import Judgement, MultiLabel, SingleLabel, Spans, Steps


class EvaluationConfig(Config):
    """What is measured, and how sure the figures are."""

    tious: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    """Temporal overlaps (intersection over union) at which a found event counts as the annotated one."""
    bootstrap_samples: int = Field(200, ge=0, le=100_000)
    """Resamples of the videos behind the intervals; 0: none."""
    confidence: float = Field(0.95, gt=0.0, lt=1.0)
    """Share of the resamples that an interval holds."""
    seed: int = Field(0, ge=0)
    """Of the resamples."""
    gap_k: int = Field(20, gt=0)
    """Labels of a video that take part in the global average precision (GAP@k)."""

    @field_validator("tious")
    @classmethod
    def _check(cls, tious: tuple[float, ...]) -> tuple[float, ...]:
        if not tious or any(not 0.0 < t <= 1.0 for t in tious) or len(set(tious)) < len(tious):
            raise ValueError("give at least one overlap above 0 and up to 1, each once")
        return tious


@dataclass(frozen=True, slots=True)
class Judged:
    """A video with what is true and what a tagger says. Every system that is compared gets the same truths."""

    truth: VideoTruth
    prediction: Prediction
    steps: Ints
    """The grid of the prediction [S, 2], microseconds."""
    duration_us: int
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """From which score a step has a label, by `task.label`; the taxonomy's where missing. Used by `step` tasks only."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of one system on one set of videos."""

    n_videos: int
    hours: float
    score: Interval
    """Mean of the tasks' main figures: what decides between models."""
    headline: dict[str, Interval]
    """By `task.figure`, such as `events.map_at_0.5`. A figure without anything to measure is missing."""
    tasks: dict[str, dict[str, Any]]
    """Everything else by task, see `details` of `vca.models.task_figures`. Plain values; None where undefined."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)


def evaluate(judged: Sequence[Judged], taxonomy: Taxonomy, config: EvaluationConfig) -> Report:
    """Measure one system. The order of the videos does not matter. Raises `ConfigError` without anything to judge."""
    videos = _in_order(judged)
    tasks = _tasks(videos, taxonomy, config)
    found = _figures(tasks, bootstrap_weights(len(videos), config.bootstrap_samples, config.seed))
    headline = {name: _interval(values, config.confidence) for name, values in found.items()}
    return Report(
        n_videos=len(videos),
        hours=sum(video.duration_us for video in videos) / 3.6e9,
        score=headline.pop("score"),
        headline=headline,
        tasks={task.task.name: _common(task) | task.details() for task, _ in tasks},
    )


def compare(
    a: Sequence[Judged], b: Sequence[Judged], taxonomy: Taxonomy, config: EvaluationConfig
) -> dict[str, Interval]:
    """Paired bootstrap of `a - b` on the same videos, for every headline figure of both and for `score`.

    Both sides are drawn together, so what makes a video hard for both cancels out. Raises `ConfigError` if the two
    sides are not about the same videos.
    """
    sides = [_in_order(side) for side in (a, b)]
    names = [[video.truth.video_id for video in side] for side in sides]
    if names[0] != names[1]:
        different = sorted(set(names[0]) ^ set(names[1]))
        raise ConfigError(f"the compared systems saw different videos, such as {different[:1]}; use one test split")
    weights = bootstrap_weights(len(names[0]), config.bootstrap_samples, config.seed)
    ours, theirs = (_figures(_tasks(side, taxonomy, config), weights) for side in sides)
    return {name: _interval(ours[name] - theirs[name], config.confidence) for name in ours if name in theirs}


# --- what is drawn again ---------------------------------------------------------------------------------------------


def _in_order(judged: Sequence[Judged]) -> list[Judged]:
    if not judged:
        raise ConfigError("no video to evaluate: the split is empty; annotate videos of it or choose another split")
    return sorted(judged, key=lambda video: video.truth.video_id)


def _tasks(videos: list[Judged], taxonomy: Taxonomy, config: EvaluationConfig) -> list[tuple[Judgement, Ints]]:
    """Every task that is annotated somewhere, with the places [V] of its videos."""
    kinds: dict[TaskKind, Any] = {
        TaskKind.MULTI_LABEL: MultiLabel,
        TaskKind.SINGLE_LABEL: SingleLabel,
        TaskKind.SPAN: Spans,
        TaskKind.STEP: Steps,
    }
    found: list[tuple[Judgement, Ints]] = []
    for task in taxonomy.tasks:
        places = [i for i, video in enumerate(videos) if _annotated(task, video.truth)]
        if places:
            found.append((kinds[task.kind](task, [videos[i] for i in places], config), np.array(places, np.int64)))
    if not found:
        raise ConfigError("no task of the taxonomy is annotated in these videos; check the split and the task names")
    return found


def _annotated(task: Task, truth: VideoTruth) -> bool:
    """A video whose only label is outside the (restricted) taxonomy has no right answer in a single_label task."""
    if task.kind is TaskKind.SINGLE_LABEL and truth.labels.get(task.name):
        return bool(truth.labels[task.name] & set(task.label_names()))
    return task.name in truth.labels or task.name in truth.events


def _figures(tasks: Sequence[tuple[Judgement, Ints]], weights: Floats) -> dict[str, Floats]:
    found: dict[str, Floats] = {}
    mains = []
    for task, places in tasks:
        figures = {name: a for name, a in task.figures(weights[:, places]).items() if not math.isnan(a[0])}
        found |= {f"{task.task.name}.{name}": values for name, values in figures.items()}
        if task.main in figures:
            mains.append(figures[task.main])
    if not mains:
        raise ConfigError("nothing to measure: these videos are annotated, but hold no label or event of the taxonomy")
    # A resample without, say, any event has no score and is left out: the mean of other tasks is another figure.
    return found | {"score": np.mean(mains, axis=0)}


def _interval(values: Floats, confidence: float) -> Interval:
    value, drawn = float(values[0]), values[1:][~np.isnan(values[1:])]
    if not drawn.size:
        return Interval(value, value, value)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def _common(task: Judgement) -> dict[str, Any]:
    return {"kind": str(task.task.kind), "n_videos": task.n_videos, "main": f"{task.task.name}.{task.main}"}
