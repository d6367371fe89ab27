"""BERT: MiniLM, bge, e5, gte and related models.

Source: Devlin et al. 2018; Hugging Face `BertModel` without its pooler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.base import Encoder, PickingEncoder, eval_layer, with_pick
from akidb_mlx_plugin.models.leftovers import drop_leftovers
from akidb_mlx_plugin.models.settings import check_activation, take_fields
from akidb_mlx_plugin.nn.activations import ACTIVATIONS
from akidb_mlx_plugin.nn.attention import attend, attend_joined
from akidb_mlx_plugin.nn.batch import Block, Pick, Tokens, take
from akidb_mlx_plugin.nn.cpu_layers import Joining, add_linear, join_linears
from akidb_mlx_plugin.nn.position_bias import PositionBias

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class ModelArgs:
    """The model's settings, named as in `config.json`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    # 0 for no table.
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read the settings; reject variants that this encoder does not compute."""
        kind = config.get("position_embedding_type") or "absolute"
        if kind != "absolute":
            raise ModelNotFoundError(f"position_embedding_type {kind!r} is not supported")
        if config.get("is_decoder"):
            raise ModelNotFoundError("is_decoder is not supported: this encoder attends in both directions")
        check_activation(config, "hidden_act", "gelu")
        return cls(**take_fields(cls, config))


class Embeddings(nn.Module):
    """The sum of word, position and segment vectors where present, normalized; a single text is all in segment 0."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(args.vocab_size, args.hidden_size)
        if args.max_position_embeddings:
            self.position_embeddings = nn.Embedding(args.max_position_embeddings, args.hidden_size)
        if args.type_vocab_size:
            self.token_type_embeddings = nn.Embedding(args.type_vocab_size, args.hidden_size)
        self.LayerNorm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)

    def __call__(self, ids: mx.array, positions: mx.array, segments: mx.array | None = None) -> mx.array:
        # The tables may have another dtype than the computation.
        dtype = self.LayerNorm.weight.dtype
        parts = [self.word_embeddings(ids).astype(dtype)]
        if "position_embeddings" in self:
            parts.append(self.position_embeddings(positions).astype(dtype))
        if "token_type_embeddings" in self:
            segments = mx.zeros(1, dtype=mx.int32) if segments is None else segments
            parts.append(self.token_type_embeddings(segments).astype(dtype))
        # Smallest first: the segment of single texts is one row.
        total = parts.pop()
        while parts:
            total = parts.pop() + total
        return self.LayerNorm(total)


class SelfAttention(Joining):
    """Multi-head attention without its output projection."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.heads = args.num_attention_heads
        self.query = nn.Linear(args.hidden_size, args.hidden_size)
        self.key = nn.Linear(args.hidden_size, args.hidden_size)
        self.value = nn.Linear(args.hidden_size, args.hidden_size)

    def __call__(
        self, x: mx.array, blocks: tuple[Block, ...], bias: PositionBias | None = None, pick: Pick | None = None
    ) -> mx.array:
        size = x.shape[-1] // self.heads
        if "joined" in self:
            qkv = self.joined(x).reshape(len(x), 3 * self.heads, size)
            if pick is None:
                return attend_joined(qkv, blocks, bias)
            q, k, v = mx.split(qkv, 3, axis=1)
            return attend(take(q, pick), k, v, blocks, scale=1.0, bias=bias, pick=pick)
        # (T, D) -> (T, H, d)
        q, k, v = (
            project(y).reshape(len(y), self.heads, size)
            for project, y in ((self.query, take(x, pick)), (self.key, x), (self.value, x))
        )
        return attend(q, k, v, blocks, scale=size**-0.5, bias=bias, pick=pick)

    def join(self) -> None:
        """Put one projection in the place of three; the scale of the scores goes into its weights."""
        size = self.query.weight.shape[0] // self.heads
        joined = join_linears(self.query, self.key, self.value, scales=(size**-0.5, 1.0, 1.0))
        if joined is not None:
            self.joined = joined
            del self.query, self.key, self.value


class Output(nn.Module):
    """Output projection, residual connection and norm."""

    def __init__(self, width: int, args: ModelArgs) -> None:
        super().__init__()
        self.dense = nn.Linear(width, args.hidden_size)
        self.LayerNorm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)

    def __call__(self, x: mx.array, residual: mx.array) -> mx.array:
        return self.LayerNorm(add_linear(residual, self.dense, x))


class Attention(nn.Module):
    """Multi-head attention with its output projection."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        # Named as in the checkpoint.
        self.self = SelfAttention(args)
        self.output = Output(args.hidden_size, args)

    def __call__(
        self, x: mx.array, blocks: tuple[Block, ...], bias: PositionBias | None = None, pick: Pick | None = None
    ) -> mx.array:
        return self.output(self.self(x, blocks, bias, pick), take(x, pick))


class Intermediate(nn.Module):
    """The first half of the feed-forward network."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.dense = nn.Linear(args.hidden_size, args.intermediate_size)
        self._activation = ACTIVATIONS[args.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        return self._activation(self.dense(x))


class EncoderLayer(nn.Module):
    """Attention, then the feed-forward network."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.attention = Attention(args)
        self.intermediate = Intermediate(args)
        self.output = Output(args.intermediate_size, args)

    def __call__(
        self, x: mx.array, blocks: tuple[Block, ...], bias: PositionBias | None = None, pick: Pick | None = None
    ) -> mx.array:
        x = self.attention(x, blocks, bias, pick)
        return self.output(self.intermediate(x), x)


class Stack(nn.Module):
    """The layers in sequence."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.layer = [EncoderLayer(args) for _ in range(args.num_hidden_layers)]

    def __call__(
        self, x: mx.array, blocks: tuple[Block, ...], bias: PositionBias | None = None, pick: Pick | None = None
    ) -> mx.array:
        # A bias needs every query.
        own = pick if bias is None else None
        for layer, picked in with_pick(self.layer, own):
            x = eval_layer(layer(x, blocks, bias, picked))
        return take(x, None if own else pick)


class BertEncoder(PickingEncoder):
    """The BERT encoder."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.hidden_size = args.hidden_size
        self.embeddings = Embeddings(args)
        self.encoder = Stack(args)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Encoder:
        return cls(ModelArgs.from_config(config))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        return drop_leftovers(weights, ("bert.", "roberta."))

    def position_ids(self, tokens: Tokens) -> mx.array:
        """Return each token's row in the position table."""
        return tokens.positions

    def position_bias(self, dtype: mx.Dtype) -> PositionBias | None:
        """Return the bias of every layer's scores in one forward pass; BERT has none."""
        return None

    def encode(self, tokens: Tokens, pick: Pick | None) -> mx.array:
        x = self.embeddings(tokens.ids, self.position_ids(tokens), tokens.segments)
        return self.encoder(x, tokens.blocks, self.position_bias(x.dtype), pick)
