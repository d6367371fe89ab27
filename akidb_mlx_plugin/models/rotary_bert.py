"""BERT with rotary positions: the base of nomic-embed, gte v1.5 and jina v3, with transformers' names.

Source: Hugging Face `NomicBertModel`, `GteModel` and `JinaEmbeddingsV3Model`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.base import PickingEncoder, eval_layer, with_pick
from akidb_mlx_plugin.nn.activations import ACTIVATIONS, GATED_ACTIVATIONS
from akidb_mlx_plugin.nn.attention import attend
from akidb_mlx_plugin.nn.batch import Pick, Tokens, take
from akidb_mlx_plugin.nn.rotary import Angles, Rotary, rotate

# Task heads, and buffers that are computed from the configuration.
_NOT_NEEDED = ("pooler.", "cls.", "lm_head.", "classifier.", "embeddings.position_ids", "embeddings.rotary_emb.")


@dataclass(frozen=True)
class ModelArgs:
    """The model's settings, with transformers' names where it has any."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    head_dim: int | None = None
    # 0 for no segment vectors.
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    attention_bias: bool = True
    # Biases of the first and second half of the feed-forward network.
    up_bias: bool = True
    down_bias: bool = True

    @property
    def head_size(self) -> int:
        """Channels of an attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


class Embeddings(nn.Module):
    """The sum of word and segment vectors, normalized; a single text is all in segment 0."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(args.vocab_size, args.hidden_size)
        if args.type_vocab_size:
            self.token_type_embeddings = nn.Embedding(args.type_vocab_size, args.hidden_size)
        self.LayerNorm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)

    def __call__(self, ids: mx.array, segments: mx.array | None = None) -> mx.array:
        # The tables may have another dtype than the computation.
        dtype = self.LayerNorm.weight.dtype
        x = self.word_embeddings(ids).astype(dtype)
        if "token_type_embeddings" in self:
            segments = mx.zeros(1, dtype=mx.int32) if segments is None else segments
            x = x + self.token_type_embeddings(segments).astype(dtype)
        return self.LayerNorm(x)


class Attention(nn.Module):
    """Multi-head attention with rotary positions."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.head_size = args.head_size
        width = args.num_attention_heads * args.head_size
        self.q_proj = nn.Linear(args.hidden_size, width, bias=args.attention_bias)
        self.k_proj = nn.Linear(args.hidden_size, width, bias=args.attention_bias)
        self.v_proj = nn.Linear(args.hidden_size, width, bias=args.attention_bias)
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
    """Feed-forward network."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.fc1 = nn.Linear(args.hidden_size, args.intermediate_size, bias=args.up_bias)
        self.fc2 = nn.Linear(args.intermediate_size, args.hidden_size, bias=args.down_bias)
        self._activation = ACTIVATIONS[args.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(self._activation(self.fc1(x)))


class GatedMLP(nn.Module):
    """Gated feed-forward network."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=args.up_bias)
        self.up_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=args.up_bias)
        self.down_proj = nn.Linear(args.intermediate_size, args.hidden_size, bias=args.down_bias)
        self._gate = GATED_ACTIVATIONS[args.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(self._gate(self.gate_proj(x), self.up_proj(x)))


class EncoderLayer(nn.Module):
    """Attention, then the feed-forward network, each with a residual connection and a norm after it."""

    def __init__(self, args: ModelArgs, mlp: nn.Module) -> None:
        super().__init__()
        self.self_attn = Attention(args)
        self.post_attention_layernorm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)
        self.mlp = mlp
        self.post_mlp_layernorm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)

    def __call__(self, x: mx.array, angles: Angles, tokens: Tokens, pick: Pick | None = None) -> mx.array:
        x = self.post_attention_layernorm(take(x, pick) + self.self_attn(x, angles, tokens, pick))
        return self.post_mlp_layernorm(x + self.mlp(x))


class RotaryBertEncoder(PickingEncoder):
    """The encoder; a subclass reads the configuration and renames the tensors."""

    def __init__(self, args: ModelArgs, rotary: Rotary, mlps: Sequence[nn.Module]) -> None:
        """Build the encoder with uninitialized weights.

        Args:
            args: the settings.
            rotary: the rotary positions.
            mlps: each layer's feed-forward network.
        """
        super().__init__()
        self.hidden_size = args.hidden_size
        self.embeddings = Embeddings(args)
        self.layers = [EncoderLayer(args, mlp) for mlp in mlps]
        self._rotary = rotary

    def encode(self, tokens: Tokens, pick: Pick | None) -> mx.array:
        x = self.embeddings(tokens.ids, tokens.segments)
        angles = self._rotary.angles(tokens)
        for layer, own in with_pick(self.layers, pick):
            x = eval_layer(layer(x, angles, tokens, own))
        return x


def check_neutral(config: Mapping[str, Any], neutral: Mapping[str, Any]) -> None:
    """Check that settings which could change the result are absent, null or at their neutral value.

    Raises:
        ModelNotFoundError: one is not; it is named.
    """
    for key, value in neutral.items():
        if config.get(key) is not None and config[key] != value:
            raise ModelNotFoundError(
                f"{key} {config[key]!r} is not supported for {config.get('model_type')}, only {value!r}"
            )


def take_number(settings: Mapping[str, Any], key: str, default: float) -> float:
    """Return a positive number; null or zero counts as not set.

    Raises:
        ModelNotFoundError: it is anything else.
    """
    value = settings.get(key)
    if not value:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelNotFoundError(f"{key} must be a positive number, got {value!r}")
    return float(value)


def rename_tensors(
    weights: Mapping[str, mx.array],
    *,
    prefixes: Sequence[str],
    names: Mapping[str, str],
    fused: Mapping[str, Sequence[str]],
) -> dict[str, mx.array]:
    """Return a checkpoint's tensors by this encoder's names, without those it does not need.

    Args:
        weights: the checkpoint's tensors.
        prefixes: prefixes of the encoder's names in models with a head.
        names: parts of names and their replacements; applied in order.
        fused: parts of names of stacked matrices, and the names of the matrices here.
    """
    clean: dict[str, mx.array] = {}
    for name, value in weights.items():
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        if name.startswith(_NOT_NEEDED):
            continue
        for part, replacement in names.items():
            name = name.replace(part, replacement)
        part = next((part for part in fused if part in name), "")
        targets = [name.replace(part, target) for target in fused[part]] if part else [name]
        clean |= dict(zip(targets, mx.split(value, len(targets), axis=0) if part else [value], strict=True))
    return clean
