"""Pretrained encoders on tiny checkpoints of the real classes with random weights, saved and loaded like real ones."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers as hf
from scipy.signal import resample_poly
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vca.core.config import build_config
from vca.core.errors import ConfigError
from vca.core.identity import canonical_json
from vca.models import huggingface
from vca.models.audio import AudioConfig, audio_definition, build_audio
from vca.models.checkpoints import Batches, EncoderConfig
from vca.models.pixels import Pixels
from vca.models.vision import (
    ClipEncoder,
    ImageEncoder,
    VisionConfig,
    build_vision,
    image_text_tower,
    vision_definition,
    vision_needs,
)

pytestmark = pytest.mark.integration

STEP_US = 500_000
TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
HALF = [0.5, 0.5, 0.5]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may reach for the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def frames_of(n: int, height: int = 40, width: int = 60, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Smooth coloured noise: resizing it is not a matter of luck."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 5, 7, 3)).astype(np.float32)
    tensor = torch.nn.functional.interpolate(torch.from_numpy(coarse).permute(0, 3, 1, 2), (height, width))
    return tensor.permute(0, 2, 3, 1).numpy().astype(np.uint8)


def write_json(folder: Path, name: str, value: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(value), "utf-8")


def save_tokenizer(folder: Path, length: int, kind: str) -> None:
    """A word tokenizer that ends texts like the real ones do: CLIP pools at the end token."""
    words = ["<pad>", "<unk>", "<s>", "</s>", "a", "photo", "of", "cat", "dog", "car", "crash"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "<s> $A </s>" if kind == "clip" else "$A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 2), ("</s>", 3)])
    hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=length,
    ).save_pretrained(folder)


def save_siglip(folder: Path) -> None:
    text = hf.SiglipTextConfig(**TINY, vocab_size=16, max_position_embeddings=8, projection_size=16, pad_token_id=0)
    vision = hf.SiglipVisionConfig(**TINY, image_size=32, patch_size=16)
    hf.SiglipModel(hf.SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).save_pretrained(folder)
    settings = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": HALF, "image_std": HALF}
    write_json(folder, "preprocessor_config.json", {"image_processor_type": "SiglipImageProcessor"} | settings)
    save_tokenizer(folder, 8, "siglip")


def save_siglip2(folder: Path) -> None:
    text = hf.Siglip2TextConfig(**TINY, vocab_size=16, max_position_embeddings=8, projection_size=16, pad_token_id=0)
    vision = hf.Siglip2VisionConfig(**TINY, patch_size=16, num_patches=16)
    config = hf.Siglip2Config(text_config=text.to_dict(), vision_config=vision.to_dict())
    hf.Siglip2Model(config).save_pretrained(folder)
    settings = {"patch_size": 16, "max_num_patches": 16, "image_mean": HALF, "image_std": HALF, "resample": 2}
    write_json(folder, "preprocessor_config.json", {"image_processor_type": "Siglip2ImageProcessor"} | settings)
    save_tokenizer(folder, 8, "siglip")


def save_clip(folder: Path) -> None:
    text = hf.CLIPTextConfig(
        **TINY, vocab_size=16, max_position_embeddings=8, eos_token_id=3, bos_token_id=2, pad_token_id=0
    )
    vision = hf.CLIPVisionConfig(**TINY, image_size=32, patch_size=16)
    config = hf.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    hf.CLIPModel(config).save_pretrained(folder)
    # the old style of openai/clip-vit-*: bare numbers, switches left to the class
    settings = {"size": 32, "crop_size": 32, "do_center_crop": True, "resample": 3}
    mean_std = {"image_mean": HALF, "image_std": [0.25, 0.25, 0.25]}
    write_json(
        folder, "preprocessor_config.json", {"feature_extractor_type": "CLIPFeatureExtractor"} | settings | mean_std
    )
    save_tokenizer(folder, 8, "clip")


def save_dinov2(folder: Path) -> None:
    hf.Dinov2Model(
        hf.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    ).save_pretrained(folder)
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}, "resample": 3}
    write_json(folder, "preprocessor_config.json", {"image_processor_type": "BitImageProcessor"} | settings)


def save_dinov3(folder: Path) -> None:
    hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**TINY, image_size=32, patch_size=16)).save_pretrained(folder)
    settings = {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": HALF, "image_std": HALF}
    write_json(folder, "preprocessor_config.json", {"image_processor_type": "DINOv3ViTImageProcessorFast"} | settings)


def save_vit_without_pooler(folder: Path) -> None:
    config = hf.ViTConfig(**TINY, image_size=32, patch_size=16)
    hf.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    settings = {"size": {"height": 32, "width": 32}, "image_mean": HALF, "image_std": HALF}
    write_json(folder, "preprocessor_config.json", {"image_processor_type": "ViTImageProcessor"} | settings)


def save_videomae(folder: Path) -> None:
    config = hf.VideoMAEConfig(
        **TINY, image_size=32, patch_size=16, num_frames=4, tubelet_size=2, use_mean_pooling=False
    )
    hf.VideoMAEModel(config).save_pretrained(folder)
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "resample": 2}
    mean_std = {"image_mean": HALF, "image_std": HALF}
    write_json(
        folder, "preprocessor_config.json", {"image_processor_type": "VideoMAEImageProcessor"} | settings | mean_std
    )


def save_timesformer(folder: Path) -> None:
    config = hf.TimesformerConfig(**TINY, image_size=32, patch_size=16, num_frames=4)
    hf.TimesformerModel(config).save_pretrained(folder)
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    mean_std = {"image_mean": HALF, "image_std": HALF}
    write_json(
        folder, "preprocessor_config.json", {"image_processor_type": "VideoMAEImageProcessor"} | settings | mean_std
    )


def save_vivit(folder: Path) -> None:
    config = hf.VivitConfig(**TINY, image_size=32, tubelet_size=[2, 16, 16], num_frames=4)
    hf.VivitModel(config).save_pretrained(folder)
    settings = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "offset": True}
    rest = {"rescale_factor": 1 / 127.5, "do_normalize": False}
    write_json(folder, "preprocessor_config.json", {"image_processor_type": "VivitImageProcessor"} | settings | rest)


def save_vjepa2(folder: Path) -> None:
    config = hf.VJEPA2Config(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=1,
        patch_size=16,
        crop_size=32,
        frames_per_clip=8,
        tubelet_size=2,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        pred_mlp_ratio=1,
    )
    hf.VJEPA2Model(config).save_pretrained(folder)
    settings = {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 999}, "resample": 2}
    mean_std = {"image_mean": HALF, "image_std": HALF}
    write_json(
        folder, "video_preprocessor_config.json", {"video_processor_type": "VJEPA2VideoProcessor"} | settings | mean_std
    )


def save_videoprism(folder: Path) -> None:
    config = hf.VideoPrismVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_spatial_layers=1,
        num_temporal_layers=1,
        image_size=36,
        tubelet_size=[1, 18, 18],
        num_frames=4,
    )
    hf.VideoPrismVisionModel(config).save_pretrained(folder)
    # the shared processor class stores its own defaults, which this model must not follow
    settings = {"size": {"height": 384, "width": 384}, "do_normalize": True, "image_mean": HALF, "image_std": HALF}
    write_json(folder, "video_preprocessor_config.json", settings)


IMAGE_MODELS: dict[str, Callable[[Path], None]] = {
    "siglip": save_siglip,
    "siglip2": save_siglip2,
    "clip": save_clip,
    "dinov2": save_dinov2,
    "dinov3": save_dinov3,
    "vit": save_vit_without_pooler,
}
VIDEO_MODELS: dict[str, Callable[[Path], None]] = {
    "videomae": save_videomae,
    "timesformer": save_timesformer,
    "vivit": save_vivit,
    "vjepa2": save_vjepa2,
    "videoprism": save_videoprism,
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny checkpoint by name, made once. Tests that change files copy it first."""
    root = tmp_path_factory.mktemp("checkpoints")

    def get(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            folder.mkdir()
            torch.manual_seed(1)
            (IMAGE_MODELS | VIDEO_MODELS | AUDIO_MODELS)[name](folder)
        return folder

    return get


Checkpoints = Callable[[str], Path]


def vision_config(folder: Path, **values: Any) -> VisionConfig:
    return VisionConfig(kind="huggingface", model=str(folder), device="cpu", **values)


# --- images ----------------------------------------------------------------------------------------------------------


def direct_image_features(name: str, folder: Path, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The documented way to use the model, frame by frame."""
    model = hf.AutoModel.from_pretrained(folder).eval()
    rows = []
    for frame in frames:
        if name == "dinov3":  # its processor needs torchvision; 32 x 32 input needs no resizing
            pixels = torch.from_numpy(frame).permute(2, 0, 1).float()[None] / 255
            inputs: Any = {"pixel_values": (pixels - 0.5) / 0.5}
        else:
            inputs = hf.AutoImageProcessor.from_pretrained(folder, backend="pil")(images=frame, return_tensors="pt")
        with torch.inference_mode():
            if name in ("siglip", "siglip2", "clip"):
                rows.append(model.get_image_features(**inputs).pooler_output)
            else:
                rows.append(model(**inputs).last_hidden_state[:, 0])
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_image_features_equal_the_model_called_directly(name: str, checkpoints: Checkpoints) -> None:
    """Batching, preprocessing and the choice of output give what the model's documentation promises."""
    folder = checkpoints(name)
    side = (32, 32) if name == "dinov3" else (40, 60)
    frames = frames_of(5, *side)
    encoder = build_vision(vision_config(folder, batch_size=2), STEP_US)
    assert isinstance(encoder, ImageEncoder)
    features, mask = encoder.encode(frames, np.ones(5, np.bool_), STEP_US)
    expected = direct_image_features(name, folder, frames)
    assert features.dtype == np.float32
    assert features.shape == (5, encoder.dim) == expected.shape
    assert mask.all()
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(features, axis=0).max() > 1e-3, "different frames give different features"


def test_frames_of_a_step_are_averaged_and_missing_ones_left_out(checkpoints: Checkpoints) -> None:
    """A step is the mean of the frames it has; a step without frames is zero and masked."""
    config = vision_config(checkpoints("siglip"), frames_per_second=4)
    encoder = build_vision(config, STEP_US)
    assert encoder is not None
    assert encoder.needs.frames_per_step == 2
    frames = frames_of(6)
    single = build_vision(vision_config(checkpoints("siglip")), STEP_US)
    assert single is not None
    each, _ = single.encode(frames, np.ones(6, np.bool_), STEP_US)
    features, mask = encoder.encode(frames, np.array([1, 1, 0, 1, 0, 0], np.bool_), STEP_US)
    assert mask.tolist() == [True, True, False]
    np.testing.assert_allclose(features[0], each[:2].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(features[1], each[3], atol=1e-6)
    assert not features[2].any()


@pytest.mark.parametrize(
    ("name", "size", "per_step"),
    [
        ("siglip", 32, 1),
        ("siglip2", 64, 1),
        ("clip", 32, 1),
        ("dinov2", 32, 1),
        ("dinov3", 32, 1),
        ("videomae", 32, 2),
        ("vjepa2", 36, 2),
        ("videoprism", 36, 2),
        ("vivit", 36, 2),
    ],
)
def test_needs_and_definition_are_known_without_weights(
    name: str, size: int, per_step: int, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver has no GPU and little memory: it must not load a model to plan."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(hf.AutoModel, "from_pretrained", refuse)
    config = vision_config(checkpoints(name))
    needs = vision_needs(config, STEP_US)
    assert needs is not None
    assert (needs.frame_size, needs.frames_per_step) == (size, per_step)
    first = vision_definition(config, STEP_US)
    canonical_json(first)  # JSON-able
    assert first == vision_definition(config, STEP_US)


# --- video -----------------------------------------------------------------------------------------------------------


def direct_clip_features(name: str, folder: Path, clip: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """One clip [T, H, W, 3] in the model's own size through the model: per-moment means [slots, D]."""
    model = hf.AutoModel.from_pretrained(folder).eval()
    x = torch.from_numpy(clip).permute(0, 3, 1, 2)[None].float() / 255
    with torch.inference_mode():
        if name == "videoprism":
            return model(pixel_values_videos=x).last_hidden_state[0].view(len(clip), 4, -1).mean(1).numpy()
        x = (x - 0.5) / 0.5
        if name == "vjepa2":
            return model.get_vision_features(x)[0].view(len(clip) // 2, 4, -1).mean(1).numpy()
        tokens = model(pixel_values=x).last_hidden_state[0]
        if name == "videomae":
            return tokens.view(len(clip) // 2, 4, -1).mean(1).numpy()
        if name == "vivit":
            return tokens[1:].view(len(clip) // 2, 4, -1).mean(1).numpy()
        return tokens[1:].view(4, len(clip), -1).mean(0).numpy()


@pytest.mark.parametrize("name", VIDEO_MODELS)
def test_clip_features_equal_the_model_called_directly(name: str, checkpoints: Checkpoints) -> None:
    """Two full clips, no resizing: every moment of every clip is where the model put it, and lands on its step."""
    folder = checkpoints(name)
    encoder = build_vision(vision_config(folder), STEP_US)
    assert isinstance(encoder, ClipEncoder)
    length = encoder.model.clip_frames
    side = {"videoprism": 36}.get(name, 32)
    if name in ("vivit", "vjepa2"):
        # they resize to 36 and crop 32: a border around the wanted picture, constant so that nothing is lost
        encoder.model.pixels = Pixels.parse(
            {"image_mean": HALF, "image_std": HALF, "size": {"height": 32, "width": 32}}
        )
    frames = frames_of(2 * length, side, side)
    features, mask = encoder.encode(frames, np.ones(2 * length, np.bool_), STEP_US)
    slots = np.concatenate(
        [direct_clip_features(name, folder, clip) for clip in frames.reshape(2, length, side, side, 3)]
    )
    per_frame = np.repeat(slots, 2 * length // len(slots), axis=0)
    expected = per_frame.reshape(length, 2, -1).mean(axis=1)  # two frames a step
    assert mask.all()
    assert features.shape == (length, encoder.dim)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_missing_frames_of_a_clip_are_filled_and_masked(checkpoints: Checkpoints) -> None:
    """The model needs whole clips; steps without a frame stay out and clips without a frame are not computed."""
    encoder = build_vision(vision_config(checkpoints("videomae")), STEP_US)
    assert isinstance(encoder, ClipEncoder)
    frames = frames_of(12, 32, 32)
    mask = np.ones(12, np.bool_)
    mask[2:8] = False  # end of clip 1, all of clip 2
    seen: list[int] = []
    embed = encoder.model.embed

    def spy(frames: Any, indices: Any) -> Any:
        seen.append(indices.tolist())
        return embed(frames, indices)

    encoder.model.embed = spy  # type: ignore[method-assign]
    features, valid = encoder.encode(frames, mask, STEP_US)
    assert seen == [[[0, 1, 1, 1], [8, 9, 10, 11]]]
    assert valid.tolist() == [True, False, False, False, True, True]
    assert not features[~valid].any()
    assert np.isfinite(features).all()
    none, nothing = encoder.encode(frames, np.zeros(12, np.bool_), STEP_US)
    assert not nothing.any()
    assert not none.any()


@pytest.mark.parametrize("n_steps", [1, 2, 3, 5])
def test_segments_that_are_no_multiple_of_a_clip_are_covered(n_steps: int, checkpoints: Checkpoints) -> None:
    """The last clip reaches back, a short segment repeats its last frame: every step has a feature."""
    encoder = build_vision(vision_config(checkpoints("videomae")), STEP_US)
    assert encoder is not None
    features, valid = encoder.encode(frames_of(2 * n_steps, 32, 32), np.ones(2 * n_steps, np.bool_), STEP_US)
    assert valid.all()
    assert np.abs(features).sum(axis=1).min() > 0


def test_videoprism_and_vjepa2_take_other_clip_lengths(checkpoints: Checkpoints) -> None:
    """frames_per_window trades context for cost where the model allows it, and says so where it does not."""
    for name in ("videoprism", "vjepa2"):
        encoder = build_vision(vision_config(checkpoints(name), frames_per_window=6), STEP_US)
        assert isinstance(encoder, ClipEncoder)
        features, valid = encoder.encode(frames_of(6, 36, 36), np.ones(6, np.bool_), STEP_US)
        assert valid.all()
        assert np.isfinite(features).all()
    with pytest.raises(ConfigError, match=r"encoders.vision.frames_per_window = 6: .* exactly 4 frames"):
        build_vision(vision_config(checkpoints("videomae"), frames_per_window=6), STEP_US)
    with pytest.raises(ConfigError, match=r"frames_per_window = 5: .* groups of 2"):
        build_vision(vision_config(checkpoints("vjepa2"), frames_per_window=5), STEP_US)


def test_pixels_follow_the_processor_of_transformers() -> None:
    """Resize, crop and normalise agree with the PIL processor to within rounding of one grey level."""
    frames = frames_of(2, 90, 120)
    settings = {"size": {"shortest_edge": 48}, "crop_size": {"height": 40, "width": 40}, "resample": 2}
    settings |= {"image_mean": HALF, "image_std": HALF, "do_center_crop": True}
    reference = hf.VideoMAEImageProcessorPil(**settings)(list(frames), return_tensors="pt")["pixel_values"]
    own = Pixels.parse(settings)(frames)
    assert own.shape == (2, 3, 40, 40)
    assert float((own - reference.reshape(own.shape)).abs().max()) <= 2.5 / 127.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"longest_edge": 5}}, "no usable size"),
        ({"size": 0}, "no usable size"),
        ({"size": 32, "image_std": HALF}, "no image_mean"),
        ({"size": 32, "do_center_crop": True}, "no usable crop_size"),
        ({"size": 32, "resample": 1}, "resample 1"),
    ],
)
def test_unusable_processor_settings_are_named(settings: dict[str, Any], message: str) -> None:
    """Settings are foreign JSON: what is not understood is refused, never guessed."""
    with pytest.raises(ValueError, match=message):
        Pixels.parse(settings)


# --- sound -----------------------------------------------------------------------------------------------------------


def save_ast(folder: Path) -> None:
    hf.ASTModel(
        hf.ASTConfig(**TINY, num_mel_bins=16, max_length=64, patch_size=8, frequency_stride=8, time_stride=8)
    ).save_pretrained(folder)
    hf.ASTFeatureExtractor(num_mel_bins=16, max_length=64).save_pretrained(folder)


def save_clap(folder: Path) -> None:
    audio = hf.ClapAudioConfig(
        window_size=2,
        num_mel_bins=16,
        spec_size=64,
        patch_size=4,
        patch_stride=[4, 4],
        patch_embeds_hidden_size=8,
        hidden_size=16,
        projection_dim=12,
        depths=[1, 1],
        num_attention_heads=[2, 2],
        num_hidden_layers=2,
        enable_fusion=True,
    )
    text = hf.ClapTextConfig(**TINY, vocab_size=16, max_position_embeddings=16)
    hf.ClapModel(
        hf.ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=12)
    ).save_pretrained(folder)
    hf.ClapFeatureExtractor(feature_size=16, max_length_s=1, truncation="fusion").save_pretrained(folder)


WAV2VEC2 = {"conv_dim": (8, 8, 8), "conv_stride": (10, 8, 4), "conv_kernel": (20, 8, 4), "num_feat_extract_layers": 3}


def save_wav2vec2(folder: Path) -> None:
    config = hf.Wav2Vec2Config(
        **TINY, **WAV2VEC2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, feat_extract_norm="layer"
    )
    hf.Wav2Vec2Model(config).save_pretrained(folder)
    hf.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)


def save_wavlm(folder: Path) -> None:
    config = hf.WavLMConfig(
        **TINY, **WAV2VEC2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, feat_extract_norm="group"
    )
    hf.WavLMModel(config).save_pretrained(folder)
    hf.Wav2Vec2FeatureExtractor().save_pretrained(folder)


def save_whisper(folder: Path) -> None:
    config = hf.WhisperConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_mel_bins=16,
        vocab_size=32,
        max_source_positions=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    hf.WhisperModel(config).save_pretrained(folder)
    hf.WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)


AUDIO_MODELS: dict[str, Callable[[Path], None]] = {
    "ast": save_ast,
    "clap": save_clap,
    "wav2vec2": save_wav2vec2,
    "wavlm": save_wavlm,
    "whisper": save_whisper,
}


def audio_config(folder: Path, **values: Any) -> AudioConfig:
    return AudioConfig(kind="huggingface", model=str(folder), device="cpu", **values)


def sound(seconds: float, seed: int = 0) -> npt.NDArray[np.float32]:
    """A rising tone in noise: no two seconds are alike."""
    t = np.arange(round(seconds * 16_000)) / 16_000
    noise = np.random.default_rng(seed).normal(0, 0.02, len(t))
    return (0.4 * np.sin(2 * np.pi * (200 + 300 * t) * t) + noise).astype(np.float32)


def direct_audio_features(name: str, folder: Path, wave: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """One window through extractor and model as documented: [slots, D]."""
    model = hf.AutoModel.from_pretrained(folder).eval()
    extractor = hf.AutoFeatureExtractor.from_pretrained(folder)
    rate = extractor.sampling_rate
    if rate != 16_000:
        wave = resample_poly(wave, rate // 16_000, 1).astype(np.float32)
    inputs = extractor(wave, sampling_rate=rate, return_tensors="pt")
    with torch.inference_mode():
        if name == "clap":
            inputs = {
                "input_features": inputs["input_features"].float(),
                "is_longer": torch.zeros(1, 1, dtype=torch.bool),
            }
            return model.get_audio_features(**inputs).pooler_output.numpy()
        if name == "ast":
            return model(**inputs).pooler_output.numpy()
        if name == "whisper":
            return model.get_encoder()(inputs["input_features"]).last_hidden_state[0].numpy()
        return model(inputs["input_values"]).last_hidden_state[0].numpy()


@pytest.mark.parametrize(
    ("name", "window_s"), [("ast", 0.5), ("clap", 1.0), ("wav2vec2", 1.0), ("wavlm", 1.0), ("whisper", 2.0)]
)
def test_audio_features_equal_the_model_called_directly(name: str, window_s: float, checkpoints: Checkpoints) -> None:
    """Windows, resampling, pooling and placing on the grid give the model's own numbers."""
    folder = checkpoints(name)
    encoder = build_audio(audio_config(folder, window_s=window_s, hop_s=window_s, batch_size=2), STEP_US)
    assert encoder is not None
    pcm = sound(4.0)
    if name == "ast":  # its windows are shorter than the shortest length that is given to a model
        pcm = sound(1.0)
        window_s = 1.0
        encoder = build_audio(audio_config(folder, batch_size=2), STEP_US)
        assert encoder is not None
        assert encoder.window == 10_240  # type: ignore[attr-defined]
        features, mask = encoder.encode(pcm, np.ones(2, np.bool_), STEP_US)
        starts = [0, 5_120, 5_760]
        rows = np.concatenate(
            [direct_audio_features(name, folder, np.pad(pcm[s : s + 10_240], (0, 5_760))) for s in starts]
        )
        weights = np.array([[8_000, 2_880, 2_240], [2_240, 7_360, 8_000]], np.float64)
        expected = weights @ rows / weights.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
        assert mask.all()
        return
    features, mask = encoder.encode(pcm, np.ones(8, np.bool_), STEP_US)
    n_windows, per_window = round(4.0 / window_s), round(window_s / 0.5)
    expected_rows = []
    for window in pcm.reshape(n_windows, -1):
        slots = direct_audio_features(name, folder, window)
        edges = np.linspace(0.0, window_s, len(slots) + 1)
        for step in range(per_window):
            share = np.clip(np.minimum(edges[1:], 0.5 * step + 0.5) - np.maximum(edges[:-1], 0.5 * step), 0, None)
            expected_rows.append(share @ slots / share.sum())
    assert mask.all()
    assert features.shape == (8, encoder.dim)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, np.stack(expected_rows), rtol=2e-3, atol=2e-5)
    assert np.ptp(features, axis=0).max() > 1e-4


def test_clap_features_do_not_depend_on_chance_or_on_the_batch(checkpoints: Checkpoints) -> None:
    """The extractor marks a random window as longer; features must be the same in every run and batch size."""
    results = []
    for batch_size, seed in ((1, 1), (4, 2), (3, 3)):
        np.random.seed(seed)  # noqa: NPY002 the extractor draws from the global generator
        encoder = build_audio(audio_config(checkpoints("clap"), batch_size=batch_size), STEP_US)
        assert encoder is not None
        results.append(encoder.encode(sound(3.0), np.ones(6, np.bool_), STEP_US)[0])
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)
    np.testing.assert_allclose(results[0], results[2], atol=1e-5)


@pytest.mark.parametrize("name", AUDIO_MODELS)
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.7, 3.3])
def test_sound_of_any_length_gives_whole_rows(name: str, seconds: float, checkpoints: Checkpoints) -> None:
    """Short, empty and odd lengths are normal at the end of a file."""
    encoder = build_audio(audio_config(checkpoints(name)), STEP_US)
    assert encoder is not None
    n_steps = 8
    mask = np.zeros(n_steps, np.bool_)
    mask[: int(np.ceil(seconds / 0.5))] = True
    mask[1] = False
    features, valid = encoder.encode(sound(seconds), mask, STEP_US)
    assert features.shape == (n_steps, encoder.dim)
    assert np.isfinite(features).all()
    assert valid.tolist() == mask.tolist(), "every step with sound has a feature, no other has"
    assert not features[~valid].any()


