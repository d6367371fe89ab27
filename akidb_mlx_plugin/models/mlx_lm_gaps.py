"""Where mlx-lm departs from a checkpoint's settings, according to the sources of mlx-lm 0.32.2.

What can be fixed in the settings it reads is fixed; the rest is rejected.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError

# Loads without an error but gives wrong vectors: cosine 0.96 against transformers with mlx-lm 0.32.
DIFFERENT = frozenset({"glm"})
# Architectures that apply the sliding window in their configuration. All others ignore it, including mixtral, gemma2,
# starcoder2, phimoe, qwen2_moe, qwen3_moe, smollm3, dots1, minimax, nemotron_h and plamo2.
_NAMES = """
afmoe baichuan_m1 cohere2 deepseek_v41 exaone4 exaone_moe gear gemma3n gemma4_text gpt_oss laguna mellum mimo_v2_flash
muse_glimmer olmo3 plamo3 recurrent_gemma spark2_5 step3p5
"""
APPLY_WINDOW = frozenset(_NAMES.split())
_WINDOWS = ("sliding_window", "sliding_window_size", "attention_window_size", "window_size")
# Kinds of rotary scaling that mlx-lm computes like transformers.
_SCALED_ROPES = frozenset({"linear", "dynamic", "llama3", "yarn"})


def ignored_window(config: Mapping[str, Any]) -> int | None:
    """Return the sliding window of a checkpoint if mlx-lm ignores it, so that longer texts get wrong vectors."""
    if config.get("model_type") in APPLY_WINDOW or config.get("use_sliding_window") is False:
        return None
    kinds, first, layers = (config.get(key) for key in ("layer_types", "max_window_layers", "num_hidden_layers"))
    if isinstance(kinds, list) and "sliding_attention" not in kinds:
        return None
    if not kinds and isinstance(first, int) and isinstance(layers, int) and first >= layers:
        return None
    return next((value for value in (config.get(key) for key in _WINDOWS) if isinstance(value, int) and value), None)


def check_layer_types(config: Mapping[str, Any], args: Any) -> None:
    """Check that mlx-lm applies the sliding window in the right layers.

    Args:
        config: `config.json`.
        args: mlx-lm's settings made from it.
    Raises:
        ModelNotFoundError: mlx-lm follows a pattern that `layer_types` contradicts.
    """
    kinds = config.get("layer_types")
    pattern = getattr(args, "sliding_window_pattern", None)
    if not kinds or pattern is None or hasattr(args, "layer_types"):
        return
    if isinstance(pattern, str):
        taken = [pattern[i % len(pattern)] == "L" for i in range(len(kinds))]
    else:
        taken = [(i + 1) % pattern != 0 for i in range(len(kinds))]
    if taken != [kind == "sliding_attention" for kind in kinds]:
        raise ModelNotFoundError(
            f"layer_types in config.json are not in the order that mlx-lm's {config['model_type']} computes "
            f"(sliding_window_pattern {pattern!r})"
        )


def with_flat_rope(config: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the configuration with `rope_parameters`, transformers 5's layout, also in the earlier layout.

    Args:
        config: `config.json`.
        known: settings that mlx-lm's architecture reads.
    Raises:
        ModelNotFoundError: there are parameters by layer type, which it would ignore.
    """
    rope = config.get("rope_parameters") or {}
    if "rope_parameters" in known or not rope:
        return dict(config)
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ModelNotFoundError(f"rope_parameters by layer type are not read by mlx-lm's {config['model_type']}")
    scaling = {"rope_scaling": dict(rope)} if rope.get("rope_type", "default") != "default" else {}
    return {**scaling, **rope, **config}


def check_rope(config: Mapping[str, Any], model: nn.Module) -> None:
    """Check that mlx-lm's model scales rotary positions as the checkpoint specifies.

    Args:
        config: `config.json`.
        model: mlx-lm's model made from it.
    Raises:
        ModelNotFoundError: it does not scale them, or not like transformers.
    """
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(scaling, Mapping):
        raise ModelNotFoundError(f"rotary settings in config.json must be an object, got {scaling!r}")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    name = f"rope type {kind!r} of this {config['model_type']}"
    if kind in ("longrope", "su"):
        raise ModelNotFoundError(
            f"{name} is not supported: mlx-lm applies the factors for long texts to short ones too"
        )
    if kind == "yarn" and (scaling.get("attention_factor") is not None or scaling.get("truncate") is False):
        raise ModelNotFoundError(f"{name} has attention_factor or truncate, which mlx-lm ignores")
    if kind in ("llama3", "yarn") and "original_max_position_embeddings" not in scaling:
        raise ModelNotFoundError(f"{name} lacks original_max_position_embeddings, for which mlx-lm uses its own")
    ropes = [module for module in model.modules() if "rope" in type(module).__name__.lower()]
    plain = [rope for rope in ropes if isinstance(rope, nn.RoPE) and rope.scale == 1.0]
    if kind in _SCALED_ROPES and ropes and len(plain) == len(ropes):
        raise ModelNotFoundError(f"{name} is not supported: mlx-lm does not scale the positions")
