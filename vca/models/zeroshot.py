"""Tags on day one, without training: text and frames are compared with the words of the taxonomy.

The rule for text, measured in docs/zeroshot.md. Neighbouring pieces of text become windows of a few seconds. The
similarity of a window and a label is the mean of two cosines: to the label's best wording, and to the centre of all its
wordings. Three numbers follow, in units of the spread of such similarities over ordinary sentences (`BACKGROUND`):

- excess: how far the similarity lies above the label's mean over ordinary sentences;
- ordinary: how much closer than usual the window is to its nearest ordinary sentences (small talk, noise, captions);
- rival: the largest positive excess of an unrelated label of the same task.

`score = logistic(2.1 * excess - 0.6 * ordinary - 0.9 * rival - 6.8)`. The four numbers belong to no label; they were
fitted once for all tasks on hand-written sentences. In a single_label task the labels and "none of them" (the ordinary
sentences) compete in a softmax. The score of a video is the mean of its best windows, the square root of their number.

Shape letters: U windows of text, P wordings, L labels, B ordinary sentences, S grid steps, D features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vca.core.config import Config
from vca.core.identity import canonical_json, digest
from vca.core.records import CategoryScore, Event, Evidence, FloatArray, Prediction, VideoFeatures
from vca.core.spans import SpanDecoding, decode_spans
from vca.core.taxonomy import Attribute, Label, Task, TaskKind, Taxonomy
from vca.core.timeline import US_PER_S, Span
from vca.models.text_windows import TextWindow, WindowConfig, text_windows
from vca.models.zeroshot_background import BACKGROUND

ALGORITHM = "zeroshot-1"
"""Raised with every change of the code below that can change a score."""

NEAREST = 3  # ordinary sentences a window is compared with; one alone would make a chance match decisive
IMAGE_TEMPLATES = ("{}", "A video frame. {}")
IMAGE_NULLS = ("An image.", "A photo.", "A video frame.", "A blurry picture.", "A plain background.")


class TextEmbedder(Protocol):
    """A sentence encoder: [N] texts to unit vectors [N, D]. Equal versions give comparable vectors."""

    @property
    def version(self) -> str: ...
    @property
    def dim(self) -> int: ...
    def embed(self, texts: Sequence[str]) -> FloatArray: ...


class ImageTextEmbedder(Protocol):
    """The text tower of the vision encoder whose features are in `VideoFeatures.vision`.

    `logit = logit_scale * cosine + logit_bias`, the scale a plain factor. `kind` is "sigmoid" where a logit is a
    probability of its own (SigLIP), "softmax" where only differences mean something (CLIP).
    """

    @property
    def kind(self) -> Literal["sigmoid", "softmax"]: ...
    @property
    def logit_scale(self) -> float: ...
    @property
    def logit_bias(self) -> float: ...
    def embed_texts(self, texts: list[str]) -> FloatArray: ...


class ZeroShotConfig(Config):
    """The numbers of the rule. They were fitted for all-MiniLM-L6-v2; refit `offset` first for another text model."""

    windows: WindowConfig = WindowConfig()
    """How pieces of text become windows to be judged."""
    spans: SpanDecoding = SpanDecoding()
    """How scores in time become events."""
    excess_weight: float = Field(default=2.1, gt=0.0)
    """Weight of the similarity above that of ordinary sentences."""
    ordinary_weight: float = Field(default=0.6, ge=0.0)
    """What resemblance to ordinary sentences takes off."""
    rival_weight: float = Field(default=0.9, ge=0.0)
    """What the strongest other label of the task takes off."""
    offset: float = -6.8
    """Added before the logistic function: lower is more cautious."""
    contrast_weight: float = Field(default=1.75, gt=0.0)
    """Sharpness of the softmax of single_label tasks, per unit of spread."""
    top_power: float = Field(default=0.5, ge=0.0, le=1.0)
    """A video's score is the mean of its best `n ** top_power` of n windows or frames: 0 the best one, 1 all."""
    moment_tasks: tuple[str, ...] = ("moderation",)
    """Tasks in which a short moment decides; they use `moment_power`."""
    moment_power: float = Field(default=0.25, ge=0.0, le=1.0)
    """`top_power` of `moment_tasks`."""
    text_only_tasks: tuple[str, ...] = ("sentiment",)
    """Tasks about what is said; frames have no vote in them."""
    attribute_context_s: float = Field(default=5.0, ge=0.0, le=600.0)
    """Text this close to an event may name its place and participants."""
    vision_temperature: float = Field(default=1.0, gt=0.0)
    """Divides the logits of frames; see `vision_offset`."""
    vision_offset: float = 0.0
    """`logistic(logit / vision_temperature + vision_offset)`; not fitted, see docs/zeroshot.md."""


