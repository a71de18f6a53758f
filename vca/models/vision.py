"""Frozen vision encoders: sampled frames to one vector per step of the time grid.

The embedded default computes descriptors of colour, texture and motion without weights; see `BLOCKS` for their layout.
Pretrained models come through `vca.models.huggingface`.

Shape letters: S steps, K frames a step, N frames, H and W pixels, D features, T frames of a clip, B bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from vca.core.records import BoolArray, FloatArray
from vca.core.timeline import US_PER_S, Span, resample_mean, step_spans
from vca.models import huggingface
from vca.models.checkpoints import EncoderConfig, definition

ByteArray = npt.NDArray[np.uint8]

DESCRIPTORS_VERSION = 1
"""Raised by every change that alters a descriptor's value: stored features of another version are not mixed with it."""
FRAME_SIZE = 128
VIDEO_FRAMES_PER_SECOND = 4.0
"""For clip models: 16 frames span 4 s. Twice the rate costs twice the time and gains little outside sport."""


class VisionConfig(EncoderConfig):
    """`encoders.vision`. `frames_per_second` and `frames_per_window` matter to cost more than any other setting."""

    field: ClassVar[str] = "encoders.vision"

    frames_per_second: float | None = Field(None, gt=0, le=60)
    """Sampling rate, rounded to whole frames per step. None: one frame a step, 4 a second for video models."""
    frames_per_window: int | None = Field(None, ge=1, le=512)
    """Frames a video model sees at once. None: what the checkpoint was trained with. No meaning for image models."""


@dataclass(frozen=True, slots=True)
class VisionNeeds:
    """What the reader must serve: frames at the centres of equal parts of every step, short side in pixels."""

    frames_per_step: int
    frame_size: int


class VisionEncoder(Protocol):
    dim: int
    needs: VisionNeeds

    def encode(self, frames: ByteArray, mask: BoolArray, step_us: int) -> tuple[FloatArray, BoolArray]:
        """RGB frames [S*K, H, W, 3] and which of them exist [S*K] to features [S, D] and their mask [S]."""
        ...


def build_vision(config: VisionConfig, step_us: int) -> VisionEncoder | None:
    """The encoder, weights loaded; None for `kind: none`. Raises `ConfigError` for what cannot be loaded."""
    if config.kind == "none":
        return None
    if config.kind == "descriptors":
        return DescriptorEncoder(_needs(config, step_us, FRAME_SIZE, None))
    spec = huggingface.frame_spec(config)
    if spec.clip_frames is None:
        return ImageEncoder(huggingface.ImageModel(config), _needs(config, step_us, spec.frame_size, None))
    clips = huggingface.ClipModel(config, _clip_frames(config, spec))
    return ClipEncoder(clips, _needs(config, step_us, spec.frame_size, VIDEO_FRAMES_PER_SECOND))


def vision_needs(config: VisionConfig, step_us: int) -> VisionNeeds | None:
    """What `build_vision` would need, from the checkpoint's JSON files alone."""
    if config.kind == "none":
        return None
    if config.kind == "descriptors":
        return _needs(config, step_us, FRAME_SIZE, None)
    spec = huggingface.frame_spec(config)
    rate = None if spec.clip_frames is None else VIDEO_FRAMES_PER_SECOND
    return _needs(config, step_us, spec.frame_size, rate)


def vision_definition(config: VisionConfig, step_us: int) -> dict[str, Any] | None:
    """Everything that shapes the features, for the hash of the feature set. Loads no weights.

    Device, batch size and library versions are left out: they move the last digits only.
    """
    needs = vision_needs(config, step_us)
    if needs is None:
        return None
    sampling = {"frames_per_step": needs.frames_per_step, "frame_size": needs.frame_size}
    if config.kind == "descriptors":
        return {"kind": config.kind, "version": DESCRIPTORS_VERSION, "dim": DIM, **sampling}
    spec = huggingface.frame_spec(config)
    clip = None if spec.clip_frames is None else _clip_frames(config, spec)
    return definition(config) | {"clip_frames": clip, "preprocessing": spec.preprocessing, **sampling}


def image_text_tower(config: VisionConfig) -> huggingface.ImageTextTower | None:
    """The text side of the vision encoder (see `huggingface.ImageTextTower`), None where there is none."""
    return huggingface.image_text_tower(config)


