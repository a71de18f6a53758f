"""`vca tag` as a process of its own, as a user starts it."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.runs import REPOSITORY, Job
from tests.support.tally import TALLY

VCA = str(Path(sys.executable).with_name("vca"))
KILLED = "killed driver"
"""What the table at the end calls it."""
LIMIT_S = 300.0
"""A driver that is at work for longer hangs."""


def tag_arguments(job: Job, *settings: str) -> list[str]:
    """The command line behind `vca` for this job."""
    config = job.config()
    values = {
        "archive.uri": config.archive.uri,
        "output.uri": config.output.uri,
        "taxonomy": config.taxonomy,
        "tracking.enabled": "false",
        "run.failure_budget": "1",
    } | dict(setting.split("=", 1) for setting in (*job.settings, *settings))
    arguments = ["tag", "--config", str(REPOSITORY / "configs" / "local.yaml")]
    return arguments + [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def driver_environment(temporary: Path | None = None) -> dict[str, str]:
    """This process's, without what it says of the Ray it runs itself."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") or "AUTH" in name}
    environment |= {"PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(REPOSITORY)}
    return environment if temporary is None else environment | {"TMPDIR": str(temporary)}


@dataclass(frozen=True)
class Ended:
    """What a driver left: its exit code (negative: a signal) and what it said."""

    code: int
    text: str


def run_driver(command: Sequence[str], log: Path, environment: Mapping[str, str], limit_s: float = LIMIT_S) -> Ended:
    """Run to the end. One that does not end is killed, counted as a hang, and raises `TimeoutError`."""
    with log.open("wb") as file:
        driver = subprocess.Popen(command, cwd=REPOSITORY, env=dict(environment), stdout=file, stderr=subprocess.STDOUT)
        try:
            code = driver.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            TALLY.hangs += 1
            raise TimeoutError(f"a driver did not end in {limit_s:g} s:\n{log.read_text(encoding='utf-8')}") from error
        finally:
            driver.kill()
            driver.wait()
    return Ended(code, log.read_text(encoding="utf-8"))


def cluster_address() -> str:
    """Of the Ray that this process runs: another driver can join it."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def run_tag(job: Job, log: Path, *settings: str) -> Ended:
    """`vca tag` on the cluster of this process."""
    command = [VCA, *tag_arguments(job, *_joining(settings))]
    return run_driver(command, log, driver_environment())


@dataclass(frozen=True)
class Point:
    """Where a driver ends: before the `number`-th change of its output, or line of stdout, that has `pattern`."""

    kind: str
    number: int
    pattern: str

    def __str__(self) -> str:
        return f"{self.number}. {self.kind} {self.pattern}".strip()


NEVER = Point("change", 0, "")


def run_doomed(job: Job, folder: Path, point: Point, *settings: str) -> tuple[Ended, list[str]]:
    """`vca tag` that kills itself at a point (`tests.support.doomed`), and the changes of its output up to there."""
    journal = folder / "journal"
    journal.write_bytes(b"")
    launch = [sys.executable, "-m", "tests.support.doomed", job.output, str(journal)]
    launch += [point.kind, str(point.number), point.pattern]
    ended = run_driver([*launch, *tag_arguments(job, *_joining(settings))], folder / "log", driver_environment())
    return ended, journal.read_text(encoding="utf-8").splitlines()


def killed_copy(job: Job, before: Path | None, folder: Path, point: Point) -> Path:
    """A copy of an output after a driver that was killed at a point."""
    if before is not None:
        shutil.copytree(before, folder / "out")
    doomed = Job(job.archive, str(folder / "out"), job.settings)
    ended, changes = run_doomed(doomed, folder, point)
    assert ended.code == -signal.SIGKILL, (ended.text, changes)
    # It really got there: a driver that dies at once is mended just as well.
    assert re.search(point.pattern, changes[-1]) if point.kind == "change" else ended.text, (ended.text, changes)
    TALLY.injected[KILLED] += 1
    return folder / "out"


def _joining(settings: Sequence[str]) -> tuple[str, ...]:
    return (f"ray.address={cluster_address()}", *settings)
