"""Phi 3 and 4.

Source: Hugging Face `Phi3Model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import mlx.nn as nn

from akidb_mlx_plugin.models.base import split_linear
from akidb_mlx_plugin.models.llama import LlamaEncoder, ModelArgs
from akidb_mlx_plugin.models.mistral import MistralEncoder


class Phi3Encoder(MistralEncoder):
    """Mistral with fused projections and optional partial rotation of heads."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    }
    rotates_partially = True

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self._widths = [args.num_attention_heads * args.head_dim, args.num_key_value_heads * args.head_dim]
        for layer in self.layers:
            attention, mlp = layer.self_attn, layer.mlp
            attention.qkv_proj = nn.Linear(args.hidden_size, self._widths[0] + 2 * self._widths[1], bias=False)
            mlp.gate_up_proj = nn.Linear(args.hidden_size, 2 * args.intermediate_size, bias=False)
            del attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LlamaEncoder:
        # Earlier names of the same scaling.
        renamed = {
            key: {**value, "rope_type": "longrope"}
            for key, value in config.items()
            if key in ("rope_scaling", "rope_parameters")
            and isinstance(value, Mapping)
            and (value.get("rope_type") or value.get("type")) in ("su", "yarn")
        }
        return super().from_config({**config, **renamed})

    def prepare(self) -> None:
        width, key_width = self._widths
        for layer in self.layers:
            attention, mlp = layer.self_attn, layer.mlp
            attention.q_proj, attention.k_proj, attention.v_proj = split_linear(
                attention.qkv_proj, [width, width + key_width]
            )
            mlp.gate_proj, mlp.up_proj = split_linear(mlp.gate_up_proj, 2)
            del attention.qkv_proj, mlp.gate_up_proj
