"""What is known of each architecture before it is imported: where it is implemented, and how its config.json reads.

Data alone, without MLX: a checkpoint is described, and refused, without importing its encoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    "albert": Architecture("albert", "AlbertEncoder"),
    "bert": Architecture("bert", "BertEncoder"),
    "camembert": Architecture("roberta", "RobertaEncoder", offset_positions=True),
    "distilbert": Architecture("distilbert", "DistilBertEncoder", hidden_size="dim"),
    "electra": Architecture("electra", "ElectraEncoder"),
    "gemma3_text": Architecture("gemma3_text", "Gemma3Encoder", both_ways=False),
    "modernbert": Architecture("modernbert", "ModernBertEncoder"),
    "mpnet": Architecture("mpnet", "MPNetEncoder", offset_positions=True),
    "qwen3": Architecture("qwen3", "Qwen3Encoder", both_ways=False),
    "roberta": Architecture("roberta", "RobertaEncoder", offset_positions=True),
    "t5": Architecture("t5", "T5Encoder", hidden_size="d_model", positions=None),
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
    for key, causal in (("is_causal", True), ("use_bidirectional_attention", False)):
        if isinstance(config.get(key), bool):
            return bool(config[key]) is not causal
    if any(_BOTH_WAYS_CLASS.search(str(name)) for name in config.get("architectures") or ()):
        return True
    return find_architecture(str(config.get("model_type"))).both_ways
