"""Llama: Llama-3-based embedders, llama-embed-nemotron, and the base of related decoders.

Source: Hugging Face `LlamaModel`, the causal decoder without its language model head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.architectures import is_bidirectional
from akidb_mlx_plugin.models.base import PickingEncoder, eval_layer, with_pick
from akidb_mlx_plugin.models.settings import check_activation, rope_settings, rotated_share, take_count, take_fields
from akidb_mlx_plugin.nn.activations import GATED_ACTIVATIONS
from akidb_mlx_plugin.nn.attention import attend
from akidb_mlx_plugin.nn.batch import Pick, Prefix, Tokens, take
from akidb_mlx_plugin.nn.rope_scaling import RopeSettings
from akidb_mlx_plugin.nn.rotary import Angles, Rotary, rotate

KeysValues = tuple[mx.array, mx.array]
_COUNTS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@dataclass(frozen=True)
class ModelArgs:
    """The model's settings, named as in `config.json` where they occur there.

    Attributes:
        head_dim: independent of hidden_size / num_attention_heads.
        rope: rotary settings.
        causal: whether a token sees only itself and earlier ones.
        windows: sliding window of each layer; None for full attention.
        qkv_bias: whether the projections of queries, keys and values have a bias; `attention_bias` is the output's.
        qk_norm: whether queries and keys are normalized per head before rotation.
        query_growth: (beta, length): queries are multiplied by 1 + beta log(1 + floor(position / length)).
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rope: RopeSettings
    causal: bool
    windows: tuple[int | None, ...]
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    qkv_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    query_growth: tuple[float, float] | None = None


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, args: ModelArgs, window: int | None) -> None:
        super().__init__()
        self.head_dim = args.head_dim
        self.causal = args.causal
        self.window = window
        width, key_width = args.num_attention_heads * args.head_dim, args.num_key_value_heads * args.head_dim
        self.q_proj = nn.Linear(args.hidden_size, width, bias=args.qkv_bias)
        self.k_proj = nn.Linear(args.hidden_size, key_width, bias=args.qkv_bias)
        self.v_proj = nn.Linear(args.hidden_size, key_width, bias=args.qkv_bias)
        self.o_proj = nn.Linear(width, args.hidden_size, bias=args.attention_bias)
        if args.qk_norm:
            self.q_norm = nn.RMSNorm(args.head_dim, eps=args.rms_norm_eps)
            self.k_norm = nn.RMSNorm(args.head_dim, eps=args.rms_norm_eps)

    def __call__(
        self,
        x: mx.array,
        query_angles: Angles,
        key_angles: Angles,
        tokens: Tokens,
        before: KeysValues | None,
        pick: Pick | None,
    ) -> mx.array:
        q = self._queries(take(x, pick), query_angles if pick is None else query_angles.at(pick.places))
        k, v = self.keys_and_values(x, key_angles)
        mixed = attend(
            q,
            k,
            v,
            tokens.blocks,
            scale=self.head_dim**-0.5,
            causal=self.causal,
            window=self.window,
            before=before,
            pick=pick,
        )
        return self.o_proj(mixed)

    def _queries(self, x: mx.array, angles: Angles) -> mx.array:
        # (T, H * d) -> (T, H, d)
        q = self.q_proj(x).reshape(len(x), -1, self.head_dim)
        if "q_norm" in self:
            q = self.q_norm(q)
        return rotate(q, angles)

    def keys_and_values(self, x: mx.array, angles: Angles) -> KeysValues:
        """Return the (T, K, d) rotated keys, and values, of (T, D) tokens."""
        k, v = (project(x).reshape(len(x), -1, self.head_dim) for project in (self.k_proj, self.v_proj))
        if "k_norm" in self:
            k = self.k_norm(k)
        return rotate(k, angles), v


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


