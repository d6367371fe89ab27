"""Encoders, one file per architecture, imported when a checkpoint needs it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.architectures import ARCHITECTURES, find_architecture

if TYPE_CHECKING:
    from akidb_mlx_plugin.models.base import Encoder


def find_encoder(model_type: str) -> type[Encoder]:
    """Return the encoder for a `model_type`: this package's own, else one based on mlx-lm.

    Raises:
        ModelNotFoundError: there is none, or it needs mlx-lm, which is not installed.
    """
    architecture = find_architecture(model_type)
    implementation = import_module(f"akidb_mlx_plugin.models.{architecture.module}")
    if model_type not in ARCHITECTURES and not implementation.implements(model_type):
        raise ModelNotFoundError(
            f"architecture {model_type!r} is not supported; supported are {', '.join(sorted(ARCHITECTURES))} and the "
            "causal decoders of mlx-lm"
        )
    found: type[Encoder] = getattr(implementation, architecture.encoder)
    return found
