"""Qwen 2: gte-Qwen2 and related embedders.

Source: Hugging Face `Qwen2Model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from akidb_mlx_plugin.models.llama import LlamaEncoder
from akidb_mlx_plugin.models.settings import attention_window, layer_windows, optional_count


class Qwen2Encoder(LlamaEncoder):
    """Llama with biases, and sliding windows in its upper layers."""

    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}

    @classmethod
    def layer_windows(cls, config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
        window = optional_count(config, "sliding_window") if config.get("use_sliding_window") else None
        first = optional_count(config, "max_window_layers", least=0) or 0
        pattern = config.get("layer_types") or [
            "sliding_attention" if window and i >= first else "full_attention" for i in range(layers)
        ]
        return layer_windows(pattern, attention_window(config, window), layers)

    @classmethod
    def variant(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"qkv_bias": True, "attention_bias": False, "mlp_bias": False}
