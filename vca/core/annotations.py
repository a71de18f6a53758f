"""What people say about videos: the facts a model learns from and is judged by. Pure; files are read elsewhere.

One row is one fact, in the columns of `COLUMNS`. A task counts as annotated for a video as soon as one row names both;
a row without a label says that the task was looked at and nothing (more) holds. What is not annotated is not negative:
it is left out of every loss and every figure.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pyarrow as pa
from pydantic import Field, model_validator

from vca.core.config import Config
from vca.core.errors import ConfigError
from vca.core.identity import canonical_json, digest, video_id
from vca.core.schemas import optional, required
from vca.core.taxonomy import TaskKind, Taxonomy
from vca.core.timeline import Span, seconds_to_us, us_to_seconds


class Split(StrEnum):
    """What a video may be used for."""

    TRAIN = "train"
    VALIDATION = "validation"
    """Decides when training stops."""
    CALIBRATION = "calibration"
    """Makes probabilities of scores, and thresholds."""
    TEST = "test"
    """Reported, and used for nothing else."""


COLUMNS = pa.schema(
    [
        optional("video_id", pa.string(), "id of the video; this or `key` is needed"),
        optional("key", pa.string(), "key of the video relative to the archive"),
        required("task", pa.string(), "task of the taxonomy"),
        optional("label", pa.string(), "label of the task; null: the task was looked at and nothing (more) holds"),
        optional("start_s", pa.float64(), "start, seconds; events and steps only"),
        optional("end_s", pa.float64(), "end (exclusive), seconds; events and steps only"),
        optional("place", pa.string(), "where the event happens; null: not annotated"),
        optional(
            "participants",
            pa.list_(pa.field("element", pa.string())),
            "who takes part; null: not annotated, empty: nobody",
        ),
        optional("split", pa.string(), "train, validation, calibration or test; null: that of its group, or drawn"),
        optional("group", pa.string(), "videos of one group (a series, a camera) are never in two splits"),
        optional("annotator", pa.string(), "who says so"),
    ]
)


@dataclass(frozen=True, slots=True)
class TrueEvent:
    """An annotated event, or a stretch of a `step` task."""

    label: str
    span: Span
    place: str | None = None
    """None: not annotated."""
    participants: frozenset[str] | None = None
    """None: not annotated; empty: nobody."""


@dataclass(frozen=True, slots=True)
class VideoTruth:
    """All that is annotated of one video. Tasks that are missing in both maps are not annotated."""

    video_id: str
    key: str | None
    split: Split
    group: str | None = None
    labels: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Video-level tasks: the labels that hold."""
    events: Mapping[str, tuple[TrueEvent, ...]] = field(default_factory=dict)
    """Span and step tasks, in order of time."""


class SplitConfig(Config):
    """How videos without a split of their own are dealt out: by a hash, so that a video never changes sides."""

    train: float = Field(0.6, ge=0.0, le=1.0)
    """Share of the groups to learn from."""
    validation: float = Field(0.1, ge=0.0, le=1.0)
    """Share that decides when training stops."""
    calibration: float = Field(0.1, ge=0.0, le=1.0)
    """Share for probabilities and thresholds."""
    test: float = Field(0.2, ge=0.0, le=1.0)
    """Share that is only reported."""
    seed: int = 0
    """Another seed deals anew."""

    @model_validator(mode="after")
    def _check(self) -> "SplitConfig":
        total = self.train + self.validation + self.calibration + self.test
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"train, validation, calibration and test add up to {total:g}; make it 1")
        return self

    def split_of(self, group: str) -> Split:
        """Split of a video or group, from nothing but its name and the seed."""
        point = int(digest("split", str(self.seed), group)[:13], 16) / 16**13
        for split in Split:
            point -= getattr(self, split.value)
            if point < 0:
                return split
        # Shares that add up to a hair less than 1 leave a gap at the end; never a split that nobody asked for.
        return [split for split in Split if getattr(self, split.value) > 0][-1]


def annotation_version(truths: Iterable[VideoTruth]) -> str:
    """Name of the annotations: equal facts and splits, equal version, in any order."""
    lines = sorted(canonical_json(_plain(truth)) for truth in truths)
    return digest("annotations", *lines)


