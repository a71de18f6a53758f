"""One local Ray cluster for the fault tests that do not kill it, a small archive to tag, and the table at the end."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.memory import peak_memory
from tests.support import nights
from tests.support.cluster import local_cluster
from tests.support.drivers import Point, killed_copy
from tests.support.nights import make_archive
from tests.support.runs import Job
from tests.support.tally import TALLY

CLIPS = (
    "school/lesson-07.mp4",  # the longest: the one whose reading is interrupted
    "news/2026-03-01/weather.mkv",
    "film/silent-1925.avi",
)


@pytest.fixture(scope="session", autouse=True)
def measured_memory() -> Iterator[None]:
    """The most that this process and all below it needed at one moment.

    A look costs a third of a second of kernel time: taken every second it was the largest item of the sweep.
    """
    with peak_memory(os.getpid(), every_s=5.0) as peak:
        yield
    TALLY.peak_bytes = peak.bytes


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    with local_cluster():
        yield


@pytest.fixture(scope="session")
def small_archive(demo_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good videos of the demo; read only."""
    folder = tmp_path_factory.mktemp("small") / "archive"
    for key in CLIPS:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(demo_archive / key, folder / key)
    return folder


@pytest.fixture(scope="session")
def undisturbed(small_archive: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The small archive tagged without any fault."""
    job = Job(str(small_archive), str(tmp_path_factory.mktemp("undisturbed") / "out"), SETTINGS)
    assert job.tag() == 0, job.text
    return job


SETTINGS = ("sampling.segment_s=120",)
"""Each video is one segment: its one reading is either interrupted or not."""


@pytest.fixture(scope="session")
def first(demo_archive: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The first night, undisturbed."""
    folder = tmp_path_factory.mktemp("first")
    job = Job(str(make_archive(demo_archive, folder / "archive", nights.FIRST)), str(folder / "out"), nights.SETTINGS)
    assert job.tag() == 0, job.text
    return job


@pytest.fixture(scope="session")
def second(demo_archive: Path, first: Job, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """The second night, undisturbed."""
    folder = tmp_path_factory.mktemp("second")
    shutil.copytree(first.output, folder / "out")
    job = Job(str(make_archive(demo_archive, folder / "archive", nights.SECOND)), str(folder / "out"), nights.SETTINGS)
    assert job.tag() == 0, job.text
    return job


@pytest.fixture(scope="session")
def stored(first: Job, second: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a second night that was killed when all was decoded and nothing tagged: publishing is next."""
    out = killed_copy(second, Path(first.output), tmp_path_factory.mktemp("stored"), Point("line", 1, r"\] tag"))
    assert len(list(out.glob("features/*/part-*"))) > len(list(Path(first.output).glob("features/*/part-*")))
    return out


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY.injected:
        terminalreporter.section("faults")
        for line in TALLY.lines():
            terminalreporter.write_line(line)
