"""Which architecture is implemented where; each file is imported when a checkpoint asks for it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from akidb_mlx_plugin.models.base import Encoder

ARCHITECTURES = {
    "bert": ("bert", "BertEncoder"),
}


def encoder_class(model_type: str) -> type[Encoder] | None:
    """Return the encoder for a `model_type`, or None where there is none."""
    if model_type not in ARCHITECTURES:
        return None
    module, name = ARCHITECTURES[model_type]
    found: type[Encoder] = getattr(import_module(f"akidb_mlx_plugin.models.{module}"), name)
    return found
