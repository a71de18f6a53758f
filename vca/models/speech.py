"""When somebody speaks, and with a speech recogniser what they say. Shape letters: n samples, F windows of 32 ms."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from vca.core.config import Config
from vca.core.errors import ConfigError
from vca.core.records import FloatArray, TextPiece
from vca.core.schemas import TextSource
from vca.core.timeline import US_PER_S
from vca.models.weights import (
    SOUND_PROCESSOR,
    TOKENIZER,
    check_parts,
    hub_commit,
    loading,
    package_folder,
    resolve_device,
    resolve_weights,
    sha256_file,
    weights_definition,
)

if TYPE_CHECKING:  # two seconds of import that reading a configuration does not need
    from torch import Tensor

SAMPLE_RATE = 16_000
_VAD_FILE = "silero_vad_16k_sequence.onnx"
_VAD_WINDOW = 512  # samples a probability stands for
_ASR_CHUNK_S = 30.0  # what a Whisper encoder reads at once
_ASR_JOIN_S = 1.0  # longest pause inside a chunk; context helps the recogniser, silence invites inventions
_ASR_MAX_COMPRESSION = 2.4  # Whisper's own limit: text that zlib shrinks more is a loop, not speech


class SpeechConfig(Config):
    """`encoders.speech`. The detector's defaults gave the least error on the ten AMI training excerpts (far-field
    meetings, pauses of at most 0.5 s filled): 0.11 of the speech wrong there, 0.11 on excerpts held out. The package's
    own defaults (0.5, 250, 100, 30) err on 0.22 and 0.26, nearly all of it missed.
    """

    vad: Literal["none", "silero"] = "silero"
    """Detector of speech; `none` switches off the recogniser too."""
    threshold: float = Field(0.25, gt=0.0, lt=1.0)
    """Speech starts at this probability and ends 0.15 below it."""
    min_speech_ms: int = Field(250, ge=0, le=10_000)
    """Shorter speech is dropped."""
    min_silence_ms: int = Field(500, ge=0, le=10_000)
    """Shorter pauses belong to the speech around them."""
    pad_ms: int = Field(200, ge=0, le=2_000)
    """Added on both sides: the detector reports onsets late and soft endings early."""
    asr_model: str | None = None
    """A Whisper-type recogniser: a folder with safetensors weights or a hub id. None: no words, only activity."""
    asr_revision: str | None = None
    """Branch, tag or commit of a hub id; pin a commit, or the identity of the features follows the hub."""
    asr_language: str | None = None
    """Language code such as `en`; None lets the model decide per chunk (one more encoder pass)."""
    asr_max_tokens: int = Field(224, ge=8, le=440)
    """Of one chunk of at most 30 s; fast speech has about 150."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Of the recogniser; the detector always runs on the CPU."""
    batch_size: int = Field(4, ge=1, le=64)
    """Chunks recognised at once."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.asr_model is not None and self.vad == "none":
            raise ValueError("asr_model needs the detector, which vad none switches off; set vad to silero")
        return self


def speech_definition(config: SpeechConfig) -> dict[str, Any] | None:
    """What shapes the pieces, JSON-able; None where nothing listens. Device and batch size do not count.

    Checks what can be checked without loading: a `ConfigError` here comes before the first video is read.
    """
    if config.vad == "none":
        return None
    asr = None
    if config.asr_model is not None:
        field = "encoders.speech.asr_model"
        check_parts(resolve_weights(config.asr_model, field), field, TOKENIZER, SOUND_PROCESSOR)
        asr = {
            "weights": weights_definition(config.asr_model, config.asr_revision, field),
            "language": config.asr_language,
            "max_tokens": config.asr_max_tokens,
            "chunk_s": _ASR_CHUNK_S,
            "join_s": _ASR_JOIN_S,
        }
    return {
        "vad": config.vad,
        "version": version("silero-vad"),
        "weights": sha256_file(_vad_file()),
        "threshold": config.threshold,
        "min_speech_ms": config.min_speech_ms,
        "min_silence_ms": config.min_silence_ms,
        "pad_ms": config.pad_ms,
        "asr": asr,
    }


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Sound between two samples, `[start, end)`."""

    start: int
    end: int


