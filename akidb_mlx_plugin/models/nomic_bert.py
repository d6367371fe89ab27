"""NomicBERT: nomic-embed-text v1 to v2-moe, snowflake-arctic-embed-m-long, CodeRankEmbed.

Source: Nussbaum et al. 2024, Nussbaum and Duderstadt 2025; Hugging Face `NomicBertModel`; for its published settings,
experts and long texts, nomic-ai's own code, nomic-bert-2048 and contrastors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.rotary_bert import (
    MLP,
    GatedMLP,
    ModelArgs,
    RotaryBertEncoder,
    check_neutral,
    rename_tensors,
    take_number,
)
from akidb_mlx_plugin.models.settings import check_activation, rope_settings, take_fields
from akidb_mlx_plugin.nn.activations import ACTIVATIONS
from akidb_mlx_plugin.nn.dynamic_rotary import DynamicRotary
from akidb_mlx_plugin.nn.rotary import Rotary

# Published names of settings, by their names in transformers.
_PUBLISHED = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
    "layer_norm_eps": "layer_norm_epsilon",
    "attention_bias": "qkv_proj_bias",
    "up_bias": "mlp_fc1_bias",
    "down_bias": "mlp_fc2_bias",
}
# Settings that transformers' layout lacks.
_OWN_DEFAULTS: dict[str, Any] = {"hidden_act": "silu", "attention_bias": False, "up_bias": False, "down_bias": False}
# Options of nomic's code that no known checkpoint uses.
_NEUTRAL = {
    "prenorm": False,
    "parallel_block": False,
    "causal": False,
    "use_rms_norm": False,
    "norm_mlp": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_head_dim": False,
    "expert_choice_router": False,
    "moe_normalize_expert_weights": False,
    "num_shared_experts": 0,
    "ffn_div": 1,
}
# By nomic's name: ours, and whether the network is gated.
_ACTIVATIONS = {"swiglu": ("silu", True), "geglu": ("gelu", True), "gelu": ("gelu", False)}
# Nomic's code rounds up the width of a gated network.
_WIDTH_MULTIPLE = 256
_NAMES = {
    "emb_ln.": "embeddings.LayerNorm.",
    "encoder.layers.": "layers.",
    ".attn.Wqkv.": ".self_attn.qkv_proj.",
    ".attn.out_proj.": ".self_attn.o_proj.",
    ".norm1.": ".post_attention_layernorm.",
    ".norm2.": ".post_mlp_layernorm.",
    ".mlp.experts.bias": ".mlp.bias",
}
_GATED_NAMES = {".mlp.fc11.": ".mlp.up_proj.", ".mlp.fc12.": ".mlp.gate_proj.", ".mlp.fc2.": ".mlp.down_proj."}


class Router(nn.Module):
    """Scores every expert for every token."""

    def __init__(self, args: ModelArgs, experts: int) -> None:
        super().__init__()
        self.layer = nn.Linear(args.hidden_size, experts, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.softmax(self.layer(x).astype(mx.float32), axis=-1)


class Expert(nn.Module):
    """A feed-forward network for a subset of the tokens."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.up_proj = nn.Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.down_proj = nn.Linear(args.intermediate_size, args.hidden_size, bias=False)
        self._activation = ACTIVATIONS[args.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(self._activation(self.up_proj(x)))


class MixtureOfExperts(nn.Module):
    """Each token's top experts, weighted by the router; their weights do not sum to one."""

    def __init__(self, args: ModelArgs, experts: int, per_token: int) -> None:
        super().__init__()
        self.router = Router(args, experts)
        self.experts = [Expert(args) for _ in range(experts)]
        self.bias = mx.zeros(args.hidden_size)
        self._per_token = per_token

    def __call__(self, x: mx.array) -> mx.array:
        weights = self.router(x)
        # (T, E) -> (T, k)
        chosen = mx.argsort(-weights, axis=-1)[:, : self._per_token]
        weights = mx.take_along_axis(weights, chosen, axis=-1)
        # Each expert computes its tokens in one batch, whose size is known only here.
        experts = np.array(chosen).reshape(-1)
        order = np.argsort(experts, kind="stable")
        stops = np.cumsum(np.bincount(experts, minlength=len(self.experts)))
        parts = mx.split(x[mx.array(order // self._per_token)], stops[:-1].tolist(), axis=0)
        outputs = [expert(part) for expert, part in zip(self.experts, parts, strict=True) if len(part)]
        # (T * k, D) in the order of the experts -> (T, k, D)
        y = mx.concatenate(outputs, axis=0)[mx.array(np.argsort(order))].reshape(len(x), self._per_token, -1)
        return (y * weights[..., None]).sum(axis=1).astype(x.dtype) + self.bias


class NomicBertEncoder(RotaryBertEncoder):
    """The NomicBERT encoder."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NomicBertEncoder:
        if "n_embd" in config:
            args, gated = _published_args(config)
        else:
            check_activation(config, "hidden_act", "silu")
            args, gated = ModelArgs(**_OWN_DEFAULTS | take_fields(ModelArgs, config)), True
        every = int(take_number(config, "moe_every_n_layers", 0))
        mlps: list[nn.Module] = []
        for i in range(args.num_hidden_layers):
            if every and i % every == 1:
                mlps.append(_build_experts(config, args, gated))
            else:
                mlps.append(GatedMLP(args) if gated else MLP(args))
        return cls(args, _build_rotary(config, args.head_size), mlps)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        gated = any(isinstance(layer.mlp, GatedMLP) for layer in self.layers)
        clean = rename_tensors(
            weights,
            prefixes=("model.", "bert.", "nomic_bert."),
            names=_NAMES | (_GATED_NAMES if gated else {}),
            fused={"qkv_proj": ("q_proj", "k_proj", "v_proj")},
        )
        for i, layer in enumerate(self.layers):
            if not isinstance(layer.mlp, MixtureOfExperts):
                continue
            # (E * F, D), the experts stacked; the second matrix is stored transposed.
            path = f"layers.{i}.mlp.experts"
            for name, ours in (("w1", "up_proj"), ("w2", "down_proj")):
                stacked = clean.pop(f"{path}.mlp.{name}", None)
                if stacked is not None:
                    for j, part in enumerate(mx.split(stacked, len(layer.mlp.experts), axis=0)):
                        clean[f"{path}.{j}.{ours}.weight"] = part if name == "w1" else part.T
        return clean


def _published_args(config: Mapping[str, Any]) -> tuple[ModelArgs, bool]:
    """Return the settings in nomic's own layout, and whether the feed-forward networks are gated."""
    check_neutral(config, {**_NEUTRAL, "num_heads_kv": config.get("n_head")})
    name = config.get("activation_function") or "gelu_new"
    if name not in _ACTIVATIONS:
        raise ModelNotFoundError(f"activation_function {name!r} is not supported, only {', '.join(_ACTIVATIONS)}")
    activation, gated = _ACTIVATIONS[name]
    taken = take_fields(ModelArgs, {**config, **{ours: config.get(theirs) for ours, theirs in _PUBLISHED.items()}})
    taken = {"layer_norm_eps": 1e-5, **taken, "hidden_act": activation}
    taken["vocab_size"] = _round_up(taken["vocab_size"], int(take_number(config, "pad_vocab_size_multiple", 1)))
    if gated:
        taken["intermediate_size"] = _round_up(taken["intermediate_size"], _WIDTH_MULTIPLE)
    return ModelArgs(**taken), gated


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _build_experts(config: Mapping[str, Any], args: ModelArgs, gated: bool) -> MixtureOfExperts:
    experts, per_token = int(take_number(config, "num_experts", 0)), int(take_number(config, "moe_top_k", 1))
    if gated or not 0 < per_token <= experts:
        raise ModelNotFoundError(
            f"moe_top_k {per_token} of num_experts {experts} with {config.get('activation_function')!r} is not "
            "supported; supported are experts without gates, at most all of them per token"
        )
    return MixtureOfExperts(args, experts, per_token)


def _build_rotary(config: Mapping[str, Any], size: int) -> Rotary:
    """Return the rotary positions: plain, or with a base that grows with the length of long texts."""
    rope = config.get("rope_parameters") or {}
    dynamic = rope.get("rope_type") == "dynamic"
    if "n_embd" in config:
        theta = take_number(config, "rotary_emb_base", 10_000.0)
        factor = take_number(config, "rotary_scaling_factor", 0)
        if not rope:
            trained = int(take_number(config, "max_trained_positions", 2048))
            return DynamicRotary(size, theta, factor, trained) if factor else Rotary(size, theta)
        # Some checkpoints have both layouts; transformers reads its own.
        if take_number(rope, "rope_theta", theta) != theta or (factor and not dynamic):
            raise ModelNotFoundError(
                f"rope_parameters {rope} contradict rotary_emb_base {theta:g} and rotary_scaling_factor {factor:g}"
            )
    if not dynamic:
        return Rotary.from_settings(rope_settings(config, size=size, default_theta=1000.0))
    trained = int(take_number(config, "max_position_embeddings", 2048))
    return DynamicRotary(size, take_number(rope, "rope_theta", 1000.0), take_number(rope, "factor", 1.0), trained)
