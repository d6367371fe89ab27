"""This package's reranker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from numpy.typing import NDArray


def load(folder: Path, cores: int) -> Callable[[list[list[str]], int | None], NDArray]:
    """Load a checkpoint; all pairs go in one call."""
    from akidb_mlx_plugin import CrossEncoder

    encoder = CrossEncoder(folder)
    encoder.predict([("the model is loaded", "with the first pair")])
    return lambda pairs, batch_size: encoder.predict(pairs)