def zeroshot_version(config: ZeroShotConfig, text_model_version: str) -> str:
    """Name of the tagger without loading a model. The taxonomy and the vision encoder have versions of their own."""
    return digest(
        "zeroshot", ALGORITHM, canonical_json(config.model_dump(mode="json")), text_model_version, *BACKGROUND
    )


@dataclass(frozen=True, slots=True)
class _Modality:
    """Scores of one modality for one task: on the grid [S, L], and for the video [L]; None where it has no evidence."""

    video: FloatArray | None
    steps: FloatArray | None


class ZeroShotTagger:
    """Compares the text and frames of one video with every label of the taxonomy. Deterministic.

    A video without evidence gets rows with score 0, no share of evidence, and nothing selected.
    """

    def __init__(
        self,
        taxonomy: Taxonomy,
        config: ZeroShotConfig,
        text_model: TextEmbedder,
        image_text: ImageTextEmbedder | None = None,
    ) -> None:
        self.version = zeroshot_version(config, text_model.version)
        self._taxonomy = taxonomy
        self._config = config
        self._text_model = text_model
        background = text_model.embed(BACKGROUND)
        groups = _label_groups(taxonomy)
        self._text = {name: _TextScorer(labels, text_model, background, config) for name, labels in groups.items()}
        self._image: dict[str, _ImageScorer] = {}
        if image_text is not None:
            seen = {name: labels for name, labels in groups.items() if name not in config.text_only_tasks}
            self._image = {name: _ImageScorer(labels, image_text, config) for name, labels in seen.items()}

    def __call__(self, video: VideoFeatures) -> Prediction:
        windows = text_windows(video.text, self._config.windows)
        texts = list(dict.fromkeys(window.text for window in windows))
        place = {text: i for i, text in enumerate(texts)}
        unique = self._text_model.embed(texts) if texts else np.zeros((0, self._text_model.dim), np.float32)
        rows = np.array([place[window.text] for window in windows], dtype=np.int64)
        evidence = _VideoEvidence(video, windows, rows, unique)
        categories: list[CategoryScore] = []
        events: list[Event] = []
        step_scores: dict[str, FloatArray] = {}
        for task in self._taxonomy.tasks:
            text, image = self._score_text(task, evidence), self._score_image(task, evidence)
            if task.kind in (TaskKind.MULTI_LABEL, TaskKind.SINGLE_LABEL):
                categories += _categories(task, text.video, image.video)
                continue
            shape = (video.steps.shape[0], len(task.labels))
            text_steps = np.zeros(shape, np.float32) if text.steps is None else text.steps
            image_steps = np.zeros(shape, np.float32) if image.steps is None else image.steps
            step_scores[task.name] = np.maximum(text_steps, image_steps)
            if task.kind is TaskKind.SPAN:
                events += self._events(task, text_steps, image_steps, evidence)
        events.sort(key=lambda e: (e.span, e.task, e.label))
        return Prediction(tuple(categories), tuple(events), step_scores, evidence.embedding())

    def _score_text(self, task: Task, evidence: "_VideoEvidence") -> _Modality:
        scorer = self._text[task.name]
        if task.kind in (TaskKind.MULTI_LABEL, TaskKind.SINGLE_LABEL):
            # The same words count once: a caption that stays on screen is not more evidence.
            said = evidence.unique[evidence.spoken]
            if said.shape[0] == 0:
                return _Modality(None, None)
            if task.kind is TaskKind.SINGLE_LABEL:
                return _Modality(self._clearest(scorer.compete(said), len(task.labels)), None)
            return _Modality(_top_mean(scorer.score(said), self._power(task)), None)
        if not evidence.windows:
            return _Modality(None, None)
        scores = scorer.score(evidence.unique)[evidence.rows]
        return _Modality(None, _onto_steps(scores, evidence.windows, evidence.video.steps))

    def _score_image(self, task: Task, evidence: "_VideoEvidence") -> _Modality:
        scorer, video = self._image.get(task.name), evidence.video
        if scorer is None or video.vision is None or video.vision_mask is None or not video.vision_mask.any():
            return _Modality(None, None)
        frames = video.vision[video.vision_mask]
        if task.kind is TaskKind.SINGLE_LABEL:
            return _Modality(scorer.compete(frames).mean(axis=0), None)
        scores = scorer.score(frames)
        if task.kind is TaskKind.MULTI_LABEL:
            return _Modality(_top_mean(scores, self._power(task)), None)
        steps = np.zeros((video.steps.shape[0], len(task.labels)), np.float32)
        steps[video.vision_mask] = scores
        return _Modality(None, steps)

    def _power(self, task: Task) -> float:
        return self._config.moment_power if task.name in self._config.moment_tasks else self._config.top_power

    def _clearest(self, shares: FloatArray, n_labels: int) -> FloatArray:
        """Mean [L] of the windows [U, L+1] that leave least to "none of them"."""
        count = _top_count(shares.shape[0], self._config.top_power)
        clearest = np.argsort(shares[:, n_labels], kind="stable")[:count]
        mean: FloatArray = shares[clearest, :n_labels].mean(axis=0)
        return mean

    def _events(
        self, task: Task, text_steps: FloatArray, image_steps: FloatArray, evidence: "_VideoEvidence"
    ) -> list[Event]:
        steps, events = evidence.video.steps, []
        scores = np.maximum(text_steps, image_steps)
        for j, label in enumerate(task.labels):
            for span, score in decode_spans(scores[:, j], steps, task.threshold_of(label), self._config.spans):
                inside = (steps[:, 0] >= span.start_us) & (steps[:, 1] <= span.end_us)
                shares = _shares(float(text_steps[inside, j].mean()), float(image_steps[inside, j].mean()))
                places = self._attribute(task, "place", task.attributes.place, span, evidence)
                people = self._attribute(task, "participants", task.attributes.participants, span, evidence)
                place, place_score = places[0] if places else (None, None)
                events.append(Event(task.name, label.name, span, score, place, place_score, tuple(people), shares))
        return events

    def _attribute(
        self, task: Task, name: str, attribute: Attribute | None, span: Span, evidence: "_VideoEvidence"
    ) -> list[tuple[str, float]]:
        """Labels of an attribute that reach their threshold near `span`, best first."""
        if attribute is None:
            return []
        key = f"{task.name}.{name}"
        best = np.zeros(len(attribute.labels), np.float32)
        near = evidence.rows_near(span, round(self._config.attribute_context_s * US_PER_S))
        if near.size:
            best = self._text[key].score(evidence.unique[near]).max(axis=0)
        video = evidence.video
        if key in self._image and video.vision is not None and video.vision_mask is not None:
            inside = (video.steps[:, 0] >= span.start_us) & (video.steps[:, 1] <= span.end_us) & video.vision_mask
            if inside.any():
                best = np.maximum(best, self._image[key].score(video.vision[inside]).mean(axis=0))
        thresholds = [attribute.threshold if la.threshold is None else la.threshold for la in attribute.labels]
        found = [(la.name, float(s)) for la, s, t in zip(attribute.labels, best, thresholds, strict=True) if s >= t]
        return sorted(found, key=lambda item: -item[1])


