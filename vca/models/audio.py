"""Frozen audio encoders: 16 kHz mono sound to one vector per step of the time grid.

The embedded default computes spectral, cepstral, voicing and level descriptors without weights; see `BLOCKS`.
Pretrained models come through `vca.models.huggingface`.

Shape letters: S steps, L samples, F frames of 10 ms, Q frames of 20 ms, D features, M mel bands.
"""

from functools import cache
from math import gcd
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vca.core.errors import ConfigError
from vca.core.records import BoolArray, FloatArray
from vca.core.timeline import US_PER_S, Span, resample_mean, step_spans
from vca.models import huggingface
from vca.models.checkpoints import EncoderConfig, definition

SAMPLE_RATE = 16_000
DESCRIPTORS_VERSION = 1
"""Raised by every change that alters a descriptor's value."""


class AudioConfig(EncoderConfig):
    """`encoders.audio`."""

    field: ClassVar[str] = "encoders.audio"

    window_s: float | None = Field(None, ge=0.5, le=60)
    """Sound a pretrained model hears at once. None: what its feature extractor takes, else 10 s."""
    hop_s: float | None = Field(None, ge=0.1, le=60)
    """From one window's start to the next. None: half a window for models that give one vector a window, else one."""


class AudioEncoder(Protocol):
    dim: int

    def encode(self, pcm: FloatArray, mask: BoolArray, step_us: int) -> tuple[FloatArray, BoolArray]:
        """Sound [L] from the start of the segment, and which steps have sound [S], to features [S, D] and mask [S]."""
        ...


def build_audio(config: AudioConfig, step_us: int) -> AudioEncoder | None:
    """The encoder, weights loaded; None for `kind: none`. Raises `ConfigError` for what cannot be loaded."""
    del step_us  # sound is served whole: nothing depends on the grid until `encode`
    if config.kind == "none":
        return None
    if config.kind == "descriptors":
        return DescriptorEncoder()
    window, hop = _windowing(config, huggingface.wave_spec(config))
    return WindowEncoder(huggingface.WaveModel(config), window, hop)


def audio_definition(config: AudioConfig, step_us: int) -> dict[str, Any] | None:
    """Everything that shapes the features, for the hash of the feature set. Loads no weights."""
    del step_us  # part of the feature set's own definition
    if config.kind == "none":
        return None
    if config.kind == "descriptors":
        return {"kind": config.kind, "version": DESCRIPTORS_VERSION, "dim": DIM}
    window, hop = _windowing(config, huggingface.wave_spec(config))
    return definition(config) | {"window_samples": window, "hop_samples": hop}


# --- pretrained encoders on the grid ---------------------------------------------------------------------------------

DEFAULT_WINDOW_S = 10.0
MIN_WINDOW_S = 1.0  # shorter sound is padded with silence: convolutional front ends need some length


def _windowing(config: AudioConfig, spec: huggingface.WaveSpec) -> tuple[int, int]:
    """Window and hop in samples at 16 kHz."""
    longest = spec.max_window_s
    window_s = config.window_s if config.window_s is not None else (longest or DEFAULT_WINDOW_S)
    if longest is not None and window_s > longest:
        raise ConfigError(
            f"{config.field}.window_s = {window_s:g}: {config.model} takes at most {longest:g} s; leave it empty"
        )
    hop_s = config.hop_s if config.hop_s is not None else (window_s / 2 if spec.pooled else window_s)
    if hop_s > window_s:
        raise ConfigError(
            f"{config.field}.hop_s = {hop_s:g}: longer than the window of {window_s:g} s, which leaves gaps; shorten it"
        )
    return round(window_s * SAMPLE_RATE), round(hop_s * SAMPLE_RATE)


