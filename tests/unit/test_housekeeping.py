"""Rollback and prune: a run can be put back, and whatever is deleted, no manifest that stays names it."""

import json
import logging
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.support.runs import local_reader
from tests.support.tables import RUN_IDS, make_output
from tests.unit.test_publish import Stopped, StoppingOutput, visible
from tests.unit.test_publish import run as publish_run
from vca.cli import app
from vca.core.errors import ConfigError, PublishError
from vca.media.output import Output, OutputConfig
from vca.media.output_lock import output_lock
from vca.pipelines.config import RetentionConfig
from vca.pipelines.housekeeping import Sweep, make_sweep, prune, rollback
from vca.pipelines.publish import recover
from vca.tables.manifest import CURRENT, Manifest, ManifestFile, ManifestTable, Pointer, manifest_path, table_file_path
from vca.tables.query import query, status
from vca.tables.verify import verify

FIRST, SECOND, THIRD, FOURTH = RUN_IDS
FIFTH, SIXTH = "20261105T013000Z-0000a5", "20261106T013000Z-0000a6"


def everything(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------------------- rollback


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four published runs; read only."""
    return make_output(tmp_path_factory.mktemp("nights") / "out")


@pytest.fixture
def out(nights: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(nights, tmp_path / "out"))


def config_of(root: Path) -> OutputConfig:
    return OutputConfig(uri=str(root))


def roll_back(root: Path, run_id: str) -> str:
    said: list[str] = []
    assert rollback(config_of(root), run_id, said.append) == 0
    return "\n".join(said)


def newest(root: Path) -> Any:
    return query(local_reader(root), "SELECT key, status, run_id FROM videos ORDER BY ALL").to_pylist()


def test_back_and_forward(out: Path) -> None:
    """Readers see the tables as they were after that run; going forward again restores the rest, byte for byte."""
    before, last = everything(out), newest(out)
    said = roll_back(out, SECOND)
    assert said.splitlines()[0] == f"run {SECOND} is in force, before it was {FOURTH}"
    assert "\nvideos     25 tagged, 3 quarantined, 1 deferred, 1 partial (before: " in said
    assert "shots " in said
    assert f"back with  vca rollback {FOURTH} --output {out}" in said
    assert {row["run_id"] for row in newest(out)} == {FIRST, SECOND}
    assert (
        newest(out)
        == query(local_reader(out).at(SECOND), "SELECT key, status, run_id FROM videos ORDER BY ALL").to_pylist()
    )
    assert query(local_reader(out), "SELECT run_id FROM runs ORDER BY run_id").column(0).to_pylist() == [FIRST, SECOND]
    assert status(local_reader(out)).splitlines()[-2:] == [
        f"  {run_id}  rolled back; `vca rollback {run_id}` goes forward to it" for run_id in (THIRD, FOURTH)
    ]
    roll_back(out, FOURTH)
    assert newest(out) == last
    assert "rolled back" not in status(local_reader(out))
    assert everything(out) == before


def test_the_run_in_force_stays(out: Path) -> None:
    """To roll back to where one is changes nothing."""
    before = everything(out)
    assert roll_back(out, FOURTH) == f"run {FOURTH} is in force already"
    assert everything(out) == before


def test_a_lost_pointer_is_put_back(out: Path) -> None:
    """The next run refuses to work without it and names the command that helps; afterwards all is as before."""
    before = everything(out)
    (out / CURRENT).unlink()
    with pytest.raises(ConfigError, match=f"{CURRENT} is missing.*vca rollback {FOURTH}"):
        recover(Output(config_of(out)), local_reader(out))
    assert roll_back(out, FOURTH) == f"run {FOURTH} is in force"
    assert everything(out) == before
    assert recover(Output(config_of(out)), local_reader(out)) is None


def test_a_run_after_a_rollback_builds_on_the_run_in_force(out: Path, tmp_path: Path) -> None:
    """Its parent is the older run: nothing of the runs that were rolled back comes back."""
    last = newest(out)
    roll_back(out, SECOND)
    output, reader = Output(config_of(out)), local_reader(out)
    recover(output, reader)
    publish_run(output, reader, FIFTH, ["a"], tmp_path / "w")
    manifest = reader.current()
    assert manifest is not None
    assert manifest.parent == SECOND
    named = {file.run_id for table in manifest.tables.values() for file in table.files}
    assert named == {FIRST, SECOND, FIFTH}
    assert {row["run_id"] for row in newest(out)} == {FIRST, SECOND, FIFTH}
    # And forward to a run of the other branch: the two do not mix.
    roll_back(out, FOURTH)
    assert newest(out) == last
    said: list[str] = []
    verify(reader, said.append)
    assert not [line for line in said if "parent" in line or "no manifest names" in line], "\n".join(said)


def test_a_run_that_was_killed_at_any_step_does_not_come_back(nights: Path, tmp_path: Path) -> None:
    """Rollback first finishes or drops it; the next run finds nothing to publish on top of the run that was chosen."""
    seen = set()
    for stop_before in range(100):
        root = Path(shutil.copytree(nights, tmp_path / str(stop_before)))
        reader = local_reader(root)
        try:
            publish_run(
                StoppingOutput(config_of(root), stop_before), reader, FIFTH, ["a"], tmp_path / f"w{stop_before}"
            )
        except Stopped:
            pass
        else:
            break
        said = roll_back(root, SECOND)
        seen.add(f"finished publishing run {FIFTH}" in said)
        assert recover(Output(config_of(root)), reader) is None
        current = reader.current()
        assert current is not None
        assert current.run_id == SECOND
        assert "a.mp4" not in {row["key"] for row in newest(root)}
        assert not (root / "staging").exists() or not list((root / "staging").iterdir())
        if FIFTH in reader.runs():
            roll_back(root, FIFTH)
            assert "a.mp4" in {row["key"] for row in newest(root)}, "a run that has a manifest is whole"
    assert stop_before >= 8
    assert seen == {True, False}


def test_of_two_runs_with_one_parent_the_killed_one_is_dropped(out: Path, tmp_path: Path) -> None:
    """Without a lock, a second run may have been published while a complete one lay in staging: it stays in force."""
    reader = local_reader(out)
    with pytest.raises(Stopped):
        publish_run(StoppingOutput(config_of(out), 4), reader, SIXTH, ["a"], tmp_path / "w1")
    assert (out / f"staging/{SIXTH}/manifest.json").exists()
    output = Output(config_of(out))
    publish_run(output, reader, FIFTH, ["b"], tmp_path / "w2")
    assert recover(output, reader) is None
    current = reader.current()
    assert current is not None
    assert current.run_id == FIFTH
    assert ("b", FIFTH) in visible(reader)
    assert not output.folders("staging")


@pytest.mark.parametrize("run_id", ["20200101T000000Z-000000", "current", "../x", ""])
def test_an_unknown_run_touches_nothing(out: Path, run_id: str) -> None:
    """One line, which names the runs that there are."""
    before = everything(out)
    with pytest.raises(ConfigError) as caught:
        roll_back(out, run_id)
    assert "\n" not in str(caught.value)
    assert everything(out) == before


def test_a_run_that_is_not_whole_is_refused(out: Path) -> None:
    """To go back to missing files would take away the tables altogether."""
    path = out / table_file_path("shots", FIRST, "part-00000.parquet")
    content = path.read_bytes()
    for damage, said in ((lambda: path.write_bytes(content[:-1]), "bytes in place of"), (path.unlink, "is missing")):
        damage()
        before = everything(out)
        with pytest.raises(ConfigError, match=said):
            roll_back(out, SECOND)
        assert everything(out) == before


def test_damage_of_the_run_in_force_is_a_reason_to_go_back(out: Path) -> None:
    """What cannot be counted any more is said to be unknown."""
    (out / table_file_path("videos", FOURTH, "part-00000.parquet")).unlink()
    assert "before: unknown: " in roll_back(out, SECOND)
    assert len(newest(out)) == 30


def test_rollback_and_prune_wait_for_the_end_of_a_run(out: Path) -> None:
    """Both refuse while somebody works on the output, and leave it as it is."""
    with output_lock(Output(config_of(out)), "run x"):
        before = everything(out)
        with pytest.raises(ConfigError, match="in use by run x"):
            roll_back(out, SECOND)
        with pytest.raises(ConfigError, match="in use by run x"):
            prune(config_of(out), RetentionConfig(runs=1, min_age_h=0), False, print)
        assert everything(out) == before


def test_commands_give_one_line_and_a_code(out: Path, tmp_path: Path) -> None:
    """`vca rollback`, `vca verify`, `vca prune` as a user calls them."""
    runner = CliRunner()
    settings = tmp_path / "vca.yaml"
    settings.write_text("retention: {runs: 2, min_age_h: 0}\n", encoding="utf-8")
    place = ["--config", str(settings), "--output", str(out)]
    assert runner.invoke(app, ["rollback", SECOND, *place]).exit_code == 0
    wrong = runner.invoke(app, ["rollback", "nothing", *place])
    assert wrong.exit_code == 2
    assert runner.invoke(app, ["verify", *place]).exit_code == 0
    before = everything(out)
    dry = runner.invoke(app, ["prune", "--dry-run", *place])
    assert (dry.exit_code, everything(out)) == (0, before)
    assert f"keeps      3 runs, {SECOND} to {FOURTH}" in dry.stdout, "the two newest and the one in force"
    assert "1 files" in dry.stdout
    done = runner.invoke(app, ["prune", *place])
    assert done.exit_code == 0
    assert set(before) - set(everything(out)) == {manifest_path(FIRST)}, "its files are those of later runs, too"
    (out / CURRENT).unlink()
    assert runner.invoke(app, ["verify", *place]).exit_code == 1
    assert runner.invoke(app, ["prune", *place]).exit_code == 2
    assert runner.invoke(app, ["verify", "--output", str(tmp_path / "nowhere")]).exit_code == 2
    settings.write_text("retention: {runs: 0}\n", encoding="utf-8")
    assert runner.invoke(app, ["prune", *place]).exit_code == 2


# ---------------------------------------------------------------------------------------------------------------- prune

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OLD, YOUNG = NOW - timedelta(hours=25), NOW - timedelta(hours=23)
SETS = ["a" * 24, "b" * 24, "c" * 24]
IMPORTED = "d" * 24
FOREIGN = [
    "holiday/film.mp4",
    "holiday/.vca-tmp-" + "0" * 32,
    "manifests/readme.md",
    "manifests/backup.json",
    "staging/holiday/film.mp4",
    "tables/notes.txt",
    "tables/shots/run_id=mine/part-00000.parquet",
    "tables/shots/run_id=20260101T000000Z-000000/mine.parquet",
    "features/mine/part-00000.parquet",
    f"features/{SETS[0]}/mine.parquet",
    "models/notes.json",
    "training/fusion/notes.txt",
    "lock.json",
]
"""What somebody else may have put there."""


def run_name(number: int) -> str:
    return f"202601{number + 1:02d}T000000Z-{number:06x}"


class Builder:
    """An output of any history, made of files without content: prune looks at names, ages and manifests only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0
        self.manifests: dict[str, Manifest] = {}
        self.current: str | None = None

    def write(self, path: str, content: bytes, changed: datetime) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        os.utime(target, (changed.timestamp(), changed.timestamp()))

    def _next(self, feature_set: str) -> Manifest:
        run_id = run_name(self.count)
        self.count += 1
        parent = self.manifests[self.current] if self.current else None
        tables = {}
        for name in ("videos", "shots"):
            path = table_file_path(name, run_id, "part-00000.parquet")
            file = ManifestFile(path=path, run_id=run_id, rows=1, size_bytes=1)
            files = (*(parent.tables[name].files if parent else ()), file)
            tables[name] = ManifestTable(rows=len(files), files=files)
        return Manifest(
            run_id=run_id,
            parent=self.current,
            created_at=NOW,
            feature_set=feature_set,
            model_version="m",
            taxonomy_version="t",
            counts={},
            tables=tables,
        )

    def publish(self, feature_set: str, changed: datetime) -> None:
        manifest = self._next(feature_set)
        self._own_files(manifest, "", changed)
        self.write(manifest_path(manifest.run_id), manifest.to_json().encode(), changed)
        self.manifests[manifest.run_id] = manifest
        self._point(manifest.run_id)

    def _own_files(self, manifest: Manifest, where: str, changed: datetime, n_files: int = 2) -> None:
        own = [f.path for t in manifest.tables.values() for f in t.files if f.run_id == manifest.run_id]
        for path in own[:n_files]:
            self.write(f"{where}{path}", b"x", changed)

    def _point(self, run_id: str) -> None:
        self.current = run_id
        self.write(CURRENT, Pointer.to(run_id).to_json().encode(), OLD)

    def roll_back(self, number: int) -> None:
        if self.manifests:
            self._point(sorted(self.manifests)[number % len(self.manifests)])

    def lose(self, feature_set: str, changed: datetime) -> None:
        """A run that was dropped after its files had been moved."""
        self._own_files(self._next(feature_set), "", changed)

    def kill_staging(self, feature_set: str, changed: datetime) -> None:
        manifest = self._next(feature_set)
        self._own_files(manifest, f"staging/{manifest.run_id}/", changed)

    def kill_publishing(self, feature_set: str, changed: datetime) -> None:
        """Complete, and one of its two files has been moved already."""
        manifest = self._next(feature_set)
        self._own_files(manifest, "", changed, n_files=1)
        self._own_files(manifest, f"staging/{manifest.run_id}/", changed)
        (self.root / f"staging/{manifest.run_id}/{manifest.tables['videos'].files[-1].path}").unlink(missing_ok=True)
        self.write(f"staging/{manifest.run_id}/manifest.json", manifest.to_json().encode(), changed)

    def features(self, name: str, run: int, changed: datetime, **definition: Any) -> None:
        content = {"feature_set": name, "definition": {"step_us": 1, **definition}, "dims": {"vision": 1, "audio": 1}}
        for number in range(2):
            part = f"part-{run_name(run)}" if not definition else "part-import"
            self.write(f"features/{name}/{part}-{number:05d}.parquet", b"x", changed)
        self.write(f"features/{name}/feature_set.json", json.dumps(content).encode(), changed)

    def rest(self, changed: datetime) -> None:
        """Training, models, temporary files, and what is not ours."""
        for name in (*FOREIGN, *LEFTOVERS, *IN_USE):
            self.write(name, b"{}", changed)
        model = json.dumps({"spec": {"feature_set": SETS[1]}}).encode()
        self.write("models/fusion-1/model.json", model, changed)
        self.features(IMPORTED, 0, changed, imported={"name": "x"})


LEFTOVERS = [
    f"training/windows/{'1' * 24}/block-00000.parquet",
    "training/fusion/checkpoint-00000008/state.safetensors",
    "tables/shots/.vca-tmp-" + "1" * 32,
    "models/fusion-1/.vca-tmp-" + "2" * 32,
]
IN_USE = [
    "training/fusion/checkpoint-00000004/state.safetensors",
    "training/fusion/checkpoint-00000004/checkpoint.json",
    "models/fusion-1/weights.safetensors",
    "annotations/x.parquet",
    "reports/x/index.html",
]

AGES = st.sampled_from([OLD, OLD, YOUNG])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["publish", "publish", "lose", "kill_staging"]), st.sampled_from(SETS), AGES),
        st.tuples(st.just("roll_back"), st.integers(0, 9)),
    ),
    min_size=1,
    max_size=9,
)


