"""Running the tagging job in benchmarks: on a cluster that is there already, in this process or in one of its own."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vca.pipelines import cluster, run
from vca.pipelines.config import RayConfig, TagConfig, read_config
from vca.tables.manifest import open_output
from vca.tables.query import query

REPOSITORY = Path(__file__).resolve().parents[1]
LIGHT = ("encoders.ocr.kind=none", "encoders.speech.vad=none")
"""Encoders that cost little, so that what the job adds is seen."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """One run of the job."""

    wall_s: float
    said: tuple[str, ...]
    config: TagConfig

    def rows(self, sql: str) -> list[dict[str, Any]]:
        config = self.config.output
        found: list[dict[str, Any]] = query(open_output(config.uri, config.storage), sql).to_pylist()
        return found


@contextmanager
def cluster_of(n_cpus: int, object_store_mb: int = 512) -> Iterator[None]:
    """A local Ray for the block."""
    started = cluster.connect(RayConfig(num_cpus=n_cpus, object_store_mb=object_store_mb))
    try:
        yield
    finally:
        cluster.disconnect(started)


def tag_overrides(archive: Path | str, output: Path | str, *settings: str) -> list[str]:
    """Settings over `configs/local.yaml`: another archive, no tracking, no trained model."""
    return [
        f"archive.uri={json.dumps(str(archive))}",
        f"output.uri={json.dumps(str(output))}",
        f"taxonomy={json.dumps(str(REPOSITORY / 'configs' / 'taxonomy.yaml'))}",
        "tracking.enabled=false",
        "predict.model=zeroshot",
        *settings,
    ]


def tag_config(archive: Path | str, output: Path | str, *settings: str) -> TagConfig:
    """The shipped configuration with `tag_overrides`."""
    return read_config(str(REPOSITORY / "configs" / "local.yaml"), tag_overrides(archive, output, *settings))


def tag(archive: Path | str, output: Path | str, *settings: str) -> Tagged:
    """One run in this process. Anything but full success is an error: a failed run is fast."""
    config = tag_config(archive, output, *settings)
    said: list[str] = []
    started = time.perf_counter()
    code = run.tag(config, say=said.append)
    wall_s = time.perf_counter() - started
    if code != 0:
        raise RuntimeError(f"vca tag ended with {code}:\n" + "\n".join(said))
    return Tagged(wall_s, tuple(said), config)
