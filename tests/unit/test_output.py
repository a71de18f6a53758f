"""Results on a local disk: nothing half-written, nothing outside the root, nothing made by a pre-flight."""

import os
import pickle
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vca.core.errors import ConfigError
from vca.media.output import Output, OutputConfig


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(OutputConfig(uri=str(tmp_path / "results/")))


def everything(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def test_check_writable_makes_nothing(tmp_path: Path) -> None:
    """A failed pre-flight must leave the disk as it was; so must one that passes."""
    Output(OutputConfig(uri=str(tmp_path / "a/b/c"))).check_writable()
    Output(OutputConfig(uri=str(tmp_path))).check_writable()
    assert everything(tmp_path) == []


def test_check_writable_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with the field, the value and the way out."""
    (tmp_path / "file").touch()
    (tmp_path / "dead").symlink_to("nowhere")
    for path in ("file", "file/below", "dead"):
        with pytest.raises(ConfigError, match="no folder") as caught:
            Output(OutputConfig(uri=str(tmp_path / path))).check_writable()
        assert str(caught.value).startswith(f"output.uri = '{tmp_path / path}': ")
    asked: list[str] = []

    def refuse(path: Path, mode: int) -> bool:  # not by file mode: root writes everywhere
        asked.append(str(path))
        assert mode == os.W_OK | os.X_OK
        return False

    monkeypatch.setattr("os.access", refuse)
    with pytest.raises(ConfigError, match="may not write there"):
        Output(OutputConfig(uri=str(tmp_path / "x/y"))).check_writable()
    assert asked == [str(tmp_path)], "the nearest folder that exists decides"


def test_write_read_list_delete(output: Output) -> None:
    """The round trip, with replacement, and deletions that may be repeated."""
    assert output.list() == []
    output.write_bytes("tables/b.json", b"old")
    output.write_bytes("tables/b.json", b"new")
    output.write_bytes("tables/a/x.bin", b"")
    assert output.read_bytes("tables/b.json") == b"new"
    assert output.list("tables") == ["tables/a/x.bin", "tables/b.json"]
    assert output.list("tab") == [], "a folder, not the start of a name"
    assert output.exists("tables/b.json")
    assert output.exists("tables/a")
    assert not output.exists("tables/c")
    output.delete("tables/b.json")
    output.delete("tables/b.json")
    output.delete_tree("tables")
    output.delete_tree("tables")
    assert output.list() == []
    with pytest.raises(FileNotFoundError, match=r"output: no such file: tables/b\.json"):
        output.read_bytes("tables/b.json")
    with pytest.raises(AssertionError):
        output.delete_tree("")


def test_files_are_readable_by_others(output: Output) -> None:
    """Temporary files of the standard library are private; results follow the umask."""
    output.write_bytes("a", b"x")
    before = os.umask(0)
    os.umask(before)
    assert stat.S_IMODE(Path(output.path("a")).stat().st_mode) == 0o666 & ~before


def test_open_write_appears_whole_or_not_at_all(output: Output) -> None:
    """While the block runs, and if it raises, readers see the old file and listings see nothing new."""
    output.write_bytes("t/a", b"old")
    with output.open_write("t/a") as file:
        file.write(b"new")
        file.flush()
        assert output.read_bytes("t/a") == b"old"
        assert output.list() == ["t/a"]
    assert output.read_bytes("t/a") == b"new"

    def interrupted() -> None:
        with output.open_write("t/a") as file:
            file.write(b"broken")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(ZeroDivisionError), output.open_write("t/b"):
        raise ZeroDivisionError
    assert output.read_bytes("t/a") == b"new"
    assert everything(Path(output.root)) == ["t", "t/a"], "no temporary file is left"


def test_open_write_keeps_the_callers_own_errors(output: Output) -> None:
    """An error of the block is the caller's; it is not dressed up as a storage failure."""
    with pytest.raises(FileNotFoundError, match="mine"), output.open_write("a"):
        raise FileNotFoundError("mine")


def test_failed_replacement_leaves_the_old_file(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails at the last step costs the new file, not the old one."""
    output.write_bytes("a", b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "/machine/path")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left on the disk") as caught:
        output.write_bytes("a", b"new")
    assert "/machine/path" not in str(caught.value)
    assert output.read_bytes("a") == b"old"
    assert everything(Path(output.root)) == ["a"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, the disk that is always full")
@pytest.mark.parametrize("method", ["flush", "close"])
def test_a_full_disk_inside_the_block(output: Output, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """What writing raises inside the block is as clean as what the end of the block raises."""
    real = Path.open

    def full(path: Path, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
        return real(Path("/dev/full"), "wb") if mode == "xb" else real(path, mode, *arguments, **settings)

    monkeypatch.setattr(Path, "open", full)

    def write() -> None:
        with output.open_write("a") as file:
            file.write(b"abc")
            getattr(file, method)()
            raise AssertionError("the failure is that of the file, not of the end of the block")

    with pytest.raises(OSError, match=r"^output: no space left on the disk: a$"):
        write()


def test_parquet_through_open_write_and_filesystem(output: Output) -> None:
    """pyarrow may close the file itself, and reads through the fsspec filesystem."""
    table = pa.table({"x": list(range(1000))})
    with output.open_write("t/part-0.parquet") as file, pq.ParquetWriter(file, table.schema) as writer:
        writer.write_table(table)
    with output.open_write("t/part-1.parquet") as file:
        pq.write_table(table, file)
        file.close()
    for part in output.list("t"):
        assert pq.read_table(output.path(part), filesystem=output.filesystem).equals(table)


def test_move(output: Output) -> None:
    """A move replaces its target and needs its source."""
    output.write_bytes("staging/r/a", b"abc" * 1000)
    output.write_bytes("tables/t/a", b"old")
    output.move("staging/r/a", "tables/t/a")
    assert output.read_bytes("tables/t/a") == b"abc" * 1000
    assert output.list() == ["tables/t/a"]
    with pytest.raises(FileNotFoundError):
        output.move("staging/r/a", "tables/t/a")


def test_entries_and_delete_files(output: Output) -> None:
    """Sizes and ages of all files, unfinished ones included; folders that become empty go with their last file."""
    before = datetime.now(UTC) - timedelta(seconds=5)
    for name in ("t/a/x", "t/a/.vca-tmp-1", "t/b/c/y"):
        output.write_bytes(name, b"abc")
    found = {entry.path: entry for entry in output.entries("t")}
    assert set(found) == {"t/a/x", "t/a/.vca-tmp-1", "t/b/c/y"}
    assert {entry.size_bytes for entry in found.values()} == {3}
    assert all(before < entry.modified_at < before + timedelta(seconds=60) for entry in found.values())
    assert list(output.entries("nothing")) == []
    output.delete_files(["t/b/c/y", "t/a/x", "t/a/gone"])
    assert everything(Path(output.root)) == ["t", "t/a", "t/a/.vca-tmp-1"]


def test_list_refuses_to_be_short(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be read is an error: a shortened list of results would look complete."""
    output.write_bytes("a/b/c", b"x")
    scandir = os.scandir

    def refuse(path: object) -> object:
        if str(path).endswith("/b"):
            raise PermissionError(13, "denied")
        return scandir(str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(OSError, match="access denied"):
        output.list()


ACTIONS: list[Callable[[Output, str], object]] = [
    lambda output, name: output.path(name),
    lambda output, name: output.write_bytes(name, b""),
    lambda output, name: output.read_bytes(name),
    lambda output, name: output.delete(name),
    lambda output, name: output.delete_tree(name),
    lambda output, name: output.list(name),
    lambda output, name: output.move("a", name),
]


@given(
    st.lists(st.sampled_from(["a", "b", ".", "", "\0"]), max_size=3),
    st.lists(st.sampled_from(["a", "..", ""]), max_size=3),
    st.sampled_from(ACTIONS),
)
def test_no_path_leads_out_of_the_output(
    before: list[str], after: list[str], action: Callable[[Output, str], object]
) -> None:
    """Names can come from a damaged manifest: `..` never gets to the disk."""
    name = "/".join([*before, "..", *after, "x"])
    output = Output(OutputConfig(uri="/nonexistent-vca-output"))
    with pytest.raises(ConfigError, match="not a path inside the output"):
        action(output, name)


def test_pickled_output_keeps_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker in another working directory writes to the same place, given by a relative path."""
    monkeypatch.chdir(tmp_path)
    frozen = pickle.dumps(Output(OutputConfig(uri="results")))
    monkeypatch.chdir("/")
    pickle.loads(frozen).write_bytes("a", b"x")
    assert (tmp_path / "results/a").read_bytes() == b"x"
