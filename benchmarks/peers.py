"""The job against other ways to the same features: Ray Data's own video reader, Daft and Data-Juicer where they are.

All sample two pictures a second, scale them to one short side and give them to the same encoder of pictures; no sound,
no text. Data-Juicer only samples: its pictures are JPEG at full size, and no encoder sees them. So it is compared with
reading alone, by as many decoders as it has processes. Ray is up before the clock starts, and what Data-Juicer imports
is imported; workers and decoders are not up: a peer that starts none is not charged for ours.

Daft is found if it is installed: `pip install daft==0.7.12`. The reader of 0.7.18 and 0.7.26 waits for itself with two
cores. It reads two clips first, and is left out if that does not end.

Data-Juicer, which wants an old PyAV, is found in an environment of its own, whose Python the variable
`DATA_JUICER_PYTHON` names. It needs more than it asks for: `pip install py-data-juicer aiohttp ray
opencv-python-headless av==13.1.0`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from benchmarks import jobs, videos
from benchmarks.harness import Figure, Report, Settings, in_turn, ratio, timed
from vca.core.timeline import Span
from vca.media.decode_config import DecodeConfig
from vca.media.isolation import DecoderProcess, LocalSource
from vca.media.read import ReadPlan
from vca.models.vision import FRAME_SIZE, VisionConfig, build_vision

STEP_US = 500_000
TRIAL_S = 120.0
TRAFFIC_TARGET = 10.0
PICTURES_ONLY = (*jobs.LIGHT, "encoders.audio.kind=none")

_DATA_JUICER = """
import sys, time
from data_juicer.core.data import NestedDataset
from data_juicer.ops.mapper.video_extract_frames_mapper import VideoExtractFramesMapper

n_frames, n_processes, out, *files = sys.argv[1:]
started = time.perf_counter()
dataset = NestedDataset.from_list([{"videos": [path], "text": ""} for path in files])
mapper = VideoExtractFramesMapper(
    frame_sampling_method="uniform", frame_num=int(n_frames), output_format="bytes", legacy_split_by_text_token=False,
    num_proc=int(n_processes),
)
dataset = mapper.run(dataset)
dataset.to_parquet(out)
seconds = time.perf_counter() - started
assert len(dataset) == len(files) and len(dataset[0]["video_frames"][0]) == int(n_frames)
print(seconds)
"""


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
    look, n_clips, seconds = (videos.TINY, 3, 4) if small else (videos.P360, 360, 12)
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
        # As with ours, readers and encoders share the cores: encoders that held all of them would leave no reader any.
        pool = ray.data.ActorPoolStrategy(size=n_cores)
        dataset = dataset.map_batches(Encode, batch_size=24, compute=pool, num_cpus=0)
        dataset.write_parquet(str(out))

    sides: dict[str, Callable[[], float]] = {
        "vca tag": on_ray("vca tag", vca),
        "ray.data.read_videos": on_ray("ray.data.read_videos", ray_data),
    }
    daft = "not found"
    if find_spec("daft") is not None:
        trial = videos.archive(settings.folder(f"peers-{look}") / "trial", look, 2, seconds)
        try:
            _daft_in_a_process(trial, height, width, TRIAL_S)
        except subprocess.TimeoutExpired:
            daft = f"two clips took longer than {TRIAL_S:.0f} s"
        else:
            daft = version("daft")
            sides["daft"] = lambda: _daft_in_a_process(archive, height, width, None)
    python = os.environ.get("DATA_JUICER_PYTHON")
    if python is not None:
        n_frames = seconds * 1_000_000 // STEP_US
        sides["reading alone"] = lambda: timed(lambda: _read(archive, n_cores))
        sides["Data-Juicer"] = lambda: _data_juicer(python, archive, n_frames, n_cores, settings.work)
    found = in_turn(sides, settings.rounds)
    pairs = [(name, "reading alone" if name == "Data-Juicer" else "vca tag") for name in sides]
    figures = [
        Figure(f"{peer} over {ours}", ratio(found, peer, ours), "x", 1.0, "at least",
               {f"{n}, s": found[n] for n in (peer, ours)})
        for peer, ours in pairs if peer not in ("vca tag", "reading alone")
    ]  # fmt: skip
    if python is not None:
        whole = ratio(found, "Data-Juicer", "vca tag")
        figures.append(Figure("Data-Juicer over vca tag", whole, "x", note="which encodes and tags, too"))
    figures.append(
        Figure("object store, read_videos over vca tag", ratio(traffic, "ray.data.read_videos", "vca tag"), "x",
               TRAFFIC_TARGET, "at least", {f"{n}, MB": values for n, values in traffic.items()})
    )  # fmt: skip
    conditions = {"look": str(look), "clips": n_clips, "seconds_each": seconds, "size": f"{width}x{height}"}
    conditions |= {"daft": daft, "Data-Juicer": "not found" if python is None else "measured"}
    return [Report("peers", "Peers", figures, conditions)]


def _daft_in_a_process(archive: Path, height: int, width: int, limit_s: float | None) -> float:
    """Seconds of `_daft`. Raises `subprocess.TimeoutExpired`: its reader may wait for itself, and cannot be stopped."""
    command = [sys.executable, "-m", "benchmarks.peers", str(archive), str(height), str(width)]
    done = subprocess.run(command, cwd=jobs.REPOSITORY, stdout=subprocess.PIPE, text=True, check=True, timeout=limit_s)
    return float(done.stdout.split()[-1])


def _daft(archive: Path, height: int, width: int, out: Path) -> None:
    """Not a dependency of this project."""
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


def _read(archive: Path, n_processes: int) -> None:
    """What the job samples of pictures, by as many decoding children."""
    plan = ReadPlan(STEP_US, 1, FRAME_SIZE, audio=False, text=False, ocr_frames_per_minute=0.0)
    todo = SimpleQueue[Path]()
    for path in sorted(archive.glob("*.mp4")):
        todo.put(path)

    def work(_: int) -> None:
        with DecoderProcess(DecodeConfig(), [str(archive)]) as decoder, suppress(Empty):
            while True:
                source = LocalSource(str(todo.get_nowait()), version="1")
                info = decoder.probe(source)
                assert decoder.read(source, info, Span(0, info.duration_us), plan).frame_mask.all()

    with ThreadPoolExecutor(n_processes) as threads:
        list(threads.map(work, range(n_processes)))


def _data_juicer(python: str, archive: Path, n_frames: int, n_processes: int, work: Path) -> float:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        files = sorted(map(str, archive.glob("*.mp4")))
        command = [python, "-c", _DATA_JUICER, str(n_frames), str(n_processes), f"{folder}/frames.parquet", *files]
        # Its working files, which would be taken for the answer next time, go with the folder.
        environment = {"PATH": os.environ["PATH"], "HOME": folder}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"Data-Juicer ended with {done.returncode}:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def _object_store_mb() -> float:
    """All that was ever put into the store of this node. Ray tells it through a private function only."""
    import ray
    from ray._private.internal_api import node_stats

    (node,) = ray.nodes()  # type: ignore[no-untyped-call]
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
    return float(stats.store_stats.cumulative_created_bytes) / 1e6


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(timed(lambda: _daft(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(place))))
