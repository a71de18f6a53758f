"""Pixels and spectrograms as they are made on a GPU, checked on the CPU against the processors of the checkpoints."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from vca.models.device_inputs import PRECISION_BITS, DeviceFilterbank, DevicePixels, resample_weights

pytestmark = pytest.mark.integration

SQUARE = {"height": 32, "width": 32}


def processors() -> dict[str, Any]:
    return {
        "siglip": SiglipImageProcessorPil(size=SQUARE),
        "siglip bilinear": SiglipImageProcessorPil(size=SQUARE, resample=2),
        "siglip not resized": SiglipImageProcessorPil(do_resize=False),
        "clip": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE),
        "bit": BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=SQUARE),
        "vit": ViTImageProcessorPil(size=SQUARE),
    }


@pytest.mark.parametrize("name", processors())
@pytest.mark.parametrize("shape", [(40, 71), (71, 40), (32, 57), (200, 200), (20, 25), (33, 32)])
def test_pixels_are_those_of_the_processor(name: str, shape: tuple[int, int]) -> None:
    """To rounding of the last step: a single pixel one level off would be 0.004 and more."""
    processor = processors()[name]
    pixels = DevicePixels(processor, "cpu")
    assert pixels.reproduces(*shape)
    frames = np.random.default_rng(0).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    frames[1] = np.where(frames[1] > 127, 255, 0)  # bicubic overshoots at edges
    wanted = processor(images=list(frames), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    found = pixels(torch.from_numpy(frames), torch.float32)
    torch.testing.assert_close(found, wanted.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize(("n_in", "n_out"), [(398, 224), (1920, 224), (100, 224), (7, 5)])
def test_weights_are_those_of_pillow(resample: int, n_in: int, n_out: int) -> None:
    """Whole numbers that add up to one, and the 8-bit values that Pillow makes of a row."""
    weights = resample_weights(n_in, n_out, resample)
    assert (weights == np.rint(weights)).all()
    np.testing.assert_allclose(weights.sum(axis=1), 2**PRECISION_BITS, rtol=1e-5)
    row = np.random.default_rng(0).integers(0, 256, n_in)
    wanted = np.asarray(Image.fromarray(row[None].astype(np.uint8)).resize((n_out, 1), resample))[0]
    found = np.clip((weights @ row + 2 ** (PRECISION_BITS - 1)) // 2**PRECISION_BITS, 0, 255)
    np.testing.assert_array_equal(found, wanted)


def test_other_processors_are_left_alone() -> None:
    """Patches of any size (NaFlex), padding, and filters that are not built here go through the processor."""
    small = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SQUARE)
    nearest = SiglipImageProcessorPil(size=SQUARE, resample=0)
    for processor in (Siglip2ImageProcessorPil(), nearest, small):
        assert not DevicePixels(processor, "cpu").reproduces(40, 71)


@pytest.mark.parametrize("seconds", [0.5, 1.0, 3.3])
def test_spectrograms_are_those_of_the_extractor(seconds: float) -> None:
    """Sound shorter and longer than what the model takes; a tone, noise and silence."""
    extractor = hf.ASTFeatureExtractor(num_mel_bins=32, max_length=128)
    filterbank = DeviceFilterbank.matching(extractor, "cpu")
    assert filterbank is not None
    time = np.arange(int(seconds * 16_000)) / 16_000
    noise = np.random.default_rng(0).normal(0, 0.01, len(time))
    waves = np.stack([np.sin(2 * np.pi * 440 * time), noise, np.zeros(len(time))]).astype(np.float32)
    wanted = extractor(list(waves), sampling_rate=16_000, return_tensors="pt")["input_values"]
    found = filterbank(torch.from_numpy(waves), torch.float32)
    torch.testing.assert_close(found, wanted.float(), atol=1e-4, rtol=1e-4)


def test_another_extractor_is_seen() -> None:
    """The comparison at loading refuses what would shift every feature."""
    extractor = hf.ASTFeatureExtractor(num_mel_bins=32, max_length=128)
    extractor.normalize = lambda values: values  # type: ignore[method-assign]
    assert DeviceFilterbank.matching(extractor, "cpu") is None