# --- text side -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("siglip", "sigmoid"), ("siglip2", "sigmoid"), ("clip", "softmax")])
def test_text_tower_shares_the_space_of_the_image_features(name: str, kind: str, checkpoints: Checkpoints) -> None:
    """Logits from stored image features and prompt vectors equal the logits of the whole model."""
    folder = checkpoints(name)
    config = vision_config(folder, batch_size=2)
    tower, encoder = image_text_tower(config), build_vision(config, STEP_US)
    assert tower is not None
    assert encoder is not None
    assert tower.kind == kind
    texts = ["a photo of a Cat", "a dog", "car crash"]
    vectors = tower.embed_texts(texts)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    frame = frames_of(1)
    image, _ = encoder.encode(frame, np.ones(1, np.bool_), STEP_US)
    cosine = image @ vectors.T / np.linalg.norm(image)
    model = hf.AutoModel.from_pretrained(folder).eval()
    inputs = hf.AutoImageProcessor.from_pretrained(folder, backend="pil")(images=frame[0], return_tensors="pt")
    padding = "max_length" if kind == "sigmoid" else True
    tokens = hf.AutoTokenizer.from_pretrained(folder)(
        [text.lower() for text in texts], padding=padding, max_length=8, truncation=True, return_tensors="pt"
    )
    mask = {} if kind == "sigmoid" else {"attention_mask": tokens["attention_mask"]}
    with torch.inference_mode():
        logits = model(input_ids=tokens["input_ids"], **mask, **inputs).logits_per_image.numpy()
    np.testing.assert_allclose(tower.logit_scale * cosine + tower.logit_bias, logits, rtol=1e-3, atol=1e-4)
    assert tower.embed_texts([]).shape == (0, vectors.shape[1])


