"""How many of a text's ten nearest neighbours a quantized model keeps, over 1,000 docstrings.

python tests/benchmarks/quantized_neighbours.py [MODEL]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from akidb_mlx_plugin import Embedder
from akidb_mlx_plugin.benchmarks.corpus import popular_docstrings
from akidb_mlx_plugin.checkpoints.convert import convert_checkpoint
from akidb_mlx_plugin.checkpoints.recipes import choose_recipe
from akidb_mlx_plugin.hub import ensure_model
from akidb_mlx_plugin.types import Vector

NEIGHBOURS = 10
SCHEMES = ((8, 64, "affine"), (8, 32, "affine"), (6, 64, "affine"), (4, 64, "affine"), (4, 32, "affine"))


def nearest(vectors: Vector) -> np.ndarray:
    """Return the (N, 10) indexes of every vector's nearest others."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -2.0)
    return np.argsort(-scores, axis=1)[:, :NEIGHBOURS]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean share of neighbours that two rankings have in common."""
    return float(np.mean([len(set(x) & set(y)) / NEIGHBOURS for x, y in zip(a, b, strict=True)]))


def main(model: str) -> None:
    texts = [doc.text for doc in popular_docstrings(1000)]
    folder = ensure_model(model).folder
    with Embedder.load(folder) as embedder:
        original = embedder.embed(texts, normalize=True).embeddings
    expected = nearest(original)
    print(f"{model}, {len(texts)} texts: overlap@{NEIGHBOURS} with the original, mean cosine to it, size")
    for bits, group_size, mode in SCHEMES:
        with tempfile.TemporaryDirectory() as scratch:
            done = convert_checkpoint(folder, Path(scratch) / "model", choose_recipe(bits, group_size, mode))
            with Embedder.load(done.folder) as embedder:
                vectors = embedder.embed(texts, normalize=True).embeddings
        cosine = float(np.mean(np.sum(original * vectors, axis=1)))
        share = overlap(expected, nearest(vectors))
        print(f"{bits} bits by {group_size}: {share:.3f} {cosine:.4f} {done.bytes_after / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "minilm-l6-v2")
