"""BERT: MiniLM, bge, e5, gte and kin.

Source: Devlin et al. 2018; Hugging Face `BertModel` without its pooler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.base import Encoder, Tokens, attend, join_linears
from akidb_mlx_plugin.models.kernels import ACTIVATIONS
from akidb_mlx_plugin.packing import Block


@dataclass(frozen=True)
class Args:
    """The settings of `config.json` that shape the model, under their names there."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Args:
        """Take what is named here and refuse variants that would compute something else."""
        kind = config.get("position_embedding_type") or "absolute"
        if kind != "absolute":
            raise ModelNotFoundError(f"position_embedding_type {kind!r} is not supported, only 'absolute'")
        if config.get("hidden_act", "gelu") not in ACTIVATIONS:
            raise ModelNotFoundError(f"hidden_act {config['hidden_act']!r} is not supported: {', '.join(ACTIVATIONS)}")
        return cls(**{name: config[name] for name in cls.__dataclass_fields__ if name in config})


class Embeddings(nn.Module):
    """Word, position and segment vectors, summed and normalized; every token is of segment 0."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(args.vocab_size, args.hidden_size)
        self.position_embeddings = nn.Embedding(args.max_position_embeddings, args.hidden_size)
        self.token_type_embeddings = nn.Embedding(args.type_vocab_size, args.hidden_size)
        self.LayerNorm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)

    def __call__(self, ids: mx.array, positions: mx.array) -> mx.array:
        segment = self.token_type_embeddings(mx.zeros(1, dtype=mx.int32))
        return self.LayerNorm(self.word_embeddings(ids) + (self.position_embeddings(positions) + segment))


class Attention(nn.Module):
    """Multi-head attention with its output projection, residual and norm."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.heads = args.num_attention_heads
        self.query = nn.Linear(args.hidden_size, args.hidden_size)
        self.key = nn.Linear(args.hidden_size, args.hidden_size)
        self.value = nn.Linear(args.hidden_size, args.hidden_size)
        self.dense = nn.Linear(args.hidden_size, args.hidden_size)
        self.LayerNorm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)

    def prepare(self) -> None:
        """Join the three input projections into one matmul."""
        self.qkv = join_linears(self.query, self.key, self.value)
        del self.query, self.key, self.value

    def __call__(self, x: mx.array, blocks: tuple[Block, ...]) -> mx.array:
        size = x.shape[-1] // self.heads
        # (T, 3D) -> (T, 3, H, d)
        qkv = self.qkv(x).reshape(x.shape[0], 3, self.heads, size)
        out = attend(qkv[:, 0], qkv[:, 1], qkv[:, 2], blocks, scale=size**-0.5)
        return self.LayerNorm(self.dense(out) + x)


class Layer(nn.Module):
    """Attention, then the feed-forward network, each with residual and norm behind it."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.attention = Attention(args)
        self.intermediate = nn.Linear(args.hidden_size, args.intermediate_size)
        self.output = nn.Linear(args.intermediate_size, args.hidden_size)
        self.LayerNorm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)
        self._activation = ACTIVATIONS[args.hidden_act]

    def __call__(self, x: mx.array, blocks: tuple[Block, ...]) -> mx.array:
        x = self.attention(x, blocks)
        return self.LayerNorm(self.output(self._activation(self.intermediate(x))) + x)


class BertEncoder(Encoder):
    """The BERT encoder."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.hidden_size = args.hidden_size
        self.embeddings = Embeddings(args)
        self.layers = [Layer(args) for _ in range(args.num_hidden_layers)]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BertEncoder:
        return cls(Args.from_config(config))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        renames = (
            ("encoder.layer.", "layers."),
            (".attention.self.", ".attention."),
            (".attention.output.", ".attention."),
            (".intermediate.dense.", ".intermediate."),
            (".output.LayerNorm.", ".LayerNorm."),
            (".output.dense.", ".output."),
        )
        clean = {}
        for name, value in weights.items():
            name = name.removeprefix("bert.")
            # Heads for pretraining tasks, and a buffer that older versions of transformers saved.
            if name.startswith(("pooler.", "cls.")) or name == "embeddings.position_ids":
                continue
            for old, new in renames:
                name = name.replace(old, new)
            # Checkpoints converted from TensorFlow name the norm's parameters so.
            name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
            clean[name] = value
        return clean

    def prepare(self) -> None:
        for layer in self.layers:
            layer.attention.prepare()

    def __call__(self, tokens: Tokens) -> mx.array:
        x = self.embeddings(tokens.ids, tokens.positions)
        for layer in self.layers:
            x = layer(x, tokens.blocks)
        return x
