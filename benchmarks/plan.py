"""What a plan costs as the archive grows: listed objects against published rows, one in a hundred changed.

The published rows are real: staged and published by vca. The listing is made up while it is read, with the keys, etags
and subtitle files of an object storage (`rows.ListedArchive`): only asking a disk or a bucket for it is left out, which
is measured beside it on real files. Each plan is a process of its own; its memory is the peak of that process.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import rows
from benchmarks.harness import Figure, Report, Settings, in_turn
from benchmarks.jobs import REPOSITORY
from benchmarks.memory import own_peak_bytes
from vca.core.storage import StorageConfig
from vca.media.output import Output, OutputConfig
from vca.media.storage import Archive, ArchiveConfig
from vca.pipelines.plan import Action, make_plan
from vca.tables.manifest import open_output

SIZES = (10_000, 100_000, 1_000_000)
TARGET_S, TARGET_BYTES = 60.0, 2e9
TARGET_GROWTH = 1.3
"""How much dearer the last 900,000 objects may be, each, than the 90,000 before: 1 is a straight line."""
N_FILES = 100_000
MANY_NIGHTS, NIGHT_VIDEOS, NIGHTS_VIDEOS = 300, 20, 100_000


def measure(settings: Settings) -> list[Report]:
    """Growth with the archive, and with the number of published runs."""
    return [_sizes(settings), _nights(settings)]


def _sizes(settings: Settings) -> Report:
    sizes = (200, 600, 1_400) if settings.small else SIZES
    found: dict[int, list[dict[str, Any]]] = {n: [] for n in sizes}
    outputs = {n: published(settings.folder("plan") / f"published-{n}", n) for n in sizes}

    def once(n: int) -> float:
        found[n].append(_plan_in_a_process(outputs[n], n))
        return float(found[n][-1]["wall_s"])

    took = in_turn({f"{n} objects": partial(once, n) for n in sizes}, settings.rounds)
    few, middle, many = sizes
    s = {n: statistics.median(took[f"{n} objects"]) for n in sizes}
    growth = ((s[many] - s[middle]) / (many - middle)) / ((s[middle] - s[few]) / (middle - few))
    peaks = {f"{n} objects": [p["peak_bytes"] / 1e9 for p in found[n]] for n in sizes}
    real = _real_listing_s(settings, 300 if settings.small else N_FILES)
    changed = found[many][0]["counts"]
    figures = [
        Figure(f"plan of {many} objects", s[many], "s", TARGET_S, samples=took),
        Figure(
            "of it listing", statistics.median(p["listing_s"] for p in found[many]), "s", note="keys and etags made up"
        ),
        Figure("peak memory of the process", max(peaks[f"{many} objects"]), "GB", TARGET_BYTES / 1e9, samples=peaks),
        Figure("an object of the last step over one of the first", growth, "x", TARGET_GROWTH),
        Figure(
            "listing real files, for each thousand",
            real["real"] * 1e6,
            "ms",
            note=f"empty files of a local disk, warm; made up: {real['made up'] * 1e6:.3g} ms",
        ),
    ]
    conditions = {"published rows": many, "subtitle files": f"1 for {rows.EVERY_N_SIDECAR} objects", **changed}
    return Report("plan", "Plan of a large archive", figures, conditions)


def _nights(settings: Settings) -> Report:
    """The same archive, published in one run, and with many small runs after it."""
    n, nights, each = (300, 3, 5) if settings.small else (NIGHTS_VIDEOS, MANY_NIGHTS, NIGHT_VIDEOS)
    folder = settings.folder("plan")
    sides = {
        "one run": published(folder / f"published-{n}", n),
        f"{nights + 1} runs": published(folder / f"published-{n}-{nights}-nights", n, nights, each),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}

    def once(name: str) -> float:
        found[name].append(_plan_in_a_process(sides[name], n))
        return float(found[name][-1]["wall_s"])

    took = in_turn({name: partial(once, name) for name in sides}, settings.rounds)
    one, many = (statistics.median(took[name]) for name in sides)
    figures = [
        Figure(f"plan of {n} objects after {nights + 1} runs", many, "s", samples=took),
        Figure("what each run adds", (many - one) / nights * 1e3, "ms"),
    ]
    return Report("plan_nights", "Plan after many nights", figures, {"videos of a night": each, "objects": n})


def published(folder: Path, n_videos: int, nights: int = 0, night_videos: int = 0) -> Path:
    """An output in which `n_videos` are published, some of them again in later nights. Kept if it is there."""
    output = Output(OutputConfig(uri=str(folder)))
    if open_output(str(folder), StorageConfig()).runs()[nights:]:
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        for number in range(nights + 1):
            run_id, at = rows.night(number)
            # The videos of a night lie all over the archive.
            again = range(number, n_videos, max(1, n_videos // night_videos))[:night_videos] if number else None
            videos = ({"videos": rows.video_rows(part, run_id, at)} for part in rows.parts(again or range(n_videos)))
            run = {"runs": rows.runs_row(run_id, at, n_videos)}
            rows.publish_rows(output, (*videos, run), number, rows.VERSIONS, Path(work))
    return folder


def _plan_in_a_process(output: Path, n: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.plan", str(output), str(n)]
    done = subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def plan_once(output: str, n: int) -> dict[str, Any]:
    """One plan in this process, checked: what it says must be what was changed."""
    n_each = max(1, n // 300)
    archive = rows.ListedArchive(rows.Change(n, n_each))
    with tempfile.TemporaryDirectory() as work:
        started = time.perf_counter()
        plan = make_plan(archive, open_output(output, StorageConfig()), rows.VERSIONS, 3, Path(work))
        wall_s = time.perf_counter() - started
    assert plan.listed == n, plan
    assert plan.counts == {
        (str(Action.DECODE), "changed"): n_each,
        (str(Action.DECODE), "new"): n_each,
        (str(Action.GONE), "deleted from the archive"): n_each,
        (str(Action.SKIP), "unchanged"): n - 2 * n_each,
    }, plan.describe()
    peak_bytes = own_peak_bytes()
    counts = {reason: count for (_, reason), count in plan.counts.items()}
    return {"wall_s": wall_s, "listing_s": _listing_s(archive), "peak_bytes": peak_bytes, "counts": counts}


def _listing_s(archive: Archive) -> float:
    started = time.perf_counter()
    for _ in archive.list_batches():
        pass
    return time.perf_counter() - started


def _real_listing_s(settings: Settings, n_files: int) -> dict[str, float]:
    """Seconds an object of listing real files, and of the made-up listing."""
    folder = settings.folder("plan") / f"files-{n_files}"
    if not (folder / "all-made").exists():
        for number in range(n_files):
            path = folder / rows.key_of(number)
            if number < 11 * len(rows.SUBJECTS):
                path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        (folder / "all-made").touch()
    real, made_up = Archive(ArchiveConfig(uri=str(folder))), rows.ListedArchive(rows.Change(n_files))
    took = in_turn({"real": partial(_listing_s, real), "made up": partial(_listing_s, made_up)}, settings.rounds)
    return {name: statistics.median(values) / n_files for name, values in took.items()}


if __name__ == "__main__":
    print(json.dumps(plan_once(sys.argv[1], int(sys.argv[2]))))