class SpeechReader:
    """16 kHz sound to pieces of speech: when (silero-vad) and, with `asr_model`, what (Whisper)."""

    def __init__(self, config: SpeechConfig) -> None:
        self.config = config
        self._vad = _load_vad() if config.vad == "silero" else None
        self._recogniser = _Recogniser(config) if config.asr_model is not None else None

    def read(self, pcm: FloatArray, start_us: int) -> list[TextPiece]:
        """Pieces on the video's clock from mono sound [n] whose first sample is heard at `start_us`.

        One SPEECH piece (text None, confidence = mean probability of the detector) per stretch of speech. With a
        recogniser also one ASR piece per chunk of at most 30 s made of neighbouring stretches; it is never asked about
        anything else, because it invents words for silence and music. The detector starts afresh at every call.
        """
        assert pcm.dtype == np.float32, pcm.dtype
        assert pcm.ndim == 1, pcm.shape
        if self._vad is None or not len(pcm):
            return []
        # One NaN from a broken float stream would silence the recurrent detector to the end of the segment.
        pcm = np.clip(np.nan_to_num(pcm, nan=0.0, posinf=0.0, neginf=0.0), -1.0, 1.0)
        probabilities = self._vad.audio_forward(pcm)  # [F]
        pieces = [
            TextPiece(
                start_us=start_us + _us(stretch.start),
                end_us=start_us + _us(stretch.end),
                source=TextSource.SPEECH,
                text=None,
                confidence=_mean_probability(probabilities, stretch),
            )
            for stretch in self._stretches(probabilities, len(pcm))
        ]
        if self._recogniser is not None:
            chunks = _chunks(self._stretches(probabilities, len(pcm), _ASR_CHUNK_S))
            for chunk, heard in zip(chunks, self._recogniser.recognise(pcm, chunks), strict=True):
                if heard.text:
                    pieces.append(
                        TextPiece(
                            start_us=start_us + _us(chunk.start),
                            end_us=start_us + _us(chunk.end),
                            source=TextSource.ASR,
                            text=heard.text,
                            language=heard.language,
                            confidence=heard.confidence,
                        )
                    )
        return sorted(pieces, key=lambda piece: (piece.start_us, piece.source))

    def _stretches(self, probabilities: FloatArray, n_samples: int, longest_s: float = float("inf")) -> list[_Stretch]:
        from silero_vad.utils_vad import get_speech_timestamps_from_probs

        found = get_speech_timestamps_from_probs(
            probabilities.tolist(),
            sampling_rate=SAMPLE_RATE,
            threshold=self.config.threshold,
            min_speech_duration_ms=self.config.min_speech_ms,
            min_silence_duration_ms=self.config.min_silence_ms,
            speech_pad_ms=self.config.pad_ms,
            max_speech_duration_s=longest_s,
            audio_length_samples=n_samples,
        )
        return [_Stretch(int(f["start"]), int(f["end"])) for f in found if f["end"] > f["start"]]


@dataclass(frozen=True, slots=True)
class _Heard:
    text: str
    language: str | None
    confidence: float | None


