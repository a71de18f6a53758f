"""The nightly door: `ray job submit` against a cluster with token authentication."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.runs import REPOSITORY, Job

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

RAY = str(Path(sys.executable).with_name("ray"))


NOT_READY = ("Failed to connect", "No available agent to submit job")
"""What the client says while a head is starting."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def when_the_dashboard_answers(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command of the jobs interface; a busy machine needs many seconds until the dashboard answers."""
    deadline = time.monotonic() + 120
    while True:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=900
        )
        said = done.stdout + done.stderr
        if not any(text in said for text in NOT_READY) or time.monotonic() > deadline:
            return done
        time.sleep(2)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node with token authentication and a dashboard on loopback; yields the client's environment."""
    temporary = Path(os.environ.get("TMPDIR", "/tmp")) / f"vca-ray-{os.getpid()}"
    folder = tmp_path_factory.mktemp("head")
    token = folder / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    dashboard, gcs = free_port(), free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [
        RAY,
        "start",
        "--head",
        "--block",
        f"--port={gcs}",
        "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        # Jobs go through the agent, and another Ray of this machine may have its usual port.
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
        f"--temp-dir={temporary}",
        "--num-cpus=2",
        "--object-store-memory=200000000",
    ]
    with (
        (folder / "head.log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield environment | {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        finally:
            # `ray start --block` may sit in a start-up step when asked to end; its children are then ended one by one.
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            process.terminate()
            _, alive = psutil.wait_procs(family, timeout=15)
            for member in alive:
                member.kill()
            psutil.wait_procs(alive, timeout=15)
            shutil.rmtree(temporary, ignore_errors=True)


def test_ray_job_submit_tags_an_archive(demo_archive: Path, tmp_path: Path, head: dict[str, str]) -> None:
    """The README's command, with the archive and output of this test; its exit code is that of the job."""
    archive = tmp_path / "archive"
    archive.mkdir()
    for path in sorted(demo_archive.rglob("*.mp4"), key=lambda p: p.stat().st_size)[:4]:
        (archive / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "out"
    settings = [
        f"archive={{uri: {archive}}}",
        f"output={{uri: {out}}}",
        "run.failure_budget=1",
        f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}",
        f"tracking.artifact_uri={tmp_path / 'artifacts'}",
    ]
    command = [RAY, "job", "submit", "--working-dir", ".", "--", "python", "-m", "jobs.tag"]
    command += ["--config", "configs/nightly.yaml", *(part for s in settings for part in ("--set", s))]
    done = when_the_dashboard_answers(command, head)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "succeeded" in done.stdout
    assert "balance    4 listed =" in done.stdout
    job = Job(str(archive), str(out))
    assert job.query("SELECT count(*) AS n FROM videos") == [{"n": 4}]


def test_a_stranger_without_the_token_is_refused(head: dict[str, str], tmp_path: Path) -> None:
    """Token authentication is on: a wrong token submits nothing."""
    wrong = tmp_path / "wrong"
    wrong.write_text("f" * 32)
    environment = head | {"RAY_AUTH_TOKEN_PATH": str(wrong)}
    done = when_the_dashboard_answers([RAY, "job", "submit", "--", "true"], environment)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "token" in said.lower() or "unauthenticated" in said.lower() or "401" in said or "403" in said, said[-2000:]
