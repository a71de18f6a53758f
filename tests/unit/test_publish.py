"""Publishing is all or nothing: readers see a run whole or not at all, wherever it stops."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vca.core.errors import ConfigError, PublishError
from vca.core.schemas import TABLES
from vca.core.storage import StorageConfig
from vca.media.output import Output, OutputConfig
from vca.pipelines import publish as publish_module
from vca.pipelines.publish import Spool, publish, recover, stage_tables
from vca.tables.manifest import CURRENT, OutputReader, open_output
from vca.tables.query import query

RUN_1, RUN_2, RUN_3 = (f"2026010{day}T020000Z-00000{day}" for day in (1, 2, 3))
NOW = datetime(2026, 1, 2, tzinfo=UTC)
VERSIONS = {"feature_set": "f", "model_version": "m", "taxonomy_version": "t"}


def video(video_id: str, run_id: str, key: str | None = None) -> dict[str, Any]:
    return dict.fromkeys(TABLES["videos"].schema.names) | {
        "video_id": video_id,
        "key": key or f"{video_id}.mp4",
        "run_id": run_id,
        "uri": video_id,
        "fingerprint": "f",
        "status": "tagged",
        "attempts": 1,
        "size_bytes": 1,
        "tagged_at": NOW,
    }


def shot(video_id: str, run_id: str, index: int) -> dict[str, Any]:
    return {
        "video_id": video_id,
        "key": f"{video_id}.mp4",
        "run_id": run_id,
        "shot_index": index,
        "start_s": float(index),
        "end_s": index + 1.0,
    }


def embedding(video_id: str) -> dict[str, Any]:
    return {"video_id": video_id, "key": f"{video_id}.mp4", "run_id": RUN_1, "embedding": [0.5] * 10}


def run(output: Output, reader: OutputReader, run_id: str, videos: list[str], work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    spool = Spool(work)
    rows = [video(v, run_id) for v in videos]
    spool.add("videos", pa.Table.from_pylist(rows, schema=TABLES["videos"].schema))
    shots = [shot(v, run_id, i) for v in videos for i in (1, 0)]
    spool.add("shots", pa.Table.from_pylist(shots, schema=TABLES["shots"].schema))
    staged = stage_tables(spool, output, run_id, work)
    current = reader.current()
    planned_on = current.run_id if current else None
    publish(output, reader, planned_on, staged, run_id, NOW, VERSIONS, {"tagged": len(videos)})


class Stopped(BaseException):
    """Stands for a killed process: nothing after it runs."""


class StoppingOutput(Output):
    """An output whose process dies before the n-th change of the storage."""

    def __init__(self, config: OutputConfig, stop_before: int) -> None:
        super().__init__(config)
        self._left = stop_before

    def _count(self) -> None:
        if self._left == 0:
            raise Stopped
        self._left -= 1

    def write_bytes(self, relative: str, data: bytes) -> None:
        self._count()
        super().write_bytes(relative, data)

    def open_write(self, relative: str) -> Any:
        self._count()
        return super().open_write(relative)

    def move(self, source_relative: str, target_relative: str) -> None:
        self._count()
        super().move(source_relative, target_relative)

    def delete_tree(self, relative: str) -> None:
        self._count()
        super().delete_tree(relative)


def visible(reader: OutputReader) -> list[tuple[str, str]]:
    if reader.current() is None:
        return []
    table = query(reader, "SELECT video_id, run_id FROM videos ORDER BY ALL")
    return list(zip(table.column("video_id").to_pylist(), table.column("run_id").to_pylist(), strict=True))


def test_rows_are_sorted_and_counted(tmp_path: Path) -> None:
    """Files are sorted for pruning and the manifest says what is in them."""
    output, reader = Output(OutputConfig(uri=str(tmp_path / "o"))), open_output(str(tmp_path / "o"), StorageConfig())
    run(output, reader, RUN_1, ["b", "a"], tmp_path / "w")
    manifest = reader.current()
    assert manifest is not None
    assert (manifest.tables["videos"].rows, manifest.tables["shots"].rows) == (2, 4)
    shots = pq.read_table(reader.files("shots")[0])
    assert shots.schema.equals(TABLES["shots"].schema)
    assert shots.column("key").to_pylist() == ["a.mp4", "a.mp4", "b.mp4", "b.mp4"]
    assert shots.column("shot_index").to_pylist() == [0, 1, 0, 1]
    assert not output.list("staging")


def test_stop_at_every_step_then_recover(tmp_path: Path) -> None:
    """A run that dies at any change of the storage is invisible or whole, and the next night ends the same."""
    old, new = [("a", RUN_1), ("b", RUN_1)], [("a", RUN_1), ("b", RUN_2), ("c", RUN_2)]
    seen = set()
    first_night = str(tmp_path / "first")
    run(Output(OutputConfig(uri=first_night)), open_output(first_night, StorageConfig()), RUN_1, ["a", "b"], tmp_path)
    for stop_before in range(100):
        root = tmp_path / str(stop_before)
        uri = str(root / "o")
        shutil.copytree(first_night, uri)
        output, reader = Output(OutputConfig(uri=uri)), open_output(uri, StorageConfig())
        try:
            run(StoppingOutput(OutputConfig(uri=uri), stop_before), reader, RUN_2, ["b", "c"], root / "w2")
        except Stopped:
            pass
        else:
            break
        assert visible(reader) in (old, new), "readers never see half a run"
        seen.add(("stopped", visible(reader) == new))
        recover(output, reader)
        seen.add(("recovered", visible(reader) == new))
        assert output.list("staging") == []
        if visible(reader) == old:
            run(output, reader, RUN_3, ["b", "c"], root / "w3")
            assert visible(reader) == [("a", RUN_1), ("b", RUN_3), ("c", RUN_3)]
        else:
            assert visible(reader) == new
    assert stop_before >= 8, "the sweep went through staging, moves, both manifests and the clean-up"
    assert seen == {(when, whole) for when in ("stopped", "recovered") for whole in (False, True)}


def test_published_files_are_never_touched_again(tmp_path: Path) -> None:
    """A path under tables/ only ever holds published rows, and a later run adds files beside them."""
    uri = str(tmp_path / "o")
    output, reader = Output(OutputConfig(uri=uri)), open_output(uri, StorageConfig())
    run(output, reader, RUN_1, ["a"], tmp_path / "w1")
    before = {f: Path(f).read_bytes() for f in reader.files("videos")}
    run(output, reader, RUN_2, ["a"], tmp_path / "w2")
    assert {f: Path(f).read_bytes() for f in before} == before
    assert visible(reader) == [("a", RUN_2)]


def test_doubled_video_is_refused(tmp_path: Path) -> None:
    """Two rows for one video in one run are a bug that must not reach the tables."""
    spool = Spool(tmp_path)
    rows = [video("a", RUN_1), video("a", RUN_1)]
    spool.add("videos", pa.Table.from_pylist(rows, schema=TABLES["videos"].schema))
    with pytest.raises(PublishError, match="a has 2 rows"):
        stage_tables(spool, Output(OutputConfig(uri=str(tmp_path / "o"))), RUN_1, tmp_path)


def test_rows_that_do_not_fit_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small pieces, many files on the driver's disk, small row groups, and more than one published file: what
    comes out is what went in, in order.
    """
    monkeypatch.setattr(publish_module, "SPOOL_BYTES", 20_000)
    monkeypatch.setattr(publish_module, "ROW_GROUP_BYTES", 10_000)
    monkeypatch.setattr(publish_module, "FILE_ROWS", 5_000)
    uri = str(tmp_path / "o")
    output, reader = Output(OutputConfig(uri=uri)), open_output(uri, StorageConfig())
    spool = Spool(tmp_path)
    names = [f"v{n * 37 % 400:03d}" for n in range(400)]
    for first in range(0, 400, 10):
        some = names[first : first + 10]
        for name in some:
            spool.add_row("videos", video(name, RUN_1))
        shots = [shot(v, RUN_1, i) for v in some for i in range(20)]
        spool.add("shots", pa.Table.from_pylist(shots, schema=TABLES["shots"].schema))
    assert len(spool.files("shots")) > 10
    staged = stage_tables(spool, output, RUN_1, tmp_path)
    publish(output, reader, None, staged, RUN_1, NOW, VERSIONS, {"tagged": 400})
    files = reader.files("shots")
    assert len(files) == 2
    assert pq.ParquetFile(files[0]).metadata.row_group(0).num_rows < 300
    found = pa.concat_tables([pq.read_table(file) for file in files])
    assert found.select(["video_id", "shot_index"]).to_pylist() == [
        {"video_id": name, "shot_index": i} for name in sorted(names) for i in range(20)
    ]
    assert query(reader, "SELECT key FROM videos ORDER BY key").column(0).to_pylist() == [
        f"{n}.mp4" for n in sorted(names)
    ]


