"""`vca verify` finds every kind of damage that is planted, says nothing of a whole output, and never breaks off."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.support.runs import local_reader
from tests.support.tables import BROKEN, KEYS, RUN_IDS, make_output
from vca.core import identity
from vca.core.errors import ConfigError
from vca.core.schemas import FEATURES, Status
from vca.tables import verify as verify_module
from vca.tables.manifest import CURRENT, Pointer, manifest_path, table_file_path
from vca.tables.verify import verify

FIRST, SECOND, THIRD, FOURTH = RUN_IDS
DEFINITION = {"step_us": 500_000, "encoders": "of a test"}
FEATURE_SET = identity.feature_set_id(DEFINITION)
PART = f"features/{FEATURE_SET}/part-{FIRST}-00000.parquet"
DESCRIPTION = f"features/{FEATURE_SET}/feature_set.json"


def path_of(table: str, run_id: str = FIRST) -> str:
    return table_file_path(table, run_id, "part-00000.parquet")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undamaged output of four nights with a feature set; read only."""
    root = make_output(tmp_path_factory.mktemp("whole") / "out")
    for run_id in RUN_IDS:
        edit(root, manifest_path(run_id), lambda manifest: manifest | {"feature_set": FEATURE_SET})
    rows = [segment(key, index) for key in KEYS[:5] for index in range(2)]
    (root / PART).parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=FEATURES), root / PART)
    dims = {"vision": 4, "audio": 0}
    (root / DESCRIPTION).write_text(
        json.dumps({"feature_set": FEATURE_SET, "definition": DEFINITION, "dims": dims}), encoding="utf-8"
    )
    return root


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def segment(key: str, index: int) -> dict[str, Any]:
    times = {"start_us": index * 1_000_000, "end_us": (index + 1) * 1_000_000, "step_us": 500_000}
    media = {"duration_us": 2_000_000, "container": "mp4", "has_video": True, "has_audio": False}
    media |= dict.fromkeys(("n_video_streams", "n_audio_streams", "n_subtitle_streams"), 1)
    ids = {"video_id": identity.video_id(key), "key": key, "fingerprint": "f", "segment_index": index, "n_segments": 2}
    return ids | times | {"coverage_us": 1_000_000, "media": media, "text": [], "shots": []}


def check(root: Path) -> tuple[bool, list[str]]:
    said: list[str] = []
    return verify(local_reader(root), said.append), said


def edit(root: Path, path: str, change: Callable[[Any], Any]) -> None:
    (root / path).write_text(json.dumps(change(json.loads((root / path).read_bytes()))), encoding="utf-8")


