import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tables import RUN_IDS, make_output, write_run
from vca.core.errors import ConfigError
from vca.core.storage import StorageConfig
from vca.tables.manifest import (
    Manifest,
    ManifestFile,
    ManifestTable,
    OutputReader,
    Pointer,
    open_output,
    table_file_path,
)


def manifest(**changes: Any) -> Manifest:
    file = ManifestFile(path="tables/videos/run_id=r1/part-00000.parquet", run_id="r1", rows=2, size_bytes=10)
    values: dict[str, Any] = {
        "run_id": "r1",
        "created_at": datetime(2026, 11, 1, tzinfo=UTC),
        "feature_set": "f",
        "model_version": "m",
        "taxonomy_version": "t",
        "counts": {"tagged": 2},
        "tables": {"videos": ManifestTable(rows=2, files=(file,))},
    }
    return Manifest(**(values | changes))


def edited(**changes: Any) -> str:
    return json.dumps(json.loads(manifest().to_json()) | changes)


def with_file(**changes: Any) -> str:
    values = json.loads(manifest().to_json())
    values["tables"]["videos"]["files"][0] |= changes
    return json.dumps(values)


def test_round_trip() -> None:
    """What a publisher writes, a reader reads; times are UTC and marked so."""
    text = manifest().to_json()
    assert Manifest.from_json(text, "here") == manifest()
    assert json.loads(text)["created_at"] == "2026-11-01T00:00:00Z"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("\udcff".encode("utf-8", "surrogateescape"), "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "format None is unknown"),
        (edited(format=2), "format 2 is unknown, this version reads 1; install a newer vca"),
        (edited(format="1"), "format '1' is unknown"),
        (edited(surprise=1), "surprise"),
        (edited(created_at="2026-11-01T00:00:00"), "created_at"),
        (edited(parent="r1"), "its own parent"),
        (edited(counts={"tagged": -1}), "counts.tagged"),
        (edited(counts={"tagged": "2"}), "counts.tagged"),
        (with_file(rows=3), "the files hold 3"),
        (with_file(run_id="../r1"), "run_id"),
        (with_file(run_id="r2"), "not of the form"),
    ],
)
def test_damaged_manifest_is_one_line(text: str | bytes, says: str) -> None:
    """A foreign or damaged manifest is refused with its place and the reason, never half read."""
    with pytest.raises(ConfigError) as caught:
        Manifest.from_json(text, "out/manifests/r1.json")
    message = str(caught.value)
    assert says in message
    assert message.startswith("out/manifests/r1.json: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../other/part-00000.parquet",
        "tables/videos/run_id=r1/../../../secret.parquet",
        "tables/videos/run_id=r1/..parquet",
        "tables/videos/run_id=r1//part-00000.parquet",
        "tables/shots/run_id=r1/part-00000.parquet",
        "tables/videos/run_id=r1/*.parquet",
        "tables/videos/run_id=r1/part-0000[0-9].parquet",
        "tables/videos/run_id=r1/x']); COPY (SELECT 1) TO 'y.parquet",
        "s3://bucket/tables/videos/run_id=r1/part-00000.parquet",
        "file:///etc/passwd.parquet",
        "staging/r1/tables/videos/run_id=r1/part-00000.parquet",
    ],
)
def test_paths_stay_inside(path: str) -> None:
    """A manifest cannot name a file outside its table, a pattern, or a piece of SQL."""
    with pytest.raises(ConfigError, match="not of the form"):
        Manifest.from_json(with_file(path=path), "here")


@given(st.text(max_size=60))
def test_no_text_is_a_path_but_the_one_form(text: str) -> None:
    """Whatever stands in the place of the file name, an accepted path has no separators, quotes or patterns."""
    path = table_file_path("videos", "r1", text)
    try:
        read = Manifest.from_json(with_file(path=path), "here")
    except ConfigError:
        return
    name = read.files("videos")[0].path.rpartition("=r1/")[2]
    assert name.endswith(".parquet")
    assert not set(name) & set("/\\'\"*?[]{}; \n")


def test_same_path_twice_is_refused() -> None:
    """A file listed twice would double its rows."""
    values = json.loads(manifest().to_json())
    values["tables"]["videos"]["files"] *= 2
    values["tables"]["videos"]["rows"] = 4
    with pytest.raises(ConfigError, match="listed twice"):
        Manifest.from_json(json.dumps(values), "here")


@pytest.mark.parametrize("run_id", ["", "current", "../up", "a/b", "a b", "-x", "x" * 101])
def test_pointer_names_a_run(run_id: str) -> None:
    """`current.json` leads to a run's manifest and nowhere else."""
    with pytest.raises(ConfigError):
        Pointer.from_json(json.dumps({"format": 1, "run_id": run_id, "manifest": f"manifests/{run_id}.json"}), "here")
    with pytest.raises(ConfigError, match="is not"):
        Pointer.from_json(json.dumps({"format": 1, "run_id": "r1", "manifest": "../r1.json"}), "here")