def _plain(truth: VideoTruth) -> dict[str, Any]:
    events = {
        task: [
            [
                event.span.start_us,
                event.span.end_us,
                event.label,
                event.place,
                None if event.participants is None else sorted(event.participants),
            ]
            for event in sorted(events, key=lambda event: (event.span, event.label))
        ]
        for task, events in truth.events.items()
    }
    labels = {task: sorted(names) for task, names in truth.labels.items()}
    return {"video_id": truth.video_id, "split": str(truth.split), "labels": labels, "events": events}


def read_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]], taxonomy: Taxonomy, splits: SplitConfig
) -> list[VideoTruth]:
    """Rows (where each comes from, such as `labels.jsonl line 7`, and its columns) to truths, sorted by video id.

    Raises `ConfigError` with every problem on a line of its own, at most 20, each naming where, what and the way out.
    Equal rows count once, so that the files of several annotators can be put together.
    """
    problems: list[str] = []
    drafts: dict[str, _Draft] = {}
    for where, row in rows:
        try:
            _add(drafts, where, row, taxonomy)
        except ConfigError as error:
            problems.append(f"{where}: {error}")
            if len(problems) == PROBLEM_LIMIT:
                break
    if problems:
        raise ConfigError("\n".join(problems))
    _one_label_at_a_time(drafts.values(), taxonomy)
    _one_split_per_group(drafts.values())
    return [drafts[name].truth(splits) for name in sorted(drafts)]


PROBLEM_LIMIT = 20
TEXT_LIMIT = 4096
"""Longest text of a column, characters; keys of object stores end at 1024 bytes."""
TIME_LIMIT_S = 10**9
"""Latest time, 30 years: microseconds below it survive the way through float64 seconds."""
SHOWN_LIMIT = 80
_SPANNED = (TaskKind.SPAN, TaskKind.STEP)


@dataclass
class _Draft:
    """One video while its rows come in; `where` is its first row, and of split and group the row that says so."""

    video_id: str
    where: str
    key: str | None = None
    split: Split | None = None
    split_where: str = ""
    group: str | None = None
    group_where: str = ""
    labels: dict[str, set[str]] = field(default_factory=dict)
    events: dict[str, dict[tuple[Span, str], TrueEvent]] = field(default_factory=dict)

    def truth(self, splits: SplitConfig) -> VideoTruth:
        return VideoTruth(
            video_id=self.video_id,
            key=self.key,
            split=self.split or splits.split_of(self.group or self.video_id),
            group=self.group,
            labels={task: frozenset(names) for task, names in self.labels.items()},
            events={task: tuple(found[k] for k in sorted(found)) for task, found in self.events.items()},
        )


def _add(drafts: dict[str, _Draft], where: str, row: Mapping[str, Any], taxonomy: Taxonomy) -> None:
    unknown = sorted(set(row) - set(COLUMNS.names))
    if unknown:
        raise ConfigError(f"unknown column {unknown[0]!r}; known: {', '.join(COLUMNS.names)}")
    key, given = _text(row, "key"), _text(row, "video_id")
    if key is None and given is None:
        raise ConfigError("neither key nor video_id is given; one of them names the video")
    own = None if key is None else video_id(key)
    name = given or own
    assert name is not None
    if own is not None and name != own:
        raise ConfigError(f"video_id {given!r} is not the id of key {key!r}; give one of them")
    draft = drafts.setdefault(name, _Draft(name, where))
    draft.key = draft.key or key
    split, group = _text(row, "split"), _text(row, "group")
    if split is not None:
        if split not in list(Split):
            raise ConfigError(f"split {split!r} is unknown; use {', '.join(Split)}")
        if draft.split not in (None, split):
            raise ConfigError(
                f"split {split!r}, but {draft.split_where} puts this video into {str(draft.split)!r}; keep one"
            )
        if draft.split is None:
            draft.split, draft.split_where = Split(split), where
    if group is not None:
        if draft.group not in (None, group):
            raise ConfigError(
                f"group {group!r}, but {draft.group_where} puts this video into {draft.group!r}; keep one"
            )
        if draft.group is None:
            draft.group, draft.group_where = group, where
    _text(row, "annotator")
    _add_fact(draft, row, taxonomy)


