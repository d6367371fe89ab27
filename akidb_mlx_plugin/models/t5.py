"""The encoder of T5: sentence-t5, gtr and related models.

Source: Raffel et al. 2019; Hugging Face `T5EncoderModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.base import Encoder, eval_layer
from akidb_mlx_plugin.models.leftovers import drop_leftovers
from akidb_mlx_plugin.models.settings import check_activation, take_fields
from akidb_mlx_plugin.nn.activations import ACTIVATIONS, GATED_ACTIVATIONS
from akidb_mlx_plugin.nn.attention import attend
from akidb_mlx_plugin.nn.batch import Block, Tokens
from akidb_mlx_plugin.nn.position_bias import PositionBias, relative_buckets

_NAMES = {
    ".layer.0.SelfAttention.": ".attention.",
    ".layer.0.layer_norm.": ".attention_norm.",
    ".layer.1.DenseReluDense.": ".mlp.",
    ".layer.1.layer_norm.": ".mlp_norm.",
    "block.0.attention.relative_attention_bias.": "relative_attention_bias.",
}


@dataclass(frozen=True)
class ModelArgs:
    """The model's settings, named as in `config.json`."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    activation: str = "relu"
    gated: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelArgs:
        """Read the settings; reject variants that this encoder does not compute."""
        if config.get("is_decoder"):
            raise ModelNotFoundError("is_decoder is not supported: this encoder attends in both directions")
        # "relu" in T5 1.0, or "gated-gelu" in T5 1.1, where it means the tanh form.
        kind = config.get("feed_forward_proj") or "relu"
        gate, _, activation = kind.rpartition("-")
        if gate not in ("", "gated"):
            raise ModelNotFoundError(f"feed_forward_proj {kind!r} is not supported")
        activation = "gelu_new" if kind == "gated-gelu" else activation
        # Also written by older versions of transformers, and obeyed by newer ones.
        for key, value in (("dense_act_fn", activation), ("is_gated_act", gate == "gated")):
            if config.get(key) not in (None, value):
                raise ModelNotFoundError(f"{key} {config[key]!r} contradicts feed_forward_proj {kind!r}")
        check_activation({"feed_forward_proj": activation}, "feed_forward_proj", activation)
        args = cls(**take_fields(cls, {**config, "activation": activation, "gated": gate == "gated"}))
        if not 4 <= args.relative_attention_num_buckets < 4 * args.relative_attention_max_distance:
            raise ModelNotFoundError(
                f"relative_attention_num_buckets {args.relative_attention_num_buckets} is not supported with "
                f"relative_attention_max_distance {args.relative_attention_max_distance}"
            )
        return args


class Attention(nn.Module):
    """Multi-head attention whose scores are not scaled."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.heads = args.num_heads
        width = args.num_heads * args.d_kv
        self.q = nn.Linear(args.d_model, width, bias=False)
        self.k = nn.Linear(args.d_model, width, bias=False)
        self.v = nn.Linear(args.d_model, width, bias=False)
        self.o = nn.Linear(width, args.d_model, bias=False)

    def __call__(self, x: mx.array, blocks: tuple[Block, ...], bias: PositionBias) -> mx.array:
        # (T, D) -> (T, H, d)
        q, k, v = (project(x).reshape(len(x), self.heads, -1) for project in (self.q, self.k, self.v))
        return self.o(attend(q, k, v, blocks, scale=1.0, bias=bias))


class MLP(nn.Module):
    """Feed-forward network of T5 1.0."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.wi = nn.Linear(args.d_model, args.d_ff, bias=False)
        self.wo = nn.Linear(args.d_ff, args.d_model, bias=False)
        self._activation = ACTIVATIONS[args.activation]

    def __call__(self, x: mx.array) -> mx.array:
        return self.wo(self._activation(self.wi(x)))


class GatedMLP(nn.Module):
    """Gated feed-forward network of T5 1.1."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(args.d_model, args.d_ff, bias=False)
        self.wi_1 = nn.Linear(args.d_model, args.d_ff, bias=False)
        self.wo = nn.Linear(args.d_ff, args.d_model, bias=False)
        self._gate = GATED_ACTIVATIONS[args.activation]

    def __call__(self, x: mx.array) -> mx.array:
        return self.wo(self._gate(self.wi_0(x), self.wi_1(x)))


class EncoderLayer(nn.Module):
    """Attention, then the feed-forward network, each with a norm before it and a residual connection."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(args.d_model, eps=args.layer_norm_epsilon)
        self.attention = Attention(args)
        self.mlp_norm = nn.RMSNorm(args.d_model, eps=args.layer_norm_epsilon)
        self.mlp = GatedMLP(args) if args.gated else MLP(args)

    def __call__(self, x: mx.array, blocks: tuple[Block, ...], bias: PositionBias) -> mx.array:
        x = x + self.attention(self.attention_norm(x), blocks, bias)
        return x + self.mlp(self.mlp_norm(x))


class T5Encoder(Encoder):
    """The T5 encoder."""

    float16_is_safe = False

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.hidden_size = args.d_model
        self.buckets = args.relative_attention_num_buckets, args.relative_attention_max_distance
        self.embed_tokens = nn.Embedding(args.vocab_size, args.d_model)
        self.relative_attention_bias = nn.Embedding(args.relative_attention_num_buckets, args.num_heads)
        self.block = [EncoderLayer(args) for _ in range(args.num_layers)]
        self.final_layer_norm = nn.RMSNorm(args.d_model, eps=args.layer_norm_epsilon)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> T5Encoder:
        return cls(ModelArgs.from_config(config))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        # A whole T5 has the decoder's tensors, and the table a second time under its shared name.
        named = any(name.startswith("encoder.embed_tokens.") for name in weights)
        dropped = ("decoder.", "shared.") if named else ("decoder.",)
        encoder = {name: value for name, value in weights.items() if not name.startswith(dropped)}
        return drop_leftovers(encoder, ("encoder.",), renamed={"shared.": "embed_tokens.", **_NAMES})

    def __call__(self, tokens: Tokens) -> mx.array:
        # The table may have another dtype than the computation.
        x = self.embed_tokens(tokens.ids).astype(self.final_layer_norm.weight.dtype)
        table = self.relative_attention_bias
        bias = PositionBias(lambda distances: table(mx.array(relative_buckets(distances, *self.buckets))).T, x.dtype)
        for layer in self.block:
            x = eval_layer(layer(x, tokens.blocks, bias))
        return self.final_layer_norm(x)
