"""What is known of each architecture before it is imported: where it is implemented, and how its config.json reads.

Data alone, without MLX: a checkpoint is described, and refused, without importing its encoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
        code: classes that published checkpoints name in `auto_map`, as "file.Class", whose computation is this one.
        offset_positions: whether position ids start after the padding id, which leaves that many fewer for tokens.
    """

    module: str
    encoder: str
    both_ways: bool = True
    hidden_size: str = "hidden_size"
    positions: str | None = "max_position_embeddings"
    offset_positions: bool = False
    code: tuple[str, ...] = ()


ARCHITECTURES = {
    "bert": Architecture("bert", "BertEncoder"),
    "camembert": Architecture("roberta", "RobertaEncoder", offset_positions=True),
    "eurobert": Architecture("eurobert", "EuroBertEncoder", code=("modeling_eurobert.EuroBertModel",)),
    "gemma3_text": Architecture("gemma3_text", "Gemma3Encoder", both_ways=False),
    # The same under the name that Alibaba's own checkpoints have.
    "gte": Architecture("gte", "GteEncoder", code=("modeling_hf_alibaba_nlp_gte.GteModel", "modeling.NewModel")),
    "new": Architecture("gte", "GteEncoder", code=("modeling.NewModel",)),
    "jina_embeddings_v3": Architecture("jina_embeddings_v3", "JinaV3Encoder"),
    "modernbert": Architecture("modernbert", "ModernBertEncoder"),
    # Rotary positions have no end; max_position_embeddings, where a published one has it, is the length of training.
    "nomic_bert": Architecture(
        "nomic_bert",
        "NomicBertEncoder",
        positions="n_positions",
        code=("modeling_hf_nomic_bert.NomicBertModel",),
    ),
    "qwen3": Architecture("qwen3", "Qwen3Encoder", both_ways=False),
    # So this package calls a table of token vectors, which has no model_type.
    "static_embedding": Architecture("static_embedding", "StaticEncoder"),
    "roberta": Architecture("roberta", "RobertaEncoder", offset_positions=True),
    "xlm-roberta": Architecture("roberta", "RobertaEncoder", offset_positions=True),
}
# Any other decoder, computed by mlx-lm.
OTHER = Architecture("causal_lm", "CausalEncoder", both_ways=False)


def find_architecture(model_type: str) -> Architecture:
    """Return what is known of a `model_type`; `OTHER` where it is not one of this package's own."""
    return ARCHITECTURES.get(model_type, OTHER)


def check_config(config: Mapping[str, Any], file: str) -> None:
    """Check by a `config.json` alone that its architecture is one that this package computes.

    Args:
        config: the settings.
        file: where they come from, for the message.
    Raises:
        ModelNotFoundError: it is not, with the reason.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ModelNotFoundError(f"{file} has no model_type; is it a text encoder?")
    code = config.get("auto_map")
    named = code.get("AutoModel") if isinstance(code, Mapping) else None
    # "repository--file.Class", where the code lies in another repository.
    if named is not None and str(named).rpartition("--")[2] not in find_architecture(model_type).code:
        raise ModelNotFoundError(
            f"{file} has auto_map: the model is computed by code of its own ({named}), which this package does not "
            "run; the architecture's usual code would give other vectors"
        )


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
