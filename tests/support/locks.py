"""Processes that hold the lock of an output, so that they can race for it, stop, and die with it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.runs import REPOSITORY
from vca.media.output import OutputConfig

HOLDER = """
import logging, subprocess, sys, time
from pathlib import Path
from vca.core.errors import VcaError
from vca.media.output import Output, OutputConfig
from vca.media.output_lock import Lease, output_lock

config, work, folder, renew_s, stale_s = sys.argv[1:]
folder = Path(folder)
logging.basicConfig(level=logging.WARNING)
output = Output(OutputConfig.model_validate_json(config))
output.exists("anything")  # the storage libraries are loaded before the race begins
(folder / f"{work}.ready").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
try:
    with output_lock(output, work, Lease(float(renew_s), float(stale_s))) as lock:
        if (folder / "with-child").exists():
            child = subprocess.Popen(["sleep", "60"], close_fds=False, start_new_session=True)
            (folder / "child").write_text(str(child.pid))
        (folder / f"{work}.holds").touch()
        while not (folder / f"{work}.end").exists():
            time.sleep(0.01)
        lock.check()
except VcaError as error:
    (folder / f"{work}.text").write_text(f"{type(error).__name__}: {error}")
    (folder / f"{work}.text").rename(folder / f"{work}.refused")
"""


def start_holder(
    output: OutputConfig, work: str, folder: Path, renew_s: float = 30.0, stale_s: float = 180.0
) -> subprocess.Popen[bytes]:
    """Waits for `<folder>/go`; tells in `<work>.holds` or `<work>.refused` how it went; holds until `<work>.end`."""
    command = [sys.executable, "-c", HOLDER, output.model_dump_json(), work, str(folder), str(renew_s), str(stale_s)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
