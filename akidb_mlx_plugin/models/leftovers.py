"""Drop tensors that other libraries save with an encoder: task heads and buffers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import mlx.core as mx

# Named as in Hugging Face's classes for pretraining, classification and question answering.
_HEADS = (
    "classifier.",
    "cls.",
    "discriminator_predictions.",
    "generator_lm_head.",
    "generator_predictions.",
    "lm_head.",
    "pooler.",
    "pre_classifier.",
    "predictions.",
    "qa_outputs.",
    "sop_classifier.",
    "vocab_layer_norm.",
    "vocab_projector.",
    "vocab_transform.",
)
# Saved by older versions of transformers.
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def drop_leftovers(
    weights: dict[str, mx.array], prefixes: Iterable[str], renamed: Mapping[str, str] | None = None
) -> dict[str, mx.array]:
    """Return a BERT-like encoder's tensors, named as if the encoder had been saved alone.

    Args:
        weights: the checkpoint's tensors.
        prefixes: prefixes of an encoder saved as part of another model, such as "bert.".
        renamed: parts of names and their replacements, applied in order.
    """
    kept = {}
    for name, value in weights.items():
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        if name.startswith(_HEADS) or name in _BUFFERS:
            continue
        # The norm's parameters in checkpoints converted from TensorFlow.
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        for old, new in (renamed or {}).items():
            name = name.replace(old, new)
        kept[name] = value
    return kept
