"""Check the counts in config.json against the weights before any module is built.

Modules are built from the counts, one object per layer: a million layers would exhaust memory before `load_strictly`
could find that they have no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from akidb_mlx_plugin.errors import ModelNotFoundError

# By the names that all architectures use. Every layer, or group of layers that share weights, has its own tensor.
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_hidden_groups", "inner_group_num")
# Each is at most the length of some tensor's axis: a width, or a number of parts stacked along it.
_WIDTHS = (
    *("vocab_size", "hidden_size", "intermediate_size", "embedding_size", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "num_experts", "num_local_experts", "n_embd", "n_inner", "n_head", "n_heads", "dim", "hidden_dim"),
    *("d_model", "d_ff", "d_kv", "num_heads", "relative_attention_num_buckets", "type_vocab_size"),
)
# A quantized matrix packs up to 16 two-bit numbers into each of its columns. Smaller errors take little memory, and
# `load_strictly` names the tensor.
_SLACK = 16


def check_sizes(config: Mapping[str, Any], tensors: Mapping[str, mx.array]) -> None:
    """Check that a checkpoint's counts are plausible for its weights; skips null and values of other types.

    Args:
        config: `config.json`.
        tensors: the weights; only their shapes are read.
    Raises:
        ModelNotFoundError: a count is far too large; it is named.
    """
    _check(config, _LAYERS, len(tensors), f"its weights have {len(tensors)} tensors")
    longest = max((size for value in tensors.values() for size in value.shape), default=0)
    _check(config, _WIDTHS, longest * _SLACK, f"the longest axis of its weights has {longest} entries")


def _check(config: Mapping[str, Any], names: tuple[str, ...], limit: int, found: str) -> None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int | float) and value > limit:
            raise ModelNotFoundError(f"config.json: {name} is {value}, but {found}")
