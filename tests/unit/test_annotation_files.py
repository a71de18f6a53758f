"""Annotation files of every format come in as the same facts, and what is broken names its file and line."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vca.core.annotations import COLUMNS, Split, SplitConfig, TrueEvent, VideoTruth, annotation_version
from vca.core.config import build_config
from vca.core.errors import ConfigError
from vca.core.identity import video_id
from vca.core.taxonomy import parse_taxonomy
from vca.core.timeline import Span
from vca.media.output import Output, OutputConfig
from vca.pipelines.annotations import (
    AnnotationsConfig,
    describe_truths,
    label_name,
    load_annotations,
    read_truths,
    write_truths,
)

TAXONOMY = parse_taxonomy(
    """
name: test
tasks:
  - {name: content, kind: multi_label, description: d, labels: [{name: news, description: d}]}
  - name: events
    kind: span
    description: d
    labels: [{name: long_jump, description: d}, {name: applause, description: d}]
    attributes:
      place: {labels: [{name: stage, description: d}]}
      participants: {labels: [{name: crowd, description: d}, {name: athlete, description: d}]}
""",
    "taxonomy",
)
ROWS: list[dict[str, Any]] = [
    {"key": "a, b.mp4", "task": "content", "label": "news", "split": "test"},
    {"key": "ä.mp4", "task": "content", "label": None, "group": "g", "annotator": "Ann"},
    {
        "key": "ä.mp4",
        "task": "events",
        "label": "long_jump",
        "start_s": 1.25,
        "end_s": 2.0,
        "place": "stage",
        "participants": ["crowd", "athlete"],
    },
    {"key": "ä.mp4", "task": "events", "label": "applause", "start_s": 3.0, "end_s": 4.0, "participants": []},
]
CSV = """key,task,label,start_s,end_s,place,participants,split,group,annotator
"a, b.mp4",content,news,,,,,test,,
ä.mp4,content,,,,,,,g,Ann
ä.mp4,events,long_jump,1.25, 2,stage,crowd; athlete,,,
ä.mp4,events,applause,3e0,4.0,,;,,,
"""


def load(*files: Path, **settings_: Any) -> list[VideoTruth]:
    keys = settings_.pop("keys", None)
    values = {"files": [str(file) for file in files], **settings_}
    return load_annotations(build_config(AnnotationsConfig, values, "annotations"), TAXONOMY, keys)


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def problem(*files: Path, **settings_: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*files, **settings_)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_formats_agree(tmp_path: Path) -> None:
    """JSON Lines, CSV and Parquet with the same rows are the same annotations; so are their pieces put together."""
    lines = write(tmp_path / "rows.jsonl", "\ufeff" + jsonl(ROWS) + "\n")
    table = write(tmp_path / "rows.csv", "\ufeff" + CSV.replace("\n", "\r\n"))
    pq.write_table(pa.Table.from_pylist([dict.fromkeys(COLUMNS.names) | r for r in ROWS]), tmp_path / "rows.parquet")
    first, second = write(tmp_path / "1.jsonl", jsonl(ROWS[:2])), write(tmp_path / "2.jsonl", jsonl(ROWS[1:]))
    expected = load(lines)
    assert [truth.key for truth in expected] == sorted(["a, b.mp4", "ä.mp4"], key=video_id)
    (event, applause) = next(truth for truth in expected if truth.key == "ä.mp4").events["events"]
    assert event == TrueEvent("long_jump", Span(1_250_000, 2_000_000), "stage", frozenset({"crowd", "athlete"}))
    assert applause.participants == frozenset(), "`;` alone is nobody, which is not the same as not annotated"
    for files in ([table], [tmp_path / "rows.parquet"], [second, first], [lines, table]):
        assert load(*files) == expected


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl", '{"key": "a", "task": "content"}\n\n{"key": }\n', "x.jsonl line 3: not valid JSON"),
        ("x.jsonl", '{"key": "a", "task": "content"}\n["a"]\n', "x.jsonl line 2: list instead of an object"),
        ("x.jsonl", '{"key": "a", "key": "b"}\n', "x.jsonl line 1: 'key' is given twice"),
        ("x.jsonl", '{"key": "a", "start_s": NaN}\n', "x.jsonl line 1: NaN is no number"),
        ("x.jsonl", '{"key": "a", "start_s": %s}\n' % ("9" * 5000), "x.jsonl line 1: "),
        ("x.jsonl", b'{"key": "\xff"}\n', "x.jsonl line 1: not UTF-8 text"),
        ("x.jsonl", "[" * 100_000, "x.jsonl line 1: not valid JSON (nested too deep)"),
        ("x.jsonl", '{"key": "a\u2028b", "task": "content", "label": "x"}\n', "x.jsonl line 1: label 'x' is not in"),
        ("x.jsonl", "", "no rows"),
        ("x.csv", "key,task\na,content\nb,weather\n", "x.csv line 3: unknown task 'weather'"),
        ("x.csv", 'key,task,label\n"a\nb",content,news\nb,content,x\n', "x.csv line 4: label 'x'"),
        ("x.csv", "key,task\na,content,news\n", "x.csv line 2: 3 cells, but the header has 2"),
        ("x.csv", "key;task\n", "x.csv line 1: column 'key;task' is unknown or doubled"),
        ("x.csv", "key,task,key\n", "x.csv line 1: column 'key' is unknown or doubled"),
        ("x.csv", 'key,task\n"a"b,content\n', "x.csv line 2: not valid CSV"),
        ("x.csv", b"key,task\na,content\n\xe4,content\n", "x.csv line 3: not UTF-8 text"),
        (
            "x.csv",
            "key,task,label,start_s,end_s\na,events,applause,1_0,20\n",
            "x.csv line 2: start_s '1_0' is no number",
        ),
        ("x.csv", "key,task,label,start_s,end_s\na,events,applause,0,nan\n", "x.csv line 2: end_s 'nan' is no number"),
        ("x.csv", "key,task,label,place\na,events,,-\n", "x.csv line 2: a row without a label"),
        ("x.parquet", b"PAR1 no", "x.parquet: not a readable Parquet file"),
        ("x.json", "[1]", "x.json: set annotations.activitynet_task"),
    ],
)
def test_broken_files_name_their_line(tmp_path: Path, name: str, data: str | bytes, message: str) -> None:
    """One line with file, line and reason, whatever is wrong."""
    assert message in problem(write(tmp_path / name, data))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"key": ["a", "b"], "task": ["content", "weather"]}, "row 2: unknown task 'weather'"),
        ({"key": ["a"], "taks": ["content"]}, "unknown column 'taks'"),
        ({"key": [1], "task": ["content"]}, "row 1: key is 1; it must be text"),
        (
            {"key": ["a"], "task": ["events"], "label": ["applause"], "start_s": [0.0], "end_s": [float("inf")]},
            "row 1: start_s 0.0 and end_s inf",
        ),
        ({"key": ["a"], "task": ["events"], "participants": ["crowd"]}, "row 1: participants is 'crowd'"),
    ],
)
def test_bad_parquet_names_the_row(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    """Rows are counted from 1, and columns of other types are refused, not converted."""
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert f"x.parquet{': ' if message[0] == 'u' else ' '}{message}" in problem(tmp_path / "x.parquet")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """The field, the file and the way out."""
    missing = problem(tmp_path / "no.jsonl")
    assert re.fullmatch(r"annotations\.files = '.*no\.jsonl': no such file; check the path.*", missing)
    (tmp_path / "folder.jsonl").mkdir()
    assert "Is a directory" in problem(tmp_path / "folder.jsonl")
    with pytest.raises(ConfigError, match=r"files.*'x\.txt' is none of \.jsonl, \.parquet, \.csv, \.json"):
        load(Path("x.txt"))


def test_sizes_are_bounded(tmp_path: Path) -> None:
    """Neither a large file nor endless rows are read to the end."""
    rows = jsonl([{"key": str(n), "task": "content"} for n in range(30)])
    file = write(tmp_path / "x.jsonl", rows)
    assert "x.jsonl line 11: more than annotations.max_rows = 10 rows" in problem(file, max_rows=10)
    big = write(tmp_path / "big.jsonl", rows + " " * (1 << 20))
    assert "larger than 1 MB" in problem(big, max_mb=1)


def activitynet(**videos: Any) -> str:
    return json.dumps({"version": "1.3", "taxonomy": [], "database": videos})


def video(subset: str, *annotations: tuple[Any, str], **more: Any) -> dict[str, Any]:
    found = [{"segment": segment, "label": label} for segment, label in annotations]
    return {"subset": subset, "annotations": found, "duration": 20.0, **more}


def test_activitynet_json(tmp_path: Path) -> None:
    """Names of labels are brought into the taxonomy's form; every video counts as looked at; subsets become splits."""
    file = write(
        tmp_path / "anet.json",
        activitynet(
            one=video("training", ([0.5, 2], "Long jump"), ([3, 4.5], "APPLAUSE"), url="https://example.org"),
            two=video("validation"),
            three=video("testing", ([1, 2], "long-jump")),
        ),
    )
    truths = {truth.key: truth for truth in load(file, activitynet_task="events")}
    assert {key: truth.split for key, truth in truths.items()} == {
        "one": Split.TRAIN,
        "two": Split.VALIDATION,
        "three": Split.TEST,
    }
    assert truths["one"].events["events"] == (
        TrueEvent("long_jump", Span(500_000, 2_000_000)),
        TrueEvent("applause", Span(3_000_000, 4_500_000)),
    )
    assert truths["two"].events == {"events": ()}


