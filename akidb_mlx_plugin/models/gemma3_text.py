"""Gemma 3, text only: EmbeddingGemma and related models.

Source: Hugging Face `Gemma3TextModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.architectures import is_bidirectional
from akidb_mlx_plugin.models.base import TASK_HEADS, PickingEncoder, eval_layer, with_pick
from akidb_mlx_plugin.models.settings import (
    attention_window,
    check_activation,
    layer_windows,
    rope_settings,
    take_count,
    take_fields,
)
from akidb_mlx_plugin.nn.activations import GATED_ACTIVATIONS
from akidb_mlx_plugin.nn.attention import attend
from akidb_mlx_plugin.nn.batch import Pick, Tokens, take
from akidb_mlx_plugin.nn.rope_scaling import RopeSettings
from akidb_mlx_plugin.nn.rotary import Angles, Rotary, rotate


@dataclass(frozen=True)
class ModelArgs:
    """The model's settings, named as in `config.json`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    global_rope: RopeSettings
    local_rope: RopeSettings
    windows: tuple[int | None, ...]
    causal: bool
    num_key_value_heads: int = 4
    head_dim: int = 256
    rms_norm_eps: float = 1e-6
    hidden_activation: str = "gelu_pytorch_tanh"
    query_pre_attn_scalar: float = 256
    attention_bias: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelArgs:
        """Read the settings; reject variants that this encoder does not compute."""
        check_activation(config, "hidden_activation", "gelu_pytorch_tanh")
        if config.get("attn_logit_softcapping"):
            raise ModelNotFoundError("attn_logit_softcapping is not supported")
        layers = take_count(config, "num_hidden_layers")
        every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6
        pattern = config.get("layer_types") or [
            "sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)
        ]
        setting = take_count(config, "sliding_window", 4096)
        full_width = bool(config.get("use_bidirectional_attention"))
        if full_width:
            # Half of it to each side, and the token itself.
            setting = setting // 2 + 1
        # transformers reads both settings; with is_causal false it uses another mask.
        window: int | None = setting
        if any(layer_windows(pattern, setting, layers)) and (not full_width or config.get("is_causal") is False):
            window = attention_window(config, setting)
        size = take_count(config, "head_dim", cls.head_dim)
        return cls(
            **take_fields(
                cls,
                config,
                global_rope=rope_settings(config, size=size, default_theta=1_000_000.0, layer_type="full_attention"),
                local_rope=rope_settings(
                    config,
                    size=size,
                    default_theta=10_000.0,
                    theta_key="rope_local_base_freq",
                    layer_type="sliding_attention",
                    scaled=False,
                ),
                windows=layer_windows(pattern, window, layers),
                causal=not is_bidirectional(config),
            )
        )


class Attention(nn.Module):
    """Grouped-query attention; queries and keys are normalized per head before rotation."""

    def __init__(self, args: ModelArgs, window: int | None) -> None:
        super().__init__()
        self.head_dim = args.head_dim
        self.scale = args.query_pre_attn_scalar**-0.5
        self.causal = args.causal
        self.window = window
        width, key_width = args.num_attention_heads * args.head_dim, args.num_key_value_heads * args.head_dim
        self.q_proj = nn.Linear(args.hidden_size, width, bias=args.attention_bias)
        self.k_proj = nn.Linear(args.hidden_size, key_width, bias=args.attention_bias)
        self.v_proj = nn.Linear(args.hidden_size, key_width, bias=args.attention_bias)
        self.o_proj = nn.Linear(width, args.hidden_size, bias=args.attention_bias)
        self.q_norm = nn.RMSNorm(args.head_dim, args.rms_norm_eps)
        self.k_norm = nn.RMSNorm(args.head_dim, args.rms_norm_eps)

    def __call__(self, x: mx.array, angles: Angles, tokens: Tokens, pick: Pick | None = None) -> mx.array:
        # (T, H * d) -> (T, H, d)
        q, k, v = (
            project(y).reshape(len(y), -1, self.head_dim)
            for project, y in ((self.q_proj, take(x, pick)), (self.k_proj, x), (self.v_proj, x))
        )
        q = rotate(self.q_norm(q), angles if pick is None else angles.at(pick.places))
        k = rotate(self.k_norm(k), angles)
        return self.o_proj(
            attend(q, k, v, tokens.blocks, scale=self.scale, causal=self.causal, window=self.window, pick=pick)
        )


class MLP(nn.Module):
    """Gated feed-forward network."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.up_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.down_proj = nn.Linear(args.intermediate_size, args.hidden_size, bias=False)
        self._gate = GATED_ACTIVATIONS[args.hidden_activation]

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(self._gate(self.gate_proj(x), self.up_proj(x)))


class EncoderLayer(nn.Module):
    """Attention, then the feed-forward network, each with norms before and after it and a residual connection."""

    def __init__(self, args: ModelArgs, window: int | None) -> None:
        super().__init__()
        self.is_local = window is not None
        self.self_attn = Attention(args, window)
        self.mlp = MLP(args)
        self.input_layernorm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.pre_feedforward_layernorm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.post_feedforward_layernorm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)

    def __call__(self, x: mx.array, angles: Angles, tokens: Tokens, pick: Pick | None = None) -> mx.array:
        x = take(x, pick) + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), angles, tokens, pick))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Gemma3Encoder(PickingEncoder):
    """The Gemma 3 text decoder up to its final norm."""

    # The residual stream reaches 8e5, beyond the range of float16.
    float16_is_safe = False

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.hidden_size = args.hidden_size
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [EncoderLayer(args, window) for window in args.windows]
        self.norm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self._global_rotary = Rotary.from_settings(args.global_rope)
        self._local_rotary = Rotary.from_settings(args.local_rope)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Gemma3Encoder:
        return cls(ModelArgs.from_config(config))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        # MLX conversions keep the prefix of the causal model; the original has none.
        clean = {name.removeprefix("model."): value for name, value in weights.items()}
        return {name: value for name, value in clean.items() if not name.startswith(TASK_HEADS)}

    def prepare(self) -> None:
        # Gemma's norms scale by one plus their weight.
        for module in self.modules():
            if isinstance(module, nn.RMSNorm):
                module.weight = 1.0 + module.weight.astype(mx.float32)

    def encode(self, tokens: Tokens, pick: Pick | None) -> mx.array:
        dtype = self.norm.weight.dtype
        # transformers also rounds the factor to the dtype of the weights.
        x = self.embed_tokens(tokens.ids).astype(dtype) * mx.array(self.hidden_size**0.5, dtype)
        angles = {True: self._local_rotary.angles(tokens), False: self._global_rotary.angles(tokens)}
        for layer, own in with_pick(self.layers, pick):
            x = eval_layer(layer(x, angles[layer.is_local], tokens, own))
        return self.norm(x)
