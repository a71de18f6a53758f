"""Pretrained encoders of the Hugging Face kind: pixels and waveforms to vectors.

Time is not known here: `vca.models.vision` and `vca.models.audio` cut windows and bring vectors onto the grid.

Shape letters: N items, T frames of a clip, H and W pixels, P patches, D features, L samples of a waveform.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from vca.core.errors import ConfigError
from vca.core.records import FloatArray
from vca.models.checkpoints import (
    Batches,
    Checkpoint,
    EncoderConfig,
    Uploads,
    load_model,
    mendable,
    open_checkpoint,
    to_device,
    to_numpy,
)
from vca.models.pixels import ByteArray, Pixels, size_in_pixels
from vca.models.weights import resolve_device

if TYPE_CHECKING:
    from torch import Tensor

    from vca.models.device_inputs import DeviceFilterbank, DevicePixels


def check_device(device: str, field: str) -> str:
    """Resolve "auto" to cpu or cuda; a GPU that is asked for and not there is a `ConfigError` that names `field`."""
    return resolve_device(device, field)


# first token of models that summarise the picture there; their `pooler` is often absent from checkpoints
_CLS_MODELS = {"vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "vit_msn"}


@dataclass(frozen=True, slots=True)
class _ClipFamily:
    """How a family of video models takes frames and lays out its tokens."""

    input_name: str
    frames_name: str  # setting that holds the trained number of frames
    exact: bool  # no other number of frames is accepted
    cls_token: bool = False
    patch_major: bool = False  # tokens ordered patch by patch, time inside


_CLIP_FAMILIES = {
    "videomae": _ClipFamily("pixel_values", "num_frames", exact=True),
    "vivit": _ClipFamily("pixel_values", "num_frames", exact=True, cls_token=True),
    "timesformer": _ClipFamily("pixel_values", "num_frames", exact=False, cls_token=True, patch_major=True),
    "vjepa2": _ClipFamily("pixel_values_videos", "frames_per_clip", exact=False),
    "videoprism_vision_model": _ClipFamily("pixel_values_videos", "num_frames", exact=False),
    "videoprism": _ClipFamily("pixel_values_videos", "num_frames", exact=False),
}


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """What a vision checkpoint takes, read without its weights."""

    frame_size: int  # short side, pixels
    clip_frames: int | None  # None for image models
    preprocessing: dict[str, Any]


def frame_spec(config: EncoderConfig) -> FrameSpec:
    checkpoint = open_checkpoint(config)
    family = _CLIP_FAMILIES.get(checkpoint.config.model_type)
    if family is not None:
        pixels = _clip_pixels(config, checkpoint)
        frames = int(getattr(_vision_config(checkpoint), family.frames_name))
        return FrameSpec(pixels.short_side(), frames, {"steps": "torch"} | pixels.settings)
    processor = _image_processor(config, checkpoint)
    if isinstance(processor, Pixels):
        return FrameSpec(processor.short_side(), None, {"steps": "torch"} | processor.settings)
    size = dict(processor.size) if getattr(processor, "size", None) else {}
    sides = [int(size[key]) for key in ("shortest_edge", "height", "width") if size.get(key)]
    if not sides:  # NaFlex: any size, up to a number of patches
        patches = getattr(processor, "max_num_patches", None)
        sides = [math.isqrt(int(patches)) * int(processor.patch_size)] if patches else [_image_size(checkpoint)]
    return FrameSpec(min(sides), None, {"steps": type(processor).__name__})


def _vision_config(checkpoint: Checkpoint) -> Any:
    return getattr(checkpoint.config, "vision_config", checkpoint.config)


def _image_size(checkpoint: Checkpoint) -> int:
    vision = _vision_config(checkpoint)
    size: Any = getattr(vision, "image_size", None) or getattr(vision, "crop_size", 224)
    return int(size if isinstance(size, int) else min(size))


def _image_processor(config: EncoderConfig, checkpoint: Checkpoint) -> Any:
    """The model's own processor on PIL, which is always there; `Pixels` for the few that exist for torchvision only."""
    from transformers import AutoImageProcessor

    with mendable(config):
        try:
            load: Any = AutoImageProcessor.from_pretrained  # untyped in transformers
            processor = load(checkpoint.source, backend="pil", **checkpoint.arguments())
        except ImportError:
            settings = checkpoint.settings("preprocessor_config.json")
            if settings is None:
                nested = (checkpoint.settings("processor_config.json") or {}).get("image_processor")
                settings = nested if isinstance(nested, dict) else None
            if settings is None:
                raise
            return Pixels.parse(settings)
        if not hasattr(processor, "image_mean") and not hasattr(processor, "max_num_patches"):
            raise ValueError(f"model type {checkpoint.config.model_type} is no image or video encoder")
        return processor


