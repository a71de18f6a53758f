"""Pretrained models on a GPU give what they give on the CPU, and a full GPU halves the batch."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers as hf
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.support.gpu import requires_gpu
from vca.models.audio import AudioConfig, WindowEncoder, build_audio
from vca.models.checkpoints import Batches, EncoderConfig, Uploads
from vca.models.device_inputs import DevicePixels
from vca.models.text import TextModel, TextModelConfig
from vca.models.vision import ImageEncoder, VisionConfig, build_vision

DEVICE = "cuda"
STEP_US = 500_000
TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TOLERANCE = 1e-4
"""Sums of float32 in another order, through few layers, on values near 1. TensorFloat-32 would be 10 times worse."""


@pytest.fixture(autouse=True)
def _full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN rounds the inputs of convolutions to 10 bits unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)


@pytest.fixture
def little_memory() -> Iterator[int]:
    """This process may use 1 GiB of the GPU; yields its bytes."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 2**30 / total))
    yield min(2**30, total)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0)


@requires_gpu
def test_pictures(tmp_path: Path) -> None:
    """A SigLIP of random weights; batches are smaller than the segment, one step has no picture."""
    vision = hf.SiglipVisionConfig(**TINY, image_size=32, patch_size=16)
    text = hf.SiglipTextConfig(**TINY, vocab_size=16, max_position_embeddings=8, projection_size=16, pad_token_id=0)
    both = hf.SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    hf.SiglipModel(both).save_pretrained(tmp_path)
    half = [0.5, 0.5, 0.5]
    processor = {"image_processor_type": "SiglipImageProcessor", "image_mean": half, "image_std": half}
    processor |= {"size": {"height": 32, "width": 32}, "resample": 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    frames = np.random.default_rng(0).integers(0, 256, (10, 32, 48, 3), dtype=np.uint8)
    mask = np.arange(10) != 4

    def features(device: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        settings = {"kind": "huggingface", "model": str(tmp_path), "dtype": "float32", "batch_size": 4}
        encoder = build_vision(VisionConfig.model_validate(settings | {"device": device}), STEP_US)
        assert isinstance(encoder, ImageEncoder)
        pixels = encoder.model.on_gpu
        assert (device == DEVICE) == (pixels is not None and pixels.reproduces(32, 48)), "made where the model is"
        return encoder.encode(frames, mask, STEP_US)

    on_cpu, on_gpu = features("cpu"), features(DEVICE)
    np.testing.assert_array_equal(on_gpu[1], on_cpu[1])
    np.testing.assert_allclose(on_gpu[0], on_cpu[0], atol=TOLERANCE)
    assert np.abs(on_cpu[0]).max() > 100 * TOLERANCE, "not all zeros"


@requires_gpu
@pytest.mark.parametrize("resample", [2, 3])
def test_pixels_are_those_of_pillow(resample: int) -> None:
    """Frames as they are served, larger ones, and enlarged ones: every 8-bit value is Pillow's, on tensor cores too."""
    processor = SiglipImageProcessorPil(size={"height": 224, "width": 224}, resample=resample)
    pixels = DevicePixels(processor, DEVICE)
    for height, width in ((224, 398), (398, 224), (720, 1280), (96, 130), (224, 224)):
        assert pixels.reproduces(height, width)
        frames = np.random.default_rng(1).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
        wanted = processor(images=list(frames), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        found = pixels(torch.from_numpy(frames).to(DEVICE), torch.float32).cpu()
        levels = (found - wanted).abs() / processor.rescale_factor * 0.5  # std is 0.5
        assert float(levels.max()) < 0.01, f"{height} x {width}: off by {float(levels.max()):.2f} of 255"


@requires_gpu
def test_uploads_arrive_whole() -> None:
    """Arrays of growing and shrinking sizes in turn, while the GPU is busy: none is overwritten by the next but one."""
    uploads, draw = Uploads(DEVICE), np.random.default_rng(0)
    busy = torch.randn(2048, 2048, device=DEVICE)
    arrays = [draw.normal(size=(n, 257)).astype(np.float32) for n in (1000, 4000, 10, 3000, 4000, 1, 2000)]
    sums = []
    for array in arrays:
        array.flags.writeable = False  # as Ray serves them
        on_gpu = uploads(array)
        for _ in range(20):
            busy = (busy @ busy).clamp(-1, 1)
        sums.append(on_gpu.double().sum(dim=0))
    for array, found in zip(arrays, sums, strict=True):
        np.testing.assert_allclose(found.cpu().numpy(), array.astype(np.float64).sum(axis=0), atol=1e-6)


@requires_gpu
def test_sound(tmp_path: Path) -> None:
    """An AST of random weights over noise and tones."""
    shape = {"num_mel_bins": 16, "max_length": 64, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
    hf.ASTModel(hf.ASTConfig(**TINY, **shape)).save_pretrained(tmp_path)
    hf.ASTFeatureExtractor(num_mel_bins=16, max_length=64).save_pretrained(tmp_path)
    seconds = np.arange(5 * 16_000) / 16_000
    noise = np.random.default_rng(0).normal(0, 0.05, len(seconds))
    pcm = (0.3 * np.sin(2 * np.pi * 440 * seconds) + noise).astype(np.float32)
    mask = np.ones(10, np.bool_)

    def features(device: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        settings = {"kind": "huggingface", "model": str(tmp_path), "dtype": "float32", "batch_size": 2}
        encoder = build_audio(AudioConfig.model_validate(settings | {"device": device}), STEP_US)
        assert isinstance(encoder, WindowEncoder)
        assert (encoder.model.on_gpu is not None) == (device == DEVICE), "spectrograms are made where the model is"
        return encoder.encode(pcm, mask, STEP_US)

    on_cpu, on_gpu = features("cpu"), features(DEVICE)
    np.testing.assert_array_equal(on_gpu[1], on_cpu[1])
    np.testing.assert_allclose(on_gpu[0], on_cpu[0], atol=TOLERANCE)
    assert np.abs(on_cpu[0]).max() > 100 * TOLERANCE, "not all zeros"


@requires_gpu
def test_texts() -> None:
    """The packaged language model, with texts of all lengths."""
    texts = ["A goalkeeper saves a penalty.", "", "word " * 300, "Heavy rain will spread from the west."]
    on_cpu = TextModel(TextModelConfig(device="cpu", batch_size=2)).embed(texts)
    on_gpu = TextModel(TextModelConfig.model_validate({"device": DEVICE, "batch_size": 2})).embed(texts)
    np.testing.assert_allclose(on_gpu, on_cpu, atol=TOLERANCE)


@requires_gpu
def test_a_full_gpu_halves_the_batch(little_memory: int) -> None:
    """Real allocations: eight items ask for twice the memory there is, and all results come, in order."""
    item_bytes = little_memory // 4
    batches = Batches(EncoderConfig(batch_size=8))

    def forward(part: slice) -> npt.NDArray[np.float32]:
        n = part.stop - part.start
        memory = torch.zeros(n * item_bytes, dtype=torch.uint8, device=DEVICE)
        assert memory.is_cuda
        return np.arange(part.start, part.stop, dtype=np.float32)[:, None]

    result = batches.run(20, forward)
    np.testing.assert_array_equal(result[:, 0], np.arange(20))
    assert batches.size < 8