class _Recogniser:
    """Whisper-type model; greedy decoding, so equal sound gives equal words."""

    def __init__(self, config: SpeechConfig) -> None:
        import torch
        from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

        assert config.asr_model is not None
        field = "encoders.speech.asr_model"
        self.config = config
        self.device = resolve_device(config.device, "encoders.speech.device")
        source = resolve_weights(config.asr_model, field)
        local = Path(source).is_dir()
        commit = None if local else hub_commit(source, config.asr_revision, field)
        options = {"revision": commit, "local_files_only": local, "trust_remote_code": False}
        dtype = torch.float16 if self.device == "cuda" else torch.float32
        with loading(config.asr_model, field):
            processor: Any = AutoProcessor.from_pretrained(source, **options)  # type: ignore[no-untyped-call]
            model: Any = AutoModelForSpeechSeq2Seq.from_pretrained(source, use_safetensors=True, dtype=dtype, **options)
        if model.config.model_type != "whisper":
            raise ConfigError(f"{field} = {config.asr_model}: {model.config.model_type} is not a Whisper-type model")
        if processor.feature_extractor.sampling_rate != SAMPLE_RATE:
            raise ConfigError(f"{field} = {config.asr_model}: the model does not take 16 kHz sound")
        self._processor = processor
        self._model = model.eval().requires_grad_(False).to(self.device)
        self._dtype = dtype
        settings = model.generation_config
        languages: dict[str, int] = getattr(settings, "lang_to_id", None) or {}
        # English-only checkpoints have no language tokens and refuse the argument.
        self._multilingual = bool(languages) and bool(getattr(settings, "is_multilingual", True))
        self._language_of_id = {number: token.strip("<|>") for token, number in languages.items()}
        known = sorted(self._language_of_id.values())
        if config.asr_language is not None and self._multilingual and config.asr_language not in known:
            raise ConfigError(
                f"encoders.speech.asr_language = {config.asr_language}: the model knows {', '.join(known)}"
            )

    def recognise(self, pcm: FloatArray, chunks: Sequence[_Stretch]) -> list[_Heard]:
        """Words of each chunk, in order; a chunk without words has an empty text."""
        import torch

        heard: list[_Heard] = []
        for first in range(0, len(chunks), self.config.batch_size):
            batch = chunks[first : first + self.config.batch_size]
            features = self._processor.feature_extractor(
                [pcm[chunk.start : chunk.end] for chunk in batch],
                sampling_rate=SAMPLE_RATE,
                return_tensors="pt",
                return_attention_mask=True,
            )
            mask = features["attention_mask"].to(self.device)
            with torch.inference_mode():
                heard.extend(self._generate(features["input_features"].to(self.device, self._dtype), mask))
        return heard

    def _generate(self, features: "Tensor", mask: "Tensor") -> list[_Heard]:
        import torch

        languages: list[str | None] = [None] * len(features)
        options: dict[str, Any] = {}
        if self._multilingual:
            if self.config.asr_language is not None:
                languages = [self.config.asr_language] * len(features)
            else:
                ids = self._model.detect_language(features).tolist()
                languages = [self._language_of_id.get(number) for number in ids]
            options = {"language": languages, "task": "transcribe"}
        output = self._model.generate(
            features,
            attention_mask=mask,
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.config.asr_max_tokens,
            return_timestamps=False,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        texts = self._processor.batch_decode(output.sequences, skip_special_tokens=True)
        scores = self._model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
        special = torch.tensor(sorted(self._processor.tokenizer.all_special_ids), device=scores.device)
        words = ~torch.isin(output.sequences[:, -scores.shape[1] :], special)
        heard = []
        for row, text in enumerate(texts):
            clean = " ".join(text.split())
            chosen = scores[row][words[row]].float()
            confidence = float(chosen.mean().exp()) if len(chosen) else None
            heard.append(_Heard("" if _is_loop(clean) else clean, languages[row], confidence))
        return heard


def _chunks(stretches: Sequence[_Stretch]) -> list[_Stretch]:
    """Neighbours joined while pauses are short and the whole fits the recogniser's window."""
    longest, pause = round(_ASR_CHUNK_S * SAMPLE_RATE), round(_ASR_JOIN_S * SAMPLE_RATE)
    chunks: list[_Stretch] = []
    for stretch in stretches:
        if chunks and stretch.start - chunks[-1].end <= pause and stretch.end - chunks[-1].start <= longest:
            chunks[-1] = _Stretch(chunks[-1].start, stretch.end)
        else:
            chunks.append(stretch)
    return chunks


def _is_loop(text: str) -> bool:
    raw = text.encode("utf-8")
    return bool(raw) and len(raw) / len(zlib.compress(raw)) > _ASR_MAX_COMPRESSION


def _mean_probability(probabilities: FloatArray, stretch: _Stretch) -> float:
    first, last = stretch.start // _VAD_WINDOW, -(-stretch.end // _VAD_WINDOW)
    return float(probabilities[first:last].mean(dtype=np.float64))


def _us(samples: int) -> int:
    return samples * US_PER_S // SAMPLE_RATE


def _vad_file() -> Path:
    return package_folder("silero_vad", "encoders.speech.vad = silero") / "data" / _VAD_FILE


def _load_vad() -> Any:
    """The packaged ONNX model that takes many windows per call; same probabilities as the window-by-window one."""
    import torch

    threads = torch.get_num_threads()
    from silero_vad.sequence_vad import SileroVADSequence

    torch.set_num_threads(threads)  # importing silero_vad sets one thread for the whole process
    return SileroVADSequence(str(_vad_file()), sampling_rate=SAMPLE_RATE)