def _needs(config: VisionConfig, step_us: int, frame_size: int, default_rate: float | None) -> VisionNeeds:
    rate = config.frames_per_second if config.frames_per_second is not None else default_rate
    frames_per_step = 1 if rate is None else max(1, round(rate * step_us / US_PER_S))
    return VisionNeeds(frames_per_step, frame_size)


def _clip_frames(config: VisionConfig, spec: huggingface.FrameSpec) -> int:
    assert spec.clip_frames is not None
    return config.frames_per_window if config.frames_per_window is not None else spec.clip_frames


# --- pretrained encoders on the grid ---------------------------------------------------------------------------------


class ImageEncoder:
    """One vector per frame, averaged over the frames of a step."""

    def __init__(self, model: huggingface.ImageModel, needs: VisionNeeds) -> None:
        self.model = model
        self.dim = model.dim
        self.needs = needs

    def encode(self, frames: ByteArray, mask: BoolArray, step_us: int) -> tuple[FloatArray, BoolArray]:
        del step_us  # vectors belong to frames, frames to steps: the length of a step does not matter
        values = np.zeros((len(frames), self.dim), np.float32)
        if mask.all() and len(mask):
            values = self.model.embed(frames)  # without a copy of all frames
        elif mask.any():
            values[mask] = self.model.embed(frames[mask])
        return _step_means(values, mask, self.needs.frames_per_step)