def test_a_sort_that_runs_out_of_memory_gets_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that keeps the driver small must not cost a night its tables."""
    monkeypatch.setattr(publish_module, "SORT_MEMORY", ("1MB", "80%"))
    spool = Spool(tmp_path)
    wide = pa.array([[float(n)] * 1000 for n in range(2000)], TABLES["video_embeddings"].schema.field("embedding").type)
    ids = [f"v{n * 7 % 2000:04d}" for n in range(2000)]
    rows = pa.table({"video_id": ids, "key": ids, "run_id": [RUN_1] * 2000, "embedding": wide})
    spool.add("video_embeddings", rows.cast(TABLES["video_embeddings"].schema))
    uri = str(tmp_path / "o")
    (file,) = stage_tables(spool, Output(OutputConfig(uri=uri)), RUN_1, tmp_path)["video_embeddings"]
    staged = pq.read_table(tmp_path / "o" / "staging" / RUN_1 / file.path, partitioning=None)
    assert staged == rows.cast(TABLES["video_embeddings"].schema).sort_by("key")
    monkeypatch.setattr(publish_module, "SORT_MEMORY", ("1MB",))
    with pytest.raises(duckdb.OutOfMemoryException):
        stage_tables(spool, Output(OutputConfig(uri=uri)), RUN_2, tmp_path)


class RowsThatRunOut:
    """A relation of DuckDB whose memory ends while its rows are fetched, which pyarrow reports in words of its own."""

    def from_parquet(self, _: list[str]) -> "RowsThatRunOut":
        return self

    def query(self, *_: str) -> "RowsThatRunOut":
        return self

    def to_arrow_reader(self, _: int) -> Iterator[pa.RecordBatch]:
        raise OSError("Out of Memory Error: failed to pin block of size 256.0 KiB (121.9 MiB/122.0 MiB used)")
        yield


def test_memory_that_ends_while_rows_are_fetched() -> None:
    """Seen with a million videos: it must be known as what it is, or the sort does not get more."""
    rows = publish_module._sorted_batches(cast(Any, RowsThatRunOut()), TABLES["shots"], [], 10)
    with pytest.raises(duckdb.OutOfMemoryException):
        next(rows)


def test_no_table_holds_on_to_the_rest_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are cut out of larger tables without a copy: a table that grows slowly must not keep all of those alive."""
    monkeypatch.setattr(publish_module, "SPOOL_BYTES", 100_000)
    spool = Spool(tmp_path)
    shots = pa.Table.from_pylist([shot("a", RUN_1, i) for i in range(5000)], schema=TABLES["shots"].schema)
    spool.add("video_embeddings", pa.Table.from_pylist([embedding("a")], schema=TABLES["video_embeddings"].schema))
    before = len(list(tmp_path.iterdir()))
    spool.add("shots", shots)
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {"video_embeddings", "shots"}
    assert before == 0
    assert (spool.rows["video_embeddings"], spool.rows["shots"]) == (1, 5000)


