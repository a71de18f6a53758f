"""The plan redoes exactly what depends on a change, and nothing else."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from vca.core.errors import ConfigError, ErrorCode
from vca.core.schemas import TABLES
from vca.core.storage import StorageConfig
from vca.media.output import Output, OutputConfig
from vca.media.storage import Archive, ArchiveConfig
from vca.pipelines.plan import Action, Plan, PlannedVideos, Versions, make_plan
from vca.pipelines.publish import Spool, publish, stage_tables
from vca.tables.manifest import open_output

VERSIONS = Versions("features-1", "model-1", "taxonomy-1")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class World:
    """A folder as archive and a folder as output, with a publisher that needs no decoding."""

    def __init__(self, root: Path) -> None:
        self.archive = root / "archive"
        self.work = root / "work"
        self.out = root / "out"
        self.archive.mkdir()
        self.work.mkdir()
        self.n_runs = 0

    def put(self, key: str, data: bytes = b"bytes") -> None:
        path = self.archive / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def plan(self, versions: Versions = VERSIONS, retry: tuple[ErrorCode, ...] = ()) -> Plan:
        reader = open_output(str(self.out), StorageConfig())
        return make_plan(Archive(ArchiveConfig(uri=str(self.archive))), reader, versions, 3, self.work, retry)

    def decisions(self, versions: Versions = VERSIONS, retry: tuple[ErrorCode, ...] = ()) -> dict[str, tuple[str, str]]:
        plan = self.plan(versions, retry)
        return {
            row["key"]: (row["action"], row["reason"]) for action in Action for row in plan.rows(action).to_pylist()
        }

    def publish(self, failed: dict[str, bool] | None = None, deferred: tuple[str, ...] = ()) -> None:
        """Publish what the plan asks for; `failed` maps a key to whether it is to be retried. A run that did not get
        to a video makes no attempt on it.
        """
        failed = failed or {}
        self.n_runs += 1
        run_id = f"20260101T00000{self.n_runs}Z-aaaaaa"
        plan = self.plan()
        spool = Spool(self.work)
        for row in (*plan.rows(Action.DECODE).to_pylist(), *plan.rows(Action.RETAG).to_pylist()):
            video = dict.fromkeys(TABLES["videos"].schema.names) | {
                "video_id": row["video_id"],
                "key": row["key"],
                "run_id": run_id,
                "uri": row["key"],
                "fingerprint": row["fingerprint"],
                "status": "quarantined" if row["key"] in failed else "tagged",
                "error_code": "decode_timeout" if row["key"] in failed else None,
                "attempts": row["attempts"] + 1,
                "size_bytes": row["size_bytes"],
                "feature_set": VERSIONS.feature_set,
                "model_version": VERSIONS.model_version,
                "taxonomy_version": VERSIONS.taxonomy_version,
                "tagged_at": NOW,
            }
            if row["key"] in deferred:
                video |= {"status": "deferred", "attempts": row["attempts"]}
            spool.add("videos", pa.Table.from_pylist([video], schema=TABLES["videos"].schema))
            if row["key"] in failed:
                quarantine = {
                    **{name: video.get(name) for name in TABLES["quarantine"].schema.names},
                    "stage": "read",
                    "error_code": "decode_timeout",
                    "error_message": "slow",
                    "first_failed_at": row["first_failed_at"] or NOW + timedelta(days=self.n_runs),
                    "last_failed_at": NOW + timedelta(days=self.n_runs),
                    "will_retry": failed[row["key"]],
                }
                spool.add("quarantine", pa.Table.from_pylist([quarantine], schema=TABLES["quarantine"].schema))
        config = json.dumps({"archive": {"uri": str(self.archive)}})
        spool.add("runs", runs_row(run_id, config))
        output = Output(OutputConfig(uri=str(self.out)))
        versions = {"feature_set": "features-1", "model_version": "model-1", "taxonomy_version": "taxonomy-1"}
        staged = stage_tables(spool, output, run_id, self.work)
        reader = open_output(str(self.out), StorageConfig())
        current = reader.current()
        publish(output, reader, current.run_id if current else None, staged, run_id, NOW, versions, {})


def runs_row(run_id: str, config: str) -> pa.Table:
    schema = TABLES["runs"].schema
    row: dict[str, object] = {}
    for field in schema:
        plain = "" if pa.types.is_string(field.type) else 0
        row[field.name] = NOW if pa.types.is_timestamp(field.type) else [] if pa.types.is_list(field.type) else plain
    return pa.Table.from_pylist([row | {"run_id": run_id, "config": config}], schema=schema)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_first_night_decodes_everything_and_second_nothing(world: World) -> None:
    """Incremental means: what is published and unchanged costs nothing."""
    world.put("a.mp4")
    world.put("deep/b.mkv")
    world.put("notes.txt")
    assert world.decisions() == {"a.mp4": ("decode", "new"), "deep/b.mkv": ("decode", "new")}
    assert world.plan().ignored == 1
    world.publish()
    assert set(world.decisions().values()) == {("skip", "unchanged")}
    assert "nothing to do" in world.plan().describe()


def test_changed_new_and_deleted_objects(world: World) -> None:
    """Each change touches its own video only."""
    for key in ("same.mp4", "changed.mp4", "deleted.mp4"):
        world.put(key)
    world.publish()
    world.put("changed.mp4", b"other bytes")
    world.put("new.mp4")
    (world.archive / "deleted.mp4").unlink()
    assert world.decisions() == {
        "same.mp4": ("skip", "unchanged"),
        "changed.mp4": ("decode", "changed"),
        "new.mp4": ("decode", "new"),
        "deleted.mp4": ("gone", "deleted from the archive"),
    }


def test_sidecar_subtitles_are_part_of_the_content(world: World) -> None:
    """A new or changed subtitle file means new text, so the video is read again."""
    world.put("film.mp4")
    world.put("film.part2.mp4")
    world.publish()
    world.put("film.en.srt")
    assert world.decisions()["film.mp4"] == ("decode", "changed")
    assert world.decisions()["film.part2.mp4"] == ("skip", "unchanged")
    world.publish()
    world.put("film.part2.srt")
    assert world.decisions()["film.mp4"] == ("skip", "unchanged"), "the longest matching stem owns a sidecar"
    assert world.decisions()["film.part2.mp4"] == ("decode", "changed")


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        (Versions("features-2", "model-1", "taxonomy-1"), ("decode", "other features wanted")),
        (Versions("features-1", "model-2", "taxonomy-1"), ("retag", "tagged by another model")),
        (Versions("features-1", "model-1", "taxonomy-2"), ("retag", "tagged with another taxonomy")),
    ],
)
def test_new_versions_redo_what_depends_on_them(world: World, versions: Versions, expected: tuple[str, str]) -> None:
    """New features need the video; a new model or taxonomy needs only the stored features."""
    world.put("a.mp4")
    world.publish()
    assert world.decisions(versions) == {"a.mp4": expected}


def test_quarantine_retries_transient_failures_up_to_the_limit(world: World) -> None:
    """Transient failures come back until max_attempts; permanent ones wait for a new version of the file."""
    world.put("broken.mp4")
    world.put("slow.mp4")
    failing = {"broken.mp4": False, "slow.mp4": True}
    world.publish(failing)
    assert world.decisions() == {
        "broken.mp4": ("skip", "in quarantine until the file changes"),
        "slow.mp4": ("decode", "retry after a failure"),
    }
    world.publish(failing)
    world.publish(failing)
    assert world.decisions()["slow.mp4"][0] == "skip", "three attempts are the limit"
    world.put("broken.mp4", b"repaired, so another fingerprint")
    assert world.decisions()["broken.mp4"] == ("decode", "changed")


def test_a_code_that_is_retried_by_hand_comes_back_whatever_was_decided(world: World) -> None:
    """`--retry`: after a decoder or a codec was mended, only those who know can say which failures may pass now."""
    world.put("hopeless.mp4")
    world.put("fine.mp4")
    world.publish({"hopeless.mp4": False})
    assert world.decisions()["hopeless.mp4"][0] == "skip"
    assert world.decisions(retry=(ErrorCode.NO_FRAMES,))["hopeless.mp4"][0] == "skip"
    asked = world.decisions(retry=(ErrorCode.NO_FRAMES, ErrorCode.DECODE_TIMEOUT))
    assert asked == {"hopeless.mp4": ("decode", "retry asked for"), "fine.mp4": ("skip", "unchanged")}
    (row,) = world.plan(retry=(ErrorCode.DECODE_TIMEOUT,)).rows(Action.DECODE).to_pylist()
    assert row["attempts"] == 1


def test_a_refused_key_stays_refused(world: World) -> None:
    """No retry makes a key usable that cannot be opened safely."""
    world.put("line\nbreak.mp4")
    assert next(iter(world.decisions(retry=(ErrorCode.BAD_KEY,)).values()))[0] == "refuse"


def test_a_night_that_did_not_come_to_a_video_is_no_attempt(world: World) -> None:
    """Otherwise short nights would use up the attempts of a video that nobody ever tried."""
    world.put("later.mp4")
    world.put("now.mp4")
    for _ in range(5):
        world.publish(deferred=("later.mp4",))
        assert world.decisions()["later.mp4"] == ("decode", "deferred by an earlier run")
    world.publish()
    assert world.decisions()["later.mp4"] == ("skip", "unchanged")


def test_what_was_deferred_comes_first(world: World) -> None:
    """Before larger new videos: under a deadline every night, small ones would else never have their turn."""
    world.put("small.mp4", b"1")
    world.put("large.mp4", b"1" * 100)
    world.publish(deferred=("small.mp4",))
    world.put("larger.mp4", b"1" * 1000)
    assert world.plan().rows(Action.DECODE).column("key").to_pylist() == ["small.mp4", "larger.mp4"]


def test_the_first_failure_is_remembered_across_a_deferred_night(world: World) -> None:
    """Until it is tagged: a later failure of another reading begins a new history."""
    world.put("a.mp4")
    world.publish({"a.mp4": True})
    world.publish(deferred=("a.mp4",))
    (row,) = world.plan().rows(Action.DECODE).to_pylist()
    assert (row["attempts"], row["first_failed_at"]) == (1, NOW + timedelta(days=1))
    world.publish()
    (row,) = world.plan(Versions("features-2", "model-1", "taxonomy-1")).rows(Action.DECODE).to_pylist()
    assert (row["attempts"], row["first_failed_at"]) == (0, None)


def test_a_sidecar_with_an_unreadable_name_is_not_a_sidecar(world: World) -> None:
    """Its escaped key cannot be opened; the video must not suffer for it."""
    world.put("film.mp4")
    world.put("film.\x01.srt", b"subtitles")
    assert world.plan().rows(Action.DECODE).column("sidecars").to_pylist() == [[]]


def test_older_tags_of_the_same_content_are_remembered(world: World) -> None:
    """Only a video whose present content was tagged may be deferred instead of quarantined."""
    world.put("a.mp4")
    world.put("b.mp4")
    assert not any(world.plan().rows(Action.DECODE).column("has_tags").to_pylist())
    world.publish()
    world.put("b.mp4", b"other bytes")
    rows = world.plan(Versions("features-2", "model-1", "taxonomy-1")).rows(Action.DECODE).to_pylist()
    assert {row["key"]: row["has_tags"] for row in rows} == {"a.mp4": True, "b.mp4": False}


def test_a_deleted_video_that_comes_back_is_new(world: World) -> None:
    """Gone is a state, not a grave."""
    world.put("a.mp4")
    world.put("keeper.mp4")
    world.publish()
    (world.archive / "a.mp4").unlink()
    assert world.decisions()["a.mp4"][0] == "gone"


def test_empty_archive_is_refused(world: World) -> None:
    """An unmounted disk must not mark the whole archive as gone."""
    world.put("readme.txt")
    with pytest.raises(ConfigError, match=r"archive\.uri .* no media objects"):
        world.plan()


def test_another_archive_is_refused(world: World, tmp_path: Path) -> None:
    """Two archives in one output would each mark the videos of the other as gone; a moved archive may come back."""
    world.put("a.mp4")
    world.publish()
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.mp4").write_bytes(b"video")
    world.archive = other
    with pytest.raises(ConfigError, match=r"archive\.uri .*no object is in both; choose another output\.uri"):
        world.plan()
    (other / "a.mp4").write_bytes(b"bytes")
    assert world.decisions()["b.mp4"] == ("decode", "new")


def test_keys_that_cannot_be_shown_are_refused_not_opened(world: World) -> None:
    """A key with control characters goes to quarantine by name."""
    world.put("line\nbreak.mp4")
    decisions = world.decisions()
    assert list(decisions.values()) == [("refuse", "bad_key")]
    assert "\n" not in next(iter(decisions))


def test_videos_in_an_unreadable_folder_are_not_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A permission slip on one folder must not delete its videos from the tables."""
    world.put("a.mp4")
    world.put("locked/b.mp4")
    world.publish()
    scandir = os.scandir

    def locked(path: str) -> object:
        if str(path).rstrip("/").endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    plan = world.plan()
    assert plan.unreadable_folders == 1
    assert plan.count(Action.GONE) == 0
    assert "1 folders could not be read" in plan.describe()


