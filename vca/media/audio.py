"""Sound of a span: 16 kHz mono, every sample at its place on the presentation clock."""

from typing import Any

import av
import numpy as np
import numpy.typing as npt

from vca.core.timeline import US_PER_S, Span

SAMPLE_RATE = 16_000
_JITTER_US = 40_000
"""Containers round timestamps (Matroska to 1 ms, FLV and AVI coarser): smaller steps are no gaps."""
_BATCH_SAMPLES = 16_384
"""Decoded sound is resampled in pieces of some frames: FFmpeg's filters cost more per call than per sample."""
_MAX_LAYOUT = 8
"""Up to 7.1 FFmpeg knows how to mix down, if it knows which channel is which."""


class AudioCollector:
    """Takes decoded frames in order and lays them out over `span`. Gaps are silence, and `intervals` knows them."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self.samples = np.zeros(samples_between(span.start_us, span.end_us), dtype=np.float32)  # [n]
        self.intervals: list[tuple[int, int]] = []  # [start, end) in samples of the span, with decoded sound
        self._resampler: av.AudioResampler | None = None
        self._waiting = av.AudioFifo()
        self._setup: tuple[Any, ...] | None = None
        self._position = 0  # where the next resampled sample goes, in samples from the start of the span
        self._expected_us: int | None = None

    def feed(self, frame: av.AudioFrame, time_us: int | None) -> None:
        """One frame that starts at `time_us` on the clock; without a time it follows the one before."""
        if frame.samples == 0 or frame.sample_rate <= 0:
            return
        duration_us = round(frame.samples * US_PER_S / frame.sample_rate)
        if time_us is None:
            time_us = self._expected_us if self._expected_us is not None else self._span.start_us
        setup = (frame.format.name, frame.layout.name, frame.sample_rate)
        # Only forward: sound that claims to start before the last has ended (AVI with variable rate) follows on it.
        jumped = self._expected_us is None or time_us > self._expected_us + _JITTER_US
        if jumped or setup != self._setup:
            self.flush()
            self._setup = setup
            self._resampler = av.AudioResampler(
                format="flt", layout="mono", rate=SAMPLE_RATE, options={"rematrix_maxval": "1.0"}
            )  # 1.0: weights of a down-mix sum to one; FFmpeg's default for float makes stereo louder than mono
            self._waiting = av.AudioFifo()
            self._position = samples_between(self._span.start_us, time_us)
            self._expected_us = time_us
        assert self._resampler is not None
        assert self._expected_us is not None
        self._expected_us += duration_us
        mixable = _mixable(frame)
        mixable.pts = None  # its place is known; the queue would refuse a jitter
        self._waiting.write(mixable)
        if self._waiting.samples >= _BATCH_SAMPLES:
            self._resample_waiting()

    def _resample_waiting(self) -> None:
        assert self._resampler is not None
        frame = self._waiting.read()
        for piece in self._resampler.resample(frame) if frame is not None else ():
            self._put(piece)

    def flush(self) -> None:
        """Let out what the resampler holds back; call it once more after the last frame."""
        if self._resampler is not None:
            self._resample_waiting()
            for piece in self._resampler.resample(None):
                self._put(piece)
        self._resampler = None

    def mask(self, steps_us: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which steps [S, 2] hold decoded sound, shape [S]."""
        mask = np.zeros(len(steps_us), dtype=np.bool_)
        edges = (steps_us - self._span.start_us) * SAMPLE_RATE // US_PER_S
        for start, end in self.intervals:
            mask |= (edges[:, 0] < end) & (edges[:, 1] > start)
        return mask

    @property
    def end_us(self) -> int | None:
        """End of the decoded sound on the clock; None where there is none in the span."""
        if not self.intervals:
            return None
        return self._span.start_us + max(end for _, end in self.intervals) * US_PER_S // SAMPLE_RATE

    def _put(self, piece: av.AudioFrame) -> None:
        if piece.samples == 0:
            return
        values = np.asarray(piece.to_ndarray(), dtype=np.float32).reshape(-1)
        start, end = self._position, self._position + len(values)
        self._position = end
        low, high = max(start, 0), min(end, len(self.samples))
        if low >= high:
            return
        part = values[low - start : high - start]
        # Damaged float streams decode to NaN or huge values; one of them would poison every feature of its step.
        if not np.isfinite(part).all():
            part = np.nan_to_num(part, nan=0.0, posinf=0.0, neginf=0.0)
        np.clip(part, -1.0, 1.0, out=self.samples[low:high])
        if self.intervals and 0 <= low - self.intervals[-1][1] <= 1:
            self.intervals[-1] = (self.intervals[-1][0], high)
        else:
            self.intervals.append((low, high))


def samples_between(start_us: int, end_us: int) -> int:
    """Number of samples from one time to another, rounded to nearest."""
    return round((end_us - start_us) * SAMPLE_RATE / US_PER_S)


def _mixable(frame: av.AudioFrame) -> av.AudioFrame:
    """FFmpeg mixes down layouts it knows; any other set of channels is averaged here."""
    layout = frame.layout
    if layout.nb_channels <= 2 or (layout.nb_channels <= _MAX_LAYOUT and not layout.name.endswith(" channels")):
        return frame
    # Interleaved first: PyAV reads past the end of its list of planes when there are more than eight.
    packed = av.AudioResampler(format="flt", layout=layout.name, rate=frame.sample_rate).resample(frame)
    values = np.concatenate([piece.to_ndarray().reshape(-1, layout.nb_channels) for piece in packed])
    mean = values.mean(axis=1)
    samples = np.ascontiguousarray(mean, dtype=np.float32)[None, :]
    mono = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
    mono.sample_rate = frame.sample_rate
    mono.pts, mono.time_base = frame.pts, frame.time_base
    return mono
