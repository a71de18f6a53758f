"""Small immutable records that cross rooms. Shape letters: S grid steps, D features, L labels,
P places, Q kinds of participants.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vca.core.schemas import TextSource
from vca.core.timeline import Span

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A piece of text in time. `text` is None for speech whose words are unknown."""

    start_us: int
    end_us: int
    source: TextSource
    text: str | None
    stream: str | None = None
    language: str | None = None
    confidence: float | None = None

    def to_row(self) -> dict[str, Any]:
        """A value of `schemas.TEXT_PIECE`."""
        return asdict(self) | {"source": str(self.source)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "TextPiece":
        return cls(**{**row, "source": TextSource(row["source"])})


@dataclass(frozen=True, slots=True)
class Evidence:
    """Shares of the modalities behind a score; they sum to 1, or are all 0 where there is no evidence."""

    vision: float = 0.0
    audio: float = 0.0
    text: float = 0.0


@dataclass(frozen=True, slots=True)
class VideoFeatures:
    """All features of one video on its grid, segments joined. Masks tell which steps have the modality."""

    video_id: str
    key: str
    duration_us: int
    step_us: int
    steps: npt.NDArray[np.int64]  # [S, 2] start and end of each step, microseconds
    vision: FloatArray | None  # [S, D]
    vision_mask: BoolArray | None  # [S]
    audio: FloatArray | None  # [S, D]
    audio_mask: BoolArray | None  # [S]
    text: tuple[TextPiece, ...] = ()
    shots: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class CategoryScore:
    task: str
    label: str
    score: float
    threshold: float
    selected: bool
    rank: int
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Event:
    task: str
    label: str
    span: Span
    score: float
    place: str | None = None
    place_score: float | None = None
    participants: tuple[tuple[str, float], ...] = ()
    evidence: Evidence = Evidence()


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a tagger says about one video."""

    categories: tuple[CategoryScore, ...]
    events: tuple[Event, ...]
    step_scores: Mapping[str, FloatArray] = field(default_factory=dict)  # span and step tasks: [S, L]
    embedding: FloatArray | None = None  # [D], length 1
    ranked: tuple[Event, ...] = ()
    """Events whatever their score, for figures that rank; empty where nobody asked or the tagger only decides."""


@dataclass(frozen=True, slots=True)
class VideoLogits:
    """What a trained model says about one video before calibration. Tasks and labels follow its own taxonomy."""

    video: Mapping[str, FloatArray]
    """Video-level tasks: [L]."""
    steps: Mapping[str, FloatArray]
    """Span and step tasks: [S, L]."""
    places: Mapping[str, FloatArray] = field(default_factory=dict)
    """Span tasks with places: [S, P]."""
    participants: Mapping[str, FloatArray] = field(default_factory=dict)
    """Span tasks with participants: [S, Q]."""
    step_shares: FloatArray | None = None
    """Shares of vision, audio and text in each step [S, 3]; a row sums to 1, or is 0 without any modality."""
    video_shares: Mapping[str, FloatArray] = field(default_factory=dict)
    """Shares of vision, audio and text behind the labels of video-level tasks: [L, 3]."""
    candidates: Mapping[str, FloatArray] = field(default_factory=dict)
    """Span tasks of a model with a pyramid: [G, L], what each point says of an event around it."""
    candidate_spans: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """Start and end [G, 2] of those events, microseconds."""