class _VideoEvidence:
    """The text windows of one video and their vectors; a text said twice is encoded once."""

    def __init__(
        self, video: VideoFeatures, windows: Sequence[TextWindow], rows: npt.NDArray[np.int64], unique: FloatArray
    ) -> None:
        self.video, self.windows, self.rows, self.unique = video, windows, rows, unique
        self._cue = np.array([window.is_cue for window in windows], dtype=np.bool_)
        self._times = np.array([(w.span.start_us, w.span.end_us) for w in windows], dtype=np.int64).reshape(-1, 2)
        self.spoken = np.unique(rows[~self._cue])
        """Rows of `unique` that hold words and not the name of a sound."""

    def rows_near(self, span: Span, context_us: int) -> npt.NDArray[np.int64]:
        start, end = span.start_us - context_us, span.end_us + context_us
        near = (self._times[:, 0] < end) & (self._times[:, 1] > start) & ~self._cue
        return np.unique(self.rows[near])

    def embedding(self) -> FloatArray | None:
        """Direction of what is said [D], length 1; None without words."""
        if self.spoken.size == 0:
            return None
        total = self.unique[self.spoken].astype(np.float64).sum(axis=0)
        length = float(np.linalg.norm(total))
        return (total / length).astype(np.float32) if length > 1e-9 else None