class DecoderLayer(nn.Module):
    """Attention, then the feed-forward network, each with a norm before it and a residual connection."""

    def __init__(self, args: ModelArgs, window: int | None) -> None:
        super().__init__()
        self.self_attn = Attention(args, window)
        self.mlp = MLP(args)
        self.input_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(
        self,
        x: mx.array,
        query_angles: Angles,
        key_angles: Angles,
        tokens: Tokens,
        before: KeysValues | None = None,
        pick: Pick | None = None,
    ) -> mx.array:
        mixed = self.self_attn(self.input_layernorm(x), query_angles, key_angles, tokens, before, pick)
        x = take(x, pick) + mixed
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaEncoder(PickingEncoder):
    """The Llama decoder up to its final norm; related decoders differ in how their settings are read."""

    # transformers' default where config.json has no such setting; the same as null for most.
    defaults: ClassVar[Mapping[str, Any]] = {}
    # Whether `partial_rotary_factor` may leave part of each head unrotated.
    rotates_partially = False

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.hidden_size = args.hidden_size
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [DecoderLayer(args, window) for window in args.windows]
        self.norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self._rotary = Rotary.from_settings(args.rope)
        self._query_growth = args.query_growth
        self._causal = args.causal
        self._key_width = args.num_key_value_heads * args.head_dim

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> LlamaEncoder:
        config = {**cls.defaults, **config}
        check_activation(config, "hidden_act", "silu")
        counts = {name: take_count(config, name) for name in _COUNTS}
        heads, layers = counts["num_attention_heads"], counts["num_hidden_layers"]
        key_heads = take_count(config, "num_key_value_heads", heads)
        if heads % key_heads:
            raise ModelNotFoundError(f"num_key_value_heads {key_heads} does not divide num_attention_heads {heads}")
        size = take_count(config, "head_dim", counts["hidden_size"] // heads)
        share = rotated_share(config)
        if share != 1 and not cls.rotates_partially:
            raise ModelNotFoundError(f"partial_rotary_factor {share} is not supported for {config.get('model_type')}")
        computed = {
            **counts,
            "num_key_value_heads": key_heads,
            "head_dim": size,
            "rope": rope_settings(config, size=int(size * share), default_theta=10_000.0),
            "causal": not is_bidirectional(config),
            "windows": cls.layer_windows(config, layers),
        }
        return cls(ModelArgs(**take_fields(ModelArgs, config, **computed, **cls.variant(config))))

    @classmethod
    def layer_windows(cls, config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
        """Return the sliding window of each layer; None for full attention."""
        return (None,) * layers

    @classmethod
    def variant(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of `ModelArgs` in which this architecture differs."""
        return {"qkv_bias": bool(config.get("attention_bias"))}

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        # MLX conversions keep the prefix of the causal model; the original has none.
        clean = {name.removeprefix("model."): value for name, value in weights.items()}
        # Early versions of transformers also saved rotary frequencies.
        return {
            name: value
            for name, value in clean.items()
            if not name.startswith("lm_head.") and not name.endswith(".rotary_emb.inv_freq")
        }

    def check_length(self, max_tokens: int) -> None:
        self._rotary.check_length(max_tokens)

    @property
    def prefix_token_bytes(self) -> int:
        # With separate frequencies for long texts, the keys of a prefix would be rotated differently in those.
        if not self._causal or self._rotary.settings.long_frequencies is not None:
            return 0
        return 2 * len(self.layers) * self._key_width * self.norm.weight.dtype.size

    def compute_prefix(self, tokens: Tokens) -> Prefix:
        x = self._embed(tokens)
        query_angles, key_angles = self._angles(tokens)
        kept = []
        for layer in self.layers:
            # The layer computes these again itself, but only once and for few tokens.
            keys_values = layer.self_attn.keys_and_values(layer.input_layernorm(x), key_angles)
            # (P, K, d) -> (K, P, d)
            keys, values = (mx.contiguous(part.swapaxes(0, 1)) for part in keys_values)
            kept.append((keys, values))
            x = eval_layer(layer(x, query_angles, key_angles, tokens))
        return Prefix(len(x), tuple(kept))

    def encode(self, tokens: Tokens, pick: Pick | None) -> mx.array:
        x = self._embed(tokens)
        query_angles, key_angles = self._angles(tokens)
        for i, (layer, own) in enumerate(with_pick(self.layers, pick)):
            before = tokens.prefix.layers[i] if tokens.prefix else None
            x = eval_layer(layer(x, query_angles, key_angles, tokens, before, own))
        return self.norm(x)

    def _embed(self, tokens: Tokens) -> mx.array:
        # The table may have another dtype than the computation.
        return self.embed_tokens(tokens.ids).astype(self.norm.weight.dtype)

    def _angles(self, tokens: Tokens) -> tuple[Angles, Angles]:
        """Return the angles of queries and of keys."""
        angles = self._rotary.angles(tokens)
        if not self._query_growth:
            return angles, angles
        beta, length = self._query_growth
        growth = 1 + beta * mx.log(1 + mx.floor(tokens.positions / length))[:, None, None]
        # Queries that are turned by longer cosines and sines are as long as if they were multiplied afterwards.
        return angles.lengthened(growth), angles
