"""How near a run comes to the bare cost of decoding and encoding.

The floor is a loop in as many processes as the job has readers: PyAV decodes every picture, scales those in the middle
of the steps, resamples the sound, and the same encoders turn both into features. It probes nothing, checks nothing,
limits nothing, finds no shots and stores nothing.

Both sides take two archives, one a part of the other, and the time for the videos that only the larger one has is
compared: starting Ray and the workers, loading models and all else that a run costs once falls out.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler

from benchmarks import jobs, videos
from benchmarks.harness import Figure, Report, Settings, in_turn, ratio
from vca.models.encode import EncodersConfig, SegmentEncoder
from vca.models.vision import vision_needs

TARGET_CLIPS, TARGET_LONG = 1.15, 1.08
STEP_US, SEGMENT_S = 500_000, 60


def measure(settings: Settings) -> list[Report]:
    """Clips of 720p and 360p, and long videos: in the smaller archives enough that the larger start no more workers."""
    small = settings.small
    reports = []
    for look, n_few, n_many, seconds in (
        ((videos.TINY, 2, 4, 4),) if small else ((videos.P720, 136, 256, 12), (videos.P360, 136, 376, 12))
    ):
        folder = settings.folder(f"clips-{look}")
        few = videos.archive(folder / "few", look, n_few, seconds)
        many = videos.archive(folder / "many", look, n_many, seconds)
        reports.append(_compare(settings, f"floor_{look}", f"{look} clips of {seconds} s", few, many, TARGET_CLIPS))
    look, seconds, n_few, n_many = (videos.TINY, 130, 1, 2) if small else (videos.P360, 3600, 1, 3)
    folder = settings.folder(f"long-{look}")
    few, many = (videos.long_archive(folder / name, look, n, seconds) for name, n in (("few", n_few), ("many", n_many)))
    title = f"{look} videos of {seconds / 3600:g} h"
    reports.append(_compare(settings, "floor_long", title, few, many, TARGET_LONG))
    return reports


def _compare(settings: Settings, name: str, title: str, few: Path, many: Path, target: float) -> Report:
    n_workers = len(os.sched_getaffinity(0))
    files = {folder: sorted(folder.glob("*.mp4")) for folder in (few, many)}
    more = files[many][len(files[few]) :]
    media_s = _seconds(more)

    def floor() -> float:
        return bare_loop(more, n_workers)

    def tag() -> float:
        with tempfile.TemporaryDirectory(dir=settings.work) as folder, jobs.cluster_of(n_workers):
            walls = [jobs.tag(archive, Path(folder) / archive.name, *jobs.LIGHT).wall_s for archive in (few, many)]
        return walls[1] - walls[0]

    found = in_turn({"floor, s": floor, "vca tag, s": tag}, settings.rounds)
    figure = Figure(
        "vca tag over the floor", ratio(found, "vca tag, s", "floor, s"), "x", target, samples=found,
        note=f"real-time factor of the floor {media_s / min(found['floor, s']):.0f}",
    )  # fmt: skip
    conditions = {
        "videos": len(more), "hours": round(media_s / 3600, 2), "mbit_per_s": _mbit_per_s(more, media_s),
        "processes": n_workers, "encoders": "descriptors of picture and sound, no OCR, no speech",
    }  # fmt: skip
    return Report(name, f"Decoding floor, {title}", [figure], conditions)


def bare_loop(files: Sequence[Path], n_processes: int) -> float:
    """Wall seconds from the moment all processes are ready until the last video is encoded."""
    context = multiprocessing.get_context("spawn")
    todo, ready, done = context.Queue(), context.Barrier(n_processes + 1), context.Queue()
    for path in sorted(files, key=lambda path: -path.stat().st_size):
        todo.put(str(path))
    for _ in range(n_processes):
        todo.put(None)
    workers = [context.Process(target=_work, args=(todo, ready, done)) for _ in range(n_processes)]
    for worker in workers:
        worker.start()
    ready.wait()
    started = time.perf_counter()
    n_steps = sum(done.get() for _ in workers)
    wall_s = time.perf_counter() - started
    for worker in workers:
        worker.join()
    assert n_steps > 0, "the floor encoded nothing"
    return wall_s


def _work(todo: Any, ready: Any, done: Any) -> None:
    encoders = EncodersConfig.model_validate({"ocr": {"kind": "none"}, "speech": {"vad": "none"}})
    encode = SegmentEncoder(encoders, STEP_US)
    needs = vision_needs(encoders.vision, STEP_US)
    assert needs is not None
    ready.wait()
    n_steps = 0
    while (path := todo.get()) is not None:
        for frames, sound in _decode(path, needs.frame_size):
            steps = np.ones(len(frames), np.bool_)
            encoded = encode(frames, steps, sound, steps, None, None, 0)
            assert encoded.vision is not None
            n_steps += len(encoded.vision)
    done.put(n_steps)


def _decode(path: str, short_side: int) -> Any:
    """Yield the pictures [S, H, W, 3] and the sound [n] of each segment."""
    resampler = AudioResampler("flt", "mono", 16_000)
    with av.open(path) as source:
        video, audio = source.streams.video[0], source.streams.audio[0]
        video.thread_count = audio.thread_count = 1
        scale = short_side / min(video.width, video.height)
        width, height = (round(side * scale / 2) * 2 for side in (video.width, video.height))
        pictures: list[np.ndarray] = []
        sound: list[np.ndarray] = []
        n_shown = 0
        for packet in source.demux(video, audio):
            for frame in packet.decode():
                if isinstance(frame, av.AudioFrame):
                    sound += [part.to_ndarray()[0] for part in resampler.resample(frame)]
                elif Fraction(frame.pts or 0) * frame.time_base * 1_000_000 >= n_shown * STEP_US + STEP_US // 2:
                    scaled = frame.reformat(width=width, height=height, format="rgb24", threads=1)
                    pictures.append(scaled.to_ndarray())
                    n_shown += 1
                    if len(pictures) == SEGMENT_S * 1_000_000 // STEP_US:
                        yield _segment(pictures, sound)
                        pictures, sound = [], []
        if pictures:
            yield _segment(pictures, sound)


def _segment(pictures: list[np.ndarray], sound: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    n_samples = len(pictures) * STEP_US * 16 // 1000
    wave = np.concatenate([*sound, np.zeros(n_samples, np.float32)])[:n_samples]
    return np.stack(pictures), wave


def _seconds(files: Sequence[Path]) -> float:
    total = 0
    for path in files:
        with av.open(str(path)) as source:
            total += source.duration or 0
    return total / 1e6


def _mbit_per_s(files: Sequence[Path], seconds: float) -> float:
    return round(sum(path.stat().st_size for path in files) * 8 / seconds / 1e6, 2)
