"""The job against other ways to the same features: Ray Data's own video reader, and Daft where it is installed.

All sample two pictures a second, scale them to one short side and give them to the same encoder of pictures; no sound,
no text. Ray is up before the clock starts, workers are not: a peer that starts none is not charged for ours.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import jobs, videos
from benchmarks.harness import Figure, Report, Settings, in_turn, ratio, timed
from vca.models.vision import FRAME_SIZE, VisionConfig, build_vision

STEP_US = 500_000
TRAFFIC_TARGET = 10.0
PICTURES_ONLY = (*jobs.LIGHT, "encoders.audio.kind=none")


class Encode:
    """The encoder of pictures as a peer's user-defined function."""

    def __init__(self) -> None:
        encoder = build_vision(VisionConfig(), STEP_US)
        assert encoder is not None
        self._encoder = encoder

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        frames = np.ascontiguousarray(np.stack(list(batch["frame"])).astype(np.uint8))
        values, _ = self._encoder.encode(frames, np.ones(len(frames), np.bool_), STEP_US)
        return {"path": batch["path"], "vision": values.astype(np.float16)}


def measure(settings: Settings) -> list[Report]:
    """Wall time of each, and what each put into Ray's object store."""
    small = settings.small
    look, n_clips, seconds = (videos.TINY, 3, 4) if small else (videos.P360, 120, 12)
    archive = videos.archive(settings.folder(f"peers-{look}") / "archive", look, n_clips, seconds)
    height, width = FRAME_SIZE, round(look.width * FRAME_SIZE / look.height / 2) * 2
    n_cores = len(os.sched_getaffinity(0))
    traffic: dict[str, list[float]] = {}

    def on_ray(name: str, work: Callable[[Path], None]) -> Callable[[], float]:
        def side() -> float:
            # Frames of a peer need room: spilling to disk would be counted against it twice.
            with tempfile.TemporaryDirectory(dir=settings.work) as out, jobs.cluster_of(n_cores, 4096):
                wall_s = timed(lambda: work(Path(out)))
                traffic.setdefault(name, []).append(_object_store_mb())
            return wall_s

        return side

    def vca(out: Path) -> None:
        jobs.tag(archive, out, *PICTURES_ONLY)

    def ray_data(out: Path) -> None:
        import ray

        dataset = ray.data.read_videos(
            str(archive), include_paths=True, fps=1_000_000 // STEP_US, resize=(height, width)
        )
        dataset = dataset.map_batches(Encode, batch_size=24, compute=ray.data.ActorPoolStrategy(size=n_cores))
        dataset.write_parquet(str(out))

    sides: dict[str, Callable[[], float]] = {
        "vca tag": on_ray("vca tag", vca),
        "ray.data.read_videos": on_ray("ray.data.read_videos", ray_data),
    }
    if find_spec("daft") is not None:
        sides["daft"] = lambda: timed(lambda: _daft(archive, height, width, settings.work))
    found = in_turn(sides, settings.rounds)
    figures = [
        Figure(f"{name} over vca tag", ratio(found, name, "vca tag"), "x", 1.0, "at least",
               {f"{n}, s": found[n] for n in (name, "vca tag")})
        for name in sides if name != "vca tag"
    ]  # fmt: skip
    figures.append(
        Figure("object store, read_videos over vca tag", ratio(traffic, "ray.data.read_videos", "vca tag"), "x",
               TRAFFIC_TARGET, "at least", {f"{n}, MB": values for n, values in traffic.items()})
    )  # fmt: skip
    conditions = {"look": str(look), "clips": n_clips, "seconds_each": seconds, "size": f"{width}x{height}"}
    conditions["daft"] = "daft" in sides or "not installed"
    return [Report("peers", "Peers", figures, conditions)]


def _daft(archive: Path, height: int, width: int, out: Path) -> None:
    """`pip install daft`: it is no dependency of this project."""
    import daft

    # Created where it is called: a class of Daft's own around the encoder that every side has.
    encode = Encode()

    @daft.udf(return_dtype=daft.DataType.tensor(daft.DataType.float16()))
    def features(frames: Any) -> list[np.ndarray]:
        pictures = np.stack([np.asarray(frame) for frame in frames.to_pylist()])
        return list(encode({"frame": pictures, "path": np.zeros(len(pictures))})["vision"])

    frames = daft.read_video_frames(
        [str(path) for path in sorted(archive.glob("*.mp4"))], image_height=height, image_width=width,
        sample_interval_seconds=STEP_US / 1e6,
    )  # fmt: skip
    folder = out / "daft"
    frames.with_column("vision", features(frames["data"])).select("path", "vision").write_parquet(str(folder))
    shutil.rmtree(folder)


def _object_store_mb() -> float:
    """All that was ever put into the store of this node. Ray tells it through a private function only."""
    from ray._private.internal_api import node_stats

    return float(node_stats().store_stats.cumulative_created_bytes) / 1e6
