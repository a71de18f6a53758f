"""The audio descriptors tell sounds apart, stay in range, and follow the mask."""

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vca.core.identity import canonical_json
from vca.models.audio import BLOCKS, DIM, MEL_BANDS, AudioConfig, audio_definition, build_audio

STEP_US = 500_000
RATE = 16_000
Floats = npt.NDArray[np.float32]


def describe(
    pcm: npt.NDArray[np.floating], n_steps: int | None = None, mask: list[bool] | None = None, step_us: int = STEP_US
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    encoder = build_audio(AudioConfig(), step_us)
    assert encoder is not None
    steps = n_steps if n_steps is not None else -(-len(pcm) * 1_000_000 // (RATE * step_us))
    present = np.ones(steps, np.bool_) if mask is None else np.array(mask, np.bool_)
    return encoder.encode(pcm.astype(np.float32), present, step_us)


def block(features: Floats, name: str) -> Floats:
    start = 0
    for known, width in BLOCKS:
        if known == name:
            return features[..., start : start + width]
        start += width
    raise KeyError(name)


def tone(frequency: float, seconds: float = 2.0, level: float = 0.3, harmonics: int = 1) -> Floats:
    t = np.arange(round(seconds * RATE)) / RATE
    waves = [np.sin(2 * np.pi * frequency * k * t) / k for k in range(1, harmonics + 1)]
    return (level * np.sum(waves, axis=0)).astype(np.float32)


def noise(seconds: float = 2.0, level: float = 0.1, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, level, round(seconds * RATE)).astype(np.float32)


def clicks(per_second: float, seconds: float = 2.0) -> Floats:
    pcm = np.zeros(round(seconds * RATE), np.float32)
    for time in np.arange(0.1, seconds, 1 / per_second):
        pcm[round(time * RATE) : round(time * RATE) + 20] = 0.8
    return pcm


def inner(features: Floats) -> Floats:
    """Steps away from the edges of the sound."""
    return features[1:-1]


def test_layout_is_complete() -> None:
    """The documented blocks add up to the dimension that the plan and the store rely on."""
    assert sum(width for _, width in BLOCKS) == DIM == describe(noise())[0].shape[1]
    assert len({name for name, _ in BLOCKS}) == len(BLOCKS)
    definition = audio_definition(AudioConfig(), STEP_US)
    assert definition is not None
    canonical_json(definition)
    assert definition["dim"] == DIM
    assert build_audio(AudioConfig(kind="none"), STEP_US) is None
    assert audio_definition(AudioConfig(kind="none"), STEP_US) is None


@settings(max_examples=60, deadline=None)
@given(
    n_samples=st.integers(0, 40_000),
    n_steps=st.integers(1, 8),
    step_us=st.sampled_from([100_000, 333_333, 500_000, 2_000_000]),
    style=st.sampled_from(["noise", "silence", "clipped", "dc", "nan", "burst"]),
    data=st.data(),
)
def test_any_sound_gives_finite_values_in_range(
    n_samples: int, n_steps: int, step_us: int, style: str, data: st.DataObject
) -> None:
    """Lengths and contents come from foreign files; a step is valid exactly where it has sound and is not masked."""
    pcm = noise(n_samples / RATE, 0.1)
    if style == "silence":
        pcm[:] = 0
    elif style == "clipped":
        pcm *= 1e4
    elif style == "dc":
        pcm[:] = 0.7
    elif style == "nan" and n_samples > 10:
        pcm[3], pcm[7] = np.nan, np.inf
    elif style == "burst":
        pcm[: n_samples // 2] = 0
    mask = data.draw(st.lists(st.booleans(), min_size=n_steps, max_size=n_steps))
    features, valid = describe(pcm, n_steps, mask, step_us)
    assert features.shape == (n_steps, DIM)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert np.abs(features).max() <= 1.6
    # frames are 10 ms apart: a sliver of a step shorter than that may hold none
    starts, ends = (np.arange(n_steps) + e for e in (0, 1))
    sound = np.clip(n_samples * 1_000_000 / RATE - starts * step_us, 0, (ends - starts) * step_us)
    assert not valid[sound <= 0].any()
    assert (valid == np.array(mask))[sound > 10_000].all()
    assert not features[~valid].any()


def test_steps_do_not_depend_on_distant_sound() -> None:
    """A step's features come from its own time (and a few milliseconds around it)."""
    pcm = np.concatenate([noise(2.0), tone(300, 2.0)])
    whole, _ = describe(pcm)
    part, _ = describe(pcm[: 2 * RATE])
    np.testing.assert_allclose(whole[:3], part[:3], atol=1e-5)
    assert (describe(pcm)[0] == whole).all()


@pytest.mark.parametrize("frequency", [200.0, 500.0, 1000.0, 3000.0])
def test_sines_peak_in_their_mel_band(frequency: float) -> None:
    """The loudest band is the one whose centre is nearest; centroid and zero crossings agree with it."""
    features = inner(describe(tone(frequency))[0])
    edges = np.linspace(*(2595 * np.log10(1 + f / 700) for f in (20.0, 8000.0)), MEL_BANDS + 2)[1:-1]
    centres = 700 * (10 ** (edges / 2595) - 1)
    loudest = block(features, "mel_mean").argmax(axis=1)
    assert (np.abs(loudest - np.abs(centres - frequency).argmin()) <= 1).all()
    np.testing.assert_allclose(block(features, "spectrum")[:, 0], frequency / 8000, atol=0.01)
    np.testing.assert_allclose(block(features, "zero_crossings")[:, 0], 2 * frequency / RATE, atol=0.004)
    assert block(features, "spectrum")[:, 3].max() < 0.01, "a line is not flat"


@pytest.mark.parametrize("pitch", [90.0, 140.0, 220.0, 400.0])
def test_harmonic_tones_are_voiced_at_their_pitch(pitch: float) -> None:
    """Pitch of a voice-like tone, not of a multiple or a fraction of it."""
    voicing = inner(describe(tone(pitch, harmonics=8, level=0.2))[0])
    voicing = block(voicing, "voicing")
    assert voicing[:, 0].min() > 0.9
    assert voicing[:, 3].min() == 1.0
    np.testing.assert_allclose(voicing[:, 2], np.log2(pitch / 60) / np.log2(500 / 60), atol=0.02)


def test_noise_is_flat_and_unvoiced() -> None:
    """White noise against a tone: flatness high, voicing low, spread over all bands."""
    features = inner(describe(noise())[0])
    assert block(features, "voicing")[:, 0].max() < 0.3
    assert block(features, "voicing")[:, 3].max() == 0
    assert block(features, "spectrum")[:, 3].min() > 0.4
    mel = block(features, "mel_mean")
    assert np.ptp(mel, axis=1).max() < 0.1


def test_clicks_have_onsets_and_steady_sounds_none() -> None:
    """Spectral flux rises with clicks."""
    quiet = block(inner(describe(tone(440))[0]), "onset")
    sharp = block(inner(describe(clicks(8) + 0.001 * noise(level=1.0))[0]), "onset")
    assert quiet.max() < 0.02
    assert sharp[:, 0].min() > 5 * max(float(quiet[:, 0].max()), 0.002)
    assert sharp[:, 1].min() > 0.5


def test_silence_is_flagged_and_has_no_shape() -> None:
    """Silence is a fact about the sound, not missing sound: it is valid, flagged and otherwise zero."""
    features, valid = describe(np.concatenate([np.zeros(RATE), tone(300, 1.0)]))
    assert valid.all()
    assert block(features, "silence")[:, 0].tolist() == [1, 1, 0, 0]
    for name in ("cepstrum", "voicing", "spectrum", "zero_crossings", "level", "onset"):
        assert not block(features, name)[0].any(), name
    assert block(features, "silence")[2:, 1].max() < 0.05


def test_level_and_timbre_are_separate() -> None:
    """20 dB less: level and mel fall by a quarter of their range, timbre and pitch stay."""
    loud, soft = (inner(describe(tone(200, level=level, harmonics=6))[0]) for level in (0.3, 0.03))
    np.testing.assert_allclose(block(loud, "level")[:, 0] - block(soft, "level")[:, 0], 0.25, atol=0.01)
    np.testing.assert_allclose(block(loud, "voicing"), block(soft, "voicing"), atol=0.02)
    np.testing.assert_allclose(block(loud, "spectrum")[:, 0], block(soft, "spectrum")[:, 0], atol=0.005)
    noises = [inner(describe(noise(level=level))[0]) for level in (0.1, 0.01)]
    np.testing.assert_allclose(block(noises[0], "cepstrum"), block(noises[1], "cepstrum"), atol=0.02)


def test_sounds_of_a_kind_are_nearest_to_each_other() -> None:
    """Four kinds of sound at several levels: every step's nearest neighbour from another recording is of its kind."""
    features, kind, recording = [], [], []
    for i, level in enumerate((0.5, 0.2, 0.1)):
        for k, pcm in enumerate(
            (
                level * tone(180 + 7 * i, level=1.0, harmonics=10) / 2,
                noise(level=level / 3, seed=i),
                level * clicks(6 + i),
                level * tone(1500 + 40 * i, level=1.0),
            )
        ):
            part = inner(describe(pcm)[0])
            features.append(part)
            kind += [k] * len(part)
            recording += [4 * i + k] * len(part)
    x, k, r = np.concatenate(features), np.array(kind), np.array(recording)
    distance = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    distance[r[:, None] == r[None]] = np.inf
    assert (k[distance.argmin(axis=1)] == k).mean() == 1.0


def decoded(path: Path, seconds: float) -> Floats:
    """16 kHz mono straight from the decoder."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
    parts: list[npt.NDArray[np.float32]] = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            parts += [out.to_ndarray().reshape(-1) for out in resampler.resample(frame)]
            if sum(map(len, parts)) >= seconds * RATE:
                break
    return np.concatenate(parts)[: round(seconds * RATE)]


def speech_share(folder: Path, part: str, name: str, n_steps: int) -> npt.NDArray[np.float64]:
    """Share of each half second in which somebody speaks, from the human annotation (RTTM)."""
    fine = np.zeros(n_steps * 50, np.bool_)
    for line in (folder / f"debug.{part}.rttm").read_text("utf-8").splitlines():
        fields = line.split()
        if fields[1] == name:
            start, length = float(fields[3]), float(fields[4])
            fine[round(start * 100) : round((start + length) * 100)] = True
    return fine.reshape(n_steps, 50).mean(axis=1)


@pytest.mark.media
def test_speech_in_real_meetings_is_separable(media_dir: Path) -> None:
    """A linear readout fitted on ten meetings ranks speech above pauses in four unseen ones."""
    folder = media_dir / "pyannote_ami"
    sets: dict[bool, list[tuple[Floats, npt.NDArray[np.float64]]]] = {True: [], False: []}
    for part, prefix in (("train", "trn"), ("development", "dev"), ("test", "tst")):
        for path in sorted(folder.glob(f"{prefix}*.flac")):
            x, _ = describe(decoded(path, 30.0), 60)
            sets[part == "train"].append((x, speech_share(folder, part, path.stem, 60)))
    (x_fit, y_fit), (x, y) = (
        (np.concatenate([a for a, _ in sets[fit]]).astype(np.float64), np.concatenate([b for _, b in sets[fit]]))
        for fit in (True, False)
    )
    centre = x_fit.mean(axis=0)
    gram = (x_fit - centre).T @ (x_fit - centre) + 3.0 * np.eye(DIM)
    weights = np.linalg.solve(gram, (x_fit - centre).T @ (y_fit - y_fit.mean()))
    score = (x - centre) @ weights
    speech, pause = score[y > 0.9], score[y < 0.1]
    assert min(len(speech), len(pause)) > 20
    auc = (speech[:, None] > pause[None]).mean()
    assert auc > 0.8