def _add_fact(draft: _Draft, row: Mapping[str, Any], taxonomy: Taxonomy) -> None:
    name = _text(row, "task")
    if name is None:
        raise ConfigError("task is missing")
    task = taxonomy.task(name)
    label = _text(row, "label")
    if label is not None and label not in task.label_names():
        raise ConfigError(f"label {label!r} is not in task {name}; known: {', '.join(task.label_names())}")
    times = [row.get("start_s"), row.get("end_s")]
    place, people = _text(row, "place"), _texts(row, "participants")
    bare = times == [None, None] and place is None and people is None
    if task.kind not in _SPANNED:
        if not bare:
            raise ConfigError(f"task {name} is about the whole video; leave out start_s, end_s, place, participants")
        held = draft.labels.setdefault(name, set())
        held |= set() if label is None else {label}
        if task.kind is TaskKind.SINGLE_LABEL and len(held) > 1:
            raise ConfigError(f"task {name} has one label a video, found {', '.join(sorted(held))}; keep one")
        return
    found = draft.events.setdefault(name, {})
    if label is None:
        if not bare:
            raise ConfigError("a row without a label says that nothing holds; give the label, or leave out the rest")
        return
    span = _span(times)
    for field_name, attribute, values in (
        ("place", task.attributes.place, [] if place is None else [place]),
        ("participants", task.attributes.participants, people or []),
    ):
        known = [] if attribute is None else [la.name for la in attribute.labels]
        wrong = [value for value in values if value not in known]
        if wrong:
            raise ConfigError(f"{field_name} {wrong[0]!r} is not in task {name}; known: {', '.join(known) or 'none'}")
    event = TrueEvent(label, span, place, None if people is None else frozenset(people))
    if found.setdefault((span, label), event) != event:
        raise ConfigError(
            f"the same {label} at {times[0]} to {times[1]} s is given with another place or participants; keep one"
        )


def _span(times: list[Any]) -> Span:
    if any(
        not isinstance(t, int | float) or isinstance(t, bool) or not -TIME_LIMIT_S < t < TIME_LIMIT_S for t in times
    ):
        shown = [_shown(time) for time in times]
        raise ConfigError(f"start_s {shown[0]} and end_s {shown[1]}: an event needs both, in seconds")
    start_us, end_us = seconds_to_us(times[0]), seconds_to_us(times[1])
    if start_us < 0 or end_us <= start_us:
        raise ConfigError(f"start_s {times[0]} and end_s {times[1]}: an event starts at 0 or later and ends after that")
    return Span(start_us, end_us)


def _text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    return None if value is None or value == "" else _checked(value, name)


def _texts(row: Mapping[str, Any], name: str) -> list[str] | None:
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{name} is {_shown(value)}; it must be a list of texts")
    return [_checked(item, name) for item in value]


def _checked(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name} is {_shown(value)}; it must be text")
    if len(value) > TEXT_LIMIT:
        raise ConfigError(f"{name} is {_shown(value)}; the limit is {TEXT_LIMIT} characters")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no text can hold
        raise ConfigError(f"{name} is {_shown(value)}; it is no valid Unicode") from error
    return value


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 64:  # Python refuses to print the longest ones
        return "a number of over 19 digits"
    text = repr(value)
    return text if len(text) <= SHOWN_LIMIT else text[: SHOWN_LIMIT - 3] + "..."


def _one_label_at_a_time(drafts: Iterable[_Draft], taxonomy: Taxonomy) -> None:
    """A step has one label: stretches of two labels that overlap contradict each other."""
    for draft in drafts:
        for name, found in draft.events.items():
            if taxonomy.task(name).kind is not TaskKind.STEP:
                continue
            until: dict[str, int] = {}
            for span, label in sorted(found):
                other = next((la for la, end_us in until.items() if la != label and end_us > span.start_us), None)
                if other is not None:
                    raise ConfigError(
                        f"{draft.where} and after: task {name} has one label at a time, but in video "
                        f"{draft.key or draft.video_id!r} {label} starts at {us_to_seconds(span.start_us):g} s, before "
                        f"{other} ends; shorten one"
                    )
                until[label] = max(until.get(label, 0), span.end_us)


def _one_split_per_group(drafts: Iterable[_Draft]) -> None:
    """A group follows the split that any of its rows gives, so that it never straddles two."""
    given: dict[str, _Draft] = {}
    members = [draft for draft in drafts if draft.group is not None]
    for draft in members:
        if draft.split is None or draft.group is None:
            continue
        other = given.setdefault(draft.group, draft)
        if other.split != draft.split:
            raise ConfigError(
                f"{draft.split_where}: group {draft.group!r} is in split {str(draft.split)!r} here and in "
                f"{str(other.split)!r} at {other.split_where}; a group has one split"
            )
    for draft in members:
        if draft.group in given:
            draft.split = given[draft.group].split
