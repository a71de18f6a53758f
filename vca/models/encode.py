"""All frozen encoders behind one call: the arrays of a decoded segment to one row's worth of features.

Shape letters: S steps, K frames a step, H W picture, n sound samples, M frames to read text from, D features.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vca.core.config import Config
from vca.core.records import BoolArray, FloatArray, TextPiece
from vca.models.audio import AudioConfig, audio_definition, build_audio
from vca.models.ocr import OcrConfig, TextReader, ocr_definition
from vca.models.speech import SpeechConfig, SpeechReader, speech_definition
from vca.models.vision import VisionConfig, build_vision, vision_definition

HalfArray = npt.NDArray[np.float16]
HALF_MAX = float(np.finfo(np.float16).max)  # 65504


class EncodersConfig(Config):
    vision: VisionConfig = VisionConfig()
    """Features of the picture, one vector per step."""
    audio: AudioConfig = AudioConfig()
    """Features of the sound, one vector per step."""
    speech: SpeechConfig = SpeechConfig()
    """Where somebody speaks and, with a recogniser, the words."""
    ocr: OcrConfig = OcrConfig()
    """Words read from the picture."""
    threads: int = Field(1, ge=1, le=256)
    """CPU threads of torch in one encoder process. One per process and more processes scale better than the reverse."""


def feature_definition(config: EncodersConfig, step_us: int, segment_us: int, mode: str) -> dict[str, Any]:
    """Everything that shapes features, JSON-able, for `identity.feature_set_id`. Loads no tensors.

    Segments count too: encoders and detectors start afresh in each. `mode` is the decoder's way of sampling.
    """
    return {
        "step_us": step_us,
        "segment_us": segment_us,
        "mode": mode,
        "vision": vision_definition(config.vision, step_us),
        "audio": audio_definition(config.audio, step_us),
        "speech": speech_definition(config.speech),
        "ocr": ocr_definition(config.ocr),
    }


@dataclass(frozen=True, slots=True)
class EncodedSegment:
    """Features of one segment. A modality is None where it is absent; masks tell which steps have it.

    Values beyond float16 are its largest value, and a step in which a pretrained model gave NaN or infinity counts as
    absent: a bad step must not cost the video, nor a bad video the night.
    """

    vision: HalfArray | None  # [S, D]
    vision_mask: BoolArray | None  # [S]
    audio: HalfArray | None  # [S, D]
    audio_mask: BoolArray | None  # [S]
    text: list[TextPiece]


class SegmentEncoder:
    """Holds every encoder of one process. Loading raises `ConfigError`s; calls take and give arrays only.

    Sets the thread count of torch, where a model uses it, for the whole process: it is meant to be alone in one.
    """

    def __init__(self, config: EncodersConfig, step_us: int) -> None:
        self.step_us = step_us
        # The detector's and the reader's libraries set thread counts of their own when loaded: ours comes last.
        self._speech = SpeechReader(config.speech) if config.speech.vad != "none" else None
        self._ocr = TextReader(config.ocr) if config.ocr.kind != "none" else None
        self._vision = build_vision(config.vision, step_us)
        self._audio = build_audio(config.audio, step_us)
        self.vision_dim = 0 if self._vision is None else self._vision.dim
        self.audio_dim = 0 if self._audio is None else self._audio.dim
        if "torch" in sys.modules:  # descriptors need none of it, and importing it takes two seconds of CPU time
            import torch

            torch.set_num_threads(config.threads)

    def __call__(
        self,
        frames: npt.NDArray[np.uint8] | None,
        frame_mask: BoolArray | None,
        audio: FloatArray | None,
        audio_mask: BoolArray | None,
        ocr_frames: npt.NDArray[np.uint8] | None,
        ocr_spans: npt.NDArray[np.int64] | None,
        start_us: int,
    ) -> EncodedSegment:
        """Encode one segment that starts at `start_us` of the video's clock.

        frames [S*K, H, W, 3] RGB with frame_mask [S*K]; audio [n] mono at 16 kHz with audio_mask [S];
        ocr_frames [M, h, w, 3] RGB with ocr_spans [M, 2] on the video's clock. None where the video has no such stream.
        """
        vision = vision_mask = sound = sound_mask = None
        text: list[TextPiece] = []
        if self._vision is not None and frames is not None and frame_mask is not None and frame_mask.any():
            vision, vision_mask = _half(*self._vision.encode(frames, frame_mask, self.step_us))
        if audio is not None and audio_mask is not None and audio_mask.any():
            if self._audio is not None:
                sound, sound_mask = _half(*self._audio.encode(audio, audio_mask, self.step_us))
            if self._speech is not None:
                text += self._speech.read(audio, start_us)
        if self._ocr is not None and ocr_frames is not None and ocr_spans is not None and len(ocr_frames):
            text += self._ocr.read(ocr_frames, ocr_spans)
        text.sort(key=lambda piece: (piece.start_us, piece.source))
        return EncodedSegment(vision, vision_mask, sound, sound_mask, text)


def _half(values: FloatArray, mask: BoolArray) -> tuple[HalfArray | None, BoolArray | None]:
    """The stored precision (see `EncodedSegment`); a modality without a single step is absent."""
    finite: BoolArray = np.asarray(np.isfinite(values).all(axis=1), dtype=np.bool_)
    mask = mask & finite
    if not mask.any():
        return None, None
    half = np.clip(np.where(finite[:, None], values, 0.0), -HALF_MAX, HALF_MAX).astype(np.float16)
    return half, mask
