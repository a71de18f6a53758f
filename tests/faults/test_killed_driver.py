"""The driver is killed from outside, with its own cluster: nothing stays behind, and the next run mends everything.

test_crash_sweep.py has many more points of a run, hit exactly.
"""

import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.drivers import KILLED, VCA, driver_environment, tag_arguments
from tests.support.outcomes import assert_mended
from tests.support.processes import GONE, family, wait_for
from tests.support.runs import REPOSITORY, Job
from tests.support.tally import TALLY
from vca.pipelines import run

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_cluster")]

SEED = 7


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """Ray's sockets lie below it, and the path of a socket has at most 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="vca-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def files(folder: Path, pattern: str) -> list[Path]:
    """Finished files; a folder that comes and goes meanwhile is not an error."""
    try:
        return [path for path in folder.glob(pattern) if not path.name.startswith(".")]
    except FileNotFoundError:
        return []


def first_progress(out: Path, log: Path) -> bool:
    return "] read" in log.read_text(encoding="utf-8")


def features_written(out: Path, log: Path) -> bool:
    return bool(files(out, "features/*/part-*.parquet"))


def staging_begun(out: Path, log: Path) -> bool:
    return bool(files(out, "staging/*/tables/*/*"))


def intent_written(out: Path, log: Path) -> bool:
    return bool(files(out, "staging/*/manifest.json")) or bool(files(out, "manifests/*.json"))


def tagged(out: Path, log: Path) -> bool:
    return "] tag" in log.read_text(encoding="utf-8")


TALLY.seeds["killed driver"] = SEED
DELAY_S = random.Random(SEED).uniform(0.0, 0.5)
POINTS = [
    pytest.param(first_progress, 0.0, marks=pytest.mark.long),
    pytest.param(features_written, 0.0, marks=pytest.mark.long),
    pytest.param(staging_begun, 0.0, marks=pytest.mark.long),
    pytest.param(intent_written, 0.0, marks=pytest.mark.long),
    pytest.param(tagged, DELAY_S, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("reached", "delay_s"), POINTS, ids=lambda value: getattr(value, "__name__", None))
def test_the_run_after_a_killed_driver_mends_everything(
    small_archive: Path,
    undisturbed: Job,
    tmp_path: Path,
    short_tmp: Path,
    reached: Callable[[Path, Path], bool],
    delay_s: float,
) -> None:
    """Equal tables, nothing doubled, no staging, no process left behind."""
    # A part after every segment and a line after every video: the points follow each other closely.
    settings = (*undisturbed.settings, "run.flush_s=0.001", "run.progress_s=0.001")
    job = Job(str(small_archive), str(tmp_path / "out"), settings)
    log = tmp_path / "log"
    with log.open("wb") as file:
        driver = start_driver(job, short_tmp, file.fileno())
        try:
            wait_for(lambda: reached(Path(job.output), log) or driver.poll() is not None, reached.__name__)
            time.sleep(delay_s)
            below = family(driver.pid)
        finally:
            driver.kill()
            driver.wait()
    TALLY.injected[KILLED] += 1
    if reached is not tagged:  # by then the driver may have ended by itself
        assert driver.returncode == -signal.SIGKILL, log.read_text(encoding="utf-8")
    assert_ended(below)
    assert reached(Path(job.output), log), log.read_text(encoding="utf-8")

    assert job.tag() == run.EXIT_OK, job.text
    assert_mended(job, undisturbed, KILLED)
    assert job.tag() == run.EXIT_OK
    assert "nothing to do: all unchanged" in job.text


def assert_ended(below: list[psutil.Process]) -> None:
    """The cluster of a killed driver ends with it: no worker and no decoder goes on working.

    Ray's two agents of a node notice by asking now and then, for up to a minute on a busy machine: they do no work, and
    are ended here.
    """
    try:
        wait_for(
            lambda: not [process for process in below if is_at_work(process)], "the end of the cluster", every_s=0.1
        )
    finally:
        for process in below:
            with suppress(*GONE):
                process.kill()


def is_at_work(process: psutil.Process) -> bool:
    with suppress(*GONE):
        agent = any(name in " ".join(process.cmdline()) for name in ("DashboardAgent", "RuntimeEnvAgent"))
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE and not agent
    return False


def start_driver(job: Job, temporary: Path, output_fd: int) -> subprocess.Popen[bytes]:
    """`vca tag` with its own local cluster, as a user starts it."""
    command = [VCA, *tag_arguments(job, "ray.num_cpus=2")]
    environment = driver_environment(temporary)
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=output_fd, stderr=subprocess.STDOUT)
