"""BERT with ALiBi and gated feed-forward networks: jina-embeddings-v2.

Source: Günther et al. 2023; jinaai/jina-bert-implementation, and jinaai/jina-bert-v2-qk-post-norm for
jina-embeddings-v2-base-code. Both have BERT's `model_type`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models import bert
from akidb_mlx_plugin.models.base import Encoder, eval_layer, split_linear
from akidb_mlx_plugin.models.leftovers import drop_leftovers
from akidb_mlx_plugin.nn.activations import ACTIVATIONS, GATED_ACTIVATIONS
from akidb_mlx_plugin.nn.attention import attend
from akidb_mlx_plugin.nn.batch import Block, Pick, Tokens, take
from akidb_mlx_plugin.nn.position_bias import PositionBias, alibi_slopes

# The activation of the gate; "original" is BERT's network without a gate.
_GATES = {"geglu": "gelu", "reglu": "relu", "original": None}
_QK_NORM = "qk-post-norm"
# Common names for parts that the two implementations name differently.
_NAMES = {
    r"\.mlp\.up_gated_layer\.": ".mlp.gated_layers.",
    r"\.mlp\.down_layer\.": ".mlp.wo.",
    r"\.mlp\.up_layer\.": ".mlp.wi.",
    r"\.mlp\.layernorm\.": ".layer_norm_2.",
    r"(layer\.\d+)\.intermediate\.dense\.": r"\1.mlp.wi.",
    r"(layer\.\d+)\.output\.dense\.": r"\1.mlp.wo.",
    r"(layer\.\d+)\.output\.LayerNorm\.": r"\1.layer_norm_2.",
}


@dataclass(frozen=True)
class ModelArgs(bert.ModelArgs):
    """The model's settings, named as in `config.json`."""

    feed_forward_type: str = "original"
    # Whether queries and keys are normalized, and the attention's output once more.
    qk_norm: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelArgs:
        """Read the settings; reject variants that this encoder does not compute."""
        if config.get("position_embedding_type") != "alibi":
            raise ModelNotFoundError("feed_forward_type is supported only with position_embedding_type 'alibi'")
        kind = config.get("feed_forward_type") or "original"
        if kind not in _GATES:
            raise ModelNotFoundError(f"feed_forward_type {kind!r} is not supported; supported are {', '.join(_GATES)}")
        code = (config.get("auto_map") or {}).get("AutoModel"), config.get("_name_or_path")
        args = super().from_config({**config, "position_embedding_type": "absolute"})
        return replace(args, qk_norm=any(_QK_NORM in str(name) for name in code), max_position_embeddings=0)


class SelfAttention(bert.SelfAttention):
    """Multi-head attention without its output projection; queries and keys are normalized across heads."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self.layer_norm_q = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)
        self.layer_norm_k = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)

    def join(self) -> None:
        """Leave them apart: each has a norm of its own."""

    def __call__(
        self, x: mx.array, blocks: tuple[Block, ...], bias: PositionBias | None = None, pick: Pick | None = None
    ) -> mx.array:
        size = x.shape[-1] // self.heads
        projected = self.layer_norm_q(self.query(take(x, pick))), self.layer_norm_k(self.key(x)), self.value(x)
        # (T, D) -> (T, H, d)
        q, k, v = (y.reshape(len(y), self.heads, size) for y in projected)
        return attend(q, k, v, blocks, scale=size**-0.5, bias=bias, pick=pick)


class GatedMLP(nn.Module):
    """Gated feed-forward network."""

    def __init__(self, args: ModelArgs, activation: str) -> None:
        super().__init__()
        self.gated_layers = nn.Linear(args.hidden_size, 2 * args.intermediate_size, bias=False)
        self.wo = nn.Linear(args.intermediate_size, args.hidden_size)
        self.gate_first = not args.qk_norm
        self._gate = GATED_ACTIVATIONS[activation]

    def prepare(self) -> None:
        """Split the fused projection."""
        halves = split_linear(self.gated_layers, 2)
        self.gate, self.up = halves if self.gate_first else halves[::-1]
        del self.gated_layers

    def __call__(self, x: mx.array) -> mx.array:
        return self.wo(self._gate(self.gate(x), self.up(x)))


class MLP(nn.Module):
    """BERT's feed-forward network."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.wi = nn.Linear(args.hidden_size, args.intermediate_size, bias=not args.qk_norm)
        self.wo = nn.Linear(args.intermediate_size, args.hidden_size)
        self._activation = ACTIVATIONS[args.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        return self.wo(self._activation(self.wi(x)))


class EncoderLayer(nn.Module):
    """Attention, then the feed-forward network."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.attention = bert.Attention(args)
        if args.qk_norm:
            self.attention.self = SelfAttention(args)
            self.layer_norm_1 = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)
        gate = _GATES[args.feed_forward_type]
        self.mlp = GatedMLP(args, gate) if gate else MLP(args)
        self.layer_norm_2 = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)

    def __call__(self, x: mx.array, blocks: tuple[Block, ...], bias: PositionBias) -> mx.array:
        mixed = self.attention(x, blocks, bias)
        if "layer_norm_1" in self:
            mixed = self.layer_norm_1(x + mixed)
        return self.layer_norm_2(mixed + self.mlp(mixed))


class Stack(nn.Module):
    """The layers in sequence."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.layer = [EncoderLayer(args) for _ in range(args.num_hidden_layers)]

    def __call__(self, x: mx.array, blocks: tuple[Block, ...], bias: PositionBias) -> mx.array:
        for layer in self.layer:
            x = eval_layer(layer(x, blocks, bias))
        return x


class JinaBertEncoder(Encoder):
    """The encoder of jina-embeddings-v2."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.hidden_size = args.hidden_size
        self.embeddings = bert.Embeddings(args)
        self.encoder = Stack(args)
        self._slopes = alibi_slopes(args.num_attention_heads)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> JinaBertEncoder:
        return cls(ModelArgs.from_config(config))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        clean = {}
        for name, value in drop_leftovers(weights, ("bert.",)).items():
            for pattern, ours in _NAMES.items():
                name = re.sub(pattern, ours, name)
            clean[name] = value
        return clean

    def prepare(self) -> None:
        for layer in self.encoder.layer:
            if isinstance(layer.mlp, GatedMLP):
                layer.mlp.prepare()

    def __call__(self, tokens: Tokens) -> mx.array:
        x = self.embeddings(tokens.ids, tokens.positions)
        bias = PositionBias(lambda distances: mx.array(-self._slopes[:, None] * abs(distances)), x.dtype)
        return self.encoder(x, tokens.blocks, bias)