class DyingOutput(Output):
    """An output whose process dies before the n-th deletion."""

    def __init__(self, config: OutputConfig, stop_before: int) -> None:
        super().__init__(config)
        self._left = stop_before

    def delete(self, relative: str) -> None:
        if self._left == 0:
            raise Stopped
        self._left -= 1
        super().delete(relative)


def sweep(root: Path, retention: RetentionConfig) -> Sweep:
    return make_sweep(Output(config_of(root)), local_reader(root), retention, NOW)


def carry_out(root: Path, found: Sweep, stop_before: int = -1) -> None:
    output = DyingOutput(config_of(root), stop_before)
    with output_lock(output, "prune") as lock:
        found.carry_out(output, lock)


def assert_nothing_needed_is_gone(root: Path) -> None:
    """Every file that a manifest names is there, for a complete run in staging in one of its two places."""
    reader = local_reader(root)
    assert reader.current() is not None
    for run_id in reader.runs():
        if run_id == "backup":  # not ours
            continue
        for table in reader.manifest(run_id).tables.values():
            assert all((root / file.path).is_file() for file in table.files), run_id
    for intent in root.glob("staging/*/manifest.json"):
        for table in Manifest.from_json(intent.read_bytes()).tables.values():
            assert all((root / f.path).is_file() or (intent.parent / f.path).is_file() for f in table.files)


