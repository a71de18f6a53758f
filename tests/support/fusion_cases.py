"""A taxonomy with every kind of task, made-up videos with their truth, and batches of them for the fusion model."""

import numpy as np
import torch

from vca.core.annotations import Split, TrueEvent, VideoTruth
from vca.core.records import TextPiece, VideoFeatures
from vca.core.schemas import TextSource
from vca.core.taxonomy import Taxonomy, parse_taxonomy
from vca.core.timeline import Span, step_spans
from vca.models.fusion_config import FeatureStatistics, FusionConfig, FusionSpec
from vca.models.fusion_inputs import collate, window_rows
from vca.models.plm import load_language

STEP_US = 500_000
TAXONOMY: Taxonomy = parse_taxonomy(
    """
name: t
tasks:
  - {name: content, kind: multi_label, description: a b, labels: [{name: a, description: a}, {name: b, description: b}]}
  - {name: mood, kind: single_label, description: c,
     labels: [{name: good, description: g}, {name: bad, description: b}]}
  - name: events
    kind: span
    description: d e
    labels: [{name: x, description: x}, {name: y, description: y}]
    attributes:
      place: {labels: [{name: here, description: h}, {name: there, description: t}]}
      participants: {labels: [{name: me, description: m}, {name: you, description: u}]}
  - {name: pace, kind: step, description: f, labels: [{name: slow, description: s}, {name: fast, description: f}]}
""",
    "taxonomy",
)
UNIT = {n: FeatureStatistics(mean=(0.0,) * n, std=(1.0,) * n) for n in (4, 3)}


def config(model: str, **more: object) -> FusionConfig:
    values = {"plm": {"model": model, "lora_rank": 4}, "inputs": {"window_s": 8, "overlap_s": 4, "max_text_tokens": 16}}
    return FusionConfig.model_validate(values | more)


def spec() -> FusionSpec:
    return FusionSpec(taxonomy=TAXONOMY, feature_set="f", step_us=STEP_US, vision=UNIT[4], audio=UNIT[3])


def video(n_steps: int, seed: int = 0, text: bool = True) -> VideoFeatures:
    draw = np.random.default_rng(seed)
    steps = step_spans(Span(0, n_steps * STEP_US), STEP_US)
    pieces = (
        TextPiece(300_000, 1_900_000, TextSource.SUBTITLE, "a b c d"),
        TextPiece(0, 900_000, TextSource.OCR, "t s"),
    )
    return VideoFeatures(
        f"v{seed}", f"v{seed}.mp4", n_steps * STEP_US, STEP_US, steps,
        draw.normal(size=(n_steps, 4)).astype(np.float32), np.ones(n_steps, np.bool_),
        draw.normal(size=(n_steps, 3)).astype(np.float32), draw.random(n_steps) < 0.7,
        text=pieces if text else (),
    )  # fmt: skip


def truth(seed: int = 0) -> VideoTruth:
    event = TrueEvent("x", Span(500_000, 2_000_000), "here", frozenset({"me"}))
    return VideoTruth(
        f"v{seed}", f"v{seed}.mp4", Split.TRAIN, labels={"content": frozenset({"a"}), "mood": frozenset({"bad"})},
        events={"events": (event,), "pace": (TrueEvent("fast", Span(0, 1_000_000)),)},
    )  # fmt: skip


def batch_of(clips: list[VideoFeatures], fusion: FusionConfig) -> dict[str, torch.Tensor]:
    return collate(blobs_of(clips, fusion))


def blobs_of(clips: list[VideoFeatures], fusion: FusionConfig) -> list[bytes]:
    """Windows as they are stored for training."""
    language = load_language(fusion.plm)
    tables = [window_rows(c, truth(i), TAXONOMY, fusion.inputs, language) for i, c in enumerate(clips)]
    return [blob for table in tables for blob in table.column("arrays").to_pylist()]
