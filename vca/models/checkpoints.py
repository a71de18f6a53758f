"""Pretrained encoders on disk or on the hub: settings, location, loading, batches.

Code from a checkpoint is never run and weights are read from safetensors only. torch and transformers are imported
where they are used, so that reading a configuration stays quick.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from vca.core.config import Config
from vca.core.errors import ConfigError
from vca.core.records import FloatArray
from vca.models.weights import loading, resolve_device, resolve_weights, weights_definition

if TYPE_CHECKING:
    from torch import Tensor


class EncoderConfig(Config):
    """Settings shared by encoders that can be pretrained models. `field` is their place in the configuration."""

    field: ClassVar[str] = "encoders"

    kind: Literal["none", "descriptors", "huggingface"] = "descriptors"
    """`descriptors`: computed without weights. `huggingface`: a pretrained model, which `model` names. `none`: off."""
    model: str | None = None
    """Hub id such as google/siglip2-base-patch16-224, or a folder with config.json and *.safetensors."""
    revision: str | None = None
    """Branch, tag or commit of a hub id. None is the default branch; the commit found goes into the feature set."""
    batch_size: int = Field(32, ge=1, le=4096)
    """Frames (or windows of sound) per forward pass; halved by itself when the GPU memory does not suffice. A
    large GPU is busy with larger ones only: `python -m benchmarks.gpu` finds the best."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is a GPU where the worker sees one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float32 on CPU, bfloat16 (older GPUs: float16) on CUDA."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "huggingface" and not self.model:
            raise ValueError("kind huggingface needs model; set model to a hub id or a folder")
        if self.kind != "huggingface" and self.model:
            raise ValueError(f"model {self.model!r} has no use with kind {self.kind}; set kind to huggingface")
        return self


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A located checkpoint: what `from_pretrained` takes, and its parsed `config.json`."""

    source: str
    commit: str | None  # None for a folder
    config: Any  # transformers.PretrainedConfig

    def arguments(self) -> dict[str, Any]:
        return {"revision": self.commit, "trust_remote_code": False} if self.commit else {"trust_remote_code": False}

    def settings(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the checkpoint, None if it has none."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        if self.commit is None:
            path = Path(self.source) / name
        else:
            try:
                path = Path(hf_hub_download(self.source, name, revision=self.commit))
            except EntryNotFoundError:
                return None
        if not path.is_file():
            return None
        value = json.loads(path.read_text("utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"{name} is not a JSON object")
        return value


@contextmanager
def mendable(config: EncoderConfig) -> Iterator[None]:
    """Turn what the libraries raise for a wrong, missing or unreachable checkpoint into one line."""
    with loading(str(config.model), f"{config.field}.model"):
        yield


def open_checkpoint(config: EncoderConfig) -> Checkpoint:
    """Find the checkpoint and read its `config.json`; downloads nothing else. Raises `ConfigError`."""
    from huggingface_hub import hf_hub_download
    from transformers import AutoConfig

    assert config.model is not None, "EncoderConfig guarantees a model for kind huggingface"
    source = resolve_weights(config.model, f"{config.field}.model")
    commit = None
    if Path(source).is_dir():
        if config.revision is not None:
            raise ConfigError(
                f"{config.field}.revision = {config.revision!r}: {config.model} is a folder, which has no revisions; "
                "remove the setting"
            )
    else:
        with mendable(config):  # .../snapshots/<commit>/config.json, from the cache where the hub is out of reach
            commit = Path(hf_hub_download(source, "config.json", revision=config.revision)).parent.name
    checkpoint = Checkpoint(source, commit, None)
    with mendable(config):
        return replace(checkpoint, config=AutoConfig.from_pretrained(source, **checkpoint.arguments()))


def definition(config: EncoderConfig) -> dict[str, Any]:
    """Identity of the weights (see `weights_definition`) and the number format: that moves more than the last digit."""
    checkpoint = open_checkpoint(config)
    weights = weights_definition(checkpoint.source, checkpoint.commit, f"{config.field}.model")
    return {"kind": config.kind, "dtype": config.dtype, "weights": weights}


def load_model(
    config: EncoderConfig, checkpoint: Checkpoint, unused: tuple[str, ...] = ()
) -> tuple[Any, str, Any, set[str]]:
    """The bare model in inference mode with its device, dtype and the names of weights the checkpoint lacks.

    Weights that are missing would be random numbers in every feature: that is refused, except for `unused` parts.
    """
    import torch
    from transformers import AutoModel

    device = resolve_device(config.device, f"{config.field}.device")
    if config.dtype != "auto":
        dtype = getattr(torch, config.dtype)
    elif device == "cuda":
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    else:
        dtype = torch.float32
    with mendable(config):
        model, info = AutoModel.from_pretrained(
            checkpoint.source,
            config=checkpoint.config,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
            **checkpoint.arguments(),
        )
        missing = set(info["missing_keys"])
        random = sorted(name for name in missing if not name.startswith(unused))
        if random:
            raise ValueError(f"the checkpoint lacks {len(random)} weights of {type(model).__name__}, e.g. {random[0]}")
    return model.to(device).eval().requires_grad_(False), device, dtype, missing


class Batches:
    """Runs a function over slices; on a full GPU the batch is halved, and stays so.

    The function may answer with a tensor, which then stays on its device until all slices are done: a GPU that had to
    hand over each batch would stand still meanwhile.
    """

    def __init__(self, config: EncoderConfig, items: int = 1) -> None:
        self.size = max(1, config.batch_size // items)
        self.field = config.field

    def run(self, n: int, call: "Callable[[slice], FloatArray | Tensor]") -> FloatArray:
        import torch

        results: list[Any] = []
        start = 0
        while start < n:
            end = min(start + self.size, n)
            try:
                results.append(call(slice(start, end)))
            except torch.OutOfMemoryError as error:
                if self.size == 1:
                    raise ConfigError(
                        f"{self.field}.batch_size: a batch of one does not fit into GPU memory; "
                        "use a smaller model, dtype bfloat16 or a larger GPU"
                    ) from error
                self.size = max(1, min(self.size, end - start) // 2)
                torch.cuda.empty_cache()
            else:
                start = end
        return to_numpy(torch.cat(results)) if isinstance(results[0], torch.Tensor) else np.concatenate(results)


class Uploads:
    """Arrays to a GPU while it computes: a copy goes through one of two page-locked buffers, on a stream of its own.

    At most two batches are on their way: a third waits until the first has been computed.
    """

    def __init__(self, device: str) -> None:
        import torch

        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = [torch.empty(0, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._turn = 0
        self._computed: Any = None
        """Behind all that was asked of the GPU before the last array came."""

    def __call__(self, array: npt.NDArray[Any]) -> "Tensor":
        """A copy on the device; what is asked of the current stream from now on sees it."""
        import torch

        current = torch.cuda.current_stream(self._device)
        if self._computed is not None:
            self._computed.synchronize()  # the batch before the last has been computed: its buffer is free
        self._computed = current.record_event()
        self._turn = 1 - self._turn
        if self._buffers[self._turn].numel() < array.nbytes:
            self._buffers[self._turn] = torch.empty(array.nbytes, dtype=torch.uint8, pin_memory=True)
        locked = self._buffers[self._turn][: array.nbytes]
        np.copyto(locked.numpy().view(array.dtype).reshape(array.shape), array)  # torch warns of read-only arrays
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        with torch.cuda.stream(self._stream):
            copied = locked.to(self._device, non_blocking=True).view(dtype).view(array.shape)
        current.wait_stream(self._stream)
        copied.record_stream(current)
        return copied


def to_device(inputs: Any, device: str, dtype: Any) -> dict[str, Any]:
    return {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in dict(inputs).items()}


def to_numpy(tensor: Any) -> FloatArray:
    array: FloatArray = tensor.float().cpu().numpy()
    return array
