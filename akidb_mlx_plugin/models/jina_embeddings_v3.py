"""jina-embeddings-v3 without its adapters, as transformers saves it.

Source: Sturua et al. 2024; Hugging Face `JinaEmbeddingsV3Model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from akidb_mlx_plugin.models.rotary_bert import MLP, ModelArgs, RotaryBertEncoder, rename_tensors
from akidb_mlx_plugin.models.settings import check_activation, rope_settings, take_fields
from akidb_mlx_plugin.nn.rotary import Rotary

_DEFAULTS: dict[str, Any] = {"type_vocab_size": 1, "layer_norm_eps": 1e-5}
_NAMES = {
    "emb_ln.": "embeddings.LayerNorm.",
    "encoder.layers.": "layers.",
    ".mixer.Wqkv.": ".self_attn.qkv_proj.",
    ".mixer.out_proj.": ".self_attn.o_proj.",
    ".norm1.": ".post_attention_layernorm.",
    ".norm2.": ".post_mlp_layernorm.",
}


class JinaV3Encoder(RotaryBertEncoder):
    """The encoder of jina-embeddings-v3."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> JinaV3Encoder:
        check_activation(config, "hidden_act", "gelu")
        args = ModelArgs(**_DEFAULTS | take_fields(ModelArgs, config))
        rotary = Rotary.from_settings(rope_settings(config, size=args.head_size, default_theta=20_000.0))
        return cls(args, rotary, [MLP(args) for _ in range(args.num_hidden_layers)])

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        fused = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
        return rename_tensors(weights, prefixes=("roberta.",), names=_NAMES, fused=fused)
