"""The last step of an embedding: Matryoshka truncation, then L2 normalization."""

from __future__ import annotations

import numpy as np

from akidb_mlx_plugin.nn.dense import SMALLEST_NORM
from akidb_mlx_plugin.types import Vector


def truncate_and_normalize(vectors: Vector, dimension: int, *, normalize: bool) -> Vector:
    """Keep each vector's leading components, and optionally scale it to unit length.

    Args:
        vectors: (N, D) float32.
        dimension: components to keep, at most D.
        normalize: divide by the L2 norm; a zero vector stays zero.
    Returns:
        (N, dimension) float32.
    Source: "Matryoshka Representation Learning", 2022; torch.nn.functional.normalize for the smallest norm.
    """
    vectors = vectors[:, :dimension]
    if not normalize:
        return vectors
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vector = vectors / np.maximum(norms, SMALLEST_NORM)
    return unit