def test_activitynet_names_are_matched_with_keys(tmp_path: Path) -> None:
    """By key, by stem, in any folder, with the `v_` of the official files; two candidates are a question."""
    file = write(tmp_path / "anet.json", activitynet(**{n: video("training") for n in ("aa", "b/c", "dd", "ee.mp4")}))
    keys = ["x/v_aa.mp4", "b/c.mkv", "dd/other.mp4", "dd.mp4", "ee.mp4"]
    found = load(file, activitynet_task="events", keys=keys)
    assert {truth.key for truth in found} == {"x/v_aa.mp4", "b/c.mkv", "dd.mp4", "ee.mp4"}
    assert {truth.key for truth in load(file, activitynet_task="events")} == {"aa", "b/c", "dd", "ee.mp4"}
    doubled = problem(file, activitynet_task="events", keys=["1/dd.mp4", "2/dd.mp4"])
    assert "video dd: both '1/dd.mp4' and '2/dd.mp4' may be meant" in doubled


def test_activitynet_labels_that_are_withheld_are_no_negatives(tmp_path: Path) -> None:
    """The official file lists its test videos without annotations: they must not become videos without events."""
    content = {"one": video("training", ([0, 1], "applause")), "two": video("testing")}
    file = write(tmp_path / "anet.json", activitynet(**content))
    assert [truth.key for truth in load(file, activitynet_task="events")] == ["one"]


