"""Two runs on one folder: one works, the other is told who does; a dead run holds nothing."""

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.locks import start_holder
from tests.support.processes import wait_for
from vca.core.errors import ConfigError, PublishError
from vca.media.output import Output, OutputConfig
from vca.media.output_lock import LOCK, output_lock


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(OutputConfig(uri=str(tmp_path / "made/here/out")))


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_the_second_is_told_about_the_first(output: Output) -> None:
    """One line with who, where and since when; the way out; and nothing is touched."""
    with output_lock(output, "run one") as lock:
        before = Path(output.path(LOCK)).read_bytes()
        with pytest.raises(ConfigError) as caught, output_lock(output, "run two"):
            raise AssertionError("two holders")
        assert Path(output.path(LOCK)).read_bytes() == before
        lock.check()
    message = str(caught.value)
    assert message.startswith(f"output.uri = {output.config.uri!r}: in use by run one on {socket.gethostname()} ")
    assert f"process {os.getpid()}" in message
    assert json.loads(before)["since"][:10] in message
    assert message.endswith("wait until that has ended")
    assert "\n" not in message
    with output_lock(output, "run two"):
        pass


def test_nothing_is_left_behind(output: Output, tmp_path: Path) -> None:
    """A run that is refused after it has the lock must leave the disk as it was; a folder with results stays."""
    with pytest.raises(ZeroDivisionError), output_lock(output, "run one"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with output_lock(output, "run two"):
        output.write_bytes("tables/a", b"x")
    assert [path.name for path in Path(output.root).iterdir()] == ["tables"]


def test_of_processes_started_together_one_wins(
    output: Output, tmp_path: Path, holders: list[subprocess.Popen[bytes]]
) -> None:
    """The race is decided by the kernel, and every loser names the winner."""
    names = [f"run-{n}" for n in range(4)]
    holders += [start_holder(output.config, name, tmp_path) for name in names]
    wait_for(lambda: len(list(tmp_path.glob("*.ready"))) == len(names), "all at the start")
    (tmp_path / "go").touch()
    wait_for(lambda: len(list(tmp_path.glob("*.refused"))) == len(names) - 1, "all but one refused")
    wait_for(lambda: list(tmp_path.glob("*.holds")), "the winner")
    (winner,) = (path.stem for path in tmp_path.glob("*.holds"))
    assert all(f"in use by {winner} on " in path.read_text() for path in tmp_path.glob("*.refused"))
    (tmp_path / f"{winner}.end").touch()
    assert [process.wait() for process in holders] == [0] * len(names)
    assert not Path(output.path(LOCK)).exists()


def test_a_dead_holder_holds_nothing(
    output: Output, tmp_path: Path, holders: list[subprocess.Popen[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    """Killed, while a child that inherits what it can lives on: the next takes the lock and says whose it was."""
    (tmp_path / "go").touch()
    (tmp_path / "with-child").touch()
    holders.append(start_holder(output.config, "run dead", tmp_path))
    wait_for((tmp_path / "run dead.holds").exists, "a holder")
    with pytest.raises(ConfigError, match="in use by run dead on"), output_lock(output, "run two"):
        pass
    holders[0].send_signal(signal.SIGKILL)
    holders[0].wait()
    child = psutil.Process(int((tmp_path / "child").read_text()))
    try:
        with caplog.at_level(logging.WARNING), output_lock(output, "run two") as lock:
            lock.check()
        assert child.is_running()
    finally:
        child.kill()
    assert "left by run dead on" in caplog.text
    assert "taken over" in caplog.text


def test_a_lock_file_that_says_nothing(output: Output, caplog: pytest.LogCaptureFixture) -> None:
    """What lies there can be anything: it is no lock unless the kernel says so."""
    for content in (b"", b"{", b"[]" * 5000, b'{"work": 3}', b"\xff\xfe"):
        output.write_bytes(LOCK, content)
        with output_lock(output, "run one"):
            assert json.loads(Path(output.path(LOCK)).read_bytes())["work"] == "run one"
    assert caplog.text.count("cannot be read") == 4, "an empty file says that nobody died"


def test_a_removed_lock_is_noticed_before_publishing(output: Output) -> None:
    """Somebody who deletes the file lets a second run in; the first must not publish any more."""
    with output_lock(output, "run one") as lock:
        Path(output.path(LOCK)).unlink()
        with output_lock(output, "run two") as second:
            with pytest.raises(PublishError, match="was removed while this worked; nothing published"):
                lock.check()
            second.check()


def test_never_two_inside(output: Output) -> None:
    """Taking and giving back at high speed: removing the file at the end opens no gap."""
    inside, most, entered = [0], [0], [0]

    def work() -> None:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            try:
                with output_lock(output, "run"):
                    inside[0] += 1
                    entered[0] += 1
                    most[0] = max(most[0], inside[0])
                    time.sleep(0)
                    inside[0] -= 1
            except ConfigError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert entered[0] > 20


def test_a_file_system_without_locks_does_not_stop_a_run(
    output: Output, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some network file systems cannot: the run is warned and goes on."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with output_lock(output, "run one") as lock:
        lock.check()
    assert "start only one at a time" in caplog.text
    assert not Path(output.path(LOCK)).exists()