def _clip_pixels(config: EncoderConfig, checkpoint: Checkpoint) -> Pixels:
    with mendable(config):
        nested = checkpoint.settings("processor_config.json") or {}
        raw = (
            checkpoint.settings("video_preprocessor_config.json")
            or nested.get("video_processor")
            or checkpoint.settings("preprocessor_config.json")
            or nested.get("image_processor")
        )
        if checkpoint.config.model_type.startswith("videoprism"):
            # its processor takes 0..1 whatever the shared video processor's stored defaults say
            side = _image_size(checkpoint)
            size = {"height": side, "width": side}
            return Pixels.parse(raw or {}, do_normalize=False, do_center_crop=False, size=size)
        if not isinstance(raw, dict):
            raise ValueError("no video_preprocessor_config.json or preprocessor_config.json")
        if checkpoint.config.model_type == "vjepa2":
            # VJEPA2VideoProcessor derives the resize from the crop and ignores a stored size
            crop = min(size_in_pixels(raw.get("crop_size", 256), "crop_size").values())
            return Pixels.parse({"do_center_crop": True} | raw, size=int(crop * 256 / 224), crop_size=crop)
        if checkpoint.config.model_type == "vivit":
            return Pixels.parse({"do_center_crop": True, "offset": True, "rescale_factor": 1 / 127.5} | raw)
        return Pixels.parse({"do_center_crop": True} | raw)


class ImageModel:
    """An image encoder: SigLIP, SigLIP 2, CLIP (image tower, in the space shared with text), DINOv2/v3, ViT and kin."""

    def __init__(self, config: EncoderConfig) -> None:
        checkpoint = open_checkpoint(config)
        self.processor = _image_processor(config, checkpoint)
        self.cls_token = checkpoint.config.model_type in _CLS_MODELS
        self.model, self.device, self.dtype, missing = load_model(config, checkpoint, ("pooler.",))
        self.random_pooler = bool(missing)
        self.two_towers = hasattr(self.model, "get_image_features")
        if self.two_towers:
            self.model.text_model = None  # larger than the image tower in SigLIP 2
        self.batches = Batches(config)
        self.on_gpu: DevicePixels | None = None
        """Makes pixels where the model is, None on a CPU."""
        if self.device == "cuda":
            from vca.models import device_inputs

            self.uploads = Uploads(self.device)
            self.on_gpu = device_inputs.DevicePixels(self.processor, self.device)
        size = _image_size(checkpoint)
        self.dim = int(self.embed(np.zeros((1, size, size, 3), np.uint8)).shape[1])

    def embed(self, frames: ByteArray) -> FloatArray:
        """uint8 [N, H, W, 3] to [N, D]."""
        return self.batches.run(len(frames), lambda part: self._embed(frames[part]))

    def _embed(self, frames: ByteArray) -> "Tensor":
        import torch

        with torch.inference_mode():
            if self.on_gpu is not None and self.on_gpu.reproduces(*frames.shape[1:3]):
                inputs: Any = {"pixel_values": self.on_gpu(self.uploads(frames), self.dtype)}
            else:
                inputs = to_device(self._pixels(frames), self.device, self.dtype)
            output: Any = self.model.get_image_features(**inputs) if self.two_towers else self.model(**inputs)
            if self.cls_token:
                return output.last_hidden_state[:, 0]  # type: ignore[no-any-return]
            pooled = getattr(output, "pooler_output", None)
            if pooled is not None and not self.random_pooler:
                return pooled.flatten(1)  # type: ignore[no-any-return]
            tokens = output.last_hidden_state
            return tokens.mean(dim=1) if tokens.ndim == 3 else tokens.mean(dim=(2, 3))  # type: ignore[no-any-return]

    def _pixels(self, frames: ByteArray) -> Any:
        if isinstance(self.processor, Pixels):
            return {"pixel_values": self.processor(frames)}
        return self.processor(images=list(frames), return_tensors="pt", input_data_format="channels_last")