def test_activitynet_subsets_can_be_dealt_anew(tmp_path: Path) -> None:
    """Validation is the usual test set, and training is cut by `splits`."""
    content = {f"v{n}": video("training" if n % 2 else "validation") for n in range(100)}
    file = write(tmp_path / "anet.json", activitynet(**content))
    subsets = {"training": None, "validation": "test"}
    shares = {"train": 0.5, "validation": 0.25, "calibration": 0.25, "test": 0.0}
    truths = load(file, activitynet_task="events", activitynet_subsets=subsets, splits=shares)
    assert {truth.split for truth in truths if int(str(truth.key)[1:]) % 2} == set(Split) - {Split.TEST}
    assert {truth.split for truth in truths if not int(str(truth.key)[1:]) % 2} == {Split.TEST}


def test_activitynet_labels_for_a_task_about_the_whole_video(tmp_path: Path) -> None:
    """Times are of no use there and are left out."""
    file = write(tmp_path / "anet.json", activitynet(one=video("training", ([0, 1], "News"))))
    (truth,) = load(file, activitynet_task="content")
    assert truth.labels == {"content": frozenset({"news"})}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{", "anet.json: not valid JSON"),
        ("[]", 'no object "database"'),
        ('{"database": []}', 'no object "database"'),
        (activitynet(a=5), "video a: must be an object"),
        (activitynet(a={"annotations": []}), "video a: subset must be text"),
        (activitynet(a={"subset": "dev"}), "video a: subset 'dev' is not in annotations.activitynet_subsets"),
        (activitynet(a={"subset": "training", "annotations": {}}), "video a: annotations must be a list"),
        (activitynet(a={"subset": "training", "annotations": [1]}), "video a annotation 1: must be an object"),
        (activitynet(a=video("training", ([0], "applause"))), "annotation 1: segment must be"),
        (activitynet(a=video("training", ([0, "1"], "applause"))), "annotation 1 (applause): start_s 0 and end_s '1'"),
        (activitynet(a=video("training", ([5, 4], "applause"))), "annotation 1 (applause): start_s 5 and end_s 4"),
        (activitynet(a=video("training", ([0, 1], "Sumo!"))), "annotation 1 (Sumo!): label 'sumo' is not in task"),
        (activitynet(a={"subset": "training", "annotations": [{"label": 3}]}), "label must be text"),
    ],
)
def test_bad_activitynet_json(tmp_path: Path, data: str, message: str) -> None:
    """JSON has no lines to name, but videos and annotations have names and numbers."""
    assert message in problem(write(tmp_path / "anet.json", data), activitynet_task="events")