class _TextScorer:
    """One set of labels that compete: their wordings, and what ordinary sentences look like to them."""

    def __init__(
        self, labels: Sequence[Label], text_model: TextEmbedder, background: FloatArray, config: ZeroShotConfig
    ) -> None:
        self._config = config
        self._prompts = text_model.embed([text for label in labels for text in label.texts])  # [P, D]
        self._first = np.cumsum([0, *(len(label.texts) for label in labels)])[:-1]  # [L]
        self._centres = _unit(np.add.reduceat(self._prompts, self._first, axis=0))  # [L, D]
        self._related = _related(labels)  # [L, L]
        self._parents = _parents(labels)
        self._background = background
        self._none_centre = _unit(background.sum(axis=0, keepdims=True))
        usual = self._similarity(background)  # [B, L]
        self._mean = usual.mean(axis=0)
        self._spread = max(float((usual - self._mean).std()), 1e-6)
        among = background @ background.T
        np.fill_diagonal(among, -1.0)
        self._usual_nearest = float(np.sort(among, axis=1)[:, -NEAREST:].mean())

    def _similarity(self, vectors: FloatArray) -> FloatArray:
        """[U, L]: half the cosine to the best wording, half the cosine to the centre of the wordings."""
        best = np.maximum.reduceat(vectors @ self._prompts.T, self._first, axis=1)
        similarity: FloatArray = 0.5 * (best + vectors @ self._centres.T)
        return similarity

    def score(self, vectors: FloatArray) -> FloatArray:
        """Independent scores [U, L] in 0..1; a parent's is at least that of its children."""
        excess = (self._similarity(vectors) - self._mean) / self._spread  # [U, L]
        nearest = np.sort(vectors @ self._background.T, axis=1)[:, -NEAREST:].mean(axis=1)  # [U]
        ordinary = (nearest - self._usual_nearest) / self._spread
        rival = np.zeros_like(excess)
        for j in range(excess.shape[1]):
            others = excess[:, ~self._related[j]]
            if others.shape[1]:
                rival[:, j] = np.maximum(others.max(axis=1), 0.0)
        c = self._config
        logits = c.excess_weight * excess - c.rival_weight * rival - c.ordinary_weight * ordinary[:, None] + c.offset
        return _raise_parents(_logistic(logits), self._parents)

    def compete(self, vectors: FloatArray) -> FloatArray:
        """Shares [U, L+1] that sum to 1; the last is "none of them", the ordinary sentences."""
        best = (vectors @ self._background.T).max(axis=1, keepdims=True)
        none = 0.5 * (best + vectors @ self._none_centre.T)
        similarity = np.concatenate([self._similarity(vectors), none], axis=1)
        return _softmax(self._config.contrast_weight / self._spread * similarity)


class _ImageScorer:
    """The descriptions of a set of labels in the space of the frames. Prompts are speech and stay out."""

    def __init__(self, labels: Sequence[Label], image_text: ImageTextEmbedder, config: ZeroShotConfig) -> None:
        texts = [template.format(label.description) for label in labels for template in IMAGE_TEMPLATES]
        vectors = image_text.embed_texts(texts).reshape(len(labels), len(IMAGE_TEMPLATES), -1)
        self._labels = _unit(vectors.sum(axis=1))  # [L, D]
        self._nulls = _unit(image_text.embed_texts(list(IMAGE_NULLS)))
        self._parents = _parents(labels)
        self._kind, self._config = image_text.kind, config
        self._scale, self._bias = image_text.logit_scale, image_text.logit_bias

    def _logits(self, frames: FloatArray) -> FloatArray:
        """[S, L]; those of a softmax encoder count from the best description that says nothing."""
        assert frames.shape[1] == self._labels.shape[1], "vision features and text tower differ"
        frames = _unit(frames.astype(np.float32))
        logits: FloatArray = self._scale * (frames @ self._labels.T) + self._bias
        if self._kind == "softmax":
            logits = logits - (self._scale * (frames @ self._nulls.T) + self._bias).max(axis=1, keepdims=True)
        return logits / self._config.vision_temperature + self._config.vision_offset

    def score(self, frames: FloatArray) -> FloatArray:
        return _raise_parents(_logistic(self._logits(frames)), self._parents)

    def compete(self, frames: FloatArray) -> FloatArray:
        """Shares [S, L]; what is missing to 1 is "none of them", whose logit is 0."""
        logits = self._logits(frames)
        return _softmax(np.concatenate([logits, np.zeros_like(logits[:, :1])], axis=1))[:, :-1]


def _label_groups(taxonomy: Taxonomy) -> dict[str, tuple[Label, ...]]:
    """Labels that compete with each other, by task name, or `task.place` and `task.participants`."""
    groups = {task.name: task.labels for task in taxonomy.tasks}
    for task in taxonomy.tasks:
        for name, attribute in (("place", task.attributes.place), ("participants", task.attributes.participants)):
            if attribute is not None:
                groups[f"{task.name}.{name}"] = attribute.labels
    return groups