def build(root: Path, steps: list[Any], *, publishing: bool, changed: datetime) -> Builder:
    builder = Builder(root)
    builder.publish(SETS[0], OLD)
    for name, *arguments in steps:
        getattr(builder, name)(*arguments)
    if publishing:
        builder.kill_publishing(SETS[2], changed)
    for number, feature_set in enumerate(SETS):
        builder.features(feature_set, number, changed)
    builder.rest(changed)
    return builder


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, keep=st.integers(1, 4), publishing=st.booleans(), changed=AGES, data=st.data())
def test_prune_never_deletes_what_is_needed(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[Any],
    keep: int,
    publishing: bool,
    changed: datetime,
    data: st.DataObject,
) -> None:
    """Over any history: what stays is whole; what is young or not ours stays; the rest goes, also if killed."""
    root = tmp_path_factory.mktemp("history")
    builder = build(root / "out", steps, publishing=publishing, changed=changed)
    root /= "out"
    before = everything(root)
    young = {path for path in before if (root / path).stat().st_mtime > OLD.timestamp()}
    retention = RetentionConfig(runs=keep)
    found = sweep(root, retention)
    assert everything(root) == before, "looking writes nothing"

    killed = Path(shutil.copytree(root, root.parent / "killed"))
    n_files = sum(len(entries) for _, entries in found.groups)
    if n_files:
        with pytest.raises(Stopped):
            carry_out(killed, found, data.draw(st.integers(0, n_files - 1)))
        assert_nothing_needed_is_gone(killed)
        carry_out(killed, sweep(killed, retention))

    carry_out(root, found)
    after = everything(root)
    assert everything(killed) == after or not n_files, "a killed one and the next end where one in one go does"
    assert all(after[path] == before[path] for path in after)
    assert_nothing_needed_is_gone(root)
    gone = set(before) - set(after)
    assert not gone & young
    assert not gone & {*FOREIGN, *IN_USE, CURRENT}
    assert not [path for path in gone if path.startswith(f"features/{IMPORTED}/")]
    runs = sorted(builder.manifests)
    assert not gone & {manifest_path(run_id) for run_id in (*runs[-keep:], builder.current or "")}
    named = {
        local_reader(root).manifest(run_id).feature_set for run_id in local_reader(root).runs() if run_id != "backup"
    }
    for name in (*named, SETS[1]):
        assert not [path for path in gone if path.startswith(f"features/{name}/")], "a manifest or the model names it"
    assert sweep(root, retention).groups == (), "nothing is left to do"
    if changed is OLD:
        assert gone.issuperset(LEFTOVERS)


