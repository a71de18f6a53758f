"""Whether memory and bytes stay flat however long a video is, and one long video keeps every core busy."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import videos
from benchmarks.harness import Figure, Report, Settings, in_turn, ratio
from benchmarks.jobs import LIGHT, REPOSITORY, tag_overrides
from benchmarks.memory import peak_memory
from benchmarks.object_server import BUCKET, ObjectServer, object_server

_HELD_TO = """
import os, sys
os.sched_setaffinity(0, map(int, sys.argv[1].split(",")))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""

TARGET_MEMORY, TARGET_BYTES, TARGET_CORES = 1.3, 1.05, 0.6


def measure(settings: Settings) -> list[Report]:
    """A short and a long video, as files and by byte range."""
    small = settings.small
    look, short_s, long_s = (videos.TINY, 20, 130) if small else (videos.P360, 180, 10_800)
    folder = settings.folder(f"lengths-{look}")
    sides = {
        name: videos.long_archive(folder / name, look, 1, seconds)
        for name, seconds in (("short", short_s), ("long", long_s))
    }
    n_cores = len(os.sched_getaffinity(0))
    conditions = {
        "look": str(look), "short_s": short_s, "long_s": long_s, "cores": n_cores,
        "long_mb": round(next(sides["long"].iterdir()).stat().st_size / 1e6),
    }  # fmt: skip
    figures: list[Figure] = []
    for place in ("local", "S3"):
        peaks: dict[str, list[float]] = {}
        read: list[float] = []
        for name, archive in sides.items():
            with object_server(archive) as server:
                size = next(archive.iterdir()).stat().st_size
                peaks[f"{name}, MB"] = [_peak_mb(settings, archive, server if place == "S3" else None)]
                if place == "S3":
                    read.append(server.sent_bytes / size)
        figures.append(
            Figure(f"peak memory, long over short, {place}", ratio(peaks, "long, MB", "short, MB"), "x",
                   TARGET_MEMORY, samples=peaks)
        )  # fmt: skip
        if read:
            figures.append(Figure("bytes read of the long object, over its size", read[-1], "x", TARGET_BYTES))
    walls = in_turn(
        {f"{n} cores, s": _marginal(settings, sides, n) for n in ((1, n_cores) if n_cores > 1 else (1,))},
        1 if small else settings.rounds,
    )
    if n_cores > 1:
        figures.append(
            Figure(f"one long video, wall on {n_cores} cores over 1", ratio(walls, f"{n_cores} cores, s", "1 cores, s"),
                   "x", TARGET_CORES if n_cores == 2 else None, samples=walls,
                   note="time of the long video less that of the short one: starting falls out")
        )  # fmt: skip
    return [Report("long_video", "Long videos", figures, conditions)]


def _marginal(settings: Settings, sides: dict[str, Path], n_cores: int) -> Callable[[], float]:
    def seconds() -> float:
        taken = []
        for archive in sides.values():
            started = time.perf_counter()
            with tempfile.TemporaryDirectory(dir=settings.work) as folder:
                _run(archive, folder, None, n_cores)
            taken.append(time.perf_counter() - started)
        return taken[1] - taken[0]

    return seconds


def _peak_mb(settings: Settings, archive: Path, server: ObjectServer | None) -> float:
    with tempfile.TemporaryDirectory(dir=settings.work) as folder:
        return _run(archive, folder, server, len(os.sched_getaffinity(0)))


def _run(archive: Path, folder: str, server: ObjectServer | None, n_cores: int) -> float:
    """`vca tag` as a user starts it, held to so many cores; returns the peak memory of its tree, MB."""
    uri = str(archive) if server is None else f"s3://{BUCKET}"
    settings = [f"ray.num_cpus={n_cores}", *LIGHT]
    if server is not None:
        settings.append(f"archive.storage.endpoint_url={server.endpoint_url}")
    overrides = tag_overrides(uri, Path(folder) / "out", *settings)
    cores = sorted(os.sched_getaffinity(0))[:n_cores]
    command = [sys.executable, "-c", _HELD_TO, ",".join(map(str, cores)), "-m", "vca.cli", "tag"]
    command += ["--config", str(REPOSITORY / "configs" / "local.yaml")]
    command += [part for override in overrides for part in ("--set", override)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with peak_memory(process.pid) as peak:
        said, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"vca tag ended with {process.returncode}:\n{said}")
    return peak.bytes / 1e6