def rewrite(root: Path, path: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the rows of a file, and what the manifests say of it: the damage is in the rows alone."""
    rows = change(pq.read_table(root / path))
    pq.write_table(rows, root / path)
    size_bytes = (root / path).stat().st_size

    def put_right(manifest: Any) -> Any:
        for table in manifest["tables"].values():
            for file in table["files"]:
                if file["path"] == path:
                    file |= {"rows": len(rows), "size_bytes": size_bytes}
            table["rows"] = sum(file["rows"] for file in table["files"])
        return manifest

    if path.startswith("tables/"):
        for run_id in RUN_IDS:
            edit(root, manifest_path(run_id), put_right)


def set_column(rows: pa.Table, name: str, values: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    field = pa.field(name, kind or rows.schema.field(name).type)
    return rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))


def changing(table: str, name: str, change: Callable[[list[Any]], list[Any]], run_id: str = FIRST) -> Any:
    """A damage: other values in one column."""

    def plant(root: Path) -> None:
        rewrite(root, path_of(table, run_id), lambda t: set_column(t, name, change(t.column(name).to_pylist())))

    return plant


def first(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value, *values[1:]]


def rows_of(table: str, change: Callable[[pa.Table], pa.Table], run_id: str = FIRST) -> Any:
    return lambda root: rewrite(root, path_of(table, run_id), change)


def features(name: str, value: Any) -> Any:
    return lambda root: rewrite(root, PART, lambda t: set_column(t, name, [value, *t.column(name).to_pylist()[1:]]))


def manifest(run_id: str, change: Callable[[Any], Any]) -> Any:
    return lambda root: edit(root, manifest_path(run_id), change)


def without_file(path: str) -> Callable[[Any], Any]:
    """A manifest that lost one of its files."""

    def change(content: Any) -> Any:
        for table in content["tables"].values():
            table["files"] = [file for file in table["files"] if file["path"] != path]
            table["rows"] = sum(file["rows"] for file in table["files"])
        return content

    return change


def other_counts(content: Any) -> Any:
    return content | {"counts": content["counts"] | {"tagged": 1000}}


def other_size(content: Any) -> Any:
    content["tables"]["shots"]["files"][0]["size_bytes"] += 1
    return content


def flip(path: str) -> Any:
    """Bits that the disk turned round, in the middle of the file."""

    def plant(root: Path) -> None:
        data = bytearray((root / path).read_bytes())
        for place in range(len(data) // 3, len(data) // 3 + 40):
            data[place] ^= 0xFF
        (root / path).write_bytes(bytes(data))

    return plant


def second_file(root: Path) -> None:
    """The same video in two files of one run."""
    path = table_file_path("videos", FIRST, "part-00001.parquet")
    pq.write_table(pq.read_table(root / path_of("videos")).slice(len(KEYS) + len(BROKEN) - 1), root / path)

    def add(content: Any) -> Any:
        size_bytes = (root / path).stat().st_size
        table = content["tables"]["videos"]
        table["files"].append({"path": path, "run_id": FIRST, "rows": 1, "size_bytes": size_bytes})
        table["rows"] += 1
        return content

    for run_id in RUN_IDS:
        edit(root, manifest_path(run_id), add)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pointer-missing": (lambda root: (root / CURRENT).unlink(), r"current\.json: missing"),
    "pointer-garbage": (lambda root: (root / CURRENT).write_text("{"), r"current\.json: .*not valid JSON"),
    "pointer-to-nothing": (lambda root: (root / manifest_path(FOURTH)).unlink(), r"current\.json: .*no such run"),
    "manifest-garbage": (lambda root: (root / manifest_path(SECOND)).write_text("[]"), rf"{SECOND}\.json: .*format"),
    "manifest-of-another": (
        lambda root: shutil.copy(root / manifest_path(FIRST), root / manifest_path(SECOND)),
        rf"{SECOND}\.json: .*holds run '{FIRST}'",
    ),
    "manifest-drops-a-file": (
        manifest(FOURTH, without_file(path_of("shots", SECOND))),
        rf"{FOURTH}\.json: does not go on from its parent {THIRD}: {path_of('shots', SECOND)}",
    ),
    "manifest-mixes-in-a-file": (
        manifest(THIRD, without_file(path_of("shots", SECOND))),
        rf"{FOURTH}\.json: does not go on from its parent {THIRD}: {path_of('shots', SECOND)}",
    ),
    "manifest-without-parent": (manifest(SECOND, lambda m: m | {"parent": None}), "is the first run, but names"),
    "manifests-contradict": (manifest(THIRD, other_size), "contradicts another manifest about"),
    "manifest-counts": (manifest(FOURTH, other_counts), rf"{FOURTH}\.json: says 1000 tagged, but runs says 0"),
    "file-missing": (lambda root: (root / path_of("shots")).unlink(), f"{path_of('shots')}: missing"),
    "file-cut": (
        lambda root: (root / path_of("shots")).write_bytes((root / path_of("shots")).read_bytes()[:-100]),
        f"{path_of('shots')}: has [0-9]+ bytes, the manifest says",
    ),
    "file-flipped": (flip(path_of("transcripts")), f"{path_of('transcripts')}: cannot be read"),
    "file-no-parquet": (
        lambda root: (root / path_of("shots")).write_bytes(b"x" * (root / path_of("shots")).stat().st_size),
        f"{path_of('shots')}: cannot be read",
    ),
    "column-missing": (rows_of("shots", lambda t: t.drop_columns(["end_s"])), "column end_s is missing"),
    "column-of-another-type": (
        rows_of("shots", lambda t: set_column(t, "shot_index", list(range(len(t))), pa.int64())),
        "column shot_index is int64, not int32",
    ),
    "rows-lost": (
        lambda root: pq.write_table(pq.read_table(root / path_of("shots")).slice(3), root / path_of("shots")),
        r"holds [0-9]+ rows, the manifest says [0-9]+",
    ),
    "nulls": (changing("event_spans", "event_id", first(None)), "column event_id has nulls"),
    "rows-of-another-run": (changing("shots", "run_id", first(SECOND)), f"rows of another run than {FIRST}"),
    "unsorted": (rows_of("shots", lambda t: t.take(pa.array([1, 0, *range(2, len(t))]))), "not sorted by key, shot"),
    "video-doubled": (rows_of("videos", lambda t: pa.concat_tables([t.slice(0, 1), t])), "has two rows"),
    "video-doubled-in-two-files": (second_file, "has two rows"),
    "video-id": (changing("videos", "video_id", first("0" * 24)), "video_id 0{24} is not that of its key"),
    "status": (changing("videos", "status", first("done")), "status 'done' is none"),
    "coverage": (changing("videos", "coverage_s", first(1e6)), "is covered beyond its end"),
    "span-reversed": (changing("event_spans", "end_s", first(-1.0)), "has a span before its start"),
    "span-beyond-the-end": (changing("event_spans", "end_s", first(1e6)), r"event_spans: .* has a time beyond its end"),
    "step-beyond-the-end": (
        changing("step_scores", "start_s", lambda v: [*v[:3], 1e6, *v[4:]]),
        r"step_scores: .* has a time beyond its end",
    ),
    "row-without-video": (
        rows_of("videos", lambda t: t.filter(pc.not_equal(t.column("key"), KEYS[0]))),
        rf"video_categories: '{KEYS[0]}' has no row in videos",
    ),
    "row-of-a-failed-video": (
        changing("videos", "status", lambda v: [str(Status.QUARANTINED)] * len(v)),
        "shots: .* is not tagged or partial in videos",
    ),
    "quarantine-of-a-good-video": (
        changing("videos", "status", lambda v: [str(Status.TAGGED)] * len(v)),
        "quarantine: .* is not quarantined in videos",
    ),
    "quarantine-row-lost": (rows_of("quarantine", lambda t: t.slice(1)), "2 videos are quarantined, but there are 1"),
    "run-row-lost": (rows_of("runs", lambda t: t.slice(1)), f"run {FIRST}: has 0 rows in runs"),
    "run-row-doubled": (rows_of("runs", lambda t: pa.concat_tables([t, t])), f"run {FIRST}: has 2 rows in runs"),
    "balance": (changing("runs", "listed", first(7)), f"run {FIRST}: does not balance: 7 listed"),
    "states": (changing("runs", "tagged", first(3)), f"run {FIRST}: says 3 tagged, but videos has 23"),
    "description-missing": (lambda root: (root / DESCRIPTION).unlink(), r"feature_set\.json: missing"),
    "description-damaged": (lambda root: (root / DESCRIPTION).write_text("{}"), r"feature_set\.json: damaged"),
    "description-of-another": (
        lambda root: edit(root, DESCRIPTION, lambda d: d | {"definition": {"step_us": 1}}),
        "does not describe feature set",
    ),
    "part-damaged": (lambda root: (root / PART).write_bytes(b"PAR1"), f"{PART}: cannot be read"),
    "segment-without-key": (features("fingerprint", None), f"{PART}: column fingerprint has nulls"),
    "segment-of-another-key": (features("video_id", "0" * 24), f"{PART}: video_id 0+ is not that of its key"),
    "segment-outside": (features("segment_index", 2), f"{PART}: .* has a segment outside its number"),
    "segment-empty": (features("end_us", 0), f"{PART}: .* has an empty segment"),
}  # fmt: skip


def test_a_whole_output_has_no_finding(whole: Path) -> None:
    """Nothing is said but what was checked."""
    n_rows = sum(pq.read_metadata(path).num_rows for path in (whole / "tables").rglob("*.parquet"))
    assert check(whole) == (
        True,
        [f"checked  4 runs, 29 files with {n_rows} rows, 1 feature sets with 10 segments: 0 errors, 0 warnings"],
    )


@pytest.mark.parametrize("kind", DAMAGE)
def test_planted_damage_is_found(out: Path, kind: str) -> None:
    """One line names the place and what is wrong there."""
    plant, expected = DAMAGE[kind]
    plant(out)
    is_whole, said = check(out)
    assert not is_whole
    assert [line for line in said if line.startswith("error  ") and re.search(expected, line)], "\n".join(said)
    assert all("\n" not in line for line in said)


def stray(path: str) -> Callable[[Path], Any]:
    def plant(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")

    return plant


WARNINGS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "orphan": (stray(path_of("shots", "20261105T013000Z-0000a5")), "no manifest names it"),
    "temporary": (stray("tables/shots/.vca-tmp-1"), "no manifest names it"),
    "foreign-manifest": (stray("manifests/notes.txt"), r"notes\.txt: is no manifest"),
    "staging": (stray(f"staging/{FOURTH}/tables/a"), f"staging/{FOURTH}: left by a run that was killed"),
    "text-beyond-the-end": (changing("transcripts", "end_s", first(1e6)), "transcripts: .* has a time beyond its end"),
    "features-deleted": (lambda root: shutil.rmtree(root / "features"), f"features/{FEATURE_SET}: is not there"),
    "column-of-a-newer-version": (
        rows_of("shots", lambda t: t.append_column("mood", pa.nulls(len(t), pa.string()))),
        "column mood is of another version",
    ),
}


@pytest.mark.parametrize("kind", WARNINGS)
def test_what_only_takes_space_is_a_warning(out: Path, kind: str) -> None:
    """The answers of queries are right: the exit code stays 0."""
    plant, expected = WARNINGS[kind]
    plant(out)
    is_whole, said = check(out)
    assert is_whole, "\n".join(said)
    assert len(said) == 2
    assert said[0].startswith("warning  ")
    assert re.search(expected, said[0])


def test_columns_that_an_older_version_did_not_write(out: Path) -> None:
    """A file without a column that can be null is whole."""
    rewrite(out, path_of("videos"), lambda t: t.drop_columns(["fps", "coverage_s"]))
    assert check(out)[0]


@pytest.mark.parametrize("batch_rows", [1, 2, 7])
@pytest.mark.parametrize("kind", [None, "unsorted", "video-doubled-in-two-files", "row-without-video"])
def test_borders_of_batches_change_nothing(
    out: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int, kind: str | None
) -> None:
    """Tables are read in pieces: what spans two of them is seen, and nothing else."""
    monkeypatch.setattr(verify_module, "BATCH_ROWS", batch_rows)
    if kind is not None:
        DAMAGE[kind][0](out)
    assert check(out)[0] == (kind is None)


def test_nothing_published_is_no_finding(tmp_path: Path) -> None:
    """A mistyped location must not look like a whole output."""
    with pytest.raises(ConfigError, match="no run has been published here"):
        check(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def one_night(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first night alone: a dozen files."""
    root = Path(shutil.copytree(whole, tmp_path_factory.mktemp("one") / "out"))
    for run_id in RUN_IDS[1:]:
        (root / manifest_path(run_id)).unlink()
        for folder in (root / "tables").glob(f"*/run_id={run_id}"):
            shutil.rmtree(folder)
    (root / CURRENT).write_text(Pointer.to(FIRST).to_json(), encoding="utf-8")
    return root


@settings(max_examples=60, deadline=None, phases=[Phase.generate])
@given(data=st.data())
def test_any_damaged_byte_is_a_finding_or_harmless(one_night: Path, data: st.DataObject) -> None:
    """Whatever bytes an output holds, verify ends with its last line: it never breaks off."""
    paths = sorted(path for path in one_night.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(paths))
    before = path.read_bytes()
    content = bytearray(before)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        path.write_bytes(bytes(content))
        assert check(one_night)[1][-1].startswith("checked  ")
    finally:
        path.write_bytes(before)


ROWS = st.lists(st.sampled_from("abcdef"), max_size=12).map(sorted)


@given(left=ROWS, right=ROWS, cut_left=st.integers(1, 4), cut_right=st.integers(1, 4))
def test_side_by_side_is_a_join(left: list[str], right: list[str], cut_left: int, cut_right: int) -> None:
    """Each row of the right one comes once, in order, with all rows of the left one that have its key."""
    schema = pa.schema([("key", pa.string()), ("n", pa.int64())])

    def pieces(keys: list[str], size: int) -> Iterator[pa.Table]:
        rows = pa.Table.from_pylist([{"key": key, "n": n} for n, key in enumerate(keys)], schema=schema)
        return (rows.slice(start, size) for start in range(0, len(rows), size))

    seen = []
    for rows, window in verify_module._side_by_side(
        pieces(left, cut_left), pieces(right, cut_right), schema.empty_table()
    ):
        for row in rows.to_pylist():
            beside = [other["n"] for other in window.to_pylist() if other["key"] == row["key"]]
            seen.append((row["key"], row["n"], beside))
    assert seen == [(key, n, [m for m, other in enumerate(left) if other == key]) for n, key in enumerate(right)]