def test_prune_killed_at_every_deletion(tmp_path: Path) -> None:
    """The order is the guarantee: manifests first, so that none names a file that is gone."""
    steps: list[Any] = [("publish", SETS[n % 3], OLD) for n in range(3)]
    steps += [("lose", SETS[0], OLD), ("roll_back", 1), ("publish", SETS[1], OLD), ("kill_staging", SETS[1], OLD)]
    root = tmp_path / "out"
    build(root, steps, publishing=True, changed=OLD)
    retention = RetentionConfig(runs=1)
    found = sweep(root, retention)
    groups = [what.split()[0] for what, _ in found.groups]
    assert groups == ["manifests", "table", "staging", "feature", "training", "temporary"]
    n_files = sum(len(entries) for _, entries in found.groups)
    whole = Path(shutil.copytree(root, tmp_path / "whole"))
    carry_out(whole, found)
    for stop_before in range(n_files):
        copy = Path(shutil.copytree(root, tmp_path / f"killed-{stop_before}"))
        with pytest.raises(Stopped):
            carry_out(copy, found, stop_before)
        assert_nothing_needed_is_gone(copy)
        carry_out(copy, sweep(copy, retention))
        assert everything(copy) == everything(whole), stop_before
        shutil.rmtree(copy)
    assert n_files > 15
    assert not (whole / "training/windows").exists(), "empty folders go, too"