def _categories(task: Task, text: FloatArray | None, image: FloatArray | None) -> list[CategoryScore]:
    """Rows of a video-level task, best first; ties keep the order of the taxonomy."""
    zero = np.zeros(len(task.labels), np.float32)
    text_scores, image_scores = (zero if scores is None else scores for scores in (text, image))
    if task.kind is TaskKind.SINGLE_LABEL:
        present = (text is not None) + (image is not None)
        scores = (text_scores + image_scores) / max(present, 1)
    else:
        # The better witness counts. Multiplying doubts (noisy or) would turn two weak hints into a strong claim.
        scores = np.maximum(text_scores, image_scores)
    order = np.argsort(-scores, kind="stable")
    rows = []
    for rank, j in enumerate(order, start=1):
        label, score = task.labels[j], float(scores[j])
        threshold = task.threshold_of(label)
        allowed = task.kind is TaskKind.MULTI_LABEL or rank == 1
        shares = _shares(float(text_scores[j]), float(image_scores[j]))
        rows.append(
            CategoryScore(task.name, label.name, score, threshold, allowed and score >= threshold, rank, shares)
        )
    return rows


def _shares(text: float, vision: float) -> Evidence:
    total = text + vision
    return Evidence(vision=vision / total, text=text / total) if total > 0 else Evidence()


def _onto_steps(scores: FloatArray, windows: Sequence[TextWindow], steps: npt.NDArray[np.int64]) -> FloatArray:
    """Scores of windows [U, L] on the grid [S, L]: the largest of the windows that fill at least half of a step.

    A window too short for that goes to the step that holds its middle.
    """
    grid = np.zeros((steps.shape[0], scores.shape[1]), np.float32)
    if steps.shape[0] == 0:
        return grid
    middles = (steps[:, 0] + steps[:, 1]) / 2
    for score, window in zip(scores, windows, strict=True):
        first = int(np.searchsorted(middles, window.span.start_us, side="left"))
        last = int(np.searchsorted(middles, window.span.end_us, side="right"))
        if last <= first:
            middle = (window.span.start_us + window.span.end_us) // 2
            first = int(np.searchsorted(steps[:, 0], middle, side="right")) - 1
            if first < 0 or middle >= steps[first, 1]:
                continue
            last = first + 1
        np.maximum(grid[first:last], score, out=grid[first:last])
    return grid


def _top_count(n: int, power: float) -> int:
    return max(1, min(n, math.ceil(math.pow(n, power) - 1e-9)))


def _top_mean(scores: FloatArray, power: float) -> FloatArray:
    """Mean [L] of the best of [N, L], label by label."""
    count = _top_count(scores.shape[0], power)
    mean: FloatArray = np.sort(scores, axis=0)[-count:].mean(axis=0)
    return mean


def _parents(labels: Sequence[Label]) -> list[tuple[int, int]]:
    """(child, parent) pairs, deepest children first, so that one pass carries a score to the root."""
    index = {label.name: i for i, label in enumerate(labels)}
    parent = {i: index[label.parent] for i, label in enumerate(labels) if label.parent is not None}

    def depth(i: int) -> int:
        return 1 + depth(parent[i]) if i in parent else 0

    return [(i, parent[i]) for i in sorted(parent, key=depth, reverse=True)]


def _raise_parents(scores: FloatArray, parents: Sequence[tuple[int, int]]) -> FloatArray:
    for child, parent in parents:
        np.maximum(scores[:, parent], scores[:, child], out=scores[:, parent])
    return scores


def _related(labels: Sequence[Label]) -> npt.NDArray[np.bool_]:
    """[L, L]: the same label, an ancestor or a descendant. Such labels are no rivals."""
    index = {label.name: i for i, label in enumerate(labels)}
    related = np.eye(len(labels), dtype=np.bool_)
    for i, label in enumerate(labels):
        parent = label.parent
        while parent is not None:
            j = index[parent]
            related[i, j] = related[j, i] = True
            parent = labels[j].parent
    return related


def _unit(vectors: Any) -> FloatArray:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: FloatArray = (vectors / np.maximum(lengths, 1e-9)).astype(np.float32)
    return unit


def _logistic(logits: Any) -> FloatArray:
    score: FloatArray = (1.0 / (1.0 + np.exp(-np.clip(logits, -60.0, 60.0)))).astype(np.float32)
    return score


def _softmax(logits: Any) -> FloatArray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    share: FloatArray = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return share
