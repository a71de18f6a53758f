"""What a checkpoint's own processor makes on the CPU, made on the GPU: pixels of frames, spectrograms of sound.

A processor works on one core, frame by frame and window by window, and a GPU would wait for it most of the time
(`benchmarks/gpu.py` measures what is left of that). Both classes here are compared with the processor on random inputs
before they are used. What they do not reproduce goes through the processor.

Shape letters: N items, H and W pixels served, h and w pixels of the model, L samples, F frames of 10 ms, M mel bands.
"""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# --- frames ----------------------------------------------------------------------------------------------------------

PRECISION_BITS = 22
"""Of Pillow's fixed-point weights for 8-bit pictures."""
HALF_BITS = 11
"""A weight is cut into two numbers of so many bits: float16 holds each of them exactly."""
EXACT_TAPS = 48
"""Up to so many weights on a pixel, every sum of their lower halves stays below 2^24, where float32 is exact."""
BILINEAR, BICUBIC = 2, 3
MOST_SIZES = 64
"""Whose matrices are kept, half a megabyte each."""


class DevicePixels:
    """Resize, crop, rescale and normalise as a processor on Pillow does, to the last bit before normalising.

    Each size of frames is compared with the processor when it is first seen. That also tells which axis Pillow resizes
    first, with 8-bit values in between: newer versions choose by the size.
    """

    def __init__(self, processor: Any, device: str) -> None:
        self._processor, self._device = processor, device
        self._settings = _pixel_settings(processor)
        # Made here: a copy of numbers to the GPU in each call would wait until it has nothing left to do.
        known = self._settings or {"scale": [1.0] * 3, "offset": [0.0] * 3}
        self._scale = torch.tensor(known["scale"], device=device).view(3, 1, 1)
        self._offset = torch.tensor(known["offset"], device=device).view(3, 1, 1)
        self._columns_first: dict[tuple[int, int], bool | None] = {}
        """By height and width; None: not reproduced."""
        self._weights: dict[tuple[int, int], _Weights] = {}

    def reproduces(self, height: int, width: int) -> bool:
        """Whether frames of this size come out as from the processor."""
        size = (height, width)
        if size not in self._columns_first:
            found = [None] if self._settings is None else [o for o in (False, True) if self._compare(size, o)]
            self._columns_first[size] = found[0] if found else None
        return self._columns_first[size] is not None

    def _compare(self, size: tuple[int, int], columns_first: bool) -> bool:
        frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
        wanted = self._processor(images=list(frames), return_tensors="pt", input_data_format="channels_last")
        if set(wanted) != {"pixel_values"}:
            return False
        found = self._make(torch.from_numpy(frames).to(self._device), torch.float32, columns_first).cpu()
        values = wanted["pixel_values"]
        return values.shape == found.shape and torch.allclose(found, values.float(), atol=1e-5, rtol=1e-5)

    def __call__(self, frames: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 [N, H, W, 3] of a size that is reproduced to [N, 3, h, w]."""
        columns_first = self._columns_first[(frames.shape[1], frames.shape[2])]
        assert columns_first is not None
        return self._make(frames, dtype, columns_first)

    def _make(self, frames: Tensor, dtype: torch.dtype, columns_first: bool) -> Tensor:
        settings = self._settings
        assert settings is not None
        x = frames.permute(0, 3, 1, 2)
        height, width = _target(settings["size"], x.shape[2], x.shape[3])
        for along_columns in (columns_first, not columns_first):
            if along_columns and height != x.shape[2]:
                x = self._resample(x.transpose(2, 3), height).transpose(2, 3)
            elif not along_columns and width != x.shape[3]:
                x = self._resample(x, width)
        if settings["crop"] is not None:
            rows, columns = settings["crop"]
            top, left = (height - rows) // 2, (width - columns) // 2
            x = x[:, :, top : top + rows, left : left + columns]
        return torch.addcmul(self._offset, x.float(), self._scale).to(dtype).contiguous()

    def _resample(self, x: Tensor, length: int) -> Tensor:
        """The last axis brought to `length`; 8-bit values in, 8-bit values out, whatever the number format."""
        assert self._settings is not None
        key = (x.shape[-1], length)
        if key not in self._weights:
            if len(self._weights) >= MOST_SIZES:
                self._weights.clear()
            self._weights[key] = _Weights(*key, self._settings["resample"], x.device)
        return self._weights[key].apply(x)


def _pixel_settings(processor: Any) -> dict[str, Any] | None:
    """Settings of a processor on Pillow, None where one of them means something that is not built here."""
    if getattr(processor, "backend", None) != "pil" or getattr(processor, "do_pad", None):
        return None
    size = crop = None
    if getattr(processor, "do_resize", None):
        size = {k: int(v) for k, v in dict(getattr(processor, "size", None) or {}).items() if v is not None}
        if set(size) not in ({"height", "width"}, {"shortest_edge"}):
            return None
        if processor.resample is None or int(processor.resample) not in (BILINEAR, BICUBIC):
            return None
    if getattr(processor, "do_center_crop", None):
        sides = {k: int(v) for k, v in dict(processor.crop_size).items() if v is not None}
        if set(sides) != {"height", "width"} or size is None or min(size.values()) < max(sides.values()):
            return None  # a picture smaller than the crop is padded
        crop = (sides["height"], sides["width"])
    rescale = float(processor.rescale_factor) if getattr(processor, "do_rescale", None) else 1.0
    normal = bool(getattr(processor, "do_normalize", None))
    mean = [float(v) for v in processor.image_mean] if normal else [0.0] * 3
    std = [float(v) for v in processor.image_std] if normal else [1.0] * 3
    if len(mean) != 3 or len(std) != 3:
        return None
    return {
        "size": size,
        "crop": crop,
        "resample": int(processor.resample) if size is not None else BILINEAR,
        "scale": [rescale / s for s in std],
        "offset": [-m / s for m, s in zip(mean, std, strict=True)],
    }


def _target(size: dict[str, int] | None, height: int, width: int) -> tuple[int, int]:
    """Rows and columns after resizing."""
    if size is None:
        return height, width
    if "shortest_edge" not in size:
        return size["height"], size["width"]
    short = size["shortest_edge"]
    return (short, int(short * width / height)) if height <= width else (int(short * height / width), short)


class _Weights:
    """Pillow's resampling of one axis as a product with a matrix.

    The weights are Pillow's integers, cut into halves so that a product in float16 summed in float32 is exact: it runs
    on tensor cores and gives Pillow's 8-bit values.
    """

    def __init__(self, n_in: int, n_out: int, resample: int, device: torch.device) -> None:
        weights = resample_weights(n_in, n_out, resample)  # [n_out, n_in]
        high = np.rint(weights / 2**HALF_BITS)
        halves = np.concatenate([high, weights - high * 2**HALF_BITS]).T  # [n_in, 2 * n_out]
        few = int((weights != 0).sum(axis=1).max()) <= EXACT_TAPS
        # Older GPUs have no such product.
        self._half = few and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        self._matrix = torch.from_numpy(halves).to(device, torch.float16 if self._half else torch.float64)
        self._n_out = n_out

    def apply(self, x: Tensor) -> Tensor:
        """[..., n_in] to float [..., n_out]."""
        rows = x.contiguous().to(self._matrix.dtype).view(-1, x.shape[-1])
        precise: dict[str, Any] = {"out_dtype": torch.float32} if self._half else {}
        sums: Tensor = torch.mm(rows, self._matrix, **precise)
        # (high * 2^11 + low + 2^21) >> 22 without leaving what float32 holds exactly
        low = sums[:, self._n_out :].add_(2 ** (PRECISION_BITS - 1)).floor_divide_(2**HALF_BITS)
        values = low.add_(sums[:, : self._n_out]).floor_divide_(2 ** (PRECISION_BITS - HALF_BITS)).clamp_(0, 255)
        return values.reshape(*x.shape[:-1], self._n_out)


def resample_weights(n_in: int, n_out: int, resample: int) -> npt.NDArray[np.float64]:
    """Pillow's fixed-point weights [n_out, n_in] of an antialiased resize, whole numbers (Pillow, Resample.c)."""
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    support = (1.0 if resample == BILINEAR else 2.0) * stretch
    weights = np.zeros((n_out, n_in))
    for row in range(n_out):
        centre = (row + 0.5) * scale
        first, last = max(0, int(centre - support + 0.5)), min(n_in, int(centre + support + 0.5))
        distance = np.abs((np.arange(first, last) - centre + 0.5) / stretch)
        taps = np.maximum(1.0 - distance, 0.0) if resample == BILINEAR else _bicubic(distance)
        taps = taps / taps.sum() * 2**PRECISION_BITS
        weights[row, first:last] = np.trunc(taps + np.copysign(0.5, taps))
    return weights


def _bicubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


# --- sound -----------------------------------------------------------------------------------------------------------

FRAME, FRAME_HOP, FFT = 400, 160, 512  # samples at 16 kHz
PREEMPHASIS = 0.97
MEL_FLOOR = 1.192092955078125e-07
CHECKED_SAMPLES = 8000


class DeviceFilterbank:
    """Kaldi's log-mel filter bank as the feature extractor of AST computes it, in float64 as that does."""

    def __init__(self, extractor: Any, device: str) -> None:
        from transformers.audio_utils import mel_filter_bank, window_function

        mel = mel_filter_bank(
            num_frequency_bins=FFT // 2 + 1,
            num_mel_filters=extractor.num_mel_bins,
            min_frequency=20,
            max_frequency=extractor.sampling_rate // 2,
            sampling_rate=extractor.sampling_rate,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
        self._mel = torch.from_numpy(mel).to(device, torch.float64)  # [FFT / 2 + 1, M]
        window = window_function(FRAME, "hann", periodic=False)
        self._window = torch.from_numpy(window).to(device, torch.float64)
        self._n_frames = int(extractor.max_length)
        self._mean = float(extractor.mean) if extractor.do_normalize else 0.0
        self._scale = 2 * float(extractor.std) if extractor.do_normalize else 1.0

    @classmethod
    def matching(cls, extractor: Any, device: str) -> Self | None:
        """The same as `extractor`, None where that computes something else."""
        made = cls(extractor, device)
        wave = np.random.default_rng(0).normal(0, 0.1, CHECKED_SAMPLES).astype(np.float32)
        wanted = extractor([wave], sampling_rate=extractor.sampling_rate, return_tensors="pt")
        found = made(torch.from_numpy(wave)[None].to(device), torch.float32).cpu()
        values = wanted["input_values"]
        # Where torchaudio is installed the extractor uses it, in float32.
        same = values.shape == found.shape and torch.allclose(found, values.float(), atol=1e-3)
        return made if same else None

    def __call__(self, waves: Tensor, dtype: torch.dtype) -> Tensor:
        """Waveforms [N, L] to [N, F, M], cut or filled up to what the model takes."""
        frames = waves.double().unfold(1, FRAME, FRAME_HOP)[:, : self._n_frames]  # [N, F, FRAME]
        frames = frames - frames.mean(dim=-1, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        spectrum = torch.fft.rfft((frames - PREEMPHASIS * before) * self._window, FFT)
        power = spectrum.real.square() + spectrum.imag.square()
        mel = (power @ self._mel).clamp(min=MEL_FLOOR).log().float()
        mel = torch.nn.functional.pad(mel, (0, 0, 0, self._n_frames - mel.shape[1]))
        return ((mel - self._mean) / self._scale).to(dtype)
