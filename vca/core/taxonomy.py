"""The label space is data: tasks, labels, prompts, thresholds and event attributes read from one YAML file."""

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import Field, StringConstraints, model_validator

from vca.core.config import Config, build_config, parse_yaml
from vca.core.errors import ConfigError
from vca.core.identity import canonical_json, digest

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_]{0,62}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=600)]
Score = Annotated[float, Field(gt=0.0, lt=1.0)]


class TaskKind(StrEnum):
    MULTI_LABEL = "multi_label"
    """Any number of labels on the video."""
    SINGLE_LABEL = "single_label"
    """Exactly one label on the video, or none without evidence."""
    SPAN = "span"
    """Events with a start and an end, a place and participants."""
    STEP = "step"
    """One label per step of the time grid, or none."""


class Label(Config):
    """One label. `description` is also a zero-shot prompt; `prompts` are further wordings."""

    name: Name
    description: Text
    prompts: tuple[Text, ...] = ()
    parent: Name | None = None
    threshold: Score | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Every wording of the label, the description first."""
        return (self.description, *self.prompts)


class Attribute(Config):
    """What an event may carry: `place` (one label) or `participants` (any number)."""

    labels: tuple[Label, ...] = Field(min_length=1)
    threshold: Score = 0.5

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_labels(self.labels)
        return self


class Attributes(Config):
    place: Attribute | None = None
    participants: Attribute | None = None


class Task(Config):
    name: Name
    kind: TaskKind
    description: Text
    labels: tuple[Label, ...] = Field(min_length=1)
    threshold: Score = 0.5
    """For labels without a threshold of their own."""
    attributes: Attributes = Attributes()

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_labels(self.labels)
        has_attributes = self.attributes.place is not None or self.attributes.participants is not None
        if has_attributes and self.kind is not TaskKind.SPAN:
            raise ValueError(f"task {self.name}: attributes belong to kind span, not {self.kind}")
        return self

    def label_names(self) -> list[str]:
        return [label.name for label in self.labels]

    def threshold_of(self, label: Label) -> float:
        return self.threshold if label.threshold is None else label.threshold


class Taxonomy(Config):
    """All tasks. Order of tasks and labels is part of the contract: score vectors follow it."""

    name: Text
    tasks: tuple[Task, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _unique([task.name for task in self.tasks], "task")
        return self

    @property
    def version(self) -> str:
        """Hash of the content: any change that could change a decision is a new version."""
        return digest("taxonomy", canonical_json(self.model_dump(mode="json")))

    def task(self, name: str) -> Task:
        for task in self.tasks:
            if task.name == name:
                return task
        raise ConfigError(f"unknown task {name!r}; known: {', '.join(t.name for t in self.tasks)}")

    def restrict(self, labels: Mapping[str, Collection[str]]) -> "Taxonomy":
        """A copy with only these tasks and labels, in the same order; parents that are left out are forgotten."""
        tasks = []
        for task in self.tasks:
            kept = [label for label in task.labels if label.name in labels.get(task.name, ())]
            names = {label.name for label in kept}
            if kept:
                orphans = (la if la.parent in names else la.model_copy(update={"parent": None}) for la in kept)
                tasks.append(task.model_copy(update={"labels": tuple(orphans)}))
        return self.model_copy(update={"tasks": tuple(tasks)})

    def with_thresholds(self, thresholds: Mapping[str, float], field: str) -> "Taxonomy":
        """A copy in which `task.label` (or `task`) thresholds are replaced; unknown names are `ConfigError`s."""
        tasks = {task.name: task for task in self.tasks}
        for path, value in thresholds.items():
            task_name, _, label_name = path.partition(".")
            if task_name not in tasks:
                raise ConfigError(f"{field}.{path}: unknown task {task_name!r}; known: {', '.join(tasks)}")
            if not 0.0 < value < 1.0:
                raise ConfigError(f"{field}.{path} = {value}: a threshold lies between 0 and 1")
            task = tasks[task_name]
            if not label_name:
                tasks[task_name] = task.model_copy(update={"threshold": value})
                continue
            if label_name not in task.label_names():
                known = ", ".join(task.label_names())
                raise ConfigError(f"{field}.{path}: unknown label {label_name!r} in task {task_name}; known: {known}")
            labels = tuple(
                label.model_copy(update={"threshold": value}) if label.name == label_name else label
                for label in task.labels
            )
            tasks[task_name] = task.model_copy(update={"labels": labels})
        return self.model_copy(update={"tasks": tuple(tasks.values())})


def parse_taxonomy(text: str, source: str) -> Taxonomy:
    """Read a taxonomy file's text; problems are `ConfigError`s that name the field."""
    values: dict[str, Any] = parse_yaml(text, source)
    return build_config(Taxonomy, values, source)


def _unique(names: list[str], what: str) -> None:
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"{what} {', '.join(doubled)} is defined twice; rename or remove one")


def _check_labels(labels: tuple[Label, ...]) -> None:
    _unique([label.name for label in labels], "label")
    parents = {label.name: label.parent for label in labels}
    for label in labels:
        if label.parent is not None and label.parent not in parents:
            raise ValueError(f"label {label.name}: parent {label.parent!r} is not a label of this task")
        seen = {label.name}
        parent = label.parent
        while parent is not None:
            if parent in seen:
                raise ValueError(f"label {label.name}: its parents form a circle; break it")
            seen.add(parent)
            parent = parents[parent]
