"""Models from a Hugging Face hub: where they come from, where they are stored, and which files are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from akidb_mlx_plugin._lazy import import_when_asked

if TYPE_CHECKING:
    from akidb_mlx_plugin.hub.models import LocalModel, download_model, ensure_model

__all__ = ["LocalModel", "download_model", "ensure_model"]

# Every adapter imports the registry, which needs none of these.
__getattr__ = import_when_asked(__name__, dict.fromkeys(__all__, "models"))
