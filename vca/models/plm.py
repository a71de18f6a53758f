"""A pretrained language model as the body of the fusion model: vectors in, states out, made bidirectional, with LoRA.

torch is imported where it is used, so that reading a configuration stays quick.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from vca.core.config import Config
from vca.core.errors import ConfigError
from vca.models.fusion_inputs import Language
from vca.models.text import TextModel, TextModelConfig
from vca.models.weights import (
    PACKAGED_MINILM,
    TOKENIZER,
    check_parts,
    hub_commit,
    loading,
    resolve_model,
    weights_definition,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PlmConfig(Config):
    model: str = Field(PACKAGED_MINILM, min_length=1)
    """A packaged model, a folder with safetensors, or a hub id: encoders (MiniLM, ModernBERT) and decoders (Qwen3)."""
    revision: str | None = None
    """Commit of a hub model; pin it, or the identity of the trained model follows the hub."""
    tune: Literal["lora", "full", "frozen"] = "lora"
    """What is trained of it: low-rank additions, everything, or nothing."""
    lora_rank: int = Field(16, ge=1, le=512)
    """Rank of the additions."""
    lora_alpha: int = Field(32, ge=1)
    """Their scale is `lora_alpha / lora_rank`."""
    lora_dropout: float = Field(0.05, ge=0.0, lt=1.0)
    """Dropout in front of the additions."""


FIELD = "fusion.plm"


def plm_definition(config: PlmConfig) -> dict[str, Any]:
    """Identity of the pretrained weights, JSON-able. Loads no tensors; `ConfigError` for what cannot be found."""
    check_parts(resolve_model(config, FIELD), f"{FIELD}.model", TOKENIZER)
    return {"weights": weights_definition(config.model, config.revision, f"{FIELD}.model")}


PHRASE_TOKENS = 64
"""A phrase has at most `fusion_inputs.CHUNK_WORDS` words; longer ones are cut for their vector."""


def load_language(config: PlmConfig, device: str = "auto") -> Language:
    """Tokenizer and untouched language model, for making windows."""
    model = TextModel(text_config(config, device), FIELD)
    return Language(model.tokenizer, model.embed)


def text_config(config: PlmConfig, device: str = "auto") -> TextModelConfig:
    """The same model as a text encoder: the mean of its states."""
    values = {"model": config.model, "revision": config.revision, "max_tokens": PHRASE_TOKENS, "device": device}
    return TextModelConfig.model_validate(values)


def load_plm(config: PlmConfig) -> "PreTrainedModel":
    """The language model in float32, bidirectional, without a pooler, with what is trained marked by `requires_grad`.

    Reads safetensors only and never runs code that comes with a model.
    """
    import torch
    from transformers import AutoModel

    source, options = _source(config)
    with loading(config.model, f"{FIELD}.model"):
        model: Any = AutoModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32, **options)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # it would get no gradient, which ZeRO and AdaLoRA take badly
    model.config.use_cache = False
    if not _is_encoder(model):
        model.config.is_causal = False  # transformers builds its masks from it: every token then sees every other
    if config.tune == "lora":
        _add_lora(model, config)
    else:
        model.requires_grad_(config.tune == "full")
    return model  # type: ignore[no-any-return]


def position_limit(model: "PreTrainedModel") -> int:
    """Longest sequence the model was built for. RoBERTa-likes lose `pad_token_id + 1` places to an offset."""
    limit = getattr(model.config, "max_position_embeddings", None) or 2**31
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        limit -= model.config.pad_token_id + 1
    return int(limit)


def _source(config: PlmConfig) -> tuple[str, dict[str, Any]]:
    source = resolve_model(config, FIELD)
    local = Path(source).is_dir()
    if local and config.revision is not None:
        raise ConfigError(
            f"{FIELD}.revision = {config.revision!r}: {config.model} has no revisions; remove the setting"
        )
    commit = None if local else hub_commit(source, config.revision, f"{FIELD}.model")
    return source, {"revision": commit, "local_files_only": local, "trust_remote_code": False}


def _is_encoder(model: Any) -> bool:
    """Whether attention looks both ways as built. Encoders either say so by `is_decoder` or have no such notion."""
    causal = any(getattr(module, "is_causal", False) for module in model.modules())
    return not causal and not getattr(model.config, "is_decoder", False)


def _add_lora(model: Any, config: PlmConfig) -> None:
    """Low-rank additions on every linear layer (Hu et al., 2021), the rest frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, target_modules="all-linear"
    )
    inject_adapter_in_model(lora, model)
    assert any(p.requires_grad for p in model.parameters()), "LoRA found no linear layer"