class ClipEncoder:
    """Clips of T frames side by side; the model's vectors in time are brought onto the grid by overlap.

    The last clip starts earlier so that it ends with the last frame; where it overlaps its neighbour both count.
    A missing frame inside a clip is replaced by the nearest one that exists; clips without any frame are not computed.
    The price of clips without overlap: a vector near a clip's edge has seen less context than one in the middle.
    """

    def __init__(self, model: huggingface.ClipModel, needs: VisionNeeds) -> None:
        self.model = model
        self.dim = model.dim
        self.needs = needs

    def encode(self, frames: ByteArray, mask: BoolArray, step_us: int) -> tuple[FloatArray, BoolArray]:
        n_frames, per_step, length = len(frames), self.needs.frames_per_step, self.model.clip_frames
        steps = step_spans(Span(0, n_frames // per_step * step_us), step_us)
        starts = [*range(0, max(n_frames - length, 0), length), max(n_frames - length, 0)]
        indices = np.stack([_nearest_existing(np.arange(s, s + length), mask) for s in starts if _any(mask, s, length)]
                           or [np.zeros(0, np.int64)])  # fmt: skip
        if not indices.size:
            return np.zeros((len(steps), self.dim), np.float32), np.zeros(len(steps), np.bool_)
        kept = [s for s in starts if _any(mask, s, length)]
        features = self.model.embed(frames, indices)  # [clips, slots, D]
        n_slots = features.shape[1]
        slot_starts = (np.asarray(kept)[:, None] + np.arange(n_slots)[None] * length // n_slots).reshape(-1)
        slot_ends = slot_starts + length // n_slots
        # a slot counts for the frames it saw; slots made only of replacements say nothing about their time
        seen = np.array([mask[a:b].any() for a, b in zip(slot_starts, slot_ends, strict=True)])
        spans = np.stack([slot_starts, np.minimum(slot_ends, n_frames)], axis=1)[seen] * step_us // per_step
        values, touched = resample_mean(features.reshape(-1, self.dim)[seen], spans.astype(np.int64), steps)
        valid = touched & mask.reshape(-1, per_step).any(axis=1)
        values[~valid] = 0.0
        return values, valid


def _any(mask: BoolArray, start: int, length: int) -> bool:
    return bool(mask[start : start + length].any())


def _nearest_existing(indices: npt.NDArray[np.int64], mask: BoolArray) -> npt.NDArray[np.int64]:
    """Replace indices of missing frames (and those past the end) by the nearest existing one of the same clip."""
    inside = indices[indices < len(mask)]
    existing = inside[mask[inside]]
    nearest: npt.NDArray[np.int64] = existing[np.abs(indices[:, None] - existing[None]).argmin(axis=1)]
    return nearest


def _step_means(values: FloatArray, mask: BoolArray, per_step: int) -> tuple[FloatArray, BoolArray]:
    """Mean over the existing frames of each step: values [S*K, D], mask [S*K] to [S, D], [S]."""
    weights = mask.reshape(-1, per_step).astype(np.float32)  # [S, K]
    counts = weights.sum(axis=1)
    sums = np.einsum("sk,skd->sd", weights, values.reshape(len(counts), per_step, -1))
    return (sums / np.maximum(counts, 1.0)[:, None]).astype(np.float32), counts > 0


# --- descriptors -----------------------------------------------------------------------------------------------------

GRID = 3
HUE_BINS, CHROMA_BINS, LUMA_BINS = 12, 4, 8
ORIENTATION_BINS, ORIENTATION_GRID = 8, 2
GRADIENT_EDGES = (0.01, 0.03, 0.08, 0.2, 0.4)  # of gradient magnitude, luma 0..1 per pixel
CHANGE_EDGES = (0.01, 0.03, 0.08, 0.2, 0.4)  # of the luma difference to the previous frame
LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32) / np.float32(255.0)  # BT.601
SHIFT_SIZE = 64  # side of the thumbnail on which the global shift is measured

BLOCKS: tuple[tuple[str, int], ...] = (
    ("lab_mean_grid", 3 * GRID * GRID),  # mean CIE L, a, b of each cell of a 3x3 grid, row by row
    ("luma_std_grid", GRID * GRID),  # contrast inside each cell
    ("hue", HUE_BINS),  # Lab hue, weighted by chroma, square root
    ("chroma", CHROMA_BINS),  # from grey to vivid, square root
    ("luma", LUMA_BINS),  # square root
    ("tone", 6),  # luma mean, std, 5th / 50th / 95th percentile, colourfulness
    ("orientation", ORIENTATION_BINS * ORIENTATION_GRID**2),  # gradient orientation per quadrant, square root
    ("gradient", len(GRADIENT_EDGES) + 1),  # gradient magnitude, square root
    ("lbp", 10),  # rotation-invariant uniform local binary patterns, square root
    ("sharpness", 1),  # log variance of the Laplacian
    ("change", len(CHANGE_EDGES) + 1),  # luma difference to the previous sampled frame, square root
    ("change_grid", GRID * GRID),  # mean absolute difference of each cell
    ("shift", 3),  # global shift right and down (1 is half the frame) and how sure it is
    ("colour_change", 1),  # distance between the hue, chroma and luma histograms of the two frames
    ("has_motion", 1),  # 0 where there is no previous frame: the four blocks above are zero then
)
"""Layout of a descriptor: block names and widths in order. All values lie in about [-1, 1]."""
DIM = sum(width for _, width in BLOCKS)


class DescriptorEncoder:
    """Colour, texture and motion descriptors without weights.

    Sources: CIE 15 (Lab); Arandjelovic and Zisserman 2012 (square roots of histograms); Dalal and Triggs 2005
    (oriented gradients); Ojala et al. 2002 (LBP riu2); Hasler and Suesstrunk 2003 (colourfulness); Kuglin and Hines
    1975 (phase correlation).
    """

    dim = DIM

    def __init__(self, needs: VisionNeeds) -> None:
        self.needs = needs

    def encode(self, frames: ByteArray, mask: BoolArray, step_us: int) -> tuple[FloatArray, BoolArray]:
        del step_us  # motion is per sampled frame: the sampling rate is part of the feature set
        per_step = self.needs.frames_per_step
        values = np.zeros((len(frames), DIM), np.float32)
        existing = np.flatnonzero(mask)
        height, width = frames.shape[1:3]
        # Arrays so small that the allocator keeps them: of larger ones each came in fresh pages, a quarter of the time.
        chunk = max(1, 120_000 // (height * width))
        previous: _Frames | None = None
        for start in range(0, len(existing), chunk):
            indices = existing[start : start + chunk]
            part = _describe(_shrink(frames[indices]))
            # a frame has a predecessor only if the sample right before it exists: a longer gap is not the same motion
            adjacent = np.array([i > 0 and bool(mask[i - 1]) for i in indices])
            values[indices] = np.concatenate([part.still, _motion(previous, part, adjacent)], axis=1)
            previous = part.last()
        means, valid = _step_means(values, mask, per_step)
        if per_step > 1:
            # motion is averaged over the frames that have it; the flag stays the share of such frames
            flag = means[:, -1:]
            motion = slice(DIM - MOTION_DIM, DIM - 1)
            means[:, motion] = np.divide(means[:, motion], flag, out=np.zeros_like(means[:, motion]), where=flag > 0)
        return means, valid


MOTION_DIM = sum(width for name, width in BLOCKS if name in ("change", "change_grid", "shift", "colour_change")) + 1


@dataclass(frozen=True, slots=True)
class _Frames:
    """What motion needs of described frames."""

    still: FloatArray  # [N, D - MOTION_DIM]
    luma: FloatArray  # [N, H, W], 0..1
    colours: FloatArray  # [N, B] hue, chroma and luma histograms, square roots

    def last(self) -> "_Frames":
        return _Frames(self.still[-1:], self.luma[-1:], self.colours[-1:])


def _describe(frames: ByteArray) -> _Frames:
    """Descriptors of single frames [N, H, W, 3]."""
    n, height, width = frames.shape[:3]
    luma: FloatArray = frames.astype(np.float32) @ LUMA_WEIGHTS  # [N, H, W], 0..1
    lab_table, hue_table, chroma_table, chroma_bins = _colour_tables()
    red, green, blue = (frames[..., channel].astype(np.int64) >> 3 for channel in range(3))
    codes = (red << 10) | (green << 5) | blue  # 15-bit colour, [N, H, W]
    lab = lab_table.take(codes, axis=0)  # [N, H, W, 3]
    flat = codes.reshape(n, -1)
    chroma = chroma_table.take(flat)
    hue = _histogram(hue_table.take(flat), HUE_BINS, chroma)
    hue /= chroma.sum(axis=1, keepdims=True) + 0.02 * height * width
    colours = np.sqrt(
        np.concatenate(
            [
                hue,
                _histogram(chroma_bins.take(flat), CHROMA_BINS) / flat.shape[1],
                _histogram(np.minimum((luma * LUMA_BINS).astype(np.int64), LUMA_BINS - 1).reshape(n, -1), LUMA_BINS)
                / flat.shape[1],
            ],
            axis=1,
        )
    )
    cell_means = _pool(luma, GRID, GRID)
    cell_stds = np.sqrt(np.maximum(_pool(luma**2, GRID, GRID) - cell_means**2, 0.0))
    still = np.concatenate(
        [
            _pool(lab, GRID, GRID).reshape(n, -1),
            2.0 * cell_stds.reshape(n, -1),
            colours,
            _tone(frames, luma),
            _texture(luma),
        ],
        axis=1,
    )
    return _Frames(still.astype(np.float32), luma, colours.astype(np.float32))


def _tone(frames: ByteArray, luma: FloatArray) -> FloatArray:
    n = len(frames)
    flat = luma.reshape(n, -1)
    quantiles = np.quantile(flat, [0.05, 0.5, 0.95], axis=1).T  # [N, 3]
    pixels = frames.reshape(n, -1, 3)
    red, green, blue = (pixels[..., channel].astype(np.float32) / 255.0 for channel in range(3))
    opponent = np.stack([red - green, (red + green) / 2 - blue])  # [2, N, P]
    spread = np.sqrt((opponent.std(axis=2) ** 2).sum(axis=0))
    colourfulness = spread + 0.3 * np.sqrt((opponent.mean(axis=2) ** 2).sum(axis=0))
    columns = [flat.mean(axis=1)[:, None], 2.0 * flat.std(axis=1)[:, None], quantiles, colourfulness[:, None]]
    return np.concatenate(columns, axis=1).astype(np.float32)


def _texture(luma: FloatArray) -> FloatArray:
    n, height, width = luma.shape
    p = np.pad(luma, ((0, 0), (1, 1), (1, 1)), mode="edge")
    dx = (p[:, 1:-1, 2:] - p[:, 1:-1, :-2]) * 0.5
    dy = (p[:, 2:, 1:-1] - p[:, :-2, 1:-1]) * 0.5
    magnitude = np.hypot(dx, dy)
    angle = np.arctan2(dy, dx) / np.pi + 1.0  # orientation repeats after 1; bins are centred on 0, 22.5, ... degrees
    bins = (angle * ORIENTATION_BINS + 0.5).astype(np.uint8) % ORIENTATION_BINS
    quadrant = (np.arange(height) * ORIENTATION_GRID // height)[:, None] * ORIENTATION_GRID + (
        np.arange(width) * ORIENTATION_GRID // width
    )[None]
    keys = (bins + quadrant[None] * ORIENTATION_BINS).reshape(n, -1)
    oriented = _histogram(keys, ORIENTATION_BINS * ORIENTATION_GRID**2, magnitude.reshape(n, -1))
    # the floor keeps sensor noise on a flat quadrant from looking like structure
    floor = 0.004 * height * width / ORIENTATION_GRID**2
    masses = oriented.reshape(n, -1, ORIENTATION_BINS).sum(axis=2, keepdims=True)
    oriented = (oriented.reshape(n, -1, ORIENTATION_BINS) / (masses + floor)).reshape(n, -1)
    strength = _histogram(_classes(magnitude, GRADIENT_EDGES).reshape(n, -1), len(GRADIENT_EDGES) + 1)
    laplacian = p[:, 2:, 1:-1] + p[:, :-2, 1:-1] + p[:, 1:-1, 2:] + p[:, 1:-1, :-2] - 4.0 * luma
    sharpness = (np.log10(laplacian.reshape(n, -1).var(axis=1) + 1e-6) + 6.0) / 6.0
    histograms = np.concatenate([oriented, strength / (height * width), _lbp(p)], axis=1)
    return np.concatenate([np.sqrt(histograms), sharpness[:, None]], axis=1).astype(np.float32)


def _lbp(padded: FloatArray) -> FloatArray:
    """Rotation-invariant uniform patterns of the 8 neighbours [N, 10]; 2 grey levels of noise are ignored."""
    centre = padded[:, 1:-1, 1:-1] + 2.0 / 255.0
    height, width = centre.shape[1:]
    ring = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    code = np.zeros(centre.shape, np.uint8)
    for bit, (y, x) in enumerate(ring):
        code |= (padded[:, y : y + height, x : x + width] > centre).astype(np.uint8) << bit
    counts = _histogram(_lbp_table()[code].reshape(len(code), -1), 10)
    return counts / np.float32(height * width)


def _motion(previous: _Frames | None, part: _Frames, adjacent: BoolArray) -> FloatArray:
    """Motion blocks [N, MOTION_DIM] of `part` against the frame before each; zero where there is none."""
    n = len(part.luma)
    result = np.zeros((n, MOTION_DIM), np.float32)
    before_luma = np.concatenate([(previous or part).luma[:1], part.luma[:-1]])
    before_colours = np.concatenate([(previous or part).colours[:1], part.colours[:-1]])
    if not adjacent.any():
        return result
    now, before = part.luma[adjacent], before_luma[adjacent]
    difference = np.abs(now - before)
    m = len(difference)
    change = _histogram(_classes(difference, CHANGE_EDGES).reshape(m, -1), len(CHANGE_EDGES) + 1)
    columns = [
        np.sqrt(change / difference[0].size),
        np.minimum(4.0 * _pool(difference, GRID, GRID).reshape(m, -1), 1.0),
        _global_shift(before, now),
        np.linalg.norm(part.colours[adjacent] - before_colours[adjacent], axis=1)[:, None] / 2.0,
        np.ones((m, 1)),
    ]
    result[adjacent] = np.concatenate(columns, axis=1)
    return result


def _global_shift(before: FloatArray, now: FloatArray) -> FloatArray:
    """Phase correlation of [N, H, W] pairs: shift right, shift down, both in half frames, and the height of the peak.

    The shift is zero where no peak stands out (cuts, local motion, flat pictures).
    """
    size = SHIFT_SIZE
    window = np.hanning(size + 2)[1:-1]
    taper = window[:, None] * window[None]
    spectra = []
    for frames in (before, now):
        small = _pool(frames, size, size).astype(np.float64)
        spectra.append(np.fft.rfft2((small - small.mean(axis=(1, 2), keepdims=True)) * taper))
    cross = spectra[1] * np.conj(spectra[0])
    surface = np.fft.irfft2(cross / (np.abs(cross) + 1e-3), s=(size, size))
    best = surface.reshape(len(surface), -1).argmax(axis=1)
    peak = np.clip(np.take_along_axis(surface.reshape(len(surface), -1), best[:, None], axis=1)[:, 0], 0.0, 1.0)
    rows, columns = best // size, best % size
    shift = np.stack([columns, rows], axis=1).astype(np.float64)
    shift = np.where(shift >= size / 2, shift - size, shift) / (size / 2)
    return np.concatenate([np.where(peak[:, None] >= 0.06, shift, 0.0), peak[:, None]], axis=1).astype(np.float32)


def _shrink(frames: ByteArray) -> ByteArray:
    """Bring the short side to at most `FRAME_SIZE` by area means, the long side to at most four times that."""
    height, width = frames.shape[1:3]
    factor = min(1.0, FRAME_SIZE / min(height, width))
    limit = 4 * FRAME_SIZE
    rows, columns = (min(max(1, round(size * factor)), limit) for size in (height, width))
    if (rows, columns) == (height, width):
        return frames
    return np.rint(_pool(frames.astype(np.float32), rows, columns)).astype(np.uint8)


def _pool(values: FloatArray, rows: int, columns: int) -> FloatArray:
    """Area means of [N, H, W, ...] on a grid of any size; cells of a larger grid repeat the nearest pixel."""
    for axis, cells in ((1, rows), (2, columns)):
        size = values.shape[axis]
        edges = np.arange(cells + 1, dtype=np.int64) * size // cells
        counts = np.maximum(np.diff(edges), 1).astype(np.float32)
        shape = [1] * values.ndim
        shape[axis] = cells
        values = np.add.reduceat(values, edges[:-1], axis=axis) / counts.reshape(shape)
    return values


def _classes(values: FloatArray, edges: Sequence[float]) -> ByteArray:
    """How many of the few edges each value reaches: `np.digitize`, at a quarter of its time."""
    found = np.zeros(values.shape, np.uint8)
    for edge in np.asarray(edges, np.float64):
        found += values >= edge
    return found


def _histogram(keys: npt.NDArray[np.integer[Any]], n_bins: int, weights: FloatArray | None = None) -> FloatArray:
    """Row-wise histogram: keys [N, P] in [0, B) and weights [N, P] to [N, B]."""
    n = len(keys)
    offset = keys + (np.arange(n, dtype=np.int64) * n_bins)[:, None]
    flat = None if weights is None else weights.reshape(-1)
    counts = np.bincount(offset.reshape(-1), weights=flat, minlength=n * n_bins)
    return counts.reshape(n, n_bins).astype(np.float32)


@cache
def _colour_tables() -> tuple[FloatArray, npt.NDArray[np.int64], FloatArray, npt.NDArray[np.int64]]:
    """Lab / 100, hue bin, chroma / 100 and chroma bin of 32^3 quantised colours (sRGB: IEC 61966-2-1, white D65)."""
    levels = (np.arange(32) * 8 + 4) / 255.0
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1) / 100.0
    angle = np.arctan2(lab[:, 2], lab[:, 1]) / (2 * np.pi) + 1.0
    hue = np.floor(angle * HUE_BINS + 0.5).astype(np.int64) % HUE_BINS
    bins = np.digitize(np.hypot(lab[:, 1], lab[:, 2]), (0.08, 0.25, 0.5))
    single = lab.astype(np.float32)
    return single, hue, np.hypot(single[:, 1], single[:, 2]), bins.astype(np.int64)


@cache
def _lbp_table() -> npt.NDArray[np.int64]:
    """Code of 8 bits to its class: number of ones if at most two changes around the ring, else 9."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1  # [256, 8]
    changes = (bits != np.roll(bits, 1, axis=1)).sum(axis=1)
    return np.where(changes <= 2, bits.sum(axis=1), 9).astype(np.int64)


def block_slice(name: str, blocks: Sequence[tuple[str, int]] = BLOCKS) -> slice:
    """Where a named block lies in a descriptor."""
    start = 0
    for block, width in blocks:
        if block == name:
            return slice(start, start + width)
        start += width
    raise KeyError(name)