def test_young_files_stay(tmp_path: Path) -> None:
    """Somebody may still be writing them: nothing younger than `min_age_h` goes."""
    root = tmp_path / "out"
    build(
        root,
        [("publish", SETS[0], YOUNG), ("lose", SETS[0], YOUNG), ("kill_staging", SETS[0], YOUNG)],
        publishing=False,
        changed=YOUNG,
    )
    assert [what for what, _ in sweep(root, RetentionConfig(runs=1)).groups] == ["manifests of older runs"]
    assert sweep(root, RetentionConfig(runs=2)).groups == ()
    assert len(sweep(root, RetentionConfig(runs=2, min_age_h=22)).groups) == 4


def test_features_of_a_run_that_was_killed_are_kept_for_the_next(tmp_path: Path) -> None:
    """Decoded over days and not published yet: no manifest names them, and nothing is more expensive."""
    builder = Builder(tmp_path / "out")
    builder.publish(SETS[0], OLD)
    builder.features(SETS[2], builder.count, OLD)
    assert sweep(tmp_path / "out", RetentionConfig()).groups == ()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (manifest_path(run_name(1)), b"{"),
        (CURRENT, b"{"),
        ("models/fusion-1/model.json", b"{}"),
        (f"staging/{run_name(2)}/manifest.json", b"[]"),
    ],
    ids=["manifest", "pointer", "model", "staged"],
)
def test_prune_deletes_nothing_where_it_cannot_tell(tmp_path: Path, path: str, content: bytes) -> None:
    """A damaged list of what is needed is one line, and everything stays."""
    root = tmp_path / "out"
    builder = build(root, [("publish", SETS[0], OLD)], publishing=True, changed=OLD)
    builder.write(path, content, OLD)
    before = everything(root)
    with pytest.raises(ConfigError) as caught:
        prune(config_of(root), RetentionConfig(runs=1), False, print)
    assert "\n" not in str(caught.value)
    assert everything(root) == before


