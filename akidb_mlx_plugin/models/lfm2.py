"""LFM2: short convolutions interleaved with attention; a decoder, and the encoder made from it (LFM2.5-Embedding).

Source: Hugging Face `Lfm2Model`, and `Lfm2BidirectionalModel` for the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.architectures import is_bidirectional, names_bidirectional_class
from akidb_mlx_plugin.models.base import TASK_HEADS, PickingEncoder, eval_layer, split_linear, with_pick
from akidb_mlx_plugin.models.settings import optional_count, rope_settings, take_count, take_fields
from akidb_mlx_plugin.nn.activations import GATED_ACTIVATIONS
from akidb_mlx_plugin.nn.attention import attend
from akidb_mlx_plugin.nn.batch import Pick, Tokens, take
from akidb_mlx_plugin.nn.convolution import Neighbors
from akidb_mlx_plugin.nn.rope_scaling import RopeSettings
from akidb_mlx_plugin.nn.rotary import Angles, Rotary, rotate


@dataclass(frozen=True)
class ModelArgs:
    """The model's settings, named as in `config.json` where they occur there.

    Attributes:
        head_dim: channels of a head.
        feed_forward: width of the feed-forward networks.
        taps: kernel size of the convolutions.
        rope: rotary settings.
        causal: whether a token attends only to itself and earlier ones.
        centered: whether a convolution reaches to both sides.
        attends: for each layer, whether it has attention rather than a convolution.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    feed_forward: int
    taps: int
    rope: RopeSettings
    causal: bool
    centered: bool
    attends: tuple[bool, ...]
    norm_eps: float = 1e-5
    conv_bias: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelArgs:
        """Read the settings; reject variants that this encoder does not compute."""
        centered = config.get("model_type") == "lfm2_bidirectional" or names_bidirectional_class(config)
        causal = not is_bidirectional(config)
        if centered and causal:
            raise ModelNotFoundError("config.json sets is_causal, but names a bidirectional architecture")
        counts = {
            name: take_count(config, name)
            for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        }
        size = optional_count(config, "head_dim") or counts["hidden_size"] // counts["num_attention_heads"]
        return cls(
            **take_fields(
                cls,
                config,
                **counts,
                num_key_value_heads=take_count(config, "num_key_value_heads", 8),
                head_dim=size,
                feed_forward=_feed_forward(config),
                taps=take_count(config, "conv_L_cache", 3),
                rope=rope_settings(config, size=size, default_theta=1_000_000.0),
                causal=causal,
                centered=centered,
                attends=_attends(config),
            )
        )

    @property
    def offsets(self) -> tuple[int, ...]:
        """Offsets from a token that a convolution covers."""
        first = -(self.taps // 2) if self.centered else 1 - self.taps
        return tuple(range(first, first + self.taps))


def _feed_forward(config: Mapping[str, Any]) -> int:
    """Return the width of the feed-forward networks, adjusted from the configured one."""
    width = optional_count(config, "block_ff_dim") or take_count(config, "intermediate_size")
    if config.get("block_auto_adjust_ff_dim", True):
        step = take_count(config, "block_multiple_of", 256)
        factor = config.get("block_ffn_dim_multiplier") or 1.0
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1000:
            raise ModelNotFoundError(
                f"block_ffn_dim_multiplier in config.json must be a positive number, got {factor!r}"
            )
        width = step * -(-int(factor * int(2 * width / 3)) // step)
    return width


def _attends(config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Return, for each layer, whether it has attention rather than a convolution."""
    layers = take_count(config, "num_hidden_layers")
    kinds = config.get("layer_types")
    if kinds is None:
        attention = config.get("full_attn_idxs")
        if attention is not None and not isinstance(attention, list):
            raise ModelNotFoundError(f"full_attn_idxs in config.json must be a list, got {attention!r}")
        kinds = ["full_attention" if attention is None or i in attention else "conv" for i in range(layers)]
    kinds = [str(kind) for kind in kinds] if isinstance(kinds, list | tuple) else []
    if len(kinds) != layers or not set(kinds) <= {"full_attention", "conv"}:
        raise ModelNotFoundError(
            f"layer_types names {len(kinds)} layers of kinds {', '.join(sorted(set(kinds)))}; expected are {layers}, "
            "full_attention or conv"
        )
    return tuple(kind == "full_attention" for kind in kinds)


class Attention(nn.Module):
    """Grouped-query attention; queries and keys are normalized per head before rotation."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.head_dim = args.head_dim
        self.causal = args.causal
        width, key_width = args.num_attention_heads * self.head_dim, args.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(args.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(args.hidden_size, key_width, bias=False)
        self.v_proj = nn.Linear(args.hidden_size, key_width, bias=False)
        self.out_proj = nn.Linear(width, args.hidden_size, bias=False)
        self.q_layernorm = nn.RMSNorm(self.head_dim, args.norm_eps)
        self.k_layernorm = nn.RMSNorm(self.head_dim, args.norm_eps)

    def __call__(self, x: mx.array, angles: Angles, tokens: Tokens, pick: Pick | None) -> mx.array:
        # (T, H * d) -> (T, H, d)
        q, k, v = (
            project(y).reshape(len(y), -1, self.head_dim)
            for project, y in ((self.q_proj, take(x, pick)), (self.k_proj, x), (self.v_proj, x))
        )
        q = rotate(self.q_layernorm(q), angles if pick is None else angles.at(pick.places))
        k = rotate(self.k_layernorm(k), angles)
        return self.out_proj(attend(q, k, v, tokens.blocks, scale=self.head_dim**-0.5, causal=self.causal, pick=pick))


class Taps(nn.Module):
    """The weights of a depthwise convolution, in MLX's layout."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.weight = mx.zeros((args.hidden_size, args.taps, 1))
        if args.conv_bias:
            self.bias = mx.zeros((args.hidden_size,))


class ShortConvolution(nn.Module):
    """A convolution over a few tokens, gated before and after."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.conv = Taps(args)
        self.in_proj = nn.Linear(args.hidden_size, 3 * args.hidden_size, bias=args.conv_bias)
        self.out_proj = nn.Linear(args.hidden_size, args.hidden_size, bias=args.conv_bias)

    def prepare(self) -> None:
        """Split the fused projection, and transpose the convolution's weights."""
        self.gate_before, self.gate_after, self.value = split_linear(self.in_proj, 3)
        del self.in_proj
        # (D, K, 1) -> (K, D)
        self.conv.weight = mx.contiguous(self.conv.weight.squeeze(2).T)

    def __call__(self, x: mx.array, neighbors: Neighbors) -> mx.array:
        mixed = neighbors.convolve(self.gate_before(x) * self.value(x), self.conv.weight)
        if "bias" in self.conv:
            mixed = mixed + self.conv.bias
        return self.out_proj(self.gate_after(x) * mixed)


class MLP(nn.Module):
    """Gated feed-forward network."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.w1 = nn.Linear(args.hidden_size, args.feed_forward, bias=False)
        self.w3 = nn.Linear(args.hidden_size, args.feed_forward, bias=False)
        self.w2 = nn.Linear(args.feed_forward, args.hidden_size, bias=False)
        self._gate = GATED_ACTIVATIONS["silu"]

    def __call__(self, x: mx.array) -> mx.array:
        return self.w2(self._gate(self.w1(x), self.w3(x)))


class DecoderLayer(nn.Module):
    """Attention or convolution, then the feed-forward network, each with a norm before it and a residual connection."""

    def __init__(self, args: ModelArgs, attends: bool) -> None:
        super().__init__()
        if attends:
            self.self_attn = Attention(args)
        else:
            self.conv = ShortConvolution(args)
        self.feed_forward = MLP(args)
        self.operator_norm = nn.RMSNorm(args.hidden_size, args.norm_eps)
        self.ffn_norm = nn.RMSNorm(args.hidden_size, args.norm_eps)

    def __call__(
        self, x: mx.array, angles: Angles, neighbors: Neighbors, tokens: Tokens, pick: Pick | None
    ) -> mx.array:
        y = self.operator_norm(x)
        mixed = take(self.conv(y, neighbors), pick) if "conv" in self else self.self_attn(y, angles, tokens, pick)
        x = take(x, pick) + mixed
        return x + self.feed_forward(self.ffn_norm(x))


class Lfm2Encoder(PickingEncoder):
    """The LFM2 decoder or encoder up to its final norm."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.hidden_size = args.hidden_size
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [DecoderLayer(args, attends) for attends in args.attends]
        self.embedding_norm = nn.RMSNorm(args.hidden_size, args.norm_eps)
        self._offsets = args.offsets
        self._rotary = Rotary.from_settings(args.rope)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Lfm2Encoder:
        return cls(ModelArgs.from_config(config))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        # The prefix of the causal model, or of the masked one.
        clean = {name.removeprefix("model.").removeprefix("lfm2."): value for name, value in weights.items()}
        clean = {name: value for name, value in clean.items() if not name.startswith(TASK_HEADS)}
        for name, value in clean.items():
            # torch's layout, (D, 1, K).
            if name.endswith("conv.conv.weight") and value.ndim == 3 and value.shape[1] == 1:
                clean[name] = value.swapaxes(1, 2)
        return clean

    def prepare(self) -> None:
        for layer in self.layers:
            if "conv" in layer:
                layer.conv.prepare()

    def check_length(self, max_tokens: int) -> None:
        self._rotary.check_length(max_tokens)

    def encode(self, tokens: Tokens, pick: Pick | None) -> mx.array:
        # The table may have another dtype than the computation.
        x = self.embed_tokens(tokens.ids).astype(self.embedding_norm.weight.dtype)
        angles, neighbors = self._rotary.angles(tokens), Neighbors(tokens, self._offsets)
        for layer, own in with_pick(self.layers, pick):
            x = eval_layer(layer(x, angles, neighbors, tokens, own))
        return self.embedding_norm(x)
