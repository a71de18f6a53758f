"""Two runs at the same time on one output: one works, the other is told who does, and nothing is mixed."""

import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.test_killed_driver import assert_ended, start_driver
from tests.support.outcomes import assert_nothing_doubled, assert_nothing_left_over, assert_same_tables
from tests.support.processes import family, wait_for
from tests.support.runs import Job
from vca.core.errors import ConfigError
from vca.media.output_lock import LOCK
from vca.pipelines import run
from vca.tables.verify import verify

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """Ray's sockets lie below it, and the path of a socket has at most 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="vca-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_of_two_runs_started_together_one_works(
    small_archive: Path, undisturbed: Job, tmp_path: Path, short_tmp: Path
) -> None:
    """The other ends with exit code 2 and one line that names the first; the tables are those of one run."""
    job = Job(str(small_archive), str(tmp_path / "out"), undisturbed.settings)
    logs = [tmp_path / "log-1", tmp_path / "log-2"]
    drivers: list[subprocess.Popen[bytes]] = []
    try:
        for number, log in enumerate(logs):
            (short_tmp / str(number)).mkdir()
            with log.open("wb") as file:
                drivers.append(start_driver(job, short_tmp / str(number), file.fileno()))
        codes = [driver.wait(240) for driver in drivers]
    finally:
        for driver in drivers:
            driver.kill()
            driver.wait()
    texts = [log.read_text(encoding="utf-8") for log in logs]
    assert sorted(codes) == [0, 2], "\n".join(texts)
    winner, loser = texts if codes == [0, 2] else reversed(texts)
    (run_id,) = re.findall(r"^run (\S+)$", winner, re.M)
    (line,) = [line for line in loser.splitlines() if line.startswith("vca: ")]
    assert f"in use by run {run_id} on " in line
    assert "\nrun " not in f"\n{loser}", "it has not begun"
    assert job.reader().runs() == [run_id]
    assert_same_tables(job, undisturbed)
    assert_nothing_doubled(job)
    assert_nothing_left_over(job)
    assert not (Path(job.output) / LOCK).exists()
    said: list[str] = []
    assert verify(job.reader(), said.append), "\n".join(said)


@pytest.mark.long
def test_the_lock_of_a_killed_run_is_taken_over(
    small_archive: Path, undisturbed: Job, tmp_path: Path, short_tmp: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While it works it keeps others out; killed, with its cluster still ending, it keeps out nobody."""
    job = Job(str(small_archive), str(tmp_path / "out"), undisturbed.settings)
    log = tmp_path / "log"
    with log.open("wb") as file:
        driver = start_driver(job, short_tmp, file.fileno())
        try:
            wait_for(lambda: "\nrun " in f"\n{log.read_text()}" or driver.poll() is not None, "a run")
            with pytest.raises(ConfigError, match="in use by run"):
                job.tag()
            below = family(driver.pid)
        finally:
            driver.kill()
            driver.wait()
    assert driver.returncode == -signal.SIGKILL, log.read_text(encoding="utf-8")
    assert job.tag() == run.EXIT_OK, job.text
    assert "which has died; taken over" in caplog.text
    assert_ended(below)
    assert_same_tables(job, undisturbed)
    assert_nothing_doubled(job)
    assert_nothing_left_over(job)
