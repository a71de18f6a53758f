"""The driver of a training is killed: the same call goes on from the newest checkpoint, with the same losses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.faults.test_killed_driver import assert_ended
from tests.support.processes import family, wait_for
from tests.support.runs import REPOSITORY
from tests.support.training import Training, config, tiny_model

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("ray_cluster")]

RTOL = 1e-5
"""Between a run that was killed and one that was not."""
SETTINGS = {"checkpoint_steps": 2, "deepspeed": {"zero_stage": 3, "whole_elements": 0}}

DRIVER = """
import json, sys
from pathlib import Path
from tests.support.training import Training, config
from vca.pipelines import cluster
from vca.pipelines.config import RayConfig

if __name__ == "__main__":
    root, model, settings = sys.argv[1:]
    cluster.connect(RayConfig(num_cpus=2, object_store_mb=200))
    training = Training(root, Path(model))
    training.train(training.window_set(), config(**json.loads(settings)), "killed")
"""


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """Ray's sockets lie below it, and the path of a socket has at most 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="vca-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_a_killed_driver_changes_nothing(tmp_path: Path, short_tmp: Path) -> None:
    """Killed in the middle of the second epoch, with ZeRO 3: the losses of all steps are those of a run in one go."""
    training = Training(str(tmp_path / "out"), tiny_model(tmp_path / "model"))
    window_set = training.window_set()
    undisturbed = training.train(window_set, config(**SETTINGS), "undisturbed")

    log = tmp_path / "log"
    newest = Path(training.root) / "training" / "killed" / "checkpoint-00000008" / "checkpoint.json"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"TMPDIR": str(short_tmp), "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(REPOSITORY)}
    with log.open("wb") as file:
        command = [sys.executable, "-c", DRIVER, training.root, str(training.model), json.dumps(SETTINGS)]
        driver = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=file.fileno(), stderr=subprocess.STDOUT
        )
        try:
            wait_for(lambda: newest.exists() or driver.poll() is not None, "a checkpoint in the second epoch")
            below = family(driver.pid)
        finally:
            driver.kill()
            driver.wait()
    assert driver.returncode == -signal.SIGKILL, log.read_text(encoding="utf-8")
    assert_ended(below)

    result = training.train(window_set, config(**SETTINGS), "killed")
    assert result.resumed_from is not None
    assert 8 <= result.resumed_from < len(undisturbed.step_losses)
    np.testing.assert_allclose(result.step_losses, undisturbed.step_losses, rtol=RTOL)
    assert result.best.validation == pytest.approx(dict(undisturbed.best.validation), rel=1e-4)