@pytest.mark.parametrize(
    ("text", "name"), [("Long jump", "long_jump"), (" Tai-chi (slow)! ", "tai_chi_slow"), ("a__b", "a_b"), ("!", "")]
)
def test_label_names(text: str, name: str) -> None:
    """One rule from labels of elsewhere to names of a taxonomy."""
    assert label_name(text) == name


# --------------------------------------------------------------------------------------------------- stored versions

events = st.builds(
    TrueEvent,
    st.sampled_from(["long_jump", "applause"]),
    st.builds(lambda start, length: Span(start, start + length), st.integers(0, 10**14), st.integers(1, 10**9)),
    st.sampled_from([None, "stage"]),
    st.sampled_from([None, frozenset(), frozenset({"crowd"}), frozenset({"crowd", "athlete"})]),
)
ordered = st.lists(events, unique_by=lambda e: (e.span, e.label), max_size=4).map(
    lambda found: tuple(sorted(found, key=lambda e: (e.span, e.label)))
)
truths_ = st.lists(
    st.builds(
        lambda key, by_id, split, group, labels, happened: VideoTruth(
            video_id(key), None if by_id else key, split, group, labels, happened
        ),
        st.text("abc", min_size=1, max_size=3),
        st.booleans(),
        st.sampled_from(list(Split)),
        st.sampled_from([None, "g"]),
        st.dictionaries(st.just("content"), st.sampled_from([frozenset(), frozenset({"news"})]), min_size=1),
        st.dictionaries(st.just("events"), ordered),
    ),
    unique_by=lambda truth: truth.video_id,
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(truths=truths_)
def test_stored_truths_come_back_equal(tmp_path_factory: pytest.TempPathFactory, truths: list[VideoTruth]) -> None:
    """Facts, empty tasks, splits and groups survive storage; the name is the version."""
    output = Output(OutputConfig(uri=str(tmp_path_factory.mktemp("out"))))
    version = write_truths(output, truths)
    assert version == annotation_version(truths)
    assert read_truths(output, version) == sorted(truths, key=lambda truth: truth.video_id)


def test_a_stored_version_is_an_annotation_file(tmp_path: Path) -> None:
    """What was used can be loaded again, with the splits it had."""
    expected = load(write(tmp_path / "rows.jsonl", jsonl(ROWS)), splits={"train": 0.0, "validation": 0.7,
                    "calibration": 0.1, "test": 0.2})  # fmt: skip
    output = Output(OutputConfig(uri=str(tmp_path / "out")))
    version = write_truths(output, expected)
    assert load(tmp_path / "out" / "annotations" / f"{version}.parquet") == expected


def test_damaged_and_missing_versions(tmp_path: Path) -> None:
    """A file that is not what its name says must not pass for the data of a published figure."""
    output = Output(OutputConfig(uri=str(tmp_path)))
    truths = load(write(tmp_path / "rows.jsonl", jsonl(ROWS)))
    version = write_truths(output, truths)
    with pytest.raises(ConfigError, match="no such file; name a version"):
        read_truths(output, "0" * 24)
    file = tmp_path / "annotations" / f"{version}.parquet"
    file.rename(tmp_path / "annotations" / f"{'1' * 24}.parquet")
    with pytest.raises(ConfigError, match="holds other annotations than its name says"):
        read_truths(output, "1" * 24)
    pq.write_table(pa.table({"video_id": ["a"]}), file)
    with pytest.raises(ConfigError, match="is damaged"):
        read_truths(output, version)


def test_a_summary_for_people() -> None:
    """Videos by split, and what each task has: the first look for a mistake."""
    truth = VideoTruth("v", None, Split.TEST, labels={"content": frozenset({"news"})}, events={"events": ()})
    lines = describe_truths([truth]).splitlines()
    assert lines[0].endswith("1 videos (0 train, 0 validation, 0 calibration, 1 test)")
    assert [line.split() for line in lines[1:]] == [
        ["content", "1", "videos", "1", "facts"],
        ["events", "1", "videos", "0", "facts"],
    ]


def test_splits_default_to_the_shares() -> None:
    """The configuration needs nothing but files."""
    assert AnnotationsConfig(files=("a.csv",)).splits == SplitConfig()
