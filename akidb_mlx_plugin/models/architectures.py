"""What is known of each architecture before it is imported: where it is implemented, and how its config.json reads.

Data alone, without MLX: a checkpoint is described, and refused, without importing its encoder.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from akidb_mlx_plugin.errors import ModelNotFoundError

# Class names that say that a decoder attends in both directions, such as LlamaBidirectionalModel or MistralBiModel.
_BOTH_WAYS_CLASS = re.compile(r"Bidirec|Bi(Model|Encoder|For)")


@dataclass(frozen=True)
class Architecture:
    """One `model_type`.

    Attributes:
        module: file of this folder.
        encoder: class in it.
        both_ways: whether tokens see what comes after them, where the configuration does not say.
        hidden_size: name of the setting for the width of the token vectors.
        positions: name of the setting for the number of positions; None where there is no such limit.
        offset_positions: whether position ids start after the padding id, which leaves that many fewer for tokens.
    """

    module: str
    encoder: str
    both_ways: bool = True
    hidden_size: str = "hidden_size"
    positions: str | None = "max_position_embeddings"
    offset_positions: bool = False


ARCHITECTURES = {
    "bert": Architecture("bert", "BertEncoder"),
    "bidirectional_pplx_qwen3": Architecture("qwen3", "Qwen3Encoder"),
    "camembert": Architecture("roberta", "RobertaEncoder", offset_positions=True),
    "gemma3_text": Architecture("gemma3_text", "Gemma3Encoder", both_ways=False),
    "llama": Architecture("llama", "LlamaEncoder", both_ways=False),
    "llama_bidirec": Architecture("llama", "LlamaEncoder"),
    "ministral": Architecture("mistral", "MinistralEncoder", both_ways=False),
    "ministral3": Architecture("ministral3", "Ministral3Encoder", both_ways=False),
    "ministral3_bidirec": Architecture("ministral3", "Ministral3Encoder"),
    "mistral": Architecture("mistral", "MistralEncoder", both_ways=False),
    "modernbert": Architecture("modernbert", "ModernBertEncoder"),
    "phi3": Architecture("phi3", "Phi3Encoder", both_ways=False),
    "qwen2": Architecture("qwen2", "Qwen2Encoder", both_ways=False),
    "qwen3": Architecture("qwen3", "Qwen3Encoder", both_ways=False),
    "roberta": Architecture("roberta", "RobertaEncoder", offset_positions=True),
    "xlm-roberta": Architecture("roberta", "RobertaEncoder", offset_positions=True),
}
# Any other decoder, computed by mlx-lm.
OTHER = Architecture("causal_lm", "CausalEncoder", both_ways=False)


def find_architecture(model_type: str) -> Architecture:
    """Return what is known of a `model_type`; `OTHER` where it is not one of this package's own."""
    return ARCHITECTURES.get(model_type, OTHER)


def attends_both_ways(config: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint's tokens see what comes after them: by its config.json, else by its architecture.

    Args:
        config: `config.json`; `is_causal`, `use_bidirectional_attention` and the names in `architectures` decide.
    """
    if config.get("is_causal") is False or config.get("use_bidirectional_attention") is True:
        return True
    if config.get("is_causal") is True or config.get("use_bidirectional_attention") is False:
        return False
    if any(_BOTH_WAYS_CLASS.search(str(name)) for name in config.get("architectures") or ()):
        return True
    return find_architecture(str(config.get("model_type"))).both_ways


def check_pooling(config: Mapping[str, Any], modes: Collection[str]) -> None:
    """Check that no token is pooled that has not seen the text.

    Args:
        config: `config.json`.
        modes: of the pooling.
    Raises:
        ModelNotFoundError: the first token of a decoder that looks backwards is to stand for the text.
    """
    if "cls" in modes and not attends_both_ways(config):
        raise ModelNotFoundError(
            "pooling 'cls' takes the vector of the first token, which has seen nothing else of the text: by its "
            f"config.json (is_causal, use_bidirectional_attention, architectures) this {config.get('model_type')} looks"
            " backwards only; pool by 'lasttoken' or 'mean'"
        )
