"""ModernBERT: gte-modernbert, nomic's modernbert-embed and related models.

Source: Warner et al. 2024; Hugging Face `ModernBertModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.models.base import TASK_HEADS, PickingEncoder, eval_layer, split_linear, with_pick
from akidb_mlx_plugin.models.settings import check_activation, layer_windows, rope_settings, take_count, take_fields
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
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_activation: str = "gelu"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelArgs:
        """Read the settings; reject variants that this encoder does not compute."""
        check_activation(config, "hidden_activation", "gelu")
        layers = take_count(config, "num_hidden_layers")
        every = config.get("global_attn_every_n_layers") or 3
        pattern = config.get("layer_types") or [
            "sliding_attention" if i % every else "full_attention" for i in range(layers)
        ]
        # The setting is the full width: a token sees half of it to each side, inclusive.
        window = (config.get("local_attention") or 128) // 2 + 1
        size = take_count(config, "hidden_size") // take_count(config, "num_attention_heads")
        ropes = {
            name: rope_settings(
                config, size=size, default_theta=theta, theta_key=f"{name}_theta", layer_type=layer_type
            )
            for name, theta, layer_type in (
                ("global_rope", 160_000.0, "full_attention"),
                ("local_rope", 10_000.0, "sliding_attention"),
            )
        }
        return cls(**take_fields(cls, config, windows=layer_windows(pattern, window, layers), **ropes))


class Embeddings(nn.Module):
    """Word vectors, normalized."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(args.vocab_size, args.hidden_size)
        self.norm = nn.LayerNorm(args.hidden_size, eps=args.norm_eps, bias=args.norm_bias)

    def __call__(self, ids: mx.array) -> mx.array:
        # The table may have another dtype than the computation.
        return self.norm(self.tok_embeddings(ids).astype(self.norm.weight.dtype))


class Attention(nn.Module):
    """Multi-head attention with rotary positions."""

    def __init__(self, args: ModelArgs, window: int | None) -> None:
        super().__init__()
        self.heads = args.num_attention_heads
        self.window = window
        self.Wqkv = nn.Linear(args.hidden_size, 3 * args.hidden_size, bias=args.attention_bias)
        self.Wo = nn.Linear(args.hidden_size, args.hidden_size, bias=args.attention_bias)

    def prepare(self) -> None:
        """Split the fused projection."""
        self.query, self.key, self.value = split_linear(self.Wqkv, 3)
        del self.Wqkv

    def __call__(self, x: mx.array, angles: Angles, tokens: Tokens, pick: Pick | None = None) -> mx.array:
        size = x.shape[-1] // self.heads
        # (T, D) -> (T, H, d)
        q, k, v = (
            project(y).reshape(len(y), self.heads, size)
            for project, y in ((self.query, take(x, pick)), (self.key, x), (self.value, x))
        )
        q = rotate(q, angles if pick is None else angles.at(pick.places))
        k = rotate(k, angles)
        return self.Wo(attend(q, k, v, tokens.blocks, scale=size**-0.5, window=self.window, pick=pick))


class MLP(nn.Module):
    """Gated feed-forward network."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.Wi = nn.Linear(args.hidden_size, 2 * args.intermediate_size, bias=args.mlp_bias)
        self.Wo = nn.Linear(args.intermediate_size, args.hidden_size, bias=args.mlp_bias)
        self._gate = GATED_ACTIVATIONS[args.hidden_activation]

    def prepare(self) -> None:
        """Split the fused projection."""
        self.input, self.gate = split_linear(self.Wi, 2)
        del self.Wi

    def __call__(self, x: mx.array) -> mx.array:
        return self.Wo(self._gate(self.input(x), self.gate(x)))


class EncoderLayer(nn.Module):
    """Attention, then the feed-forward network, each with a norm before it and a residual connection."""

    def __init__(self, args: ModelArgs, index: int) -> None:
        super().__init__()
        self.is_local = args.windows[index] is not None
        # The input of the first layer is already normalized.
        self.attn_norm = (
            nn.LayerNorm(args.hidden_size, eps=args.norm_eps, bias=args.norm_bias) if index else nn.Identity()
        )
        self.attn = Attention(args, args.windows[index])
        self.mlp_norm = nn.LayerNorm(args.hidden_size, eps=args.norm_eps, bias=args.norm_bias)
        self.mlp = MLP(args)

    def __call__(self, x: mx.array, angles: Angles, tokens: Tokens, pick: Pick | None = None) -> mx.array:
        x = take(x, pick) + self.attn(self.attn_norm(x), angles, tokens, pick)
        return x + self.mlp(self.mlp_norm(x))


class ModernBertEncoder(PickingEncoder):
    """The ModernBERT encoder."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.hidden_size = args.hidden_size
        self.embeddings = Embeddings(args)
        self.layers = [EncoderLayer(args, i) for i in range(args.num_hidden_layers)]
        self.final_norm = nn.LayerNorm(args.hidden_size, eps=args.norm_eps, bias=args.norm_bias)
        self._global_rotary = Rotary.from_settings(args.global_rope)
        self._local_rotary = Rotary.from_settings(args.local_rope)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModernBertEncoder:
        return cls(ModelArgs.from_config(config))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        clean = {name.removeprefix("model."): value for name, value in weights.items()}
        # The part that all heads share, and the one for masked language modeling.
        heads = ("head.", "decoder.", *TASK_HEADS)
        return {name: value for name, value in clean.items() if not name.startswith(heads)}

    def prepare(self) -> None:
        for layer in self.layers:
            layer.attn.prepare()
            layer.mlp.prepare()

    def encode(self, tokens: Tokens, pick: Pick | None) -> mx.array:
        x = self.embeddings(tokens.ids)
        angles = {True: self._local_rotary.angles(tokens), False: self._global_rotary.angles(tokens)}
        for layer, own in with_pick(self.layers, pick):
            x = eval_layer(layer(x, angles[layer.is_local], tokens, own))
        return self.final_norm(x)
