"""Sound lands on its place on the clock, at the right loudness."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vca.core.timeline import Span, step_spans
from vca.media.audio import SAMPLE_RATE, AudioCollector


def _frame(wave: npt.NDArray[np.float32], rate: int, layout: str) -> av.AudioFrame:
    interleaved = np.ascontiguousarray(wave.T).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    return frame


def _tone(seconds: float, rate: int, channels: int = 1) -> npt.NDArray[np.float32]:
    t = np.arange(round(seconds * rate)) / rate
    return np.tile((0.4 * np.sin(2 * np.pi * 440 * t)).astype(np.float32), (channels, 1))


def _rms(values: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2), ("16 channels", 16), ("5 channels", 5)])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_loudness_does_not_depend_on_the_layout(layout: str, channels: int, rate: int) -> None:
    """The same tone in every channel comes out as loud as it went in; FFmpeg's default would make it louder."""
    sound = AudioCollector(Span(0, 1_000_000))
    sound.feed(_frame(_tone(1.0, rate, channels), rate, layout), 0)
    sound.flush()
    assert _rms(sound.samples[800:-800]) == pytest.approx(0.4 / np.sqrt(2), rel=0.02)


def test_gap_is_silence_and_masked() -> None:
    """A hole in the timestamps is not closed up: what follows stays at its time."""
    span = Span(0, 3_000_000)
    sound = AudioCollector(span)
    sound.feed(_frame(_tone(0.5, 48_000), 48_000, "mono"), 0)
    sound.feed(_frame(_tone(0.5, 48_000), 48_000, "mono"), 2_000_000)
    sound.flush()
    assert _rms(sound.samples[: SAMPLE_RATE // 2]) > 0.2
    assert not sound.samples[SAMPLE_RATE // 2 + 100 : 2 * SAMPLE_RATE - 100].any()
    assert _rms(sound.samples[2 * SAMPLE_RATE : 5 * SAMPLE_RATE // 2]) > 0.2
    assert sound.mask(step_spans(span, 500_000)).tolist() == [True, False, False, False, True, False]


def test_sound_before_the_span_is_cut_off() -> None:
    """Decoding starts before the segment; none of it may leak in, and what is inside keeps its place."""
    sound = AudioCollector(Span(1_000_000, 2_000_000))
    wave = np.concatenate(
        [np.zeros((1, 12_000), np.float32), _tone(0.25, 16_000), np.zeros((1, 16_000), np.float32)], 1
    )
    sound.feed(_frame(wave, 16_000, "mono"), 500_000)  # the tone starts at 1.25 s
    sound.flush()
    assert len(sound.samples) == SAMPLE_RATE
    loud = np.flatnonzero(np.abs(sound.samples) > 0.05)
    assert 4000 <= loud[0] <= 4010
    assert 7985 <= loud[-1] <= 8000


def test_format_change_in_mid_stream() -> None:
    """A broadcast that switches from stereo 48 kHz to mono 44.1 kHz goes on without a break."""
    sound = AudioCollector(Span(0, 1_000_000))
    sound.feed(_frame(_tone(0.5, 48_000, 2), 48_000, "stereo"), 0)
    sound.feed(_frame(_tone(0.5, 44_100), 44_100, "mono"), 500_000)
    sound.flush()
    assert _rms(sound.samples[8_100:15_900]) == pytest.approx(_rms(sound.samples[100:7_900]), rel=0.02)


def test_bad_values_do_not_spread() -> None:
    """Damaged float streams decode to NaN and infinity; features must stay finite."""
    sound = AudioCollector(Span(0, 100_000))
    wave = np.full((1, 1600), 0.1, np.float32)
    wave[0, 100:120] = [np.nan, np.inf, -np.inf, 1e30] * 5
    sound.feed(_frame(wave, 16_000, "mono"), 0)
    sound.flush()
    assert np.isfinite(sound.samples).all()
    assert np.abs(sound.samples).max() <= 1.0


@settings(max_examples=25, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(-500, 2500), st.integers(1, 400)), min_size=1, max_size=5),
    length_ms=st.integers(1, 2000),
)
def test_never_more_than_the_span(pieces: list[tuple[int, int]], length_ms: int) -> None:
    """Whatever timestamps a file holds, the array covers the span exactly."""
    sound = AudioCollector(Span(0, length_ms * 1000))
    for start_ms, duration_ms in pieces:
        sound.feed(_frame(_tone(duration_ms / 1000, 8_000), 8_000, "mono"), start_ms * 1000)
    sound.flush()
    assert len(sound.samples) == length_ms * 16
    assert all(0 <= start < end <= length_ms * 16 for start, end in sound.intervals)


@pytest.mark.parametrize("name", ["sine_mono_u8.wav", "sine_mono_s24.wav", "sine_16ch_s16.wav"])
def test_sample_formats(media_dir: Path, name: str) -> None:
    """8, 24 and 16 bit PCM give a sine in the range of floats, not integers or an offset."""
    sound = AudioCollector(Span(0, 1_000_000))
    with av.open(str(media_dir / "torchcodec" / name)) as container:
        for frame in container.decode(audio=0):
            sound.feed(frame, round((frame.time or 0.0) * 1e6))
    sound.flush()
    assert 0.02 < _rms(sound.samples) < 0.8
    assert abs(float(sound.samples.mean())) < 0.01
