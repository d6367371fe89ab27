"""Qwen3: Qwen3-Embedding and kin.

Source: Hugging Face `Qwen3Model`, the causal decoder without its language model head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.base import Encoder, settle
from akidb_mlx_plugin.models.settings import check_activation, layer_windows, rope_settings, take_count, take_fields
from akidb_mlx_plugin.nn.activations import GATED_ACTIVATIONS
from akidb_mlx_plugin.nn.attention import attend
from akidb_mlx_plugin.nn.batch import Tokens
from akidb_mlx_plugin.nn.rope_scaling import RopeSettings
from akidb_mlx_plugin.nn.rotary import Rotary, rotate


@dataclass(frozen=True)
class Args:
    """The settings of `config.json` that shape the model, under their names there."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    rope: RopeSettings
    windows: tuple[int | None, ...]
    num_key_value_heads: int | None = None
    # Independent of hidden_size / num_attention_heads.
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    attention_bias: bool = False
    is_causal: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Args:
        """Take what is named here and refuse variants that would compute something else."""
        check_activation(config, "hidden_act", "silu")
        rope = rope_settings(config, size=take_count(config, "head_dim", cls.head_dim), default_theta=10_000.0)
        layers = take_count(config, "num_hidden_layers")
        sliding = config.get("sliding_window") if config.get("use_sliding_window") else None
        pattern = config.get("layer_types") or [
            "sliding_attention" if sliding and i >= config.get("max_window_layers", 28) else "full_attention"
            for i in range(layers)
        ]
        windows = layer_windows(pattern, sliding, layers)
        if config.get("is_causal") is False and any(windows):
            raise ModelNotFoundError("a Qwen3 that attends in both directions through a window is not supported")
        return cls(**take_fields(cls, config, rope=rope, windows=windows))


class Attention(nn.Module):
    """Grouped-query attention, queries and keys normalized per head before they are rotated."""

    def __init__(self, args: Args, window: int | None) -> None:
        super().__init__()
        self.head_dim = args.head_dim
        self.causal = args.is_causal
        self.window = window
        width = args.num_attention_heads * args.head_dim
        key_width = (args.num_key_value_heads or args.num_attention_heads) * args.head_dim
        self.q_proj = nn.Linear(args.hidden_size, width, bias=args.attention_bias)
        self.k_proj = nn.Linear(args.hidden_size, key_width, bias=args.attention_bias)
        self.v_proj = nn.Linear(args.hidden_size, key_width, bias=args.attention_bias)
        self.o_proj = nn.Linear(width, args.hidden_size, bias=args.attention_bias)
        self.q_norm = nn.RMSNorm(args.head_dim, eps=args.rms_norm_eps)
        self.k_norm = nn.RMSNorm(args.head_dim, eps=args.rms_norm_eps)

    def __call__(self, x: mx.array, angles: tuple[mx.array, mx.array], tokens: Tokens) -> mx.array:
        # (T, H * d) -> (T, H, d)
        q, k, v = (project(x).reshape(len(x), -1, self.head_dim) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), angles), rotate(self.k_norm(k), angles)
        scale = self.head_dim**-0.5
        return self.o_proj(attend(q, k, v, tokens.blocks, scale=scale, causal=self.causal, window=self.window))


class MLP(nn.Module):
    """Gated feed-forward network."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.up_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.down_proj = nn.Linear(args.intermediate_size, args.hidden_size, bias=False)
        self._gate = GATED_ACTIVATIONS[args.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(self._gate(self.gate_proj(x), self.up_proj(x)))


class Block(nn.Module):
    """Attention, then the feed-forward network, each normalized before and added to what came in."""

    def __init__(self, args: Args, window: int | None) -> None:
        super().__init__()
        self.self_attn = Attention(args, window)
        self.mlp = MLP(args)
        self.input_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(self, x: mx.array, angles: tuple[mx.array, mx.array], tokens: Tokens) -> mx.array:
        x = x + self.self_attn(self.input_layernorm(x), angles, tokens)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3Encoder(Encoder):
    """The Qwen3 decoder up to its final norm."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.hidden_size = args.hidden_size
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [Block(args, window) for window in args.windows]
        self.norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self._rotary = Rotary.from_settings(args.rope)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Qwen3Encoder:
        return cls(Args.from_config(config))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        # MLX conversions keep the prefix of the causal model, the original has none.
        clean = {name.removeprefix("model."): value for name, value in weights.items()}
        return {name: value for name, value in clean.items() if not name.startswith("lm_head.")}

    def __call__(self, tokens: Tokens) -> mx.array:
        # The table may be of another format than the computation.
        x = self.embed_tokens(tokens.ids).astype(self.norm.weight.dtype)
        angles = self._rotary.angles(tokens)
        for layer in self.layers:
            x = settle(layer(x, angles, tokens))
        return self.norm(x)
