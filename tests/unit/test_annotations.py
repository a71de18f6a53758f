"""What rows of annotations mean: facts, splits, versions, and a refusal for everything that is no fact."""

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vca.core.annotations import (
    TIME_LIMIT_S,
    Split,
    SplitConfig,
    TrueEvent,
    VideoTruth,
    annotation_version,
    read_rows,
)
from vca.core.errors import ConfigError
from vca.core.identity import video_id
from vca.core.taxonomy import Taxonomy, parse_taxonomy
from vca.core.timeline import Span

TAXONOMY = parse_taxonomy(
    """
name: test
tasks:
  - name: content
    kind: multi_label
    description: d
    labels: [{name: news, description: d}, {name: food, description: d}]
  - name: mood
    kind: single_label
    description: d
    labels: [{name: good, description: d}, {name: bad, description: d}]
  - name: events
    kind: span
    description: d
    labels: [{name: goal, description: d}, {name: applause, description: d}]
    attributes:
      place: {labels: [{name: stadium, description: d}, {name: stage, description: d}]}
      participants: {labels: [{name: crowd, description: d}, {name: athlete, description: d}]}
  - {name: speech, kind: step, description: d, labels: [{name: talk, description: d}, {name: song, description: d}]}
""",
    "taxonomy",
)
PLAIN = SplitConfig()
SHARES = SplitConfig(train=0.5, validation=0.1, calibration=0.15, test=0.25)


def read(*rows: dict[str, Any], taxonomy: Taxonomy = TAXONOMY, splits: SplitConfig = PLAIN) -> list[VideoTruth]:
    return read_rows([(f"f line {n}", row) for n, row in enumerate(rows, 1)], taxonomy, splits)


def goal(**changes: Any) -> dict[str, Any]:
    return {"key": "a.mp4", "task": "events", "label": "goal", "start_s": 1.5, "end_s": 2.0} | changes


def test_rows_become_the_facts_of_a_video() -> None:
    """Every kind of task, a task without a label, and the id that the feature store has for the key."""
    truths = read(
        {"key": "a.mp4", "task": "content", "label": "news"},
        {"key": "a.mp4", "task": "content", "label": "food"},
        {"video_id": video_id("a.mp4"), "task": "mood", "label": None},
        goal(place="stadium", participants=["crowd", "athlete"], annotator="ann"),
        goal(start_s=0, end_s=1, label="applause", participants=[]),
        {"key": "a.mp4", "task": "speech", "label": "talk", "start_s": 0.0, "end_s": 3.0},
    )
    assert truths == [
        VideoTruth(
            video_id=video_id("a.mp4"),
            key="a.mp4",
            split=PLAIN.split_of(video_id("a.mp4")),
            labels={"content": frozenset({"news", "food"}), "mood": frozenset()},
            events={
                "events": (
                    TrueEvent("applause", Span(0, 1_000_000), None, frozenset()),
                    TrueEvent("goal", Span(1_500_000, 2_000_000), "stadium", frozenset({"crowd", "athlete"})),
                ),
                "speech": (TrueEvent("talk", Span(0, 3_000_000)),),
            },
        )
    ]


def test_equal_rows_count_once() -> None:
    """The files of two annotators who agree are put together without doubled events."""
    assert read(
        goal(participants=["crowd", "athlete"]), goal(participants=["athlete", "crowd"], annotator="b")
    ) == read(goal(participants=["crowd", "athlete"]))


