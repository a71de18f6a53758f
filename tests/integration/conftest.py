"""One local Ray cluster for all integration tests, and one run over the real media for all that look at it."""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.media import MediaRun


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster of two CPUs, started once and stopped at the end of the session."""
    from tests.support.cluster import local_cluster

    with local_cluster():
        yield


@pytest.fixture(scope="session")
def media_tagged(media_dir: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> "MediaRun":
    """The tagging job over the whole folder of real media, once: minutes of work."""
    from benchmarks.memory import peak_memory
    from tests.support.media import MediaRun
    from tests.support.runs import Job

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(self.format(record))

    logged: list[str] = []
    listener = Listener(logging.WARNING)
    job = Job(str(media_dir), str(tmp_path_factory.mktemp("media") / "out"))
    logging.getLogger().addHandler(listener)
    try:
        with peak_memory(os.getpid()) as peak:
            started = time.monotonic()
            exit_code = job.tag()
            wall_s = time.monotonic() - started
    finally:
        logging.getLogger().removeHandler(listener)
    return MediaRun(job, exit_code, "\n".join([job.text, *logged]), wall_s, peak)


@pytest.fixture(scope="session")
def checkout(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with the same installation: the demo of whoever runs the tests stays as it is."""
    if not (repository / ".venv" / ".installed").is_file():
        pytest.skip("make sets up .venv first; run `make test`")
    copy = tmp_path_factory.mktemp("checkout") / "vca"
    left_out = shutil.ignore_patterns(".*", "demo", "out", "build", "dist", "__pycache__", "mlruns", "mlartifacts")
    shutil.copytree(repository, copy, ignore=left_out, symlinks=True)
    (copy / ".venv").symlink_to(repository / ".venv")
    return copy