class ClipModel:
    """A video encoder over clips of T frames: VideoPrism, V-JEPA 2, VideoMAE, TimeSformer, ViViT.

    Patch tokens are averaged per moment, so that a clip gives T / tubelet vectors in time, not one.
    """

    def __init__(self, config: EncoderConfig, clip_frames: int) -> None:
        checkpoint = open_checkpoint(config)
        self.model_type = checkpoint.config.model_type
        self.family = _CLIP_FAMILIES[self.model_type]
        vision = _vision_config(checkpoint)
        trained = int(getattr(vision, self.family.frames_name))
        tubelet = getattr(vision, "tubelet_size", 1)
        tubelet = int(tubelet if isinstance(tubelet, int) else tubelet[0])
        field = f"{config.field}.frames_per_window = {clip_frames}"
        if self.family.exact and clip_frames != trained:
            raise ConfigError(f"{field}: {config.model} takes exactly {trained} frames; leave it empty")
        if clip_frames % tubelet:
            raise ConfigError(f"{field}: {config.model} takes frames in groups of {tubelet}; use a multiple")
        self.clip_frames = clip_frames
        self.slots = clip_frames // tubelet
        if self.model_type == "videoprism" or getattr(vision, "attention_type", "") == "space_only":
            self.slots = 1
        self.resized = self.model_type.startswith("videoprism") and clip_frames != trained
        self.pixels = _clip_pixels(config, checkpoint)
        self.model, self.device, self.dtype, _ = load_model(config, checkpoint, ("pooler.", "predictor."))
        if self.model_type == "vjepa2":
            self.model.predictor = None  # used in pretraining only
        elif self.model_type == "videoprism":
            self.model.text_model = None
        self.batches = Batches(config, items=clip_frames)
        self.dim = int(vision.hidden_size)

    def embed(self, frames: ByteArray, indices: npt.NDArray[np.int64]) -> FloatArray:
        """Frames uint8 [F, H, W, 3] and clips as frame indices [N, T] to [N, slots, D]."""
        return self.batches.run(len(indices), lambda part: self._embed(frames, indices[part]))

    def _embed(self, frames: ByteArray, indices: npt.NDArray[np.int64]) -> FloatArray:
        import torch

        n = len(indices)
        pixels = self.pixels(frames[indices.reshape(-1)])
        inputs = {self.family.input_name: pixels.view(n, self.clip_frames, *pixels.shape[1:])}
        options: dict[str, Any] = {"interpolate_pos_encoding": True} if self.resized else {}
        if self.model_type == "vjepa2":
            options["skip_predictor"] = True
        with torch.inference_mode():
            inputs = to_device(inputs, self.device, self.dtype)
            if self.model_type == "videoprism":
                return to_numpy(self.model.get_video_features(**inputs, **options).pooler_output.reshape(n, 1, -1))
            tokens = self.model(**inputs, **options).last_hidden_state[:, int(self.family.cls_token) :]
            if self.family.patch_major:
                return to_numpy(tokens.unflatten(1, (-1, self.slots)).mean(dim=1))
            return to_numpy(tokens.unflatten(1, (self.slots, -1)).mean(dim=2))


# --- waveforms -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WaveSpec:
    """What an audio checkpoint takes, read without its weights."""

    sampling_rate: int  # Hz
    max_window_s: float | None  # longer windows would be cut by the feature extractor
    pads_to_max: bool  # vectors in time of a shorter window cover the padded length
    pooled: bool  # one vector per window


def wave_spec(config: EncoderConfig) -> WaveSpec:
    checkpoint = open_checkpoint(config)
    return _wave_spec(checkpoint, _feature_extractor(config, checkpoint))


def _wave_spec(checkpoint: Checkpoint, extractor: Any) -> WaveSpec:
    model_type = checkpoint.config.model_type
    longest = {
        "audio-spectrogram-transformer": lambda: extractor.max_length * 0.01,  # 10 ms frames
        "clap": lambda: extractor.max_length_s,
        "whisper": lambda: extractor.chunk_length,
    }.get(model_type)
    maximum = float(longest()) if longest is not None else None
    return WaveSpec(
        int(extractor.sampling_rate), maximum, model_type == "whisper", maximum is not None and model_type != "whisper"
    )


def _feature_extractor(config: EncoderConfig, checkpoint: Checkpoint) -> Any:
    from transformers import AutoFeatureExtractor, SequenceFeatureExtractor

    with mendable(config):
        load: Any = AutoFeatureExtractor.from_pretrained  # untyped in transformers
        extractor = load(checkpoint.source, **checkpoint.arguments())
        if not isinstance(extractor, SequenceFeatureExtractor):
            raise ValueError(f"model type {checkpoint.config.model_type} is no audio encoder")
        return extractor


