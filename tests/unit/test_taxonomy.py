"""The label space: the starter file, and the mistakes a user can make in one."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from vca.core.errors import ConfigError
from vca.core.taxonomy import TaskKind, Taxonomy, parse_taxonomy


@pytest.fixture(scope="module")
def starter(repository: Path) -> Taxonomy:
    return parse_taxonomy((repository / "configs" / "taxonomy.yaml").read_text(encoding="utf-8"), "taxonomy.yaml")


def small() -> dict[str, Any]:
    return {
        "name": "small",
        "tasks": [
            {
                "name": "topic",
                "kind": "multi_label",
                "description": "Topics.",
                "labels": [
                    {"name": "sport", "description": "Sport."},
                    {"name": "football", "description": "Football.", "parent": "sport", "threshold": 0.7},
                ],
            }
        ],
    }


def parsed(values: dict[str, Any]) -> Taxonomy:
    return parse_taxonomy(yaml.safe_dump(values), "small.yaml")


def test_the_starter_has_the_four_promised_tasks(starter: Taxonomy) -> None:
    """Other parts and the documents name these tasks."""
    kinds = {task.name: task.kind for task in starter.tasks}
    assert kinds == {
        "content": TaskKind.MULTI_LABEL,
        "moderation": TaskKind.MULTI_LABEL,
        "sentiment": TaskKind.SINGLE_LABEL,
        "events": TaskKind.SPAN,
    }
    attributes = starter.task("events").attributes
    assert attributes.place is not None
    assert attributes.participants is not None


def test_moderation_has_the_ten_top_levels_and_three_levels(starter: Taxonomy) -> None:
    """The tree follows the published one; a lost parent would break it silently."""
    labels = {label.name: label for label in starter.task("moderation").labels}
    top = [name for name, label in labels.items() if label.parent is None]
    assert len(top) == 10

    def level(name: str) -> int:
        parent = labels[name].parent
        return 1 if parent is None else 1 + level(parent)

    assert {level(name) for name in labels} == {1, 2, 3}


def test_no_child_is_easier_to_select_than_its_parent(starter: Taxonomy) -> None:
    """Otherwise a child could be selected while its parent is not."""
    for task in starter.tasks:
        labels = {label.name: label for label in task.labels}
        for label in task.labels:
            if label.parent is not None:
                assert task.threshold_of(label) >= task.threshold_of(labels[label.parent])


def test_moderation_asks_for_more_than_content(starter: Taxonomy) -> None:
    """Text alone is weak evidence for moderation: its bar is higher."""
    assert starter.task("moderation").threshold > starter.task("content").threshold


def test_every_content_and_event_label_has_wordings(starter: Taxonomy) -> None:
    """A label with its description alone is weak in zero-shot use."""
    for name in ("content", "sentiment", "events"):
        assert all(len(label.prompts) >= 2 for label in starter.task(name).labels)


def test_no_wording_serves_two_labels_of_a_task(starter: Taxonomy) -> None:
    """The same sentence under two labels makes them rivals of themselves."""
    for task in starter.tasks:
        texts = [text.lower() for label in task.labels for text in label.texts]
        assert len(texts) == len(set(texts)), task.name


def test_the_version_follows_the_content_and_nothing_else() -> None:
    """Equal content gives an equal version; a wording or threshold gives a new one, a comment does not."""
    base = parsed(small())
    assert parse_taxonomy("# note\n" + yaml.safe_dump(small()), "x").version == base.version
    changed = small()
    changed["tasks"][0]["labels"][0]["prompts"] = ["They play."]
    assert parsed(changed).version != base.version
    assert base.with_thresholds({"topic": 0.6}, "t").version != base.version


def test_thresholds_can_be_set_by_task_and_by_label() -> None:
    """A label's own threshold stays above the task's; neither touches the original."""
    base = parsed(small())
    new = base.with_thresholds({"topic": 0.6, "topic.sport": 0.8}, "predict.thresholds")
    task = new.task("topic")
    assert [task.threshold_of(label) for label in task.labels] == [0.8, 0.7]
    assert base.task("topic").threshold == 0.5
    assert new.with_thresholds({}, "t") == new


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({"tpoic": 0.5}, "unknown task 'tpoic'"),
        ({"topic.golf": 0.5}, "unknown label 'golf'"),
        ({"topic": 1.0}, "between 0 and 1"),
        ({"topic.sport": 0.0}, "between 0 and 1"),
    ],
)
def test_wrong_thresholds_are_refused_by_name(thresholds: dict[str, float], message: str) -> None:
    """The error names the setting, so that a user finds it."""
    with pytest.raises(ConfigError, match=message) as caught:
        parsed(small()).with_thresholds(thresholds, "predict.thresholds")
    assert "predict.thresholds." in str(caught.value)


def test_an_unknown_task_is_a_config_error() -> None:
    """The message lists what is known."""
    with pytest.raises(ConfigError, match="known: topic"):
        parsed(small()).task("events")


def _edit(path: str, value: Any) -> dict[str, Any]:
    values = small()
    node: Any = values
    *parents, leaf = path.split("/")
    for part in parents:
        node = node[int(part)] if part.isdigit() else node[part]
    node[int(leaf) if leaf.isdigit() else leaf] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("tasks/0/labels/1/parent", "golf", "parent 'golf' is not a label"),
        ("tasks/0/labels/0/parent", "football", "circle"),
        ("tasks/0/labels/0/parent", "sport", "circle"),
        ("tasks/0/labels/1/name", "sport", "sport is defined twice"),
        ("tasks/0/labels/0/name", "Sport & Fun", "name"),
        ("tasks/0/labels/0/threshold", 1.5, "threshold"),
        ("tasks/0/labels/0/description", "  ", "description"),
        ("tasks/0/kind", "multilabel", "kind"),
        ("tasks/0/labels", [], "labels"),
        ("tasks/0/labels/0/treshold", 0.4, "did you mean 'threshold'"),
        ("tasks/0/labels/0/target_recall", 0.9, "unknown key"),
        ("tasks/0/attributes", {"place": {"labels": [{"name": "home", "description": "Home."}]}}, "kind span"),
        ("tasks", [small()["tasks"][0]] * 2, "topic is defined twice"),
    ],
)
def test_a_mistake_in_the_file_is_named(path: str, value: Any, message: str) -> None:
    """Every mistake is a ConfigError with the file, the place and the reason."""
    with pytest.raises(ConfigError, match=message) as caught:
        parsed(_edit(path, value))
    assert "small.yaml" in str(caught.value)
