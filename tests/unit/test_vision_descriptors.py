"""The vision descriptors tell pictures apart, stay in range, and follow the mask."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vca.core.identity import canonical_json
from vca.models.vision import (
    BLOCKS,
    DIM,
    FRAME_SIZE,
    VisionConfig,
    block_slice,
    build_vision,
    vision_definition,
    vision_needs,
)

STEP_US = 500_000
Frames = npt.NDArray[np.uint8]
Features = npt.NDArray[np.float32]


def describe(frames: Frames, mask: list[int] | None = None, **config: Any) -> tuple[Features, npt.NDArray[np.bool_]]:
    encoder = build_vision(VisionConfig(**config), STEP_US)
    assert encoder is not None
    present = np.ones(len(frames), np.bool_) if mask is None else np.array(mask, np.bool_)
    return encoder.encode(frames, present, STEP_US)


def plain(colour: tuple[int, int, int], height: int = 96, width: int = 128) -> Frames:
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3)).copy()


def grating(angle_degrees: float, phase: float = 0.0, height: int = 96, width: int = 128) -> Frames:
    """A sine grating whose brightness changes along `angle_degrees` (0 is rightwards)."""
    y, x = np.mgrid[:height, :width]
    angle = np.deg2rad(angle_degrees)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) / 2.5 + phase)
    return np.repeat((127 + 100 * wave).astype(np.uint8)[..., None], 3, axis=2)


def textured(seed: int = 0, height: int = 160, width: int = 200) -> Frames:
    """Smooth random structure at several scales, for motion."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width))
    for cell in (4, 8, 16, 32):
        coarse = rng.normal(size=(height // cell + 2, width // cell + 2))
        picture += np.kron(coarse, np.ones((cell, cell)))[:height, :width] * np.sqrt(cell)
    picture = (picture - picture.min()) / np.ptp(picture) * 255
    return np.repeat(picture.astype(np.uint8)[..., None], 3, axis=2)


def block(features: Features, name: str) -> Features:
    return features[..., block_slice(name)]


def test_layout_is_complete() -> None:
    """The documented blocks add up to the dimension that the plan and the store rely on."""
    assert sum(width for _, width in BLOCKS) == DIM == describe(plain((1, 2, 3))[None])[0].shape[1]
    assert len({name for name, _ in BLOCKS}) == len(BLOCKS)
    assert vision_needs(VisionConfig(), STEP_US) == build_vision(VisionConfig(), STEP_US).needs  # type: ignore[union-attr]
    definition = vision_definition(VisionConfig(), STEP_US)
    assert definition is not None
    canonical_json(definition)
    assert definition["frame_size"] == FRAME_SIZE
    assert build_vision(VisionConfig(kind="none"), STEP_US) is None
    assert vision_needs(VisionConfig(kind="none"), STEP_US) is None
    assert vision_definition(VisionConfig(kind="none"), STEP_US) is None


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    n_steps=st.integers(1, 3),
    per_step=st.integers(1, 3),
    style=st.sampled_from(["noise", "black", "white", "half"]),
    data=st.data(),
)
def test_any_frames_give_finite_values_in_range(
    height: int, width: int, n_steps: int, per_step: int, style: str, data: st.DataObject
) -> None:
    """Sizes and contents come from foreign files: nothing may overflow, divide by zero or leak past the mask."""
    n = n_steps * per_step
    frames = np.random.default_rng(height * 301 + width).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    if style == "half":
        frames[:, :, width // 2 :] = 0
    elif style != "noise":
        frames[:] = 0 if style == "black" else 255
    mask = data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    features, valid = describe(frames, mask, frames_per_second=2 * per_step)
    assert features.shape == (n_steps, DIM)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert np.abs(features).max() <= 1.5
    assert valid.tolist() == np.array(mask, bool).reshape(n_steps, per_step).any(axis=1).tolist()
    assert not features[~valid].any()


def test_frames_are_described_alone_apart_from_motion() -> None:
    """Chunks of work must not show: 60 frames at once equal frames given two at a time."""
    frames = np.stack([textured(seed) for seed in range(60)])
    together, _ = describe(frames)
    for i in (1, 30, 47, 59):
        pair, _ = describe(frames[i - 1 : i + 1])
        np.testing.assert_allclose(together[i], pair[1], atol=1e-6)
    again, _ = describe(frames)
    assert (again == together).all()


def test_colours_fall_into_their_bins() -> None:
    """Plain colours differ in hue and Lab; grey has no hue whatever its brightness."""
    colours = [(220, 30, 30), (30, 200, 30), (30, 30, 220), (220, 220, 30), (128, 128, 128), (20, 20, 20)]
    features, _ = describe(np.stack([plain(c) for c in colours]))
    hue = block(features, "hue")
    assert len(set(hue[:4].argmax(axis=1).tolist())) == 4
    assert hue[:4].max(axis=1).min() > 0.9
    assert hue[4:].max() < 0.15
    lab = block(features, "lab_mean_grid").reshape(-1, 9, 3)
    assert lab[0, 0, 1] > 0.4 > 0 > lab[1, 0, 1], "red has positive a, green negative"
    assert lab[2, 0, 2] < -0.3 < 0 < lab[3, 0, 2], "blue has negative b, yellow positive"
    assert lab[4, 4, 0] > lab[5, 4, 0], "lightness"
    np.testing.assert_allclose(lab[0], np.broadcast_to(lab[0, :1], (9, 3)), atol=1e-5)


def test_place_in_the_picture_is_kept() -> None:
    """A red corner is found in its cell of the grid."""
    frame = plain((100, 100, 100))
    frame[:32, :42] = (230, 20, 20)
    lab = block(describe(frame[None])[0], "lab_mean_grid").reshape(3, 3, 3)
    assert np.unravel_index(lab[..., 1].argmax(), (3, 3)) == (0, 0)


@pytest.mark.parametrize(("angle", "expected_bin"), [(0, 0), (45, 2), (90, 4), (135, 6)])
def test_orientation_of_gratings(angle: float, expected_bin: int) -> None:
    """The gradient histogram of every quadrant peaks at the grating's direction, whatever its phase."""
    features, _ = describe(np.stack([grating(angle), grating(angle, phase=1.3)]))
    oriented = block(features, "orientation").reshape(2, 4, 8)
    assert (oriented.argmax(axis=2) == expected_bin).all()
    np.testing.assert_allclose(oriented[0], oriented[1], atol=0.2)


def test_texture_separates_flat_structured_and_noisy() -> None:
    """Sharpness rises from flat to blurred to noise, LBP differs between edges and noise."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    features, _ = describe(np.stack([plain((90, 90, 90)), grating(0), noise]))
    sharpness = block(features, "sharpness")[:, 0]
    assert sharpness[0] < sharpness[1] < sharpness[2]
    lbp = block(features, "lbp")
    assert lbp[0].argmax() == 0, "flat: no neighbour is brighter"
    assert np.linalg.norm(lbp[1] - lbp[2]) > 0.4
    assert block(features, "gradient")[0].argmax() == 0
    assert not block(features, "orientation")[0].any()


def test_tone_follows_brightness_and_contrast() -> None:
    """Mean, spread and percentiles of brightness, and colourfulness."""
    split = plain((0, 0, 0))
    split[:, 64:] = 255
    tone = block(describe(np.stack([plain((51, 51, 51)), split, plain((255, 0, 0))]))[0], "tone")
    np.testing.assert_allclose(tone[0], [0.2, 0.0, 0.2, 0.2, 0.2, 0.0], atol=1e-3)
    np.testing.assert_allclose(tone[1, [0, 1, 2, 4]], [0.5, 1.0, 0.0, 1.0], atol=1e-3)
    assert tone[2, 5] > 0.2


def test_still_and_moving_pictures_differ() -> None:
    """The first step has no motion, a still picture none either, and a cut changes more than a small move."""
    picture, other = textured(0), textured(1)
    features, _ = describe(np.stack([picture, picture, np.roll(picture, 3, axis=1), other]))
    assert block(features, "has_motion")[:, 0].tolist() == [0, 1, 1, 1]
    motion = np.concatenate([block(features, n) for n in ("change", "change_grid", "shift", "colour_change")], axis=1)
    assert not motion[0].any()
    change = block(features, "change_grid").mean(axis=1)
    assert change[1] == 0 < change[2] < change[3]
    assert block(features, "change")[1, 0] == 1.0
    still, cut = block(features, "shift")[[1, 3]]
    np.testing.assert_allclose(still, [0, 0, 1], atol=0.05)
    assert cut[2] < 0.2


@pytest.mark.parametrize(("right", "down"), [(12, 0), (-12, 0), (0, 10), (0, -10), (16, -10)])
def test_camera_pans_are_measured(right: int, down: int) -> None:
    """Direction and size of a global move, in half frames."""
    picture = textured(3, 240, 300)
    first = picture[40:200, 50:250]
    second = picture[40 - down : 200 - down, 50 - right : 250 - right]
    x, y, peak = block(describe(np.stack([first, second]))[0], "shift")[1]
    assert x == pytest.approx(right / 100, abs=0.035)
    assert y == pytest.approx(down / 80, abs=0.035)
    assert peak > 0.06


def test_a_missing_frame_breaks_motion() -> None:
    """A difference over a gap is not the same quantity: it is left out and flagged."""
    frames = np.stack([textured(seed) for seed in range(4)])
    features, valid = describe(frames, [1, 0, 1, 1])
    assert valid.tolist() == [True, False, True, True]
    assert block(features, "has_motion")[:, 0].tolist() == [0, 0, 0, 1]


def test_several_frames_a_step_are_averaged() -> None:
    """Two frames a step: looks are averaged, motion over the frames that have it."""
    frames = np.stack([textured(seed) for seed in range(4)])
    each, _ = describe(frames)
    pairs, _ = describe(frames, frames_per_second=4)
    looks = slice(0, block_slice("change").start)
    np.testing.assert_allclose(pairs[:, looks], each[:, looks].reshape(2, 2, -1).mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(block(pairs, "change_grid")[0], block(each, "change_grid")[1], atol=1e-6)
    assert block(pairs, "has_motion")[:, 0].tolist() == [0.5, 1.0]


def sampled(path: Path, seconds: float = 10.0) -> Frames:
    """Two frames a second, short side `FRAME_SIZE`, straight from the decoder."""
    frames: list[Frames] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        scale = FRAME_SIZE / min(stream.width, stream.height)
        size = (round(stream.width * scale), round(stream.height * scale))
        for frame in container.decode(stream):
            if frame.time is not None and frame.time >= len(frames) / 2:
                frames.append(frame.reformat(*size, format="rgb24").to_ndarray())
            if len(frames) >= 2 * seconds:
                break
    return np.stack(frames)


DISTINCT_VIDEOS = (
    "androidx-media/mp4/trim_optimization_failure.mp4",
    "caption-inspector/BigBuckBunny_160x90-24fps.mov",
    "intel_sample_videos/bottle-detection.mp4",
    "katna/codec_error_video.mp4",
    "mediabunny/test/public/cursed-vfr.mp4",
    "mediabunny/test/public/subtitles/test-mkv-ass-fonts.mkv",
    "mux.js/multi-channel-608-captions.ts",
    "mux.js/sintel-captions.ts",
    "mux.js/test-no-audio-segment.ts",
    "streamio-ffmpeg/awesome_movie.mov",
    "torchcodec/dog_eating_854132.mp4",
)
"""Files whose pictures differ: several others in the folder are versions of the same footage."""


@pytest.mark.media
def test_real_videos_cluster_by_file(media_dir: Path) -> None:
    """The point of the whole: a step's nearest neighbour in looks is nearly always a step of the same video.

    The step itself and its two neighbours in time are set aside. Chance is one in eleven; cuts to new scenes miss.
    """
    parts = [describe(sampled(media_dir / name, 6.0))[0] for name in DISTINCT_VIDEOS]
    looks = np.concatenate(parts)[:, : block_slice("change").start].astype(np.float64)
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    distance = ((looks[:, None] - looks[None]) ** 2).sum(axis=2)
    order = np.arange(len(looks))
    distance[np.abs(order[:, None] - order[None]) <= 1] = np.inf
    assert (owner[distance.argmin(axis=1)] == owner).mean() > 0.85
