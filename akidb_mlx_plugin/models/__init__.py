"""Encoders, one file per architecture, imported when a checkpoint needs it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models.architectures import ARCHITECTURES, find_architecture

if TYPE_CHECKING:
    from akidb_mlx_plugin.models.base import Encoder

_EMPTY: Mapping[str, Any] = MappingProxyType({})


def find_encoder(model_type: str, config: Mapping[str, Any] = _EMPTY) -> type[Encoder]:
    """Return the encoder for a `model_type`: this package's own, else one based on mlx-lm.

    Args:
        model_type: of the checkpoint.
        config: its configuration; without it, the usual encoder of that `model_type`.
    Raises:
        ModelNotFoundError: there is none, or it needs mlx-lm, which is not installed.
    """
    architecture = find_architecture(model_type)
    module, encoder = architecture.module, architecture.encoder
    if architecture.alibi and (config.get("position_embedding_type") == "alibi" or config.get("feed_forward_type")):
        module, encoder = architecture.alibi
    implementation = import_module(f"akidb_mlx_plugin.models.{module}")
    if model_type not in ARCHITECTURES and not implementation.implements(model_type):
        raise ModelNotFoundError(
            f"architecture {model_type!r} is not supported; supported are {', '.join(sorted(ARCHITECTURES))} and the "
            "causal decoders of mlx-lm"
        )
    found: type[Encoder] = getattr(implementation, encoder)
    return found
