"""What all benchmarks share: both sides in turn, medians and ratios, the machine, and where the figures go."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import psutil

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("av", "decord", "duckdb", "deepspeed", "numpy", "pyarrow", "ray", "torch")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a benchmark is run."""

    work: Path
    """Generated archives are kept here between runs; everything else in it is temporary."""
    rounds: int
    """Rounds through all sides; figures are medians of them."""
    small: bool
    """Sizes that only try the program. The figures mean nothing."""

    def folder(self, name: str) -> Path:
        path = self.work / name
        path.mkdir(parents=True, exist_ok=True)
        return path


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number and what it should be."""

    what: str
    value: float
    unit: str
    """"x" for a ratio."""
    target: float | None = None
    bound: Literal["at most", "at least", "below"] = "at most"
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """What each side took in each round, in the unit of its name."""
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        if self.bound == "at least":
            return self.value >= self.target
        return self.value < self.target if self.bound == "below" else self.value <= self.target


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one benchmark."""

    name: str
    title: str
    figures: Sequence[Figure]
    conditions: Mapping[str, Any] = field(default_factory=dict)
    """Sizes, codecs and settings, without which the figures are not comparable."""

    def text(self, *, judged: bool = True) -> str:
        """For people. Not `judged`: sizes were too small for a verdict."""
        lines = [self.title, "  " + ", ".join(f"{name} {value}" for name, value in self.conditions.items())]
        for f in self.figures:
            verdict = f": {'met' if f.met else 'MISSED'}" if judged else ""
            target = "" if f.target is None else f"{f.bound} {f.target:g}{verdict}"
            lines.append(f"  {f.what:52}{f.value:12.4g} {f.unit:10}{target}")
            for side, values in f.samples.items():
                spread = "" if len(values) < 2 else f"   [{min(values):.4g} .. {max(values):.4g}]"
                lines.append(f"    {side or 'time':50}{statistics.median(values):12.4g}{spread}")
            if f.note:
                lines.append(f"    {f.note}")
        return "\n".join(lines)

    def save(self, folder: Path, settings: Settings) -> Path:
        """Write `folder/<name>.json`, with the machine and the moment."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "name": self.name,
            "title": self.title,
            "measured_at": f"{datetime.now(UTC):%F %T} UTC",
            "rounds": settings.rounds,
            "machine": machine(),
            "conditions": dict(self.conditions),
            "figures": [asdict(f) | {"met": f.met} for f in self.figures],
        }
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return path


def in_turn(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each side measured of itself in each round. Every second round goes backwards: a machine gets slower or
    faster while it works, and no side should always come first.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(sides[name]())
    return found


def ratio(found: Mapping[str, Sequence[float]], over: str, under: str) -> float:
    """Median of the ratios within each round, which is steadier than a ratio of medians on a busy machine."""
    return statistics.median(a / b for a, b in zip(found[over], found[under], strict=True))


def timed(call: Callable[[], Any]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def machine() -> dict[str, Any]:
    """What the figures were measured on. No host name: results are committed."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "commit": _commit(),
        "load_at_end": round(psutil.getloadavg()[0], 2),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
