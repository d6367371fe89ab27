"""Which architecture is implemented where; each file is imported when a checkpoint asks for it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from akidb_mlx_plugin.errors import ModelNotFoundError

if TYPE_CHECKING:
    from akidb_mlx_plugin.models.base import Encoder

ARCHITECTURES = {
    "bert": ("bert", "BertEncoder"),
    "camembert": ("roberta", "RobertaEncoder"),
    "gemma3_text": ("gemma3_text", "Gemma3Encoder"),
    "modernbert": ("modernbert", "ModernBertEncoder"),
    "qwen3": ("qwen3", "Qwen3Encoder"),
    "roberta": ("roberta", "RobertaEncoder"),
    "xlm-roberta": ("roberta", "RobertaEncoder"),
}


def find_encoder(model_type: str) -> type[Encoder]:
    """Return the encoder for a `model_type`: one of this package's own, else one that computes by mlx-lm.

    Raises:
        ModelNotFoundError: there is none, or only an mlx-lm that is not installed could tell.
    """
    module, name = ARCHITECTURES.get(model_type, ("causal_lm", "CausalEncoder"))
    implementation = import_module(f"akidb_mlx_plugin.models.{module}")
    if model_type not in ARCHITECTURES and not implementation.implements(model_type):
        raise ModelNotFoundError(
            f"architecture {model_type!r} is not supported; supported are {', '.join(sorted(ARCHITECTURES))} and the "
            "causal decoders of mlx-lm"
        )
    found: type[Encoder] = getattr(implementation, name)
    return found
