"""GTE v1.5: gte-base/large-en-v1.5, gte-multilingual-base, snowflake-arctic-embed-m-v2.0 and stella_en_400M_v5.

Source: Zhang et al. 2024 (mGTE); Hugging Face `GteModel`; for its settings, Alibaba's own code, `NewModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.rotary_bert import (
    GatedMLP,
    ModelArgs,
    RotaryBertEncoder,
    check_neutral,
    rename_tensors,
    take_number,
)
from akidb_mlx_plugin.models.settings import check_activation, rope_settings, take_fields
from akidb_mlx_plugin.nn.rotary import Rotary

# Options of Alibaba's code that no known checkpoint uses.
_NEUTRAL = {"position_embedding_type": "rope", "layer_norm_type": "layer_norm", "logn_attention_scale": False}
_NAMES = {
    "encoder.layer.": "layers.",
    ".attention.": ".self_attn.",
    ".attn_ln.": ".post_attention_layernorm.",
    ".mlp_ln.": ".post_mlp_layernorm.",
}
_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "up_gate_proj": ("up_proj", "gate_proj")}


class GteEncoder(RotaryBertEncoder):
    """The GTE encoder."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> GteEncoder:
        check_neutral(config, _NEUTRAL)
        check_activation(config, "hidden_act", "gelu")
        if config.get("type_vocab_size") is None:
            config = {**config, "type_vocab_size": 1}
        args = ModelArgs(**take_fields(ModelArgs, config) | {"up_bias": False})
        mlps = [GatedMLP(args) for _ in range(args.num_hidden_layers)]
        return cls(args, _build_rotary(config, args.head_size), mlps)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        return rename_tensors(weights, prefixes=("new.", "gte."), names=_NAMES, fused=_FUSED)


def _build_rotary(config: Mapping[str, Any], size: int) -> Rotary:
    scaling = config.get("rope_scaling") or {}
    if scaling.get("type") != "ntk":
        return Rotary.from_settings(rope_settings(config, size=size, default_theta=160_000.0))
    if scaling.get("mixed_b") is not None:
        raise ModelNotFoundError("rope_scaling with mixed_b is not supported, only fixed NTK scaling without it")
    # Fixed NTK scaling for texts of any length, as in Alibaba's `NTKScalingRotaryEmbedding`: a larger base, and divided
    # positions. Source: https://kexue.fm/archives/9706, equation 6.
    factor = take_number(scaling, "factor", 1.0)
    return Rotary(size, take_number(config, "rope_theta", 10_000.0) * factor, factor ** (2 / size))
