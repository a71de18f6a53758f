"""What `sampling.mode: keyframes` saves on video with long groups of pictures, and what it costs in quality."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from benchmarks import jobs, videos
from benchmarks.harness import Figure, Report, Settings, in_turn, ratio, timed
from vca.core.timeline import segment_spans
from vca.media.decode_config import DecodeConfig, SamplingConfig
from vca.media.isolation import DecoderProcess, LocalSource
from vca.media.read import ReadPlan
from vca.models.vision import FRAME_SIZE

STEP_US = 500_000
TARGET = 6.0
N_LABELLED = 220


def measure(settings: Settings) -> list[Report]:
    """Time on generated videos, score on the generated archive whose labels are known."""
    small = settings.small
    look, few_s, many_s = (videos.TINY, 8, 70) if small else (videos.P720, 120, 900)
    folder = settings.folder(f"keyframes-{look}")
    n_cores = len(os.sched_getaffinity(0))
    archives = [
        videos.long_archive(folder / name, look, n_cores, seconds)
        for name, seconds in (("few", few_s), ("many", many_s))
    ]

    def tag(mode: str) -> Callable[[], float]:
        def side() -> float:
            with tempfile.TemporaryDirectory(dir=settings.work) as out, jobs.cluster_of(n_cores):
                walls = [
                    jobs.tag(archive, Path(out) / archive.name, *jobs.LIGHT, f"sampling.mode={mode}").wall_s
                    for archive in archives
                ]
            return walls[1] - walls[0]

        return side

    modes: tuple[Literal["exact", "keyframes"], ...] = ("exact", "keyframes")
    long_video = next(archives[1].iterdir())
    read = in_turn({f"{mode}, s": lambda mode=mode: read_all(long_video, mode) for mode in modes}, settings.rounds)
    found = in_turn({f"{mode}, s": tag(mode) for mode in modes}, settings.rounds)
    figures = [
        Figure("reading of one video, exact over keyframes", ratio(read, "exact, s", "keyframes, s"), "x", TARGET,
               "at least", read),
        Figure("vca tag, exact over keyframes", ratio(found, "exact, s", "keyframes, s"), "x", samples=found,
               note="with encoders and tagging, which cost the same in both"),
    ]  # fmt: skip
    if not small:
        scores = {mode: _score(settings, mode) for mode in modes}
        figures += [
            Figure(f"{name}, exact less keyframes", value - scores["keyframes"][name], "",
                   samples={mode: [of_mode[name]] for mode, of_mode in scores.items()})
            for name, value in scores["exact"].items()
        ]  # fmt: skip
    conditions = {
        "look": str(look), "group_of_pictures": look.gop, "seconds_each": many_s - few_s, "videos": n_cores,
        "quality": f"demo archive, {N_LABELLED} labelled clips, key frames 2 s apart, one training each",
    }  # fmt: skip
    return [Report("keyframes", "Key frames only", figures, conditions)]


def read_all(path: Path, mode: Literal["exact", "keyframes"]) -> float:
    """Seconds in which one decoding child, already up, reads a whole video, its sound and its text."""
    plan = ReadPlan(STEP_US, 1, FRAME_SIZE, audio=True, text=True, ocr_frames_per_minute=0.0, mode=mode)
    source = LocalSource(str(path), version="1")
    with DecoderProcess(DecodeConfig(), [str(path.parent)]) as decoder:
        info = decoder.probe(source)
        spans = segment_spans(info.duration_us, SamplingConfig().segment_s * 1_000_000)
        return timed(lambda: [decoder.read(source, info, span, plan) for span in spans])


def _score(settings: Settings, mode: str) -> dict[str, float]:
    """Figures of the test split after a training on features of this mode."""
    folder = settings.folder(f"quality-{mode}")
    archive, labels = settings.work / "labelled" / "archive", settings.work / "labelled" / "annotations.jsonl"
    _vca("demo", "--archive", str(archive), "--clips", str(N_LABELLED), "--annotations", str(labels))
    common = {
        "output.uri": str(folder),
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
        "tracking.artifact_uri": f"{folder}/artifacts",
    }
    tagging = {"archive.uri": str(archive), "sampling.mode": mode, "predict.model": "zeroshot"}
    _vca("tag", "--config", "configs/demo.yaml", *_set(common | tagging))
    _vca("finetune", "--config", "configs/demo_finetune.yaml", *_set(common | {"annotations.files": [str(labels)]}))
    newest = max(folder.glob("reports/*/comparison.json"), key=lambda path: path.stat().st_mtime)
    found: dict[str, Any] = json.loads(newest.read_text(encoding="utf-8"))["systems"]["fusion"]
    return {"score": found["score"]["value"]} | {name: f["value"] for name, f in found["headline"].items()}


def _set(values: dict[str, Any]) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{name}={json.dumps(value)}")]


def _vca(*arguments: str) -> None:
    command = [sys.executable, "-m", "vca.cli", *arguments]
    done = subprocess.run(command, cwd=jobs.REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # 1: the demo archive holds broken files on purpose
        raise RuntimeError(f"vca {arguments[0]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
