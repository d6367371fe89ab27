"""What config.json counts against what the weights can hold, before a module is built.

Modules are built from the counts, one object per layer: a million layers would take the machine's memory before the
strict loading could find that there are no weights for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from akidb_mlx_plugin.errors import ModelNotFoundError

# Under the names of all architectures. A layer has a tensor of its own, and so has a group of layers that share theirs.
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_hidden_groups", "inner_group_num")
# Each is at most one axis of some tensor: a width, or a number of parts that lie beside each other in one.
_WIDTHS = (
    *("vocab_size", "hidden_size", "intermediate_size", "embedding_size", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "num_experts", "num_local_experts", "n_embd", "n_inner", "n_head", "n_heads", "dim", "hidden_dim"),
    *("d_model", "d_ff", "d_kv", "num_heads", "relative_attention_num_buckets", "type_vocab_size"),
)
# A quantized matrix keeps up to 16 numbers, of two bits, in each of its columns. What is wrong by less than that takes
# little memory, and the strict loading names the tensor.
_SLACK = 16


def check_sizes(config: Mapping[str, Any], tensors: Mapping[str, mx.array]) -> None:
    """Check that a checkpoint's counts are within what its weights can hold; null and other types are left to others.

    Args:
        config: of config.json.
        tensors: of the weights, of which only the shapes are looked at.
    Raises:
        ModelNotFoundError: one is far larger; it is named.
    """
    _check(config, _LAYERS, len(tensors), f"its weights have {len(tensors)} tensors")
    longest = max((size for value in tensors.values() for size in value.shape), default=0)
    _check(config, _WIDTHS, longest * _SLACK, f"the longest axis of its weights has {longest} entries")


def _check(config: Mapping[str, Any], names: tuple[str, ...], limit: int, found: str) -> None:
    for name in names:
        value = config.get(name)
        if isinstance(value, int | float) and value > limit:
            raise ModelNotFoundError(f"config.json: {name} is {value}, but {found}")
