"""What the descriptions of tiny checkpoints share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

ALL_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
Tensors = dict[str, torch.Tensor]
PROMPTS = {"query": "the question of time: ", "document": "", "task": "some work "}


@dataclass(frozen=True)
class Tiny:
    """A tiny checkpoint: configuration, tokenizer, what comes behind the encoder, and the token counts of its texts."""

    config: transformers.PretrainedConfig
    tokenizer: Callable[[], Tokenizer]
    special: dict[str, str]
    max_tokens: int
    lengths: tuple[int, ...]
    pooling: dict[str, Any]
    dense: tuple[dict[str, Any], ...] = ()
    normalize: bool = True
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    dtype: torch.dtype = torch.float32
    with_head: bool = False
    # Adds files to what transformers has saved.
    finish: Callable[[Path], None] | None = None
    # Turns settings and tensors as transformers saves them into those of a layout that it does not write.
    publish: Callable[[dict[str, Any], Tensors], tuple[dict[str, Any], Tensors]] | None = None
    # Makes the model of the configuration, where it is another class than AutoModel's.
    build: Callable[[transformers.PretrainedConfig], transformers.PreTrainedModel] | None = None
    # Further settings for config.json, which published checkpoints have and transformers does not write.
    settings: dict[str, Any] = field(default_factory=dict)
    # Texts beside those of the lengths above.
    texts: tuple[str, ...] = ()


BERT = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
ROBERTA = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>"}
QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
SIZES = {
    "vocab_size": 448,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
GROUPED = {**SIZES, "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 16}
GEMMA_SIZES = {
    **GROUPED,
    "vocab_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "hidden_size": 48,
    "query_pre_attn_scalar": 24,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
HEAD = (
    {"in_features": 48, "out_features": 96, "bias": False, "activation_function": torch.nn.Identity()},
    {"in_features": 96, "out_features": 48, "bias": False, "activation_function": torch.nn.Identity()},
)
SHORT = (2, 3, 4, 5, 8, 13, 21, 34, 47, 48, 49, 70)
