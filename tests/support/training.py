"""A small window set of made-up features with labels that can be learned, and a tiny language model to learn with."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.tiny_models import save_tiny
from vca.core.annotations import Split, TrueEvent, VideoTruth
from vca.core.identity import video_id
from vca.core.records import TextPiece, VideoFeatures
from vca.core.schemas import TextSource
from vca.core.taxonomy import Taxonomy
from vca.core.timeline import Span, step_spans
from vca.media.output import Output, OutputConfig
from vca.models.fusion_config import FeatureStatistics, FusionConfig, FusionSpec
from vca.models.fusion_inputs import InputsConfig, window_rows
from vca.models.plm import PlmConfig, load_language
from vca.pipelines.train_config import TrainConfig
from vca.pipelines.training import TrainResult, train
from vca.pipelines.training_checkpoint import EpochMetrics
from vca.pipelines.window_set import INDEX, WindowSet

STEP_US = 500_000
DIM = 6


def _labels(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "description": name} for name in names]


TAXONOMY = Taxonomy.model_validate(
    {
        "name": "test",
        "tasks": [
            {
                "name": "topic",
                "kind": "multi_label",
                "description": "a b",
                "labels": _labels("seen", "heard", "said"),
            },
            {"name": "mood", "kind": "single_label", "description": "c d", "labels": _labels("calm", "loud")},
            {"name": "events", "kind": "span", "description": "e f", "labels": _labels("flash", "bang")},
        ],
    }
)


def videos(n: int) -> list[tuple[VideoFeatures, VideoTruth]]:
    """Videos of 3 to 8 seconds: every label is told by one modality, some tasks are not annotated everywhere."""
    draw = np.random.default_rng(7)
    made = []
    for i in range(n):
        key = f"clip-{i:03d}.mp4"
        n_steps = int(draw.integers(6, 17))
        seen, heard, said, loud = draw.random(4) < 0.5
        vision = draw.normal(size=(n_steps, DIM)).astype(np.float32)
        audio = draw.normal(size=(n_steps, DIM)).astype(np.float32)
        vision[:, 0] += 3 * seen
        audio[:, 0] += 3 * heard
        audio[:, 1] += 3 * loud
        start = int(draw.integers(0, n_steps - 3))
        vision[start : start + 3, 2] += 4
        words = "a b c d" if said else "p q r s"
        silent = i % 7 == 3
        features = VideoFeatures(
            video_id=video_id(key),
            key=key,
            duration_us=n_steps * STEP_US,
            step_us=STEP_US,
            steps=step_spans(Span(0, n_steps * STEP_US), STEP_US),
            vision=vision,
            vision_mask=np.ones(n_steps, np.bool_),
            audio=None if silent else audio,
            audio_mask=None if silent else np.ones(n_steps, np.bool_),
            text=(TextPiece(0, 2_000_000, TextSource.SUBTITLE, words),),
        )
        names = {"seen": seen, "heard": heard, "said": said}
        labels = {"topic": frozenset(name for name, holds in names.items() if holds)}
        if i % 5:
            labels["mood"] = frozenset({"loud" if loud else "calm"})
        flash = TrueEvent("flash", Span(start * STEP_US, (start + 3) * STEP_US))
        split = Split.VALIDATION if i % 4 == 3 else Split.TRAIN
        made.append((features, VideoTruth(video_id(key), key, split, None, labels, {"events": (flash,)})))
    return made


@dataclass
class Training:
    """One output with a window set; `train()` starts or goes on with a run and notes what it was told."""

    root: str
    model: Path
    dropout: float = 0.1
    said: list[str] = field(default_factory=list)
    reported: list[EpochMetrics] = field(default_factory=list)
    output: Output = field(init=False)
    storage: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.output = Output(OutputConfig.model_validate({"uri": self.root, "storage": self.storage}))

    @property
    def fusion(self) -> FusionConfig:
        return FusionConfig(
            plm=PlmConfig(model=str(self.model), lora_rank=4, lora_dropout=self.dropout),
            inputs=InputsConfig(window_s=6.0, overlap_s=2.0, max_text_tokens=12),
            dropout=self.dropout,
        )

    @property
    def spec(self) -> FusionSpec:
        plain = FeatureStatistics(mean=(0.0,) * DIM, std=(1.0,) * DIM)
        return FusionSpec(taxonomy=TAXONOMY, feature_set="made-up", step_us=STEP_US, vision=plain, audio=plain)

    def window_set(self, n: int = 40, block_windows: int = 13) -> WindowSet:
        """Writes the set: several blocks, the last one short."""
        folder = "training/windows/made-up"
        tokenizer = load_language(self.fusion.plm)
        rows = pa.concat_tables(
            window_rows(features, truth, TAXONOMY, self.fusion.inputs, tokenizer) for features, truth in videos(n)
        )
        blocks = []
        for first in range(0, len(rows), block_windows):
            blocks.append(f"block-{len(blocks):05d}.parquet")
            with self.output.open_write(f"{folder}/{blocks[-1]}") as file:
                pq.write_table(rows.slice(first, block_windows), file)
        self.output.write_bytes(f"{folder}/{INDEX}", b"{}")
        counts = rows.column("split").value_counts().to_pylist()
        return WindowSet(folder, tuple(blocks), self.spec, {c["values"]: c["counts"] for c in counts}, "made-up")

    def train(self, window_set: WindowSet, config: TrainConfig, run_name: str = "run") -> TrainResult:
        self.said.clear()
        self.reported.clear()
        return train(
            window_set, self.fusion, self.spec, config, self.output, run_name, self.reported.append, self.said.append
        )


def tiny_model(folder: Path) -> Path:
    save_tiny(folder, "bert")
    return folder


def config(**changes: Any) -> TrainConfig:
    """Small, quick, and with all that the real one has: accumulation, a short last step, dropout."""
    settings = {"epochs": 2, "batch_windows": 8, "micro_windows": 2, "workers": 2, "lr_plm": 5e-3, "lr_new": 5e-3}
    return TrainConfig.model_validate(settings | changes)