def test_models_without_text_have_no_text_tower(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero-shot asks every time: the answer None must not cost a model in memory."""
    monkeypatch.setattr(huggingface, "ImageTextTower", None)
    assert image_text_tower(VisionConfig()) is None
    assert image_text_tower(VisionConfig(kind="none")) is None
    assert image_text_tower(vision_config(checkpoints("dinov2"))) is None
    assert image_text_tower(vision_config(checkpoints("videomae"))) is None


# --- identity --------------------------------------------------------------------------------------------------------


def test_definition_follows_content_not_place(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Moving a mirror keeps the feature set; other weights, settings or sampling make a new one."""
    source = checkpoints("siglip")
    copy = tmp_path / "elsewhere"
    shutil.copytree(source, copy)
    original = vision_definition(vision_config(source), STEP_US)
    assert vision_definition(vision_config(copy), STEP_US) == original
    assert vision_definition(vision_config(copy, batch_size=7), STEP_US) == original
    assert vision_definition(vision_config(copy, frames_per_second=8), STEP_US) != original
    assert vision_definition(vision_config(copy, dtype="bfloat16"), STEP_US) != original
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    write_json(copy, "preprocessor_config.json", settings | {"resample": 2})
    assert vision_definition(vision_config(copy), STEP_US) != original
    write_json(copy, "preprocessor_config.json", settings)
    torch.manual_seed(99)
    shutil.rmtree(copy)
    copy.mkdir()
    save_siglip(copy)
    assert vision_definition(vision_config(copy), STEP_US) != original, "same shapes, other numbers"


def test_audio_definition_holds_windows(checkpoints: Checkpoints) -> None:
    """Window and hop shape the features."""
    folder = checkpoints("ast")
    base = audio_definition(audio_config(folder), STEP_US)
    assert base is not None
    canonical_json(base)
    assert (base["window_samples"], base["hop_samples"]) == (10_240, 5_120)
    assert audio_definition(audio_config(folder, hop_s=0.64), STEP_US) != base


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("name", ["siglip", "videomae"])
def test_hub_ids_load_from_the_cache_without_network(
    name: str, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster node without internet uses the cached commit, and the definition names it, not a moving branch."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / f"models--org--{name}"
    shutil.copytree(checkpoints(name), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    hub = VisionConfig(kind="huggingface", model=f"org/{name}", device="cpu")
    definition = vision_definition(hub, STEP_US)
    assert definition is not None
    assert definition["weights"] == {"hub": f"org/{name}", "commit": COMMIT}
    from_hub, from_folder = (build_vision(c, STEP_US) for c in (hub, vision_config(checkpoints(name))))
    assert from_hub is not None
    assert from_folder is not None
    frames, mask = frames_of(8, 32, 32), np.ones(8, np.bool_)
    np.testing.assert_array_equal(
        from_hub.encode(frames, mask, STEP_US)[0], from_folder.encode(frames, mask, STEP_US)[0]
    )
    one_line_error(lambda: vision_needs(hub.model_copy(update={"revision": "other"}), STEP_US), "encoders.vision.model")


@pytest.mark.parametrize("name", ["siglip", "siglip2", "dinov2", "videomae", "videoprism", "vjepa2"])
def test_half_precision_pictures_are_close(name: str, checkpoints: Checkpoints) -> None:
    """bfloat16, the default on a GPU, runs through every step and changes features a little only."""
    frames, mask = frames_of(8, 40, 40), np.ones(8, np.bool_)
    exact, half = (build_vision(vision_config(checkpoints(name), dtype=d), STEP_US) for d in ("float32", "bfloat16"))
    assert exact is not None
    assert half is not None
    (a, _), (b, _) = exact.encode(frames, mask, STEP_US), half.encode(frames, mask, STEP_US)
    assert b.dtype == np.float32
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max()


@pytest.mark.parametrize("name", ["ast", "clap", "wav2vec2", "whisper"])
def test_half_precision_sound_is_close(name: str, checkpoints: Checkpoints) -> None:
    """The same for sound."""
    mask = np.ones(6, np.bool_)
    exact, half = (build_audio(audio_config(checkpoints(name), dtype=d), STEP_US) for d in ("float32", "bfloat16"))
    assert exact is not None
    assert half is not None
    (a, _), (b, _) = exact.encode(sound(3.0), mask, STEP_US), half.encode(sound(3.0), mask, STEP_US)
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max()


# --- what users get wrong --------------------------------------------------------------------------------------------


def one_line_error(call: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_config_names_the_field() -> None:
    """A pretrained encoder without a model, and a model without use, are told before anything runs."""
    one_line_error(lambda: build_config(VisionConfig, {"kind": "huggingface"}, "x.yaml"), "x.yaml", "needs model")
    one_line_error(lambda: build_config(AudioConfig, {"model": "a/b"}, "x.yaml"), "'a/b'", "set kind to huggingface")


def test_missing_and_unreachable_models_are_one_line(tmp_path: Path) -> None:
    """A wrong path and a hub that cannot be reached name the setting and the way out."""
    for config in (vision_config(tmp_path / "nowhere"), vision_config(tmp_path)):
        one_line_error(lambda c=config: vision_needs(c, STEP_US), "encoders.vision.model")
    hub = AudioConfig(kind="huggingface", model="nobody/nothing")
    one_line_error(lambda: audio_definition(hub, STEP_US), "encoders.audio.model", "nobody/nothing", "cache")


def test_pickled_weights_are_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """A pickle can run code: only safetensors are read."""
    folder = tmp_path / "pickled"
    shutil.copytree(checkpoints("dinov2"), folder)
    (folder / "model.safetensors").unlink()
    torch.save(hf.AutoModel.from_pretrained(checkpoints("dinov2")).state_dict(), folder / "pytorch_model.bin")
    one_line_error(lambda: build_vision(vision_config(folder), STEP_US), "encoders.vision.model", "safetensors")


def test_code_from_a_checkpoint_is_never_run(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """A checkpoint that brings its own Python is refused, and the Python stays unread."""
    folder = tmp_path / "remote"
    shutil.copytree(checkpoints("dinov2"), folder)
    marker = tmp_path / "executed"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass C: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.C"}}
    write_json(folder, "config.json", config)
    one_line_error(lambda: build_vision(vision_config(folder), STEP_US), "encoders.vision.model")
    assert not marker.exists()


def test_wrong_kinds_of_models_are_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Sound in the vision field, pictures in the audio field, and a revision on a folder."""
    one_line_error(lambda: vision_needs(vision_config(checkpoints("wav2vec2")), STEP_US), "encoders.vision.model")
    one_line_error(lambda: build_audio(audio_config(checkpoints("siglip")), STEP_US), "encoders.audio.model")
    pinned = vision_config(checkpoints("siglip"), revision="main")
    one_line_error(lambda: vision_needs(pinned, STEP_US), "encoders.vision.revision", "remove")


def test_missing_weights_are_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Layers the checkpoint does not hold would be random numbers in every feature."""
    folder = tmp_path / "short"
    shutil.copytree(checkpoints("dinov2"), folder)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder, "config.json", config | {"num_hidden_layers": 3})
    one_line_error(lambda: build_vision(vision_config(folder), STEP_US), "encoders.vision.model", "lacks")


def test_windows_that_cannot_work_are_refused(checkpoints: Checkpoints) -> None:
    """A window the extractor would cut, and gaps between windows."""
    folder = checkpoints("clap")
    one_line_error(lambda: build_audio(audio_config(folder, window_s=9), STEP_US), "encoders.audio.window_s = 9")
    one_line_error(lambda: build_audio(audio_config(folder, hop_s=2), STEP_US), "encoders.audio.hop_s = 2", "gaps")


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent run on CPU would take a week instead of a night."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    one_line_error(lambda: huggingface.check_device("cuda", "encoders.vision.device"), "encoders.vision.device")
    assert huggingface.check_device("auto", "x") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert huggingface.check_device("auto", "x") == "cuda"


def test_batches_shrink_when_memory_is_short() -> None:
    """Out of memory halves the batch, loses nothing, repeats nothing, and is remembered."""
    batches = Batches(EncoderConfig(batch_size=8))
    sizes: list[int] = []

    def model(part: slice) -> npt.NDArray[np.float32]:
        sizes.append(part.stop - part.start)
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return np.arange(part.start, part.stop, dtype=np.float32)[:, None]

    assert batches.run(11, model)[:, 0].tolist() == list(range(11))
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    assert batches.size == 2

    def hopeless(part: slice) -> npt.NDArray[np.float32]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    one_line_error(lambda: batches.run(3, hopeless), "encoders.batch_size", "smaller model")
