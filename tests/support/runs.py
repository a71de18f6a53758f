"""Running the tagging job and commands of the README in tests, and reading back what was published."""

import os
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from vca.core.errors import VcaError
from vca.core.storage import StorageConfig
from vca.pipelines import run
from vca.pipelines.config import TagConfig, read_config
from vca.tables.manifest import OutputReader, open_output
from vca.tables.query import query

REPOSITORY = Path(__file__).resolve().parents[2]

LIGHT_ENCODERS = ("encoders.ocr.kind=none", "encoders.speech.vad=none")
"""Load in no time. What OCR and speech find is tested elsewhere."""

ONE_WORKER = ("resources.readers=1", "resources.predictors=1")
"""Of each kind: for a handful of short videos, starting workers is most of the work."""

LIGHT = (*LIGHT_ENCODERS, *ONE_WORKER)
"""For tests of the flow."""

UNSTABLE = {"run_id", "uri", "fingerprint", "tagged_at", "first_failed_at", "last_failed_at"}
"""Columns that differ between two runs over the same content in different places."""


@dataclass
class Job:
    """One archive and one output; `tag()` runs the job in this process on the cluster of the test session."""

    archive: str
    output: str
    settings: tuple[str, ...] = ()
    said: list[str] = field(default_factory=list)

    def config(self, *settings: str) -> TagConfig:
        return read_config(
            str(REPOSITORY / "configs" / "local.yaml"),
            [
                f"archive.uri={self.archive}",
                f"output.uri={self.output}",
                f"taxonomy={REPOSITORY / 'configs' / 'taxonomy.yaml'}",
                "tracking.enabled=false",
                "run.failure_budget=1",
                *self.settings,
                *settings,
            ],
        )

    def tag(self, *settings: str) -> int:
        self.said.clear()
        return run.tag(self.config(*settings), say=self.said.append)

    def attempt(self, *settings: str) -> tuple[int, str]:
        """Exit code and words of a run that may be refused or fail; a defect still raises."""
        try:
            return self.tag(*settings), self.text
        except VcaError as error:
            return error.exit_code, f"{self.text}\nvca: {error}"

    @property
    def text(self) -> str:
        return "\n".join(self.said)

    def reader(self) -> OutputReader:
        config = self.config().output
        return open_output(config.uri, config.storage)

    def query(self, sql: str) -> list[dict[str, Any]]:
        return query(self.reader(), sql).to_pylist()


def stable_rows(reader: OutputReader, table: str) -> pa.Table:
    """The newest rows of a table in a total order, without the columns that name a place or a run."""
    rows = query(reader, f"FROM {table} ORDER BY ALL")
    kept = rows.select([name for name in rows.column_names if name not in UNSTABLE])
    return pa.Table.from_pylist(sorted(kept.to_pylist(), key=repr), schema=kept.schema)


def local_reader(path: Path) -> OutputReader:
    return open_output(str(path), StorageConfig())


def run_command(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line of the README, run in a checkout."""
    environment = dict(os.environ)
    return subprocess.run(
        shlex.split(command), cwd=folder, capture_output=True, text=True, check=False, timeout=1500, env=environment
    )