def test_a_stale_plan_is_not_published(tmp_path: Path) -> None:
    """Two runs at once: the second to finish was planned on tables that have changed, so it publishes nothing."""
    uri = str(tmp_path / "o")
    output, reader = Output(OutputConfig(uri=uri)), open_output(uri, StorageConfig())
    run(output, reader, RUN_1, ["a"], tmp_path / "w1")
    with pytest.raises(PublishError, match="was published meanwhile"):
        publish(output, reader, None, {name: [] for name in TABLES}, RUN_2, NOW, VERSIONS, {})
    assert visible(reader) == [("a", RUN_1)]


def test_recovery_leaves_foreign_folders_alone(tmp_path: Path) -> None:
    """An output may lie beside other things: only folders that carry the name of a run are cleaned."""
    uri = str(tmp_path / "o")
    output, reader = Output(OutputConfig(uri=uri)), open_output(uri, StorageConfig())
    output.write_bytes("staging/holiday/film.mp4", b"video")
    output.write_bytes(f"staging/{RUN_1}/tables/part", b"left by a killed run")
    unfinished = tmp_path / "o" / "staging" / RUN_2 / "tables"
    unfinished.mkdir(parents=True)
    (unfinished / ".vca-tmp-1").write_bytes(b"a file that was being written")
    recover(output, reader)
    assert output.folders("staging") == ("holiday",)
    assert not unfinished.exists(), "also what only holds unfinished files goes"


def stopped(tmp_path: Path, uri: str, run_id: str, videos: list[str], *, before: str) -> OutputReader:
    """An output whose run was killed right before it moved its first file, or wrote its manifest or the pointer."""

    class Killed(Output):
        def move(self, source_relative: str, target_relative: str) -> None:
            if before == "move":
                raise Stopped
            super().move(source_relative, target_relative)

        def write_bytes(self, relative: str, data: bytes) -> None:
            if relative.startswith("manifests/") and (before == "manifest" or relative == CURRENT):
                raise Stopped
            super().write_bytes(relative, data)

    reader = open_output(uri, StorageConfig())
    with pytest.raises(Stopped):
        run(Killed(OutputConfig(uri=uri)), reader, run_id, videos, tmp_path / run_id)
    return reader


