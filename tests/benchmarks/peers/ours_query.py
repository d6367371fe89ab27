"""This package, texts embedded as queries: with the model's prompt for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from numpy.typing import NDArray


def load(folder: Path, cores: int) -> Callable[[list[str], int | None], NDArray]:
    """Load a checkpoint."""
    from akidb_mlx_plugin import Embedder

    embedder = Embedder.load(folder)
    return lambda texts, batch_size: embedder.embed(texts, kind="query").embeddings
