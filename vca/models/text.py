"""A pretrained language model as a text encoder.

Shape letters: N texts, B texts of a batch, T tokens, D features.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from vca.core.config import Config
from vca.core.errors import ConfigError
from vca.core.identity import canonical_json, digest
from vca.core.records import FloatArray
from vca.models.weights import (
    PACKAGED_MINILM,
    PACKAGED_MINILM_SHA256,
    TOKENIZER,
    check_parts,
    hub_commit,
    loading,
    resolve_device,
    resolve_model,
    weights_definition,
)

if TYPE_CHECKING:  # two seconds of import that reading a configuration does not need
    from torch import Tensor

__all__ = ["PACKAGED_MINILM_SHA256", "TextModel", "TextModelConfig", "resolve_model", "text_definition"]


class TextModelConfig(Config):
    model: str = Field(PACKAGED_MINILM, min_length=1)
    """A packaged model, a folder with safetensors weights, or a hub id."""
    revision: str | None = None
    """Commit of a hub model; pin it, or the identity of the features follows the hub."""
    pooling: Literal["mean", "cls", "last"] = "mean"
    """How token states become one vector: `mean` for MiniLM, `cls` for BERT-likes trained so, `last` for decoders."""
    max_tokens: int = Field(256, ge=4, le=32_768)
    """Longer texts are cut at the end; special tokens count."""
    batch_size: int = Field(64, ge=1, le=4096)
    """Texts per forward pass."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is a GPU where the worker sees one."""


def text_definition(config: TextModelConfig, field: str = "encoders.text") -> dict[str, Any]:
    """What shapes the embeddings, JSON-able; batch size and device do not count.

    Checks what can be checked without loading: a `ConfigError` here comes before the first video is read.
    """
    check_parts(resolve_model(config, field), f"{field}.model", TOKENIZER)
    return {
        "weights": weights_definition(config.model, config.revision, f"{field}.model"),
        "pooling": config.pooling,
        "max_tokens": config.max_tokens,
    }


class TextModel:
    """Texts to vectors of length 1. Loads safetensors only and never runs code that comes with a model."""

    dim: int
    version: str
    """Hash of weights, pooling and token limit: equal versions give comparable vectors."""

    def __init__(self, config: TextModelConfig, field: str = "encoders.text") -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.config = config
        self.device = resolve_device(config.device, f"{field}.device")
        source = resolve_model(config, field)
        local = Path(source).is_dir()
        commit = None if local else hub_commit(source, config.revision, f"{field}.model")
        options = {"revision": commit, "local_files_only": local, "trust_remote_code": False}
        with loading(config.model, f"{field}.model"):
            tokenizer: Any = AutoTokenizer.from_pretrained(source, **options)
            model: Any = AutoModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32, **options)
        limit = _token_limit(model.config, tokenizer)
        if config.max_tokens > limit:
            raise ConfigError(f"{field}.max_tokens = {config.max_tokens}: the model reads at most {limit} tokens")
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token_id is None:
                raise ConfigError(f"{field}.model = {config.model}: its tokenizer has no padding token")
            tokenizer.pad_token = tokenizer.eos_token
        self._tokenizer = self.tokenizer = tokenizer
        self._model = model.eval().requires_grad_(False).to(self.device)
        self._model.config.use_cache = False  # decoders would keep keys and values of every layer for nothing
        self.dim = int(model.config.hidden_size)
        self.version = digest("text model", canonical_json(text_definition(config, field)))

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """Vectors [N, D] of length 1 in the order of `texts`; an empty list gives [0, D].

        Texts of like length share a batch, so little is padding. Equal texts are encoded once, which also makes their
        vectors bit-equal.
        """
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        places: dict[str, list[int]] = {}
        for index, text in enumerate(texts):
            places.setdefault(_clean(text), []).append(index)
        unique = list(places)
        ids = [self._token_ids(text) for text in unique]
        order = sorted(range(len(unique)), key=lambda i: (len(ids[i]), unique[i]))
        for first in range(0, len(order), self.config.batch_size):
            batch = order[first : first + self.config.batch_size]
            pooled = self._forward([ids[i] for i in batch])
            for row, i in zip(pooled, batch, strict=True):
                vectors[places[unique[i]]] = row
        return vectors

    def _token_ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(
            text, truncation=True, max_length=self.config.max_tokens, add_special_tokens=True
        )["input_ids"]
        # A decoder's tokenizer adds nothing: an empty text would have no token to pool.
        return ids or [self._tokenizer.eos_token_id or self._tokenizer.pad_token_id]

    def _forward(self, ids: list[list[int]]) -> FloatArray:
        import torch

        lengths = torch.tensor([len(row) for row in ids])
        longest = int(lengths.max())
        pad = self._tokenizer.pad_token_id
        # Padded on the right whatever the tokenizer prefers: `last` and absolute positions rely on it.
        input_ids = torch.tensor([row + [pad] * (longest - len(row)) for row in ids]).to(self.device)  # [B, T]
        mask = (torch.arange(longest)[None, :] < lengths[:, None]).long().to(self.device)  # [B, T]
        with torch.inference_mode():
            states: Tensor = self._model(input_ids=input_ids, attention_mask=mask).last_hidden_state  # [B, T, D]
            pooled = pool_states(states, mask, self.config.pooling)
            unit: FloatArray = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return unit


def pool_states(states_btd: "Tensor", mask_bt: "Tensor", pooling: str) -> "Tensor":
    """Token states [B, T, D] to vectors [B, D]; `mask_bt` is 1 on real tokens, at least one in a row."""
    import torch

    if pooling == "mean":
        weights = mask_bt[..., None].to(states_btd.dtype)
        return (states_btd * weights).sum(dim=1) / weights.sum(dim=1)
    if pooling == "cls":
        return states_btd[:, 0]
    assert pooling == "last", pooling
    positions = torch.arange(mask_bt.shape[1], device=mask_bt.device)
    last = (positions * mask_bt).argmax(dim=1)
    return states_btd[torch.arange(len(states_btd), device=last.device), last]


def _token_limit(config: Any, tokenizer: Any) -> int:
    """Positions the model was built for. RoBERTa-likes lose `pad_token_id + 1` of them to an offset."""
    limit = getattr(config, "max_position_embeddings", None) or 2**31
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        limit -= config.pad_token_id + 1
    return min(int(limit), int(tokenizer.model_max_length))


def _clean(text: str) -> str:
    """Lone surrogates (broken subtitles, file names) become `?`: the tokenizer only takes valid Unicode."""
    return text.encode("utf-8", "replace").decode("utf-8")