def test_a_row_without_a_label_takes_nothing_away() -> None:
    """`nothing (more) holds` beside a label leaves the label."""
    rows = [{"key": "a", "task": "mood", "label": None}, {"key": "a", "task": "mood", "label": "good"}]
    assert read(*rows)[0].labels == {"mood": frozenset({"good"})}
    assert read(*reversed(rows)) == read(*rows)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"task": "content", "label": "news"}, "neither key nor video_id"),
    ({"key": "", "video_id": "", "task": "content"}, "neither key nor video_id"),
    ({"key": "a", "video_id": "b", "task": "content"}, "video_id 'b' is not the id of key 'a'"),
    ({"key": 7, "task": "content"}, "key is 7; it must be text"),
    ({"key": "\ud800", "task": "content"}, "no valid Unicode"),
    ({"key": "a" * 5000, "task": "content"}, "the limit is 4096"),
    ({"key": "a", "label": "news"}, "task is missing"),
    ({"key": "a", "task": "weather"}, "unknown task 'weather'; known: content"),
    ({"key": "a", "task": "content", "label": "cats"}, "label 'cats' is not in task content; known: news, food"),
    ({"key": "a", "task": "content", "label": "news", "start_s": 0.0}, "about the whole video"),
    ({"key": "a", "task": "content", "label": "news", "place": "stage"}, "about the whole video"),
    ({"key": "a", "task": "content", "labels": "news"}, "unknown column 'labels'"),
    ({"key": "a", "task": "content", "split": "dev"}, "split 'dev' is unknown; use train"),
    ({"key": "a", "task": "content", "group": 1}, "group is 1"),
    ({"key": "a", "task": "content", "annotator": ["x"]}, "annotator is ['x']"),
    (goal(start_s=None), "an event needs both"),
    (goal(end_s="2"), "an event needs both"),
    (goal(start_s=True), "an event needs both"),
    (goal(end_s=math.nan), "an event needs both"),
    (goal(end_s=math.inf), "an event needs both"),
    (goal(start_s=-math.inf), "an event needs both"),
    (goal(end_s=10**400), "a number of over 19 digits"),
    (goal(end_s=1e300), "an event needs both"),
    (goal(start_s=-0.5), "starts at 0 or later"),
    (goal(start_s=2.0), "ends after that"),
    (goal(start_s=2.5), "ends after that"),
    (goal(end_s=1.5000001), "ends after that"),
    (goal(label=None), "a row without a label"),
    ({"key": "a", "task": "events", "label": None, "participants": []}, "a row without a label"),
    (goal(place="kitchen"), "place 'kitchen' is not in task events; known: stadium, stage"),
    (goal(place=["stage"]), "place is ['stage']"),
    (goal(participants="crowd"), "participants is 'crowd'; it must be a list"),
    (goal(participants=5), "participants is 5"),
    (goal(participants=[["crowd"]]), "participants is ['crowd']; it must be text"),
    (goal(participants=["crowd", "cook"]), "participants 'cook' is not in task events"),
    ({"key": "a", "task": "speech", "label": "talk", "start_s": 0, "end_s": 1, "place": "stage"}, "known: none"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_bad_row_is_refused_by_its_line(row: dict[str, Any], message: str) -> None:
    """One line that names where and what; no other exception whatever the value."""
    with pytest.raises(ConfigError) as caught:
        read({"key": "z", "task": "content"}, row)
    text = str(caught.value)
    assert text.startswith("f line 2: ")
    assert message in text
    assert "\n" not in text
    assert len(text) < 400


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"task": "mood", "label": "good"}, {"task": "mood", "label": "bad"}], "f line 2: task mood has one label"),
        ([goal(place="stage"), goal(place="stadium")], "f line 2: the same goal at 1.5 to 2.0 s"),
        ([{"split": None}, {"split": "test"}, {"split": "train"}], "f line 3: split 'train', but f line 2 puts"),
        ([{}, {"group": "g"}, {"group": "h"}], "f line 3: group 'h', but f line 2 puts"),
        (
            [{"group": "g", "split": "test"}, {"key": "b", "group": "g"}, {"key": "b", "split": "train"}],
            "f line 3: group 'g' is in split 'train' here and in 'test' at f line 1",
        ),
        (
            [
                {"task": "speech", "label": "talk", "start_s": 0, "end_s": 3},
                {"task": "speech", "label": "talk", "start_s": 2, "end_s": 4},
                {"task": "speech", "label": "song", "start_s": 3.5, "end_s": 5},
            ],
            "f line 1 and after: task speech has one label at a time, but in video 'a.mp4' song starts at 3.5 s",
        ),
    ],
)
def test_rows_that_contradict_each_other_name_both_lines(rows: list[dict[str, Any]], message: str) -> None:
    """The line that is named is the one that says so, not the first of the video."""
    with pytest.raises(ConfigError) as caught:
        read(*({"key": "a.mp4", "task": "content"} | row for row in rows))
    assert message in str(caught.value)


def test_stretches_of_one_label_may_overlap_and_touch() -> None:
    """Two speakers at once are speech; a song that starts where speech ends is fine."""
    rows = [("talk", 0, 3), ("talk", 2, 4), ("song", 4, 5)]
    truths = read(*({"key": "a", "task": "speech", "label": la, "start_s": s, "end_s": e} for la, s, e in rows))
    assert len(truths[0].events["speech"]) == 3


def test_many_problems_are_told_together_but_not_endlessly() -> None:
    """Twenty lines at most, so that a wrong taxonomy does not fill the terminal."""
    with pytest.raises(ConfigError) as caught:
        read(*({"key": str(n), "task": "content", "label": "x"} for n in range(100)))
    lines = str(caught.value).splitlines()
    assert len(lines) == 20
    assert lines[19].startswith("f line 20: ")


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.text(max_size=3), max_size=2)
)
junk = st.dictionaries(
    st.sampled_from(
        ["key", "video_id", "task", "label", "start_s", "end_s", "place", "participants", "split", "group"]
    ),
    st.one_of(scalars, st.sampled_from(["a", "events", "content", "goal", "news", "stage", "train"])),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(junk, max_size=4))
