"""The text tower of EmbeddingGemma 2.

Source: Hugging Face `EmbeddingGemma2TextModel`, and `EmbeddingGemma2Model` around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.architectures import text_settings
from akidb_mlx_plugin.models.base import Encoder, eval_layer, split_linear
from akidb_mlx_plugin.models.settings import (
    check_activation,
    layer_windows,
    optional_count,
    rope_settings,
    take_count,
    take_fields,
)
from akidb_mlx_plugin.nn.activations import GATED_ACTIVATIONS
from akidb_mlx_plugin.nn.attention import attend
from akidb_mlx_plugin.nn.batch import Tokens
from akidb_mlx_plugin.nn.rope_scaling import RopeSettings
from akidb_mlx_plugin.nn.rotary import Angles, Rotary, rotate

_COUNTS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_size_per_layer_input",
    "embedding_dim",
)
# The other parts of a whole model.
_OTHER_TOWERS = ("vision_tower.", "embed_vision.", "audio_tower.", "embed_audio.")


@dataclass(frozen=True)
class ModelArgs:
    """The model's settings, named as in `text_config` where they occur there.

    Attributes:
        global_rope, local_rope: rotary settings of layers with full attention and with a sliding window.
        windows: sliding window of each layer; None for full attention.
        heads: head size and number of key heads of each layer.
        placeholders: tokens that stand for an image, a video or audio.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_size_per_layer_input: int
    embedding_dim: int
    global_rope: RopeSettings
    local_rope: RopeSettings
    windows: tuple[int | None, ...]
    heads: tuple[tuple[int, int], ...]
    placeholders: tuple[int, ...]
    rms_norm_eps: float = 1e-6
    hidden_activation: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    pad_token_id: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelArgs:
        """Read the settings from a `config.json` of the whole model or of the text tower alone."""
        settings = text_settings(config)["text_config"]
        check_activation(settings, "hidden_activation", "gelu_pytorch_tanh")
        counts = {name: take_count(settings, name) for name in _COUNTS}
        kinds = _layer_types(settings)
        heads = _heads(settings, kinds)
        sizes = {kind: size for kind, (size, _) in zip(kinds, heads, strict=True)}
        ropes = {
            # For a kind that no layer has, the size does not matter.
            name: rope_settings(settings, size=sizes.get(kind, 2), default_theta=theta, layer_type=kind)
            for name, kind, theta in (
                ("global_rope", "full_attention", 1_000_000.0),
                ("local_rope", "sliding_attention", 10_000.0),
            )
        }
        # The setting is an inclusive radius.
        radius = optional_count(settings, "sliding_window", least=0) if "sliding_window" in settings else 512
        found = [config.get(f"{kind}_token_id") for kind in ("image", "video", "audio")]
        return cls(
            **take_fields(
                cls,
                settings,
                **counts,
                **ropes,
                windows=layer_windows(kinds, None if radius is None else radius + 1, len(kinds)),
                heads=heads,
                placeholders=tuple(i for i in found if type(i) is int and 0 <= i < counts["vocab_size"]),
            )
        )


def _layer_types(settings: Mapping[str, Any]) -> list[str]:
    """Return the kind of every layer; the last one always has full attention."""
    layers = take_count(settings, "num_hidden_layers")
    every = take_count(settings, "sliding_window_pattern", 6)
    kinds = settings.get("layer_types") or [
        "sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)
    ]
    layer_windows(kinds, 1, layers)
    return [*kinds[:-1], "full_attention"]


def _heads(settings: Mapping[str, Any], kinds: list[str]) -> tuple[tuple[int, int], ...]:
    """Return the head size and number of key heads of every layer.

    Raises:
        ModelNotFoundError: a layer has its own value of another setting, or other head sizes than layers of its kind.
    """
    given = settings.get("per_layer_config")
    if given is None:
        wide = {
            "head_dim": take_count(settings, "global_head_dim", 512),
            "num_key_value_heads": take_count(settings, "num_global_key_value_heads", 1),
        }
        given = {i: wide for i, kind in enumerate(kinds) if kind == "full_attention"}
    if not isinstance(given, Mapping) or not all(isinstance(values, Mapping) for values in given.values()):
        raise ModelNotFoundError(f"per_layer_config in config.json must hold an object per layer, got {given!r}")
    own = {str(layer).lstrip("0") or "0": values for layer, values in given.items()}
    unknown = sorted({str(name) for values in own.values() for name in values} - {"head_dim", "num_key_value_heads"})
    if unknown:
        raise ModelNotFoundError(
            f"per_layer_config sets {', '.join(unknown)}; supported are head_dim and num_key_value_heads"
        )
    heads = []
    for i in range(len(kinds)):
        layer = {**settings, **own.get(str(i), {})}
        heads.append((take_count(layer, "head_dim", 256), take_count(layer, "num_key_value_heads", 2)))
    if len({(kind, size) for kind, (size, _) in zip(kinds, heads, strict=True)}) > len(set(kinds)):
        raise ModelNotFoundError("per_layer_config gives layers of the same kind different head sizes")
    return tuple(heads)


