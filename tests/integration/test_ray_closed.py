"""Who may talk to the Ray of a run: nobody without its token, whatever address of the machine he reaches."""

import http.client
import json
import os
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import REPOSITORY

pytestmark = [pytest.mark.integration, pytest.mark.slow]

RUN = """
    import json, os, sys
    from pathlib import Path
    import psutil
    from vca.pipelines import cluster
    from vca.pipelines.config import RayConfig

    # Of a worker that is just starting too: it has not taken its name yet.
    SCRIPTS = {"dashboard.py": "dashboard", "monitor.py": "monitor", "default_worker.py": "ray::IDLE"}
    started = cluster.connect(RayConfig(num_cpus=1, object_store_mb=100))
    import ray
    assert ray.get(ray.remote(lambda: 1).remote()) == 1
    me = psutil.Process()
    found = []
    for process in (me, *me.children(recursive=True)):
        line = process.cmdline() or [process.name()]
        name = "driver" if process == me else line[0]
        for script, called in SCRIPTS.items():
            name = called if script in " ".join(line) else name
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                found.append([Path(name).name, *connection.laddr])
    names = [" ".join(process.cmdline()) for process in me.children(recursive=True)]
    gcs = ray.get_runtime_context().gcs_address
    mode = os.environ.get("RAY_AUTH_MODE")
    print(json.dumps({"listening": found, "names": names, "gcs": gcs, "mode": mode}), flush=True)
    sys.stdin.read()
    cluster.disconnect(started)
"""


def _environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | more


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The local cluster as `vca tag` starts it, in its own process; a home without a token of the user."""
    home = tmp_path_factory.mktemp("home")
    command = [sys.executable, "-c", textwrap.dedent(RUN)]
    environment = _environment(HOME=str(home))
    with subprocess.Popen(
        command, env=environment, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the cluster does not start"
        yield json.loads(line) | {"home": home}
        process.communicate("")


OPEN_TO_ALL = {
    "driver", "gcs_server", "raylet", "dashboard", "monitor", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE"
}  # fmt: skip
"""Processes of Ray that listen beyond loopback. A new one is a reason to look again at docs/security.md."""


def test_no_dashboard_and_known_listeners_only(cluster: dict[str, Any]) -> None:
    """A local run has no dashboard to call, which runs code for callers; what else listens is known.

    Ray starts the dashboard's process all the same, for other duties: later it hands out figures for Prometheus, and so
    does the autoscaler's, `monitor`.
    """
    assert not any("ray.util.client" in name for name in cluster["names"])
    assert 8265 not in {port for _, _, port in cluster["listening"]}
    outside = {name for name, address, _ in cluster["listening"] if address not in ("127.0.0.1", "::1")}
    assert outside, "Ray stays on loopback now: docs/security.md can say so"
    assert {name.strip() for name in outside} - OPEN_TO_ALL == set()


def test_the_token_is_not_on_the_disk(cluster: dict[str, Any]) -> None:
    """Ray would write one into the home, readable for others and the same for every cluster of this user."""
    assert cluster["mode"] == "token"
    assert not (cluster["home"] / ".ray" / "auth_token").exists()


@pytest.mark.parametrize(
    "credentials", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "f" * 64, "RAY_AUTH_MODE": "token"}]
)
def test_strangers_are_refused(cluster: dict[str, Any], credentials: dict[str, str], tmp_path: Path) -> None:
    """Without the token, and with a wrong one, nobody joins the cluster and runs code in it."""
    code = f"import ray; ray.init(address={cluster['gcs']!r}, log_to_driver=False); print('JOINED')"
    environment = _environment(HOME=str(tmp_path), RAY_gcs_server_request_timeout_seconds="5", **credentials)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode != 0
    assert "JOINED" not in done.stdout
    assert "authentication" in done.stderr.lower() or "ConnectionError" in done.stderr, done.stderr[-500:]


def test_agents_serve_strangers_figures_at_most(cluster: dict[str, Any]) -> None:
    """HTTP ports: one hands out figures for Prometheus, the one that installs packages asks for the token."""
    answers = {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for name, address, port in cluster["listening"]:
        if "Agent" not in name:
            continue
        host = "127.0.0.1" if address in ("0.0.0.0", "::") else address
        try:
            request = urllib.request.Request(f"http://{host}:{port}/get_or_create_runtime_env", data=b"{}")
            with opener.open(request, timeout=10) as answer:
                answers[name.strip(), port] = (answer.status, answer.read(200))
        except urllib.error.HTTPError as error:
            answers[name.strip(), port] = (error.code, b"")
        except (OSError, http.client.HTTPException):
            continue  # no HTTP: gRPC, which the test above is about
    assert answers
    for (name, _), (status, body) in answers.items():
        if name == "ray::RuntimeEnvAgent":
            assert status in (401, 403), (name, status, body)
        else:
            assert status in (401, 403, 404, 405) or b"HELP" in body, (name, status, body)