class WaveModel:
    """An audio encoder.

    AST and CLAP give one vector a window; Whisper's encoder, wav2vec 2.0, HuBERT and WavLM about 50 a second.
    """

    def __init__(self, config: EncoderConfig) -> None:
        checkpoint = open_checkpoint(config)
        self.extractor = _feature_extractor(config, checkpoint)
        self.spec = _wave_spec(checkpoint, self.extractor)
        self.model_type = checkpoint.config.model_type
        self.model, self.device, self.dtype, _ = load_model(config, checkpoint, ("masked_spec_embed", "pooler."))
        if self.model_type == "whisper":
            self.model = self.model.get_encoder()
        elif hasattr(self.model, "text_model"):
            self.model.text_model = None
        self.batches = Batches(config)
        self.on_gpu: DeviceFilterbank | None = None
        """Makes spectrograms on the GPU; None on a CPU and for other models than AST."""
        if self.device == "cuda" and self.model_type == "audio-spectrogram-transformer":
            from vca.models import device_inputs

            self.uploads = Uploads(self.device)
            self.on_gpu = device_inputs.DeviceFilterbank.matching(self.extractor, self.device)
        self.dim = int(self.embed([np.zeros(self.spec.sampling_rate, np.float32)]).shape[2])

    def embed(self, waves: Sequence[FloatArray]) -> FloatArray:
        """Waveforms [L] of one length at `spec.sampling_rate` to [N, slots, D], slots in equal parts of the window."""
        assert len({len(wave) for wave in waves}) == 1, "windows of one call have one length"
        return self.batches.run(len(waves), lambda part: self._embed(waves[part]))

    def _embed(self, waves: Sequence[FloatArray]) -> "Tensor":
        import torch

        with torch.inference_mode():
            if self.on_gpu is not None:
                inputs: Any = {"input_values": self.on_gpu(self.uploads(np.stack(waves)), self.dtype)}
            else:
                inputs = to_device(self._extract(waves), self.device, self.dtype)
            if hasattr(self.model, "get_audio_features"):
                return self.model.get_audio_features(**inputs).pooler_output[:, None]  # type: ignore[no-any-return]
            output: Any = self.model(**inputs)
            if self.spec.pooled:
                return output.pooler_output[:, None]  # type: ignore[no-any-return]
            return output.last_hidden_state  # type: ignore[no-any-return]

    def _extract(self, waves: Sequence[FloatArray]) -> dict[str, Any]:
        import torch

        inputs = dict(self.extractor(list(waves), sampling_rate=self.spec.sampling_rate, return_tensors="pt"))
        inputs.pop("attention_mask", None)  # all windows of a call have one length
        if "is_longer" in inputs:
            # CLAP's extractor marks a window at random where none is longer; that would make features irreproducible
            inputs["is_longer"] = torch.zeros_like(torch.as_tensor(inputs["is_longer"], dtype=torch.bool))
        return inputs


# --- image and text in one space -------------------------------------------------------------------------------------


class ImageTextTower:
    """The text side of a SigLIP- or CLIP-type model.

    `kind` says how scores are made of `logit = logit_scale * cosine + logit_bias`: "sigmoid" per label (SigLIP) or
    "softmax" over labels (CLIP).
    """

    kind: Literal["sigmoid", "softmax"]

    def __init__(self, config: EncoderConfig, checkpoint: Checkpoint) -> None:
        from transformers import AutoTokenizer

        with mendable(config):
            self.tokenizer = AutoTokenizer.from_pretrained(checkpoint.source, **checkpoint.arguments())
        self.model, self.device, self.dtype, _ = load_model(config, checkpoint)
        self.model.vision_model = None
        self.kind = "sigmoid" if hasattr(self.model, "logit_bias") else "softmax"
        self.logit_scale = float(self.model.logit_scale.float().exp())
        self.logit_bias = float(self.model.logit_bias.float()) if self.kind == "sigmoid" else 0.0
        self.max_length = int(checkpoint.config.text_config.max_position_embeddings)
        self.batches = Batches(config)
        self.dim = int(self.embed_texts(["text"]).shape[1])

    def embed_texts(self, texts: list[str]) -> FloatArray:
        """Texts to unit vectors [N, D] in the space of the image features; long texts are cut at the model's limit."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        return self.batches.run(len(texts), lambda part: self._embed(texts[part]))

    def _embed(self, texts: list[str]) -> FloatArray:
        import torch

        # SigLIP was trained on lower-cased text padded to full length and without attention mask
        padding = "max_length" if self.kind == "sigmoid" else True
        tokens = self.tokenizer(
            [text.lower() for text in texts],
            padding=padding,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        names = ("input_ids",) if self.kind == "sigmoid" else ("input_ids", "attention_mask")
        with torch.inference_mode():
            inputs = to_device({name: tokens[name] for name in names}, self.device, self.dtype)
            vectors = self.model.get_text_features(**inputs).pooler_output.float()
            return to_numpy(torch.nn.functional.normalize(vectors, dim=-1))


def image_text_tower(config: EncoderConfig) -> ImageTextTower | None:
    """The text side of `encoders.vision`, None where its model has none. Weights are loaded only if it has one."""
    if config.kind != "huggingface":
        return None
    from transformers import MODEL_MAPPING

    checkpoint = open_checkpoint(config)
    with mendable(config):
        model_class = MODEL_MAPPING[type(checkpoint.config)]
    if not all(hasattr(model_class, name) for name in ("get_image_features", "get_text_features")):
        return None
    return ImageTextTower(config, checkpoint)
