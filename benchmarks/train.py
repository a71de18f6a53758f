"""Samples per second of training under Ray Train and DeepSpeed, against a bare torch loop.

Both sides train the fusion model of the shipped settings on the same made-up windows, in the same batches and passes,
on as many CPU threads. The bare loop holds all windows in memory and does nothing but learn: no data pipeline, no
checkpoints, no figures. The job's figure is what it says of its own epochs, with reading, without validation and
checkpoints. The first epoch of either side is left out: workers start, memory is allocated.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import jobs
from benchmarks.harness import Figure, Report, Settings, in_turn, ratio
from vca.core.annotations import Split, TrueEvent, VideoTruth
from vca.core.identity import video_id
from vca.core.records import TextPiece, VideoFeatures
from vca.core.schemas import TextSource
from vca.core.taxonomy import Taxonomy
from vca.core.timeline import Span, step_spans
from vca.media.output import Output, OutputConfig
from vca.models.fusion_config import FeatureStatistics, FusionConfig, FusionSpec
from vca.models.fusion_inputs import collate, window_rows
from vca.models.plm import load_language
from vca.pipelines.train_config import TrainConfig
from vca.pipelines.training import train
from vca.pipelines.window_set import INDEX, WindowSet

TARGET = 0.9
STEP_US = 500_000
BLOCK_WINDOWS = 32
WORDS = ("the", "night", "train", "to", "coast", "was", "late", "and", "crowd", "on", "platform", "waited", "rain")


@dataclass(frozen=True)
class Size:
    windows: int
    window_s: float
    text_tokens: int
    dim: int
    epochs: int
    batch: int
    micro: int


SMALL = Size(windows=10, window_s=4.0, text_tokens=8, dim=8, epochs=2, batch=4, micro=2)
FULL = Size(windows=64, window_s=60.0, text_tokens=256, dim=256, epochs=3, batch=16, micro=4)


def measure(settings: Settings) -> list[Report]:
    """One worker against one thread, and all cores of two workers against a bare loop with two threads."""
    size = SMALL if settings.small else FULL
    with tempfile.TemporaryDirectory(dir=settings.folder("train")) as folder:
        figures = [_compare(settings, size, Path(folder), n) for n in ((1,) if settings.small else (1, 2))]
    conditions = {
        "model": "all-MiniLM-L6-v2 with LoRA", "steps_per_window": int(size.window_s * 1e6) // STEP_US,
        "text_tokens": size.text_tokens, "feature_width": size.dim, "batch_windows": size.batch,
        "micro_windows": size.micro, "windows_per_epoch": size.windows, "zero_stage": 0, "precision": "fp32",
    }  # fmt: skip
    return [Report("train", "Training under Ray Train and DeepSpeed against a bare torch loop", figures, conditions)]


def _compare(settings: Settings, size: Size, folder: Path, workers: int) -> Figure:
    output = Output(OutputConfig(uri=str(folder / f"out-{workers}")))
    fusion, spec = _model(size)
    windows = _window_set(output, fusion, spec, size)
    config = TrainConfig(
        epochs=size.epochs, batch_windows=size.batch, micro_windows=size.micro, workers=workers, patience=None
    )
    runs = iter(range(1000))

    def job() -> float:
        epochs: list[Any] = []
        with jobs.cluster_of(workers):  # what reads the windows has to fit in beside the workers
            train(windows, fusion, spec, config, output, f"run-{next(runs)}", epochs.append)
        return statistics.median(epoch.windows_per_s for epoch in epochs[1:])

    def bare() -> float:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(bare_loop, (windows, fusion, config, output, workers))

    job_name, bare_name = "vca, windows/s", "bare loop, windows/s"
    found = in_turn({bare_name: bare, job_name: job}, settings.rounds)
    return Figure(
        f"rate over the bare loop's, workers: {workers}", ratio(found, job_name, bare_name), "x", TARGET, "at least",
        samples=found, note="the bare loop is one process with as many threads as there are workers",
    )  # fmt: skip


def bare_loop(windows: WindowSet, fusion: FusionConfig, config: TrainConfig, output: Output, threads: int) -> float:
    """Windows per second of the epochs after the first."""
    import torch

    from vca.models.learning import build_learner, parameter_groups

    torch.set_num_threads(threads)
    tables = [pq.read_table(output.path(windows.folder, block)) for block in windows.blocks]
    rows = [row for table in tables for row in table.to_pylist() if row["split"] == "train"]
    learner = build_learner(fusion, windows.spec, config.seed).train()
    trained = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameter_groups(learner, config.lr_plm, config.lr_new, config.weight_decay))
    draw = np.random.default_rng(config.seed)
    rates = []
    for _ in range(config.epochs):
        started = time.monotonic()
        order = draw.permutation(len(rows))
        for first in range(0, len(order), config.batch_windows):
            batch = [rows[i] for i in order[first : first + config.batch_windows]]
            counts = torch.tensor(np.sum([row["annotated"] for row in batch], axis=0, dtype=np.float32))
            for start in range(0, len(batch), config.micro_windows):
                blobs = [row["arrays"] for row in batch[start : start + config.micro_windows]]
                loss, _ = learner(collate(blobs), counts)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        rates.append(len(order) / (time.monotonic() - started))
    return statistics.median(rates[1:])


def _model(size: Size) -> tuple[FusionConfig, FusionSpec]:
    labels = [{"name": f"l{i}", "description": f"label {i}"} for i in range(20)]
    taxonomy = {
        "name": "benchmark",
        "tasks": [
            {"name": "content", "kind": "multi_label", "description": "what it shows", "labels": labels},
            {"name": "mood", "kind": "single_label", "description": "how it feels", "labels": labels[:4]},
            {"name": "events", "kind": "span", "description": "what happens", "labels": labels[:8]},
        ],
    }
    inputs = {"window_s": size.window_s, "overlap_s": 0, "max_text_tokens": size.text_tokens}
    plain = FeatureStatistics(mean=(0.0,) * size.dim, std=(1.0,) * size.dim)
    spec = FusionSpec(
        taxonomy=Taxonomy.model_validate(taxonomy), feature_set="made-up", step_us=STEP_US, vision=plain, audio=plain
    )
    return FusionConfig.model_validate({"inputs": inputs}), spec


def _window_set(output: Output, fusion: FusionConfig, spec: FusionSpec, size: Size) -> WindowSet:
    """Windows of whole length, in blocks; the smallest validation split that is one."""
    language = load_language(fusion.plm)
    folder = "training/windows/made-up"
    made = [_video(k, size, Split.TRAIN if k else Split.VALIDATION) for k in range(size.windows + 1)]
    rows = pa.concat_tables(window_rows(f, truth, spec.taxonomy, fusion.inputs, language) for f, truth in made)
    assert len(rows) == len(made)
    blocks = []
    for first in range(0, len(rows), BLOCK_WINDOWS):
        blocks.append(f"block-{len(blocks):05d}.parquet")
        with output.open_write(f"{folder}/{blocks[-1]}") as file:
            pq.write_table(rows.slice(first, BLOCK_WINDOWS), file)
    output.write_bytes(f"{folder}/{INDEX}", b"{}")
    return WindowSet(folder, tuple(blocks), spec, {"train": size.windows, "validation": 1}, "made-up")


def _video(number: int, size: Size, split: Split) -> tuple[VideoFeatures, VideoTruth]:
    draw = np.random.default_rng(number)
    key = f"video-{number:04d}.mp4"
    n_steps = int(size.window_s * 1e6) // STEP_US
    vision, audio = (draw.normal(size=(n_steps, size.dim)).astype(np.float32) for _ in range(2))
    seen = np.ones(n_steps, np.bool_)
    duration_us = n_steps * STEP_US
    features = VideoFeatures(
        video_id=video_id(key), key=key, duration_us=duration_us, step_us=STEP_US,
        steps=step_spans(Span(0, duration_us), STEP_US), vision=vision, vision_mask=seen, audio=audio, audio_mask=seen,
        text=tuple(_phrases(draw, size.text_tokens, duration_us)), shots=(),
    )  # fmt: skip
    labels = {"content": frozenset({f"l{number % 20}"}), "mood": frozenset({f"l{number % 4}"})}
    event = TrueEvent(f"l{number % 8}", Span(0, duration_us // 2))
    return features, VideoTruth(video_id(key), key, split, None, labels, {"events": (event,)})


def _phrases(draw: np.random.Generator, n_words: int, duration_us: int) -> Sequence[TextPiece]:
    """Phrases of eight words, at least so many tokens in all."""
    n = -(-n_words // 8)
    ends = [duration_us * k // n for k in range(n + 1)]
    texts = [" ".join(draw.choice(WORDS, 8)) for _ in range(n)]
    return [TextPiece(ends[k], ends[k + 1], TextSource.SUBTITLE, texts[k]) for k in range(n)]
