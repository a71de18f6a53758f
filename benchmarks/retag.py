"""What a new model costs: tagging again from the feature store, against tagging from the videos.

Both are whole runs of the job with the shipped settings, all encoders included. The first one reads the archive; for
the second one a weight of the zero-shot rule is another, which makes another model. Ray runs before the clock starts.

Each side takes two archives, one a part of the other, and the time for the videos that only the larger one has is
compared: workers that start, models that load, the plan and the publishing fall out. The whole runs are there as well.
"""

import os
import statistics
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

from benchmarks import jobs, videos
from benchmarks.harness import Figure, Report, Settings, in_turn, ratio

TARGET = 30.0
WEIGHT = "predict.zeroshot.excess_weight"


def measure(settings: Settings) -> list[Report]:
    """Short clips, each with picture, sound and no text."""
    look, n_few, n_many, seconds = (videos.TINY, 1, 3, 4) if settings.small else (videos.P360, 24, 120, 15)
    folder = settings.folder(f"retag-{look}")
    archives = {n: videos.archive(folder / str(n), look, n, seconds) for n in (n_few, n_many)}
    n_workers = len(os.sched_getaffinity(0))
    numbers = count()
    outputs: dict[int, Path] = {}
    whole: dict[str, list[float]] = {}

    with tempfile.TemporaryDirectory(dir=settings.work) as place:

        def run(n: int, output: Path, *overrides: str) -> float:
            done = jobs.tag(archives[n], output, *overrides)
            (row,) = done.rows("SELECT tagged, decoded_s FROM runs ORDER BY run_id DESC LIMIT 1")
            assert row["tagged"] == n, row
            assert (row["decoded_s"] == 0) == bool(overrides), "one side decodes everything, the other nothing"
            return done.wall_s

        def side(name: str, one: Callable[[int], float], times: int) -> Callable[[], float]:
            def both() -> float:
                with jobs.cluster_of(n_workers):
                    walls = {n: statistics.median(one(n) for _ in range(times)) for n in (n_few, n_many)}
                whole.setdefault(f"{name}, whole run, s", []).append(walls[n_many])
                return walls[n_many] - walls[n_few]

            return both

        def from_videos(n: int) -> float:
            outputs[n] = Path(place) / f"out-{next(numbers)}"
            return run(n, outputs[n])

        def from_features(n: int) -> float:
            return run(n, outputs[n], f"{WEIGHT}={2 + next(numbers) / 1000}")

        # The first round begins with the videos; later ones may begin with the features of the round before.
        # What more videos take from features is less than what two starts of workers differ by: medians of five.
        sides = {"from videos": side("from videos", from_videos, 1)}
        sides["from features"] = side("from features", from_features, 1 if settings.small else 5)
        found = in_turn({f"{name}, s": one for name, one in sides.items()}, settings.rounds)
    figures = [
        Figure(
            "videos over features, for one more video", ratio(found, "from videos, s", "from features, s"), "x",
            TARGET, "at least", samples=found, note=f"seconds for {n_many - n_few} videos",
        ),
        Figure("videos over features, whole runs", ratio(whole, *whole), "x", samples=whole),
    ]  # fmt: skip
    conditions = {"videos": n_many, "seconds_of_each": seconds, "look": str(look), "workers_of_a_stage": n_workers}
    return [Report("retag", "A new model from the feature store", figures, conditions)]
