"""Pretrained models on a GPU give what they give on the CPU, and a full GPU halves the batch."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers as hf

from tests.support.gpu import requires_gpu
from vca.models.audio import AudioConfig, build_audio
from vca.models.checkpoints import Batches, EncoderConfig
from vca.models.text import TextModel, TextModelConfig
from vca.models.vision import VisionConfig, build_vision

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
        assert encoder is not None
        return encoder.encode(frames, mask, STEP_US)

    on_cpu, on_gpu = features("cpu"), features(DEVICE)
    np.testing.assert_array_equal(on_gpu[1], on_cpu[1])
    np.testing.assert_allclose(on_gpu[0], on_cpu[0], atol=TOLERANCE)
    assert np.abs(on_cpu[0]).max() > 100 * TOLERANCE, "not all zeros"


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
        assert encoder is not None
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