def test_escaped_key_does_not_take_over_a_plain_one(world: World) -> None:
    """A key whose escaped form reads like another key stays a file of its own."""
    world.put("a\\x01.mp4")
    world.put("a\x01.mp4")
    plan = world.plan()
    assert plan.listed == 2
    assert (plan.count(Action.DECODE), plan.count(Action.REFUSE)) == (1, 1)


def test_work_is_ordered_largest_first(world: World) -> None:
    """Longest work first keeps the end of a run short."""
    for key, size in (("small.mp4", 10), ("large.mp4", 1000), ("middle.mp4", 100)):
        world.put(key, b"x" * size)
    keys = world.plan().rows(Action.DECODE).column("key").to_pylist()
    assert keys == ["large.mp4", "middle.mp4", "small.mp4"]


def test_planned_videos_are_the_rows_of_the_plan(tmp_path: Path) -> None:
    """A mapping in the plan's order that keeps columns; any of its rows, several of them in another order."""
    world = World(tmp_path)
    for k in range(5):
        world.put(f"{k}.mp4", bytes(10 * (k + 1)))
    world.put("1.srt", b"1\n00:00:01,000 --> 00:00:02,000\nx\n")
    rows = world.plan().rows(Action.DECODE)
    planned = PlannedVideos(pa.concat_tables([rows.slice(0, 2), rows.slice(2)]))
    expected = {row["video_id"]: row for row in rows.to_pylist()}
    assert list(planned) == list(expected)
    assert dict(planned) == expected
    assert any(row["sidecars"] for row in expected.values()), "a nested column is among what is compared"
    some = [list(expected)[i] for i in (3, 0, 4)]
    assert planned.of(some).to_pylist() == [expected[v] for v in some]
    assert planned.fingerprints == {v: row["fingerprint"] for v, row in expected.items()}
    with pytest.raises(KeyError):
        planned["not there"]
    assert not PlannedVideos(rows.slice(0, 0))
