"""Mistral: e5-mistral, SFR-Embedding-Mistral and related embedders, and Ministral.

Source: Hugging Face `MistralModel` and `MinistralModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from akidb_mlx_plugin.models.llama import LlamaEncoder
from akidb_mlx_plugin.models.settings import attention_window, layer_windows, optional_count


class MistralEncoder(LlamaEncoder):
    """Llama without biases and with the same sliding window in every layer."""

    defaults: ClassVar[Mapping[str, Any]] = {"num_key_value_heads": 8, "sliding_window": 4096}

    @classmethod
    def layer_windows(cls, config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
        return (attention_window(config, optional_count(config, "sliding_window")),) * layers

    @classmethod
    def variant(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"attention_bias": False, "mlp_bias": False}


class MinistralEncoder(MistralEncoder):
    """Mistral in which `layer_types` names the layers with a sliding window."""

    @classmethod
    def layer_windows(cls, config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
        if not config.get("layer_types"):
            return super().layer_windows(config, layers)
        window = attention_window(config, optional_count(config, "sliding_window"))
        return layer_windows(config["layer_types"], window, layers)
