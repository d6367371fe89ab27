"""Qwen 3: Qwen3-Embedding and related embedders.

Source: Hugging Face `Qwen3Model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from akidb_mlx_plugin.models.qwen2 import Qwen2Encoder


class Qwen3Encoder(Qwen2Encoder):
    """Qwen 2 whose queries and keys are normalized per head."""

    defaults: ClassVar[Mapping[str, Any]] = {**Qwen2Encoder.defaults, "head_dim": 128}

    @classmethod
    def variant(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"qkv_bias": bool(config.get("attention_bias")), "mlp_bias": False, "qk_norm": True}