class Attention(nn.Module):
    """Bidirectional grouped-query attention; queries, keys and values are normalized per head."""

    def __init__(self, args: ModelArgs, index: int) -> None:
        super().__init__()
        self.head_dim, key_heads = args.heads[index]
        self.window = args.windows[index]
        self.eps = args.rms_norm_eps
        width, key_width = args.num_attention_heads * self.head_dim, key_heads * self.head_dim
        self.q_proj = nn.Linear(args.hidden_size, width, bias=args.attention_bias)
        self.k_proj = nn.Linear(args.hidden_size, key_width, bias=args.attention_bias)
        self.v_proj = nn.Linear(args.hidden_size, key_width, bias=args.attention_bias)
        self.o_proj = nn.Linear(width, args.hidden_size, bias=args.attention_bias)
        self.q_norm = nn.RMSNorm(self.head_dim, args.rms_norm_eps)
        self.k_norm = nn.RMSNorm(self.head_dim, args.rms_norm_eps)

    def __call__(self, x: mx.array, angles: Angles, tokens: Tokens) -> mx.array:
        # (T, H * d) -> (T, H, d)
        q, k, v = (project(x).reshape(len(x), -1, self.head_dim) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), angles), rotate(self.k_norm(k), angles)
        v = mx.fast.rms_norm(v, None, self.eps)
        # The norms replace scaling.
        return self.o_proj(attend(q, k, v, tokens.blocks, scale=1.0, window=self.window))


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


class LayerInputs(nn.Module):
    """Per-layer inputs: a normalized projection of the word vectors for every layer."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        width = args.num_hidden_layers * args.hidden_size_per_layer_input
        self.per_layer_model_projection = nn.Linear(args.hidden_size, width, bias=False)
        self.per_layer_projection_norm = nn.RMSNorm(args.hidden_size_per_layer_input, args.rms_norm_eps)

    def prepare(self) -> None:
        """Split the projection by layer: all layers' inputs together would take too much memory."""
        count = self.per_layer_model_projection.weight.shape[0] // len(self.per_layer_projection_norm.weight)
        self.projections = split_linear(self.per_layer_model_projection, count)
        del self.per_layer_model_projection

    def __call__(self, words: mx.array, index: int) -> mx.array:
        return self.per_layer_projection_norm(self.projections[index](words) * words.shape[-1] ** -0.5)


class LayerInputGate(nn.Module):
    """Adds the per-layer input, gated by the layer's output."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.per_layer_input_gate = nn.Linear(args.hidden_size, args.hidden_size_per_layer_input, bias=False)
        self.per_layer_projection = nn.Linear(args.hidden_size_per_layer_input, args.hidden_size, bias=False)
        self.post_per_layer_input_norm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self._gate = GATED_ACTIVATIONS[args.hidden_activation]

    def __call__(self, x: mx.array, layer_input: mx.array) -> mx.array:
        mixed = self.per_layer_projection(self._gate(self.per_layer_input_gate(x), layer_input))
        return x + self.post_per_layer_input_norm(mixed)


class EncoderLayer(nn.Module):
    """Attention, feed-forward network and per-layer input, each with norms and a residual connection; then scaled."""

    def __init__(self, args: ModelArgs, index: int) -> None:
        super().__init__()
        self.is_local = args.windows[index] is not None
        self.self_attn = Attention(args, index)
        self.mlp = MLP(args)
        self.input_layernorm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.pre_feedforward_layernorm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.post_feedforward_layernorm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.ple_block = LayerInputGate(args)
        self.layer_scalar = mx.ones((1,))

    def __call__(self, x: mx.array, layer_input: mx.array, angles: Angles, tokens: Tokens) -> mx.array:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), angles, tokens))
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return self.ple_block(x, layer_input) * self.layer_scalar


class EmbeddingGemma2Encoder(Encoder):
    """The text tower of EmbeddingGemma 2 and the projection after it."""

    # Like Gemma 3's, its residual stream exceeds the range of float16.
    float16_is_safe = False

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.hidden_size = args.embedding_dim
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.ple = LayerInputs(args)
        self.layers = [EncoderLayer(args, i) for i in range(args.num_hidden_layers)]
        self.norm = nn.RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.embedding_projection = nn.Linear(args.hidden_size, args.embedding_dim, bias=False)
        self._placeholders, self._pad = args.placeholders, args.pad_token_id
        self._global_rotary = Rotary.from_settings(args.global_rope)
        self._local_rotary = Rotary.from_settings(args.local_rope)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> EmbeddingGemma2Encoder:
        return cls(ModelArgs.from_config(config))

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        clean = {name.removeprefix("model."): value for name, value in weights.items()}
        text = {name: value for name, value in clean.items() if not name.startswith(_OTHER_TOWERS)}
        return {name.removeprefix("language_model."): value for name, value in text.items()}

    def prepare(self) -> None:
        self.ple.prepare()

    def check_length(self, max_tokens: int) -> None:
        self._global_rotary.check_length(max_tokens)
        self._local_rotary.check_length(max_tokens)

    def __call__(self, tokens: Tokens) -> mx.array:
        dtype = self.norm.weight.dtype
        ids = tokens.ids
        for placeholder in self._placeholders:
            # Without an image or the like, it counts as a padding token, though attended to.
            ids = mx.where(ids == placeholder, self._pad, ids)
        # transformers also rounds the factor to the dtype of the weights.
        x = words = self.embed_tokens(ids).astype(dtype) * mx.array(self.norm.weight.shape[0] ** 0.5, dtype)
        angles = {True: self._local_rotary.angles(tokens), False: self._global_rotary.angles(tokens)}
        for i, layer in enumerate(self.layers):
            x = eval_layer(layer(x, self.ple(words, i), angles[layer.is_local], tokens))
        return self.embedding_projection(self.norm(x))