def test_nothing_but_config_errors(rows: list[dict[str, Any]]) -> None:
    """Rows come from files of anybody: they are facts or refused, never a crash."""
    try:
        read(*rows)
        said = []
    except ConfigError as error:
        said = str(error).split("\n")
    assert all(line.startswith("f line ") for line in said)


names = st.text("abcdefgh0123/", min_size=1, max_size=6)
facts = st.one_of(
    st.builds(lambda label: {"task": "content", "label": label}, st.sampled_from(["news", "food", None])),
    st.builds(
        lambda label, start, length, place: {
            "task": "events",
            "label": label,
            "start_s": start / 1000,
            "end_s": (start + length) / 1000,
            "place": place,
        },
        st.sampled_from(["goal", "applause"]),
        st.integers(0, 50),
        st.integers(1, 50),
        st.just("stage"),
    ),
)
videos = st.lists(st.tuples(names, st.sampled_from([None, "g", "h"])), unique_by=lambda pair: pair[0], max_size=5)


@settings(max_examples=150, deadline=None)
@given(videos, st.lists(facts, min_size=1, max_size=4), st.randoms(use_true_random=False), st.integers(0, 5))
def test_order_means_nothing(found: list[tuple[str, str | None]], what: list[Any], random: Any, seed: int) -> None:
    """The same rows in any order give the same truths and the same version; groups lie in one split."""
    rows = [{"key": key, "group": group} | fact for key, group in found for fact in what]
    splits = SHARES.model_copy(update={"seed": seed})
    truths = read(*rows, splits=splits)
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert read(*shuffled, splits=splits) == truths
    random.shuffle(truths)
    assert annotation_version(truths) == annotation_version(read(*rows, splits=splits))
    for group in ("g", "h"):
        assert len({truth.split for truth in truths if truth.group == group}) <= 1


def test_the_version_follows_facts_and_splits() -> None:
    """Anything that could change a figure changes the version."""
    base = read(goal())
    others = [
        read(goal(end_s=2.1)),
        read(goal(label="applause")),
        read(goal(place="stage")),
        read(goal(participants=[])),
        read(goal(participants=["crowd"])),
        read(goal(key="b.mp4")),
        read(goal(split="calibration")),
        read(goal(), {"key": "a.mp4", "task": "content"}),
        [],
    ]
    assert base[0].split is not Split.CALIBRATION
    assert len({annotation_version(truths) for truths in [base, *others]}) == len(others) + 1


def test_a_group_follows_the_split_that_one_row_gives() -> None:
    """One row is enough to keep a series out of training, wherever it stands."""
    rows = [{"key": str(n), "task": "content", "group": "series"} for n in range(20)]
    rows[13] = rows[13] | {"split": "calibration"}
    assert {truth.split for truth in read(*rows)} == {Split.CALIBRATION}


def test_shares_are_met_over_many_videos() -> None:
    """Within four standard deviations of 20,000 draws."""
    drawn = Counter(SHARES.split_of(video_id(f"{n}.mp4")) for n in range(20_000))
    for split in Split:
        share = getattr(SHARES, split.value)
        assert drawn[split] / 20_000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 20_000))


def test_a_split_without_a_share_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the shares are a hair short of 1, and the point drawn lies in the gap."""
    third = SplitConfig(train=0.333333, validation=0.333333, calibration=0.333334 - 9e-7, test=0.0)
    assert {third.split_of(str(n)) for n in range(3000)} == {Split.TRAIN, Split.VALIDATION, Split.CALIBRATION}
    monkeypatch.setattr("vca.core.annotations.digest", lambda *parts: "f" * 24)
    assert third.split_of("the last point of all") is Split.CALIBRATION


def test_another_seed_deals_anew_and_the_same_does_not() -> None:
    """A video never changes sides unless somebody asks."""
    ids = [str(n) for n in range(300)]
    first = [SHARES.split_of(i) for i in ids]
    assert first == [SHARES.split_of(i) for i in ids]
    assert first != [SHARES.model_copy(update={"seed": 1}).split_of(i) for i in ids]


def test_shares_must_add_up() -> None:
    """A typing error in the shares must not quietly shrink a split."""
    with pytest.raises(ValueError, match=r"add up to 1\.4; make it 1"):
        SplitConfig(train=1.0)


@given(st.integers(0, TIME_LIMIT_S * 1_000_000 - 2), st.integers(1, 10**9))
def test_microseconds_survive_seconds(start_us: int, length_us: int) -> None:
    """Times up to the limit come back from float64 seconds as they were."""
    end_us = min(start_us + length_us, TIME_LIMIT_S * 1_000_000 - 1)
    (truth,) = read(goal(start_s=start_us / 1e6, end_s=end_us / 1e6))
    assert truth.events["events"][0].span == Span(start_us, end_us)
