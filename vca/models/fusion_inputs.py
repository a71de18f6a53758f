"""What the fusion model reads: a video cut into overlapping windows, each a bundle of arrays. Training and tagging
go through the same functions here.

A phrase stays together: its tokens stand at the step in which it starts, because a language model was trained on
phrases and not on words with pictures between them. Pieces of more than `CHUNK_WORDS` words are cut, their time shared
out by words. What a phrase means is also a vector of the untouched language model, on every step over which it is said
or shown: a few hundred labelled videos cannot teach what the model knew before.

Shape letters: B windows of a batch, S steps of a window, N text tokens, D features, L labels, Q participants.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from vca.core.annotations import TrueEvent, VideoTruth
from vca.core.config import Config
from vca.core.records import BoolArray, FloatArray, TextPiece, VideoFeatures
from vca.core.schemas import TextSource
from vca.core.taxonomy import Task, TaskKind, Taxonomy
from vca.core.timeline import Span, overlap_us

if TYPE_CHECKING:
    from torch import Tensor

IntArray = npt.NDArray[np.int64]
Modality = Literal["vision", "audio", "text"]
MODALITIES: tuple[Modality, ...] = ("vision", "audio", "text")

RULES = 3
"""Raised when the functions below would make other arrays of the same video."""
CHUNK_WORDS = 40
SPOKEN, SHOWN = 0, 1  # kinds of text the model can tell apart

WINDOWS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("window_index", pa.int32(), nullable=False),
        pa.field("first_step", pa.int32(), nullable=False),
        pa.field("n_steps", pa.int32(), nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("annotated", pa.list_(pa.bool_()), nullable=False),  # one per task of the taxonomy
        pa.field("arrays", pa.large_binary(), nullable=False),  # safetensors: inputs and targets
    ]
)
"""Windows as they are stored for training."""


class InputsConfig(Config):
    """How a video becomes windows."""

    window_s: float = Field(60.0, gt=0.0, le=3600.0)
    """Length of a window, seconds. Task tokens, steps and text of one must fit into the language model."""
    overlap_s: float = Field(20.0, ge=0.0)
    """How much neighbouring windows share, seconds; less than half a window."""
    max_text_tokens: int = Field(256, ge=0, le=100_000)
    """Tokens of text in a window; where there are more, the longest pieces are cut first."""
    min_confidence: float = Field(0.5, ge=0.0, le=1.0)
    """Recognised text below this is left out. Text without a confidence is kept."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.overlap_s * 2 > self.window_s:
            raise ValueError(f"overlap_s {self.overlap_s:g} is more than half of window_s {self.window_s:g}")
        return self

    def window_steps(self, step_us: int) -> int:
        return max(1, round(self.window_s * 1_000_000 / step_us))

    def stride_steps(self, step_us: int) -> int:
        return max(1, self.window_steps(step_us) - round(self.overlap_s * 1_000_000 / step_us))