def test_reader_follows_the_pointer(tmp_path: Path) -> None:
    """The current manifest is cumulative, old ones stay readable, and a rollback is one small file."""
    make_output(tmp_path)
    reader = open_output(str(tmp_path), StorageConfig())
    current = reader.current()
    assert current is not None
    assert current.run_id == RUN_IDS[3]
    assert current.parent == RUN_IDS[2]
    assert reader.runs() == RUN_IDS
    assert [file.run_id for file in current.files("videos")] == RUN_IDS
    assert reader.files("videos") == [
        str(tmp_path / f"tables/videos/run_id={run}/part-00000.parquet") for run in RUN_IDS
    ]
    assert all(Path(path).is_file() for path in reader.files("event_spans"))
    assert reader.files("no_such_table") == []
    (tmp_path / "manifests/current.json").write_text(Pointer.to(RUN_IDS[0]).to_json())
    assert reader.manifest(RUN_IDS[1]).run_id == RUN_IDS[1]
    assert [file.run_id for file in reader.current().files("videos")] == RUN_IDS[:1]  # type: ignore[union-attr]
    assert reader.runs() == RUN_IDS


def test_reader_of_nothing(tmp_path: Path) -> None:
    """Before the first run there is nothing, which is not an error."""
    reader = open_output(str(tmp_path / "missing"), StorageConfig())
    assert reader.current() is None
    assert reader.runs() == []
    assert reader.files("videos") == []


def test_reader_errors_name_the_file(tmp_path: Path) -> None:
    """A pointer to a lost manifest, a swapped manifest and an unknown run are told apart in one line."""
    write_run(tmp_path, "r1", {})
    write_run(tmp_path, "r2", {})
    reader = open_output(str(tmp_path), StorageConfig())
    with pytest.raises(ConfigError, match=r"r9.json: no such run; newest: r1, r2"):
        reader.manifest("r9")
    with pytest.raises(ConfigError, match="a run id is"):
        reader.manifest("../../etc/passwd")
    (tmp_path / "manifests/r1.json").write_bytes((tmp_path / "manifests/r2.json").read_bytes())
    with pytest.raises(ConfigError, match="holds run 'r2'"):
        reader.manifest("r1")
    (tmp_path / "manifests/r2.json").unlink()
    with pytest.raises(ConfigError, match=r"manifests/r2\.json: no such run"):
        reader.current()


def test_strangers_in_the_manifest_folder_are_not_runs(tmp_path: Path) -> None:
    """Temporary files of a swap and notes of people do not become runs."""
    write_run(tmp_path, "r1", {})
    for name in (".r2.json.tmp", "r3.json.part", "read me.json", "current.json.bak"):
        (tmp_path / "manifests" / name).write_text("{}")
    assert open_output(str(tmp_path), StorageConfig()).runs() == ["r1"]


@pytest.mark.parametrize("uri", ["", "ftp://host/x", "s3://", "s3://key:secret@bucket/x"])
def test_bad_locations(uri: str) -> None:
    """A location that cannot work is refused before any request."""
    with pytest.raises(ConfigError, match="output"):
        open_output(uri, StorageConfig())


def test_unreachable_storage_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback of an HTTP client reaches a user."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    storage = StorageConfig(endpoint_url="http://127.0.0.1:9", max_attempts=1, connect_timeout_s=2)
    with pytest.raises(ConfigError, match="check the address") as caught:
        open_output("s3://bucket/out", storage).current()
    assert "\n" not in str(caught.value)


def test_words_of_the_server_are_not_repeated() -> None:
    """Servers write signed addresses and account names into their messages: only class, errno and code are shown."""
    refused = PermissionError(13, "SECRET account 42")
    refused.__cause__ = _answered("AccessDenied")
    hostile = OSError("SECRET")
    hostile.__cause__ = _answered("SECRET\nline")
    for error, said in ((refused, "PermissionError, Permission denied, AccessDenied"), (hostile, "OSError")):
        reader = OutputReader("s3://b/out", _Failing(error), "b/out")
        with pytest.raises(ConfigError) as caught:
            reader.current()
        address = "s3://b/out/manifests/current.json"
        assert str(caught.value) == f"{address}: {said}; check the address and the storage settings"


def _answered(code: str) -> Exception:
    error = Exception("SECRET")
    error.response = {"Error": {"Code": code}}  # type: ignore[attr-defined]
    return error


class _Failing:
    """A storage that answers every read with one error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def cat_file(self, path: str) -> bytes:
        raise self.error from self.error.__cause__
