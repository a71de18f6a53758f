"""MLflow is down before, during and after a night: the tables are those of any night, and the log says it once."""

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support import nights
from tests.support.drivers import Ended, run_tag
from tests.support.outcomes import assert_mended
from tests.support.processes import meanwhile, wait_for
from tests.support.runs import Job
from tests.support.tally import TALLY
from vca.pipelines import run

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_cluster")]

KIND = "MLflow down"


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def job(first: Job, port: int, tmp_path: Path) -> Job:
    tracking = ("tracking.enabled=true", f"tracking.uri=http://127.0.0.1:{port}", "tracking.timeout_s=2")
    return Job(first.archive, str(tmp_path / "out"), (*nights.SETTINGS, "predict.model=zeroshot", *tracking))


@contextmanager
def mlflow_server(port: int, folder: Path) -> Iterator[Callable[[], None]]:
    """A real server; yields what kills it, with all its workers, at once."""
    command = [str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "mlflow.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()

    def healthy() -> bool:
        with suppress(urllib.error.URLError, OSError):
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        return False

    try:
        wait_for(healthy, "the MLflow server", every_s=0.2)
        yield kill
    finally:
        kill()


def assert_published_and_said_once(ended: Ended, job: Job, first: Job) -> None:
    TALLY.injected[KIND] += 1
    assert ended.code == run.EXIT_OK, ended.text
    assert "FAILED, tables are published all the same" in ended.text
    assert ended.text.count("tracking failed") == 1, ended.text
    assert "Traceback" not in ended.text
    assert_mended(job, first, KIND)


@pytest.mark.long
def test_nothing_listens(job: Job, first: Job, tmp_path: Path) -> None:
    """Down before the night."""
    assert_published_and_said_once(run_tag(job, tmp_path / "log"), job, first)


@pytest.mark.long
def test_a_server_that_never_answers(job: Job, first: Job, port: int, tmp_path: Path) -> None:
    """Worse than down: it takes connections and is silent. A few time limits are all that it costs."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", port))
        silent.listen(64)
        kept: list[socket.socket] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    kept.append(silent.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        assert_published_and_said_once(run_tag(job, tmp_path / "log"), job, first)
        for connection in kept:
            connection.close()


@pytest.mark.long
def test_killed_in_mid_run(job: Job, first: Job, port: int, tmp_path: Path) -> None:
    """The run has begun in MLflow; neither progress nor the end can be told."""
    log = tmp_path / "log"
    with mlflow_server(port, tmp_path) as kill:

        def kill_when_reading() -> None:
            wait_for(lambda: log.exists() and "] read" in log.read_text(encoding="utf-8"), "the first video")
            kill()

        with meanwhile(kill_when_reading):
            ended = run_tag(job, log)
    assert_published_and_said_once(ended, job, first)


@pytest.mark.long
def test_killed_before_the_end(job: Job, first: Job, port: int, tmp_path: Path) -> None:
    """The tables are staged; what fails is the report of a published run."""
    with mlflow_server(port, tmp_path) as kill:

        def kill_when_staged() -> None:
            wait_for(lambda: list(Path(job.output).glob("staging/*/tables/videos/*/part-*")), "a staged file")
            kill()

        with meanwhile(kill_when_staged):
            ended = run_tag(job, tmp_path / "log")
    assert_published_and_said_once(ended, job, first)
