"""The linear probe: what plain logistic regression makes of the same frozen features. A baseline, not a product.

Video-level tasks see the video pooled: mean and maximum over the steps of vision and audio, mean of the text's vectors.
Step and span tasks see single steps: the features of the step beside the vector of the text said or shown during it.
Text vectors are those of the language model's sentence embedding. A missing modality is zeros and a flag.

Shape letters: V videos, S steps, D features, F probe features, L labels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vca.core.annotations import VideoTruth
from vca.core.records import BoolArray, FloatArray, VideoFeatures, VideoLogits
from vca.core.taxonomy import Task, TaskKind, Taxonomy
from vca.core.timeline import overlap_us
from vca.models.fusion_inputs import InputsConfig, annotated_tasks, targets_of, text_pieces

Embed = Callable[[Sequence[str]], FloatArray]
"""Texts to vectors [N, D]."""

STRENGTH = 1.0
"""Inverse of the L2 penalty, the default of scikit-learn."""
MAX_STEPS = 60_000
"""Steps a step probe learns from; more are thinned out evenly."""
CERTAIN = 8.0
"""Logit of a label of which the training data hold one side only."""


@dataclass(frozen=True, slots=True)
class ProbeFeatures:
    """What the probe sees of one video."""

    pooled: FloatArray  # [F]
    steps: FloatArray  # [S, F']


def probe_features(
    video: VideoFeatures, vision_dim: int, audio_dim: int, text_dim: int, embed: Embed, inputs: InputsConfig
) -> ProbeFeatures:
    """Pooled and per-step features of fixed width, whatever the video lacks."""
    vision, vision_mask = _filled(video.vision, video.vision_mask, len(video.steps), vision_dim)
    audio, audio_mask = _filled(video.audio, video.audio_mask, len(video.steps), audio_dim)
    text, text_mask, mean_text = _text_steps(video, text_dim, embed, inputs)
    parts = []
    for values, mask in ((vision, vision_mask), (audio, audio_mask)):
        seen = values[mask] if mask.any() else np.zeros((1, values.shape[1]), np.float32)
        parts += [seen.mean(axis=0), seen.max(axis=0), np.array([float(mask.any())], np.float32)]
    pooled = np.concatenate([*parts, mean_text, [float(text_mask.any())]]).astype(np.float32)
    flags = np.stack([vision_mask, audio_mask, text_mask], axis=1).astype(np.float32)
    return ProbeFeatures(pooled, np.concatenate([vision, audio, text, flags], axis=1))


class LinearProbe:
    """Fits one regression a label and answers with logits, like any model. Deterministic."""

    def __init__(
        self, taxonomy: Taxonomy, truths: Sequence[VideoTruth], features: Sequence[ProbeFeatures], grids: Sequence[Any]
    ) -> None:
        """`grids` are the steps [S, 2] of each video; the lists are of the training split and parallel."""
        self.taxonomy = taxonomy
        self._models: dict[str, _Regressions] = {}
        targets = [targets_of(truth, taxonomy, grid) for truth, grid in zip(truths, grids, strict=True)]
        known = np.array([annotated_tasks(truth, taxonomy) for truth in truths])
        for i, task in enumerate(taxonomy.tasks):
            rows = np.flatnonzero(known[:, i]).tolist()
            self._fit(task, [features[r] for r in rows], [targets[r] for r in rows])

    def _fit(self, task: Task, features: Sequence[ProbeFeatures], targets: Sequence[Mapping[str, Any]]) -> None:
        if task.kind is TaskKind.MULTI_LABEL:
            x, y = np.stack([f.pooled for f in features]), np.stack([t[f"video.{task.name}"] for t in targets])
        elif task.kind is TaskKind.SINGLE_LABEL:
            x = np.stack([f.pooled for f in features])
            y = np.eye(len(task.labels), dtype=np.uint8)[[int(t[f"video.{task.name}"]) for t in targets]]
        else:
            x, y = _thinned(features, [t[f"steps.{task.name}"] for t in targets])
            self._fit_attributes(task, features, targets)
        self._models[task.name] = _Regressions(x, y)

    def _fit_attributes(
        self, task: Task, features: Sequence[ProbeFeatures], targets: Sequence[Mapping[str, Any]]
    ) -> None:
        steps = np.concatenate([f.steps for f in features])
        if task.attributes.place is not None:
            place = np.concatenate([t[f"place.{task.name}"] for t in targets])
            one_hot = np.eye(len(task.attributes.place.labels), dtype=np.uint8)[np.maximum(place, 0)]
            self._models[f"{task.name}.place"] = _Regressions(steps[place >= 0], one_hot[place >= 0])
        if task.attributes.participants is not None:
            people = np.concatenate([t[f"participants.{task.name}"] for t in targets])
            mask = np.concatenate([t[f"participants_mask.{task.name}"] for t in targets]).astype(bool)
            self._models[f"{task.name}.participants"] = _Regressions(steps[mask], people[mask])

    def __call__(self, features: ProbeFeatures) -> VideoLogits:
        video, steps, places, people = {}, {}, {}, {}
        for task in self.taxonomy.tasks:
            model = self._models[task.name]
            if task.kind in (TaskKind.MULTI_LABEL, TaskKind.SINGLE_LABEL):
                video[task.name] = model(features.pooled[None])[0]
                continue
            steps[task.name] = model(features.steps)
            if f"{task.name}.place" in self._models:
                places[task.name] = self._models[f"{task.name}.place"](features.steps)
            if f"{task.name}.participants" in self._models:
                people[task.name] = self._models[f"{task.name}.participants"](features.steps)
        return VideoLogits(video, steps, places, people)


class _Regressions:
    """One logistic regression for each column of targets [N, L]; class weights balance rare labels."""

    def __init__(self, x: FloatArray, y: Any) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        self._n_labels = y.shape[1]
        self._constant = np.full(self._n_labels, -CERTAIN, np.float32)
        self._fitted: dict[int, Any] = {}
        self._scaler = StandardScaler().fit(x) if len(x) else None
        scaled = x if self._scaler is None else self._scaler.transform(x)
        for i in range(self._n_labels):
            if len(x) == 0 or y[:, i].all() or not y[:, i].any():
                self._constant[i] = CERTAIN if len(x) and y[:, i].all() else -CERTAIN
                continue
            model = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=500)
            self._fitted[i] = model.fit(scaled, y[:, i])

    def __call__(self, x: FloatArray) -> FloatArray:
        logits = np.tile(self._constant, (len(x), 1))
        for i, model in self._fitted.items():
            assert self._scaler is not None
            logits[:, i] = model.decision_function(self._scaler.transform(x))
        return logits


def _thinned(features: Sequence[ProbeFeatures], targets: Sequence[Any]) -> tuple[FloatArray, Any]:
    x, y = np.concatenate([f.steps for f in features]), np.concatenate(targets)
    every = -(-len(x) // MAX_STEPS)
    return x[::every], y[::every]


def _filled(values: FloatArray | None, mask: BoolArray | None, n_steps: int, dim: int) -> tuple[FloatArray, BoolArray]:
    if values is None or mask is None:
        return np.zeros((n_steps, dim), np.float32), np.zeros(n_steps, np.bool_)
    return np.where(mask[:, None], values, 0).astype(np.float32), mask


def _text_steps(
    video: VideoFeatures, dim: int, embed: Embed, inputs: InputsConfig
) -> tuple[FloatArray, BoolArray, FloatArray]:
    """Mean vector of the pieces that overlap each step [S, D], which steps have any [S], and the mean of all [D]."""
    pieces = list(text_pieces(video.text, inputs))
    if not pieces:
        return (
            np.zeros((len(video.steps), dim), np.float32),
            np.zeros(len(video.steps), np.bool_),
            np.zeros(dim, np.float32),
        )
    vectors = embed([text for _, _, text in pieces])
    spans = np.array([(span.start_us, span.end_us) for span, _, _ in pieces], np.int64)
    touches = (overlap_us(spans, video.steps) > 0).astype(np.float32)  # [N, S]
    counts = touches.sum(axis=0)
    mean = touches.T @ vectors / np.maximum(counts, 1)[:, None]
    return mean.astype(np.float32), counts > 0, vectors.mean(axis=0)
