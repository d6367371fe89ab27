"""Tiny checkpoints of causal decoders, and of their relatives that look both ways."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from tiny import GEMMA, GEMMA_SIZES, GROUPED, PROMPTS, QWEN, SHORT, SIZES, Tiny
from tiny_tokenizers import gemma_tokenizer, llama_tokenizer, qwen3_tokenizer

LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
MEAN, LAST = {"pooling_mode": "mean"}, {"pooling_mode": "lasttoken"}
# Original lengths far below the texts', so that every part of a scaling shows.
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
MINISTRAL3 = YARN | {
    "beta_fast": 1.0,
    "beta_slow": 0.2,
    "mscale": 0.7,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.3,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.2, 2.5, 4.0],
    "partial_rotary_factor": 0.75,
}


def checkpoints() -> dict[str, Tiny]:
    """Return the checkpoints by name."""
    return _llama() | _mistral() | _qwen() | _others()


def _tiny(config: transformers.PretrainedConfig, pooling: dict[str, Any], **more: Any) -> Tiny:
    return Tiny(config, llama_tokenizer, LLAMA, 48, SHORT, pooling, dtype=torch.bfloat16, **more)


def _llama() -> dict[str, Tiny]:
    sizes = {**GROUPED, "max_position_embeddings": 64, "tie_word_embeddings": False}
    biases = {"attention_bias": True, "mlp_bias": True}
    return {
        "llama_scaled": _tiny(transformers.LlamaConfig(**sizes, **biases, rope_parameters=LLAMA3), LAST),
        "llama_both_ways": _tiny(transformers.LlamaConfig(**sizes, is_causal=False), MEAN, prompts=PROMPTS),
    }


def _mistral() -> dict[str, Tiny]:
    sizes = {**GROUPED, "max_position_embeddings": 64}
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    t = transformers
    return {
        "mistral": _tiny(t.MistralConfig(**sizes, sliding_window=6), LAST, with_head=True, prompts=PROMPTS),
        "mistral_both_ways": _tiny(t.MistralConfig(**sizes, sliding_window=6, is_causal=False), MEAN),
        "ministral": _tiny(t.MinistralConfig(**sizes, sliding_window=6, layer_types=kinds), LAST),
        "ministral3": _tiny(t.Ministral3Config(**sizes, rope_parameters=MINISTRAL3), LAST),
        "ministral3_both_ways": _tiny(t.Ministral3Config(**sizes, rope_parameters=MINISTRAL3, is_causal=False), MEAN),
        "phi3": _tiny(
            t.Phi3Config(
                **{**SIZES, "num_key_value_heads": 2},
                max_position_embeddings=64,
                original_max_position_embeddings=20,
                sliding_window=24,
                pad_token_id=0,
                rope_parameters=LONGROPE,
            ),
            LAST,
        ),
    }


def _qwen() -> dict[str, Tiny]:
    sizes = {**SIZES, "num_hidden_layers": 3, "num_key_value_heads": 2, "max_position_embeddings": 64}
    window = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}

    def tiny(config: transformers.PretrainedConfig, pooling: dict[str, Any]) -> Tiny:
        return Tiny(config, qwen3_tokenizer, QWEN, 48, SHORT, pooling, dtype=torch.bfloat16)

    t = transformers
    return {
        "qwen2": tiny(t.Qwen2Config(**sizes, **window), LAST),
        "qwen2_both_ways": tiny(t.Qwen2Config(**sizes, is_causal=False), LAST),
        "qwen3_yarn": tiny(t.Qwen3Config(**sizes, head_dim=16, rope_parameters=YARN), LAST),
        "qwen3_window_both_ways": tiny(t.Qwen3Config(**sizes, head_dim=16, **window, is_causal=False), MEAN),
    }


def _others() -> dict[str, Tiny]:
    layers = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    gemma = transformers.Gemma3TextConfig(**GEMMA_SIZES, sliding_window=6, layer_types=layers, is_causal=False)
    granite = transformers.GraniteConfig(
        **{**SIZES, "num_key_value_heads": 2},
        max_position_embeddings=64,
        embedding_multiplier=3.0,
        attention_multiplier=0.2,
        residual_multiplier=0.7,
        logits_scaling=2.0,
        attention_bias=True,
        rope_parameters=LLAMA3,
    )
    return {
        "gemma3_text_not_causal": Tiny(gemma, gemma_tokenizer, GEMMA, 48, SHORT, MEAN, dtype=torch.bfloat16),
        "granite": _tiny(granite, LAST, with_head=True, prompts=PROMPTS),
    }
