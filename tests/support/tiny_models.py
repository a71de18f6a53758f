"""Random checkpoints of real model classes, small enough to train in a test."""

from pathlib import Path
from typing import Any

import torch


def save_tiny(folder: Path, kind: str, **sizes: int) -> Any:
    """A random checkpoint with a word-level tokenizer; padding on the left, as decoders like it. `sizes` replace those
    of the configuration.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertConfig,
        BertModel,
        ModernBertConfig,
        ModernBertModel,
        PreTrainedTokenizerFast,
        Qwen3Config,
        Qwen3Model,
    )

    words = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrst"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]", padding_side="left"
    )
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    } | sizes
    model: Any
    if kind == "bert":
        model = BertModel(BertConfig(**values))
    elif kind == "modernbert":
        model = ModernBertModel(
            ModernBertConfig(**values, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3)
        )
    else:
        model = Qwen3Model(Qwen3Config(**values, num_key_value_heads=1, head_dim=8, bos_token_id=2, eos_token_id=3))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()
