"""EuroBERT: Llama's layers with bidirectional attention.

Source: Boizard et al. 2025; Hugging Face `EuroBertModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.base import PickingEncoder, eval_layer, with_pick
from akidb_mlx_plugin.models.settings import check_activation, rope_settings, take_fields
from akidb_mlx_plugin.nn.activations import GATED_ACTIVATIONS
from akidb_mlx_plugin.nn.attention import attend
from akidb_mlx_plugin.nn.batch import Pick, Tokens, take
from akidb_mlx_plugin.nn.rotary import Angles, Rotary, rotate


@dataclass(frozen=True)
class ModelArgs:
    """The model's settings, named as in `config.json`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-5
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def head_size(self) -> int:
        """Channels of an attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.head_size = args.head_size
        width = args.num_attention_heads * args.head_size
        key_width = (args.num_key_value_heads or args.num_attention_heads) * args.head_size
        self.q_proj = nn.Linear(args.hidden_size, width, bias=args.attention_bias)
        self.k_proj = nn.Linear(args.hidden_size, key_width, bias=args.attention_bias)
        self.v_proj = nn.Linear(args.hidden_size, key_width, bias=args.attention_bias)
        self.o_proj = nn.Linear(width, args.hidden_size, bias=args.attention_bias)

    def __call__(self, x: mx.array, angles: Angles, tokens: Tokens, pick: Pick | None = None) -> mx.array:
        # (T, H * d) -> (T, H, d)
        q, k, v = (
            project(y).reshape(len(y), -1, self.head_size)
            for project, y in ((self.q_proj, take(x, pick)), (self.k_proj, x), (self.v_proj, x))
        )
        q = rotate(q, angles if pick is None else angles.at(pick.places))
        k = rotate(k, angles)
        return self.o_proj(attend(q, k, v, tokens.blocks, scale=self.head_size**-0.5, pick=pick))


class MLP(nn.Module):
    """Gated feed-forward network."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=args.mlp_bias)
        self.up_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=args.mlp_bias)
        self.down_proj = nn.Linear(args.intermediate_size, args.hidden_size, bias=args.mlp_bias)
        self._gate = GATED_ACTIVATIONS[args.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(self._gate(self.gate_proj(x), self.up_proj(x)))


class EncoderLayer(nn.Module):
    """Attention, then the feed-forward network, each with a norm before it and a residual connection."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.self_attn = Attention(args)
        self.mlp = MLP(args)
        self.input_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(self, x: mx.array, angles: Angles, tokens: Tokens, pick: Pick | None = None) -> mx.array:
        x = take(x, pick) + self.self_attn(self.input_layernorm(x), angles, tokens, pick)
        return x + self.mlp(self.post_attention_layernorm(x))


class EuroBertEncoder(PickingEncoder):
    """The EuroBERT encoder."""

    def __init__(self, args: ModelArgs, rotary: Rotary) -> None:
        super().__init__()
        self.hidden_size = args.hidden_size
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [EncoderLayer(args) for _ in range(args.num_hidden_layers)]
        self.norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self._rotary = rotary

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> EuroBertEncoder:
        check_activation(config, "hidden_act", "silu")
        if config.get("is_causal") or config.get("is_decoder"):
            raise ModelNotFoundError("a causal EuroBERT is not supported: this encoder is bidirectional")
        args = ModelArgs(**take_fields(ModelArgs, config))
        return cls(args, Rotary.from_settings(rope_settings(config, size=args.head_size, default_theta=10_000.0)))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        # The encoder's name in a model saved with a head for pretraining or classification.
        clean = {name.removeprefix("model."): value for name, value in weights.items()}
        heads = ("lm_head.", "dense.", "classifier.")
        return {name: value for name, value in clean.items() if not name.startswith(heads)}

    def encode(self, tokens: Tokens, pick: Pick | None) -> mx.array:
        # The table may have another dtype than the computation.
        x = self.embed_tokens(tokens.ids).astype(self.norm.weight.dtype)
        angles = self._rotary.angles(tokens)
        for layer, own in with_pick(self.layers, pick):
            x = eval_layer(layer(x, angles, tokens, own))
        return self.norm(x)