def test_features_that_nobody_can_tell_from_an_import_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A set without a readable description may be a foreign one that was not finished."""
    root = tmp_path / "out"
    builder = build(root, [], publishing=False, changed=OLD)
    (root / f"features/{SETS[2]}/feature_set.json").unlink()
    builder.write(f"features/{IMPORTED}/feature_set.json", b"{", OLD)
    with caplog.at_level(logging.WARNING):
        found = sweep(root, RetentionConfig())
    assert not [what for what, _ in found.groups if what.startswith("feature set")]
    assert "may be an import" in caplog.text


def test_prune_stops_when_it_has_lost_the_lock(tmp_path: Path) -> None:
    """A run that took the lock over may need what was about to go."""
    root = tmp_path / "out"
    build(root, [("publish", SETS[0], OLD)], publishing=False, changed=OLD)
    found = sweep(root, RetentionConfig(runs=1))
    output = Output(config_of(root))
    with output_lock(output, "prune") as lock:
        for file in root.glob("vca-lock*"):
            file.unlink()
        before = everything(root)
        with pytest.raises(PublishError, match="was removed"):
            found.carry_out(output, lock)
        assert everything(root) == before


def test_a_published_output_after_prune_is_whole(out: Path) -> None:
    """`vca verify` agrees, and so do the answers."""
    answers = query(local_reader(out), "FROM videos ORDER BY ALL")
    told: list[str] = []
    assert prune(config_of(out), RetentionConfig(runs=1, min_age_h=0), False, told.append) == 0
    assert local_reader(out).runs() == [FOURTH]
    assert query(local_reader(out), "FROM videos ORDER BY ALL").equals(answers)
    said: list[str] = []
    assert verify(local_reader(out), said.append), "\n".join(said)