class WindowEncoder:
    """Windows of sound through a pretrained model; its vectors in time are brought onto the grid by overlap.

    The last window starts earlier so that it ends with the sound. Windows without any existing step are not computed.
    """

    def __init__(self, model: huggingface.WaveModel, window: int, hop: int) -> None:
        self.model = model
        self.dim = model.dim
        self.window = window
        self.hop = hop

    def encode(self, pcm: FloatArray, mask: BoolArray, step_us: int) -> tuple[FloatArray, BoolArray]:
        steps = step_spans(Span(0, len(mask) * step_us), step_us)
        empty = np.zeros((len(steps), self.dim), np.float32), np.zeros(len(steps), np.bool_)
        if not len(pcm):
            return empty
        length = min(self.window, len(pcm))
        starts = [*range(0, len(pcm) - length, self.hop), len(pcm) - length]
        step_samples = step_us * SAMPLE_RATE / US_PER_S
        heard = [s for s in starts if mask[int(s / step_samples) : int(np.ceil((s + length) / step_samples))].any()]
        if not heard:
            return empty
        padded = max(length, round(MIN_WINDOW_S * SAMPLE_RATE))
        waves = [pcm[s : s + length] for s in heard]
        if padded > length:
            waves = [np.pad(wave, (0, padded - length)) for wave in waves]
        waves = [self._resample(wave) for wave in waves]
        features = self.model.embed(waves)  # [windows, slots, D]
        n_slots = features.shape[1]
        spec = self.model.spec
        reach = int((spec.max_window_s or 0) * SAMPLE_RATE) if spec.pads_to_max else (length if spec.pooled else padded)
        edges = np.arange(n_slots + 1) * reach / n_slots  # samples from the window's start
        slot_starts, slot_ends = (np.asarray(heard)[:, None] + part[None] for part in (edges[:-1], edges[1:]))
        spans = np.minimum(np.stack([slot_starts, slot_ends], axis=2), np.asarray(heard)[:, None, None] + length)
        spans_us = np.rint(spans.reshape(-1, 2) * (US_PER_S / SAMPLE_RATE)).astype(np.int64)
        real = spans_us[:, 1] > spans_us[:, 0]  # slots beyond the sound describe padding
        values, touched = resample_mean(features.reshape(-1, self.dim)[real], spans_us[real], steps)
        valid = touched & mask
        values[~valid] = 0.0
        return values, valid

    def _resample(self, wave: FloatArray) -> FloatArray:
        rate = self.model.spec.sampling_rate
        if rate == SAMPLE_RATE:
            return wave
        from scipy.signal import resample_poly  # a second of CPU time to import, and few models ask for another rate

        common = gcd(rate, SAMPLE_RATE)
        result: FloatArray = resample_poly(wave, rate // common, SAMPLE_RATE // common).astype(np.float32)
        return result


# --- descriptors -----------------------------------------------------------------------------------------------------

HOP = 160  # 10 ms
WINDOW = 400  # 25 ms
N_FFT = 512
MEL_BANDS = 40
MEL_RANGE_HZ = (20.0, 8000.0)
N_CEPSTRA = 12
PITCH_HOP = 320  # 20 ms
PITCH_WINDOW = 1024  # 64 ms: almost four periods of the lowest pitch
PITCH_RANGE_HZ = (60.0, 500.0)
FLOOR_DB = -80.0
SILENCE_DB = -60.0  # of full scale

BLOCKS: tuple[tuple[str, int], ...] = (
    ("mel_mean", MEL_BANDS),  # log-mel, 0 at -80 dB and 1 at full scale
    ("mel_std", MEL_BANDS),  # over the frames of the step, in 40 dB
    ("cepstrum", N_CEPSTRA),  # DCT-II of the mean log-mel, coefficients 1..12: timbre without level
    ("onset", 2),  # spectral flux, mean and maximum
    ("voicing", 4),  # autocorrelation peak mean and maximum, pitch, share of voiced frames
    ("spectrum", 8),  # centroid, bandwidth, 85 % roll-off, flatness: mean and std of each
    ("zero_crossings", 2),  # mean and std
    ("level", 3),  # rms mean and maximum, range inside the step
    ("silence", 2),  # step is silent (0 or 1), share of silent frames
)
"""Layout of a descriptor: block names and widths in order. All values lie in about [-1, 1]."""
DIM = sum(width for _, width in BLOCKS)


class DescriptorEncoder:
    """Spectral, cepstral, voicing and level descriptors without weights.

    Sources: O'Shaughnessy 1987 (mel scale, as in HTK); Davis and Mermelstein 1980 (cepstra); Bello et al. 2005
    (spectral flux); Boersma 1993 (voicing and pitch from the autocorrelation divided by that of the window).
    """

    dim = DIM

    def encode(self, pcm: FloatArray, mask: BoolArray, step_us: int) -> tuple[FloatArray, BoolArray]:
        n_steps = len(mask)
        values = np.zeros((n_steps, DIM), np.float32)
        pcm = np.clip(np.nan_to_num(np.asarray(pcm, np.float32)), -1.0, 1.0)
        frame_step = _step_of(_n_frames(len(pcm), HOP), HOP, step_us, n_steps)
        pitch_step = _step_of(_n_frames(len(pcm), PITCH_HOP), PITCH_HOP, step_us, n_steps)
        valid = mask & (np.bincount(frame_step, minlength=n_steps)[:n_steps] > 0)
        if valid.any():
            described = np.concatenate([*_spectral(pcm, frame_step, pitch_step, n_steps)], axis=1)
            values[valid] = described[valid]
        return values, valid


def _spectral(
    pcm: FloatArray, frame_step: npt.NDArray[np.int64], pitch_step: npt.NDArray[np.int64], n_steps: int
) -> list[FloatArray]:
    """Blocks in the order of `BLOCKS`, each [S, width]; rows of steps without frames are zero."""
    from scipy.fft import dct, rfft  # half a second of CPU time that who only decodes need not spend

    frames = _frames(pcm, WINDOW, HOP)  # [F, WINDOW]
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    power = np.abs(rfft(frames * window, N_FFT, axis=1)) ** 2 / np.float32((window.sum() / 2) ** 2)  # [F, N_FFT/2+1]
    mel = 10.0 * np.log10(power @ _mel_filters() + 1e-12)
    mel = np.maximum(mel / -FLOOR_DB + 1.0, 0.0)  # [F, M]
    rms = np.sqrt((frames**2).mean(axis=1))
    rms_db = 20.0 * np.log10(rms + 1e-8)
    silent = rms_db < SILENCE_DB
    sounding = ~silent

    mel_mean, mel_std, _ = _moments(mel, frame_step, n_steps)
    cepstra = dct(mel_mean, type=2, norm="ortho", axis=1)[:, 1 : N_CEPSTRA + 1] / 2.0
    flux = np.zeros((len(mel), 1), np.float32)
    flux[1:, 0] = 4.0 * np.maximum(np.diff(mel, axis=0), 0.0).mean(axis=1)
    flux_mean, _, flux_max = _moments(np.minimum(flux, 1.0), frame_step, n_steps)
    # a share of silent frames would pull shape statistics to arbitrary values: they count sounding frames only
    shape_mean, shape_std, _ = _moments(_shape(power)[sounding], frame_step[sounding], n_steps)
    crossings = (np.diff(np.signbit(frames), axis=1) != 0).mean(axis=1)[:, None]
    crossings_mean, crossings_std, _ = _moments(crossings[sounding], frame_step[sounding], n_steps)
    level = np.maximum(rms_db / -FLOOR_DB + 1.0, 0.0)[:, None]
    level_mean, _, level_max = _moments(level, frame_step, n_steps)
    level_low = -_moments(-level, frame_step, n_steps)[2]
    silent_share = _moments(silent[:, None].astype(np.float32), frame_step, n_steps)[0]
    return [
        mel_mean,
        2.0 * mel_std,
        cepstra,
        np.concatenate([flux_mean, flux_max], axis=1),
        _voicing(pcm, pitch_step, n_steps),
        np.concatenate([shape_mean, 2.0 * shape_std], axis=1),
        np.concatenate([crossings_mean, 2.0 * crossings_std], axis=1),
        np.concatenate([level_mean, level_max, level_max - level_low], axis=1),
        np.concatenate([(silent_share > 0.95).astype(np.float32), silent_share], axis=1),
    ]


def _shape(power: FloatArray) -> FloatArray:
    """Centroid, bandwidth and roll-off in units of 8 kHz, and flatness: power [F, bins] to [F, 4]."""
    total = power.sum(axis=1, keepdims=True) + 1e-12
    share = power / total
    position = np.linspace(0.0, 1.0, power.shape[1], dtype=np.float32)
    centroid = share @ position
    bandwidth = np.sqrt(np.maximum(share @ position**2 - centroid**2, 0.0))
    rolloff = (np.cumsum(share, axis=1) >= 0.85).argmax(axis=1) / (power.shape[1] - 1)
    flatness = np.exp(np.log(power + 1e-12).mean(axis=1)) / (power.mean(axis=1) + 1e-12)
    return np.stack([centroid, 2.0 * bandwidth, rolloff, flatness], axis=1).astype(np.float32)


def _voicing(pcm: FloatArray, pitch_step: npt.NDArray[np.int64], n_steps: int) -> FloatArray:
    """Voicing block [S, 4]. Pitch is log2 between 60 Hz (0) and 500 Hz (1), the mean of voiced frames."""
    frames = _frames(pcm, PITCH_WINDOW, PITCH_HOP)  # [Q, PITCH_WINDOW]
    frames = frames - frames.mean(axis=1, keepdims=True)
    window = np.hanning(PITCH_WINDOW + 1)[:-1].astype(np.float32)
    longest = int(SAMPLE_RATE / PITCH_RANGE_HZ[0])
    shortest = int(SAMPLE_RATE / PITCH_RANGE_HZ[1])
    correlation = _autocorrelation(frames * window)[:, : longest + 2]
    own = _autocorrelation(window[None])[0, : longest + 2]
    energy = correlation[:, :1]
    audible = (frames**2).mean(axis=1) > 10 ** (SILENCE_DB / 10)
    r = correlation / np.maximum(energy, 1e-9) / (own / own[0])  # [Q, lags]
    inner = r[:, shortest : longest + 1]
    is_peak = (inner >= r[:, shortest - 1 : longest]) & (inner > r[:, shortest + 1 : longest + 2])
    # every multiple of the period peaks as high: a small price per octave prefers the shortest
    lags = np.arange(shortest, longest + 1)
    price = 0.02 * np.log2(lags / shortest)
    best = np.where(is_peak, inner - price, -1.0).argmax(axis=1)
    rows = np.arange(len(inner))
    strength = np.where(is_peak[rows, best] & audible, np.clip(inner[rows, best], 0.0, 1.0), 0.0).astype(np.float32)
    voiced = strength > 0.5
    span = np.log2(PITCH_RANGE_HZ[1] / PITCH_RANGE_HZ[0])
    pitch = np.clip(np.log2(SAMPLE_RATE / lags[best] / PITCH_RANGE_HZ[0]) / span, 0.0, 1.0).astype(np.float32)
    mean, _, highest = _moments(strength[:, None], pitch_step, n_steps)
    pitch_mean = _moments(pitch[voiced, None], pitch_step[voiced], n_steps)[0]
    share = _moments(voiced[:, None].astype(np.float32), pitch_step, n_steps)[0]
    return np.concatenate([mean, highest, pitch_mean, share], axis=1)


def _autocorrelation(frames: FloatArray) -> FloatArray:
    from scipy.fft import irfft, rfft

    spectrum = rfft(frames, 2 * frames.shape[1], axis=1)
    result: FloatArray = irfft(np.abs(spectrum) ** 2, axis=1)
    return result


def _n_frames(n_samples: int, hop: int) -> int:
    """Frames whose centre lies inside the sound."""
    return -(-n_samples // hop)


def _frames(pcm: FloatArray, width: int, hop: int) -> FloatArray:
    """Overlapping frames [n, width] centred on multiples of `hop`, zeros outside the sound."""
    n = _n_frames(len(pcm), hop)
    padded = np.pad(pcm, (width // 2, width))
    return np.lib.stride_tricks.sliding_window_view(padded, width)[: n * hop : hop][:n]


def _step_of(n_frames: int, hop: int, step_us: int, n_steps: int) -> npt.NDArray[np.int64]:
    """Step that holds each frame's centre, shape [n]; frames after the last step count for `n_steps`, a waste bin."""
    centres_us = np.arange(n_frames, dtype=np.int64) * hop * US_PER_S // SAMPLE_RATE
    return np.minimum(centres_us // step_us, n_steps)


def _moments(
    values: FloatArray, step: npt.NDArray[np.int64], n_steps: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean, standard deviation and maximum per step: values [F, D] with sorted steps [F] to three [S, D]."""
    width = values.shape[1]
    mean, std, highest = (np.zeros((n_steps, width), np.float32) for _ in range(3))
    present, starts, counts = np.unique(step, return_index=True, return_counts=True)
    if not len(present):
        return mean, std, highest
    centre = np.add.reduceat(values.astype(np.float64), starts, axis=0) / counts[:, None]
    squares = np.add.reduceat(values.astype(np.float64) ** 2, starts, axis=0) / counts[:, None]
    kept = present < n_steps
    mean[present[kept]] = centre[kept]
    std[present[kept]] = np.sqrt(np.maximum(squares - centre**2, 0.0))[kept]
    highest[present[kept]] = np.maximum.reduceat(values, starts, axis=0)[kept]
    return mean, std, highest


@cache
def _mel_filters() -> FloatArray:
    """Triangular filters [bins, M], equally wide in mel = 2595 log10(1 + f / 700), each summing to one."""
    low, high = (2595.0 * np.log10(1.0 + f / 700.0) for f in MEL_RANGE_HZ)
    edges = 700.0 * (10.0 ** (np.linspace(low, high, MEL_BANDS + 2) / 2595.0) - 1.0)
    frequencies = np.arange(N_FFT // 2 + 1)[:, None] * (SAMPLE_RATE / N_FFT)
    rising = (frequencies - edges[None, :-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[None, 2:] - frequencies) / (edges[2:] - edges[1:-1])
    filters = np.maximum(np.minimum(rising, falling), 0.0)
    result: FloatArray = (filters / filters.sum(axis=0)).astype(np.float32)
    return result
