"""How long a person waits before anything happens: importing vca, `vca --help`, `vca plan` where nothing changed.

Each is a process of its own, beside one that does nothing. The plan is one of a small archive, so that what is seen is
the start; `benchmarks/plan.py` has the large ones. It asks MLflow's registry which model tags, as the shipped
configuration does.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import rows
from benchmarks.harness import Figure, Report, Settings, in_turn, timed
from benchmarks.jobs import REPOSITORY
from vca.core.storage import StorageConfig
from vca.media.output import Output, OutputConfig
from vca.pipelines.config import read_config
from vca.pipelines.plan import Action
from vca.pipelines.run import prepare

CONFIG = str(REPOSITORY / "configs" / "local.yaml")
N_FILES = 100
ROUNDS = 5
"""At least: what takes a tenth of a second wants more rounds than what takes minutes."""


def measure(settings: Settings) -> list[Report]:
    """Wall seconds of fresh processes."""
    with tempfile.TemporaryDirectory(dir=settings.folder("start")) as temporary:
        plan = _plan_command(Path(temporary), 3 if settings.small else N_FILES)
        vca = [sys.executable, "-m", "vca.cli"]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import vca": [sys.executable, "-c", "import vca"],
            "vca --help": [*vca, "--help"],
            "vca plan, nothing changed": [*vca, *plan],
        }
        said = _run([*vca, *plan])  # also writes the byte code of modules that were never imported
        assert "nothing to do" in said, said
        for command in commands.values():
            _run(command)
        sides: dict[str, Callable[[], float]] = {
            name: partial(timed, partial(_run, command)) for name, command in commands.items()
        }
        took = in_turn(sides, settings.rounds if settings.small else max(settings.rounds, ROUNDS))
    figures = [
        Figure(name, statistics.median(took[name]), "s", target, "below", {name: took[name]})
        for name, target in (("import vca", 0.2), ("vca --help", 0.5), ("vca plan, nothing changed", 5.0))
    ]
    empty = Figure(
        "python -c pass", statistics.median(took["python -c pass"]), "s", samples={"python": took["python -c pass"]}
    )
    conditions = {"files in the archive": 3 if settings.small else N_FILES, "file cache": "warm"}
    return [Report("start", "Start of the command line", [empty, *figures], conditions)]


def _run(command: list[str]) -> str:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _plan_command(folder: Path, n_files: int) -> list[str]:
    """`vca plan` of an archive that was published as it is. No media: a plan opens nothing."""
    archive, output = folder / "archive", folder / "output"
    archive.mkdir()
    for number in range(n_files):
        (archive / f"{number:05d}.mp4").write_bytes(b"\0" * number)
    overrides = [
        f"archive.uri={archive}",
        f"output.uri={output}",
        f"tracking.uri=sqlite:///{folder / 'mlflow.db'}",
        f"tracking.artifact_uri={folder / 'mlartifacts'}",
    ]
    job = prepare(read_config(CONFIG, overrides))
    work = folder / "work"
    work.mkdir()
    planned = job.plan(work).rows(Action.DECODE).to_pylist()
    run_id, at = rows.night(0)
    videos = rows.video_rows_of(planned, run_id, at, job.versions)
    listed = {"videos": videos, "runs": rows.runs_row(run_id, at, n_files, str(archive))}
    output_config = OutputConfig(uri=str(output), storage=StorageConfig())
    rows.publish_rows(Output(output_config), [listed], 0, job.versions, work)
    return ["plan", "--config", CONFIG, *(part for setting in overrides for part in ("--set", setting))]