@pytest.mark.parametrize("before", ["move", "manifest"])
def test_a_complete_run_of_an_older_state_is_dropped(tmp_path: Path, before: str) -> None:
    """Its manifest knows nothing of what was published since: finishing it would take those rows away."""
    uri = str(tmp_path / "o")
    output, reader = Output(OutputConfig(uri=uri)), open_output(uri, StorageConfig())
    run(output, reader, RUN_1, ["a"], tmp_path / "w1")
    stopped(tmp_path, uri, RUN_3, ["c"], before=before)  # it began last and was killed first
    run(output, reader, RUN_2, ["b"], tmp_path / "w2")
    assert recover(output, reader) is None
    assert visible(reader) == [("a", RUN_1), ("b", RUN_2)]
    assert not [name for name in output.list() if RUN_3 in name], "nothing of it is left, in tables neither"


def test_of_two_complete_runs_the_first_is_finished(tmp_path: Path) -> None:
    """Both were planned on the same state: the second does not know the rows of the first."""
    uri = str(tmp_path / "o")
    output, reader = Output(OutputConfig(uri=uri)), open_output(uri, StorageConfig())
    stopped(tmp_path, uri, RUN_1, ["a"], before="move")
    stopped(tmp_path, uri, RUN_2, ["b"], before="move")
    assert recover(output, reader) == RUN_1
    assert visible(reader) == [("a", RUN_1)]
    assert not [name for name in output.list() if RUN_2 in name]


@pytest.mark.parametrize("damage", ["a file is lost", "the manifest is damaged"])
def test_what_cannot_be_finished_is_made_again(tmp_path: Path, damage: str) -> None:
    """Every night would stop at it otherwise."""
    uri = str(tmp_path / "o")
    output, reader = Output(OutputConfig(uri=uri)), open_output(uri, StorageConfig())
    stopped(tmp_path, uri, RUN_1, ["a"], before="move")
    if damage == "a file is lost":
        output.delete(next(name for name in output.list("staging") if "shots" in name))
    else:
        output.write_bytes(f"staging/{RUN_1}/manifest.json", b"{}")
    assert recover(output, reader) is None
    assert output.list() == []
    run(output, reader, RUN_2, ["a"], tmp_path / "w2")
    assert visible(reader) == [("a", RUN_2)]


def test_a_published_run_keeps_its_files_when_its_staging_is_cleaned(tmp_path: Path) -> None:
    """Killed between the swap and the end: the leftovers go, the rows stay."""
    uri = str(tmp_path / "o")
    output, reader = Output(OutputConfig(uri=uri)), open_output(uri, StorageConfig())
    run(output, reader, RUN_1, ["a"], tmp_path / "w1")
    manifest = reader.current()
    assert manifest is not None
    output.write_bytes(f"staging/{RUN_1}/manifest.json", manifest.to_json().encode())
    assert recover(output, reader) is None
    assert visible(reader) == [("a", RUN_1)]
    assert output.list("staging") == []


def test_unfinished_files_of_a_killed_run_go(tmp_path: Path) -> None:
    """A file that was being written has no other trace; it would lie there for ever."""
    uri = str(tmp_path / "o")
    output, reader = Output(OutputConfig(uri=uri)), open_output(uri, StorageConfig())
    for folder in ("", "manifests/", "features/f/", "features/imported/"):
        path = tmp_path / "o" / folder / ".vca-tmp-1"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    recover(output, reader, "features/f")
    assert [path.parent.name for path in (tmp_path / "o").rglob(".vca-tmp-*")] == ["imported"], "that of somebody else"


def test_a_lost_pointer_is_no_empty_output(tmp_path: Path) -> None:
    """The next run would publish without a parent, and the rows of all runs before would be out of sight."""
    uri = str(tmp_path / "o")
    output, reader = Output(OutputConfig(uri=uri)), open_output(uri, StorageConfig())
    run(output, reader, RUN_1, ["a"], tmp_path / "w1")
    output.delete("manifests/current.json")
    with pytest.raises(ConfigError, match=f"current.json is missing.*{RUN_1}"):
        recover(output, reader)


def test_killed_before_the_first_pointer_ever(tmp_path: Path) -> None:
    """Its own manifest lies there without a pointer, which is not a lost one."""
    uri = str(tmp_path / "o")
    reader = stopped(tmp_path, uri, RUN_1, ["a"], before="pointer")
    assert (reader.runs(), reader.current()) == ([RUN_1], None)
    assert recover(Output(OutputConfig(uri=uri)), reader) == RUN_1
    assert visible(reader) == [("a", RUN_1)]