@dataclass(frozen=True, slots=True)
class Window:
    """The arrays of one window. A modality without a single step is None."""

    first_step: int
    n_steps: int
    vision: FloatArray | None  # [S, D]
    vision_mask: BoolArray | None  # [S]
    audio: FloatArray | None  # [S, D]
    audio_mask: BoolArray | None  # [S]
    text: FloatArray | None  # [S, H] mean of the vectors of what is said or shown during the step
    text_mask: BoolArray | None  # [S]
    token_ids: IntArray  # [N]
    token_kind: IntArray  # [N] SPOKEN or SHOWN
    token_steps: IntArray  # [N] step in which the token's phrase starts

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Inputs by name, as small as they are stored."""
        found: dict[str, npt.NDArray[Any]] = {
            "n_steps": np.array(self.n_steps, np.int32),
            "token_ids": self.token_ids.astype(np.int32),
            "token_kind": self.token_kind.astype(np.uint8),
            "token_steps": self.token_steps.astype(np.int32),
        }
        for name in MODALITIES:
            values, mask = getattr(self, name), getattr(self, f"{name}_mask")
            if values is not None and mask is not None:
                found[name] = np.clip(values, -65504, 65504).astype(np.float16)
                found[f"{name}_mask"] = mask.astype(np.uint8)
        return found


class Language:
    """What windows need of a language model: token ids without special tokens, and vectors of length 1 for phrases."""

    def __init__(self, tokenizer: Any, embed: Callable[[Sequence[str]], FloatArray]) -> None:
        self._tokenizer = tokenizer
        self.embed = embed
        """Texts to vectors [N, H], H the width of the model."""

    def encode(self, text: str) -> list[int]:
        clean = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates of broken subtitles
        ids: list[int] = self._tokenizer(clean, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return ids


def windows_of(video: VideoFeatures, config: InputsConfig, language: Language) -> list[Window]:
    """The windows of a video in order of time; the last one ends with the video and may overlap its neighbour more."""
    n_steps, length = len(video.steps), config.window_steps(video.step_us)
    starts = window_starts(n_steps, video.step_us, config)
    pieces = list(text_pieces(video.text, config))
    vectors = language.embed([text for _, _, text in pieces]) if pieces else np.zeros((0, 1), np.float32)
    phrases = [
        _Phrase(span, kind, language.encode(text), vector)
        for (span, kind, text), vector in zip(pieces, vectors, strict=True)
    ]
    return [_window(video, first, min(length, n_steps - first), phrases, config.max_text_tokens) for first in starts]


def window_starts(n_steps: int, step_us: int, config: InputsConfig) -> list[int]:
    """First steps of the windows of a video of so many steps."""
    length = config.window_steps(step_us)
    starts = list(range(0, max(n_steps - length, 0) + 1, config.stride_steps(step_us)))
    if starts[-1] + length < n_steps:
        starts.append(n_steps - length)
    return starts


@dataclass(frozen=True, slots=True)
class _Phrase:
    span: Span
    kind: int
    ids: list[int]
    vector: FloatArray  # [H]


def text_pieces(text: Iterable[TextPiece], config: InputsConfig) -> Iterator[tuple[Span, int, str]]:
    """Usable text in order of time, cut into pieces of a bounded number of words."""
    for piece in sorted(text, key=lambda p: (p.start_us, p.end_us, str(p.source), p.text or "")):
        words = (piece.text or "").split()
        if not words or piece.end_us <= piece.start_us:
            continue
        if piece.confidence is not None and piece.confidence < config.min_confidence:
            continue
        kind = SHOWN if piece.source is TextSource.OCR else SPOKEN
        length_us = piece.end_us - piece.start_us
        for first in range(0, len(words), CHUNK_WORDS):
            part = words[first : first + CHUNK_WORDS]
            start_us = piece.start_us + length_us * first // len(words)
            end_us = piece.start_us + length_us * (first + len(part)) // len(words)
            yield Span(start_us, max(end_us, start_us + 1)), kind, " ".join(part)


def _window(video: VideoFeatures, first: int, n_steps: int, phrases: Sequence[_Phrase], budget: int) -> Window:
    steps = video.steps[first : first + n_steps]
    start_us, end_us = int(steps[0, 0]), int(steps[-1, 1])
    inside = [p for p in phrases if p.span.start_us < end_us and p.span.end_us > start_us]
    ids: list[int] = []
    kinds: list[int] = []
    places: list[int] = []
    for phrase, n in zip(inside, _shares([len(p.ids) for p in inside], budget), strict=True):
        first_step = int(np.searchsorted(steps[:, 1], phrase.span.start_us, side="right"))
        ids += phrase.ids[:n]
        kinds += [phrase.kind] * n
        places += [min(first_step, n_steps - 1)] * n
    vision, vision_mask = _cut(video.vision, video.vision_mask, first, n_steps)
    audio, audio_mask = _cut(video.audio, video.audio_mask, first, n_steps)
    text, text_mask = _meanings(inside, steps)
    return Window(
        first_step=first,
        n_steps=n_steps,
        vision=vision,
        vision_mask=vision_mask,
        audio=audio,
        audio_mask=audio_mask,
        text=text,
        text_mask=text_mask,
        token_ids=np.array(ids, np.int64),
        token_kind=np.array(kinds, np.int64),
        token_steps=np.array(places, np.int64),
    )


def _meanings(phrases: Sequence[_Phrase], steps: IntArray) -> tuple[FloatArray | None, BoolArray | None]:
    """Mean vector [S, H] of the phrases that touch each step, and which steps have any [S]."""
    if not phrases:
        return None, None
    spans = np.array([(p.span.start_us, p.span.end_us) for p in phrases], np.int64)
    touches = (overlap_us(spans, steps) > 0).astype(np.float32)  # [N, S]
    counts = touches.sum(axis=0)
    mean = touches.T @ np.stack([p.vector for p in phrases]) / np.maximum(counts, 1)[:, None]
    return mean.astype(np.float32), counts > 0


def _shares(lengths: Sequence[int], budget: int) -> list[int]:
    """Tokens each phrase may keep: all alike up to a common limit, then the earliest phrases one more each."""
    if sum(lengths) <= budget:
        return list(lengths)
    low, high = 0, max(lengths)
    while low < high:  # the largest limit that fits
        limit = (low + high + 1) // 2
        low, high = (limit, high) if sum(min(n, limit) for n in lengths) <= budget else (low, limit - 1)
    kept = [min(n, low) for n in lengths]
    left = budget - sum(kept)
    for i, n in enumerate(lengths):
        if left and n > kept[i]:
            kept[i] += 1
            left -= 1
    return kept


def _cut(
    values: FloatArray | None, mask: BoolArray | None, first: int, n_steps: int
) -> tuple[FloatArray | None, BoolArray | None]:
    if values is None or mask is None or not mask[first : first + n_steps].any():
        return None, None
    return values[first : first + n_steps], mask[first : first + n_steps]


# --- targets ---------------------------------------------------------------------------------------------------------


def annotated_tasks(truth: VideoTruth, taxonomy: Taxonomy) -> list[bool]:
    """Which tasks of the taxonomy a loss may use. A single_label task on which no label holds teaches nothing."""
    found = []
    for task in taxonomy.tasks:
        if task.kind is TaskKind.SINGLE_LABEL:
            found.append(bool(truth.labels.get(task.name, frozenset()) & set(task.label_names())))
        else:
            found.append(task.name in truth.labels or task.name in truth.events)
    return found


def targets_of(truth: VideoTruth, taxonomy: Taxonomy, steps: IntArray) -> dict[str, npt.NDArray[Any]]:
    """What the model should say about a window with these steps [S, 2], by `<kind>.<task>`.

    `video`: [L] 0 or 1 for multi_label, [] index of the label for single_label. `steps`: [S, L] 0 or 1, a step belongs
    to an event that covers at least half of it. `spans`, of span tasks only: events [E, 3] that touch the window, start
    and end in steps from its start (cut there) and index of the label. For events also `place` [S] (-1: not annotated),
    `participants` [S, Q] and `participants_mask` [S]; where events overlap, the shorter one says both.
    """
    found: dict[str, npt.NDArray[Any]] = {}
    for task, annotated in zip(taxonomy.tasks, annotated_tasks(truth, taxonomy), strict=True):
        if not annotated:
            continue
        names = task.label_names()
        if task.kind in (TaskKind.MULTI_LABEL, TaskKind.SINGLE_LABEL):
            held = np.array([name in truth.labels[task.name] for name in names], np.uint8)
            single = np.array(held.argmax(), np.int32)
            found[f"video.{task.name}"] = held if task.kind is TaskKind.MULTI_LABEL else single
        else:
            found |= _step_targets(task, truth.events[task.name], steps)
            if task.kind is TaskKind.SPAN:
                found[f"spans.{task.name}"] = _span_targets(names, truth.events[task.name], steps)
    return found


def _span_targets(names: Sequence[str], events: Sequence[TrueEvent], steps: IntArray) -> FloatArray:
    """[E, 3]; a step is one unit of length whatever its time, so that a hole in the grid has none."""
    edges = np.append(steps[:, 0], steps[-1, 1])
    places = np.arange(len(edges), dtype=np.float64)
    rows = []
    for event in events:
        first, last = np.interp([event.span.start_us, event.span.end_us], edges, places)
        if event.label in names and last > first:
            rows.append((first, last, names.index(event.label)))
    return np.array(rows, np.float32).reshape(-1, 3)


def _step_targets(task: Task, events: Sequence[TrueEvent], steps: IntArray) -> dict[str, npt.NDArray[Any]]:
    names, n_steps = task.label_names(), len(steps)
    places = [] if task.attributes.place is None else [la.name for la in task.attributes.place.labels]
    people = [] if task.attributes.participants is None else [la.name for la in task.attributes.participants.labels]
    time = np.zeros((n_steps, len(names)), np.uint8)
    place = np.full(n_steps, -1, np.int32)
    participants = np.zeros((n_steps, len(people)), np.uint8)
    participants_mask = np.zeros(n_steps, np.uint8)
    for event in sorted(events, key=lambda e: -e.span.duration_us):
        if event.label not in names:
            continue
        overlap = np.minimum(steps[:, 1], event.span.end_us) - np.maximum(steps[:, 0], event.span.start_us)
        inside = 2 * overlap >= steps[:, 1] - steps[:, 0]
        time[inside, names.index(event.label)] = 1
        if event.place in places:
            place[inside] = places.index(str(event.place))
        if event.participants is not None and people:
            participants[inside] = [name in event.participants for name in people]
            participants_mask[inside] = 1
    found: dict[str, npt.NDArray[Any]] = {f"steps.{task.name}": time}
    if places:
        found[f"place.{task.name}"] = place
    if people:
        found |= {f"participants.{task.name}": participants, f"participants_mask.{task.name}": participants_mask}
    return found


# --- storage and batches ---------------------------------------------------------------------------------------------


def window_rows(
    video: VideoFeatures, truth: VideoTruth, taxonomy: Taxonomy, config: InputsConfig, language: Language
) -> pa.Table:
    """The windows of an annotated video, schema `WINDOWS`. A video without steps has none."""
    from safetensors.numpy import save

    rows = []
    for index, window in enumerate(windows_of(video, config, language) if len(video.steps) else []):
        steps = video.steps[window.first_step : window.first_step + window.n_steps]
        targets = {f"target.{name}": values for name, values in targets_of(truth, taxonomy, steps).items()}
        rows.append(
            {
                "video_id": video.video_id,
                "key": video.key,
                "split": str(truth.split),
                "window_index": index,
                "first_step": window.first_step,
                "n_steps": window.n_steps,
                "n_tokens": len(window.token_ids),
                "annotated": annotated_tasks(truth, taxonomy),
                "arrays": save({name: np.asarray(a, order="C") for name, a in (window.arrays() | targets).items()}),
            }
        )
    return pa.Table.from_pylist(rows, schema=WINDOWS)


def collate(blobs: Sequence[bytes]) -> "dict[str, Tensor]":
    """Stored windows to one padded batch; see `collate_arrays`."""
    from safetensors.numpy import load

    return collate_arrays([load(bytes(blob)) for blob in blobs])


def collate_arrays(windows: Sequence[Mapping[str, npt.NDArray[Any]]]) -> "dict[str, Tensor]":
    """Windows to one batch of tensors, padded with zeros to the longest.

    `step_mask` [B, S]; `vision` [B, S, D] and `vision_mask` [B, S], `audio` and `text` alike, missing where no window
    has them; `token_ids`, `token_kind`, `token_steps`, `token_mask` [B, N]; targets `target.<kind>.<task>` with B in
    front (see `targets_of`), `target.spans.<task>` [B, E, 3] padded with -1, and `known.<kind>.<task>` [B], 1 where the
    window has it.
    """
    import torch

    lengths = [int(window["n_steps"]) for window in windows]
    batch: dict[str, npt.NDArray[Any]] = {
        "step_mask": (np.arange(max(lengths))[None] < np.array(lengths)[:, None]).astype(np.uint8)
    }
    n_tokens = [len(window["token_ids"]) for window in windows]
    batch["token_mask"] = (np.arange(max(1, *n_tokens))[None] < np.array(n_tokens)[:, None]).astype(np.uint8)
    longest = {"steps": max(lengths), "tokens": max(1, *n_tokens)}
    for name in ("token_ids", "token_kind", "token_steps"):
        batch[name] = _padded([window[name] for window in windows], longest["tokens"]).astype(np.int64)
    for name in MODALITIES:
        if any(name in window for window in windows):
            batch[name] = _padded([window.get(name) for window in windows], longest["steps"]).astype(np.float32)
            batch[f"{name}_mask"] = _padded([window.get(f"{name}_mask") for window in windows], longest["steps"])
    for name in sorted({n for window in windows for n in window if n.startswith("target.")}):
        known = [window.get(name) for window in windows]
        if name.startswith("target.spans."):
            most = max(1, *(0 if values is None else len(values) for values in known))
            batch[name] = _padded(known, most, fill=-1)
            continue
        batch[name] = _padded(known, None if name.startswith("target.video.") else longest["steps"])
        batch[name.replace("target.", "known.", 1)] = np.array([values is not None for values in known], np.uint8)
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def _padded(arrays: Sequence[npt.NDArray[Any] | None], length: int | None, fill: int = 0) -> npt.NDArray[Any]:
    """Stack arrays, the first axis of each filled up to `length`; None is all `fill`."""
    example = next(array for array in arrays if array is not None)
    shape = example.shape if length is None else (length, *example.shape[1:])
    stacked = np.full((len(arrays), *shape), fill, example.dtype)
    for i, array in enumerate(arrays):
        if array is None:
            continue
        assert array.shape[1:] == example.shape[1:], f"widths differ in one batch: {array.shape}, {example.shape}"
        if length is None:
            stacked[i] = array
        else:
            stacked[i, : len(array)] = array
    return stacked
