"""Encoders, one file per architecture, imported when a checkpoint asks for it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.architectures import ARCHITECTURES, find_architecture

if TYPE_CHECKING:
    from akidb_mlx_plugin.models.base import Encoder


def find_encoder(model_type: str) -> type[Encoder]:
    """Return the encoder for a `model_type`: one of this package's own, else one that computes by mlx-lm.

    Raises:
        ModelNotFoundError: there is none, or only an mlx-lm that is not installed could tell.
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
