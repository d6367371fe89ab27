"""ALBERT: paraphrase-albert and related models.

Source: Lan et al. 2019; Hugging Face `AlbertModel`: narrow embeddings, and groups of layers that share weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.models import bert
from akidb_mlx_plugin.models.base import Encoder, eval_layer
from akidb_mlx_plugin.models.bert import Embeddings, SelfAttention
from akidb_mlx_plugin.models.leftovers import drop_leftovers
from akidb_mlx_plugin.nn.activations import ACTIVATIONS
from akidb_mlx_plugin.nn.batch import Block, Pick, Tokens, take
from akidb_mlx_plugin.nn.cpu_layers import add_linear
from akidb_mlx_plugin.nn.position_bias import PositionBias


@dataclass(frozen=True)
class ModelArgs(bert.ModelArgs):
    """The model's settings, named as in `config.json`."""

    hidden_act: str = "gelu_new"
    embedding_size: int = 128
    num_hidden_groups: int = 1
    inner_group_num: int = 1


class Attention(SelfAttention):
    """Multi-head attention with its output projection, residual and norm."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self.dense = nn.Linear(args.hidden_size, args.hidden_size)
        self.LayerNorm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)

    def __call__(
        self, x: mx.array, blocks: tuple[Block, ...], bias: PositionBias | None = None, pick: Pick | None = None
    ) -> mx.array:
        return self.LayerNorm(add_linear(take(x, pick), self.dense, super().__call__(x, blocks, bias, pick)))


class EncoderLayer(nn.Module):
    """Attention, then the feed-forward network."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.attention = Attention(args)
        self.ffn = nn.Linear(args.hidden_size, args.intermediate_size)
        self.ffn_output = nn.Linear(args.intermediate_size, args.hidden_size)
        self.full_layer_layer_norm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)
        self._activation = ACTIVATIONS[args.hidden_act]

    def __call__(self, x: mx.array, blocks: tuple[Block, ...]) -> mx.array:
        x = self.attention(x, blocks)
        return self.full_layer_layer_norm(add_linear(x, self.ffn_output, self._activation(self.ffn(x))))


class LayerGroup(nn.Module):
    """Layers whose weights are applied repeatedly."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.albert_layers = [EncoderLayer(args) for _ in range(args.inner_group_num)]


class Stack(nn.Module):
    """A projection of the embeddings, then every layer with the weights of its group."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.layers, self.groups = args.num_hidden_layers, args.num_hidden_groups
        self.embedding_hidden_mapping_in = nn.Linear(args.embedding_size, args.hidden_size)
        self.albert_layer_groups = [LayerGroup(args) for _ in range(self.groups)]

    def __call__(self, x: mx.array, blocks: tuple[Block, ...]) -> mx.array:
        x = self.embedding_hidden_mapping_in(x)
        for i in range(self.layers):
            # Like Hugging Face, also where the layers do not divide evenly.
            group = self.albert_layer_groups[int(i / (self.layers / self.groups))]
            for layer in group.albert_layers:
                x = eval_layer(layer(x, blocks))
        return x


class AlbertEncoder(Encoder):
    """The ALBERT encoder."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.hidden_size = args.hidden_size
        self.embeddings = Embeddings(replace(args, hidden_size=args.embedding_size))
        self.encoder = Stack(args)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AlbertEncoder:
        return cls(ModelArgs.from_config(config))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        return drop_leftovers(weights, ("albert.",))

    def __call__(self, tokens: Tokens) -> mx.array:
        return self.encoder(self.embeddings(tokens.ids, tokens.positions), tokens.blocks)
