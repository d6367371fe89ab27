"""Tensors that other libraries save beside an encoder: heads of tasks it was trained for, and buffers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import mlx.core as mx

# By the names that Hugging Face's classes for pretraining, classification and question answering give them.
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
# What older versions of transformers saved.
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def drop_leftovers(
    weights: dict[str, mx.array], prefixes: Iterable[str], renamed: Mapping[str, str] | None = None
) -> dict[str, mx.array]:
    """Return a BERT-like encoder's tensors under the names they have where it was saved alone.

    Args:
        weights: as in the checkpoint.
        prefixes: what names begin with where the encoder was saved as a part of another model, such as "bert.".
        renamed: parts of names, and what replaces them in turn.
    """
    kept = {}
    for name, value in weights.items():
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        if name.startswith(_HEADS) or name in _BUFFERS:
            continue
        # Checkpoints converted from TensorFlow name the norm's parameters so.
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        for old, new in (renamed or {}).items():
            name = name.replace(old, new)
        kept[name] = value
    return kept
