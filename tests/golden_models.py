"""The tiny checkpoints of tests/golden and their reference vectors, and a forward pass without threads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.loading import LoadedModel
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.inference.packing import pack_exact
from akidb_mlx_plugin.inference.tokenizer import TextTokenizer, load_text_tokenizer
from akidb_mlx_plugin.nn.batch import TokenBatch, Tokens
from akidb_mlx_plugin.nn.pooling import pool
from akidb_mlx_plugin.types import Vector

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(folder.name for folder in GOLDEN.iterdir() if (folder / "model").is_dir())
Packing = Callable[[Sequence[Sequence[int]], int], Iterator[TokenBatch]]


@dataclass(frozen=True)
class Golden:
    """A tiny checkpoint with texts and the vectors that sentence-transformers makes of them, by kind."""

    checkpoint: Checkpoint
    texts: list[str]
    vectors: dict[str, Vector]


def read_golden(name: str) -> Golden:
    """Read a checkpoint of tests/golden and its reference."""
    folder = GOLDEN / name
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    with np.load(folder / "vectors.npz") as arrays:
        return Golden(read_checkpoint(folder / "model"), texts, dict(arrays))


def token_rows(
    checkpoint: Checkpoint, texts: Sequence[str], kind: str, tokenizer: TextTokenizer | None = None
) -> tuple[list[list[int]], int]:
    """Return the token ids of texts with their prompt, and how many leading ones are not pooled."""
    tokenizer = tokenizer or load_text_tokenizer(checkpoint)
    prompt = checkpoint.prompt_for(kind)
    skip = 0 if checkpoint.pool_prompt else tokenizer.prompt_length(prompt)
    return tokenizer.encode([prompt + text for text in texts]).ids, skip


def embed(
    checkpoint: Checkpoint,
    model: LoadedModel,
    texts: Sequence[str],
    kind: str = "document",
    *,
    packing: Packing = pack_exact,
    budget: int = 1024,
    tokenizer: TextTokenizer | None = None,
) -> Vector:
    """Return (N, D) float32, computed on this thread as the embedder does on its own."""
    rows, skip = token_rows(checkpoint, texts, kind, tokenizer)
    vectors: NDArray[np.float32] = np.full((len(rows), checkpoint.native_dimension), np.nan, dtype=np.float32)
    for batch in packing(rows, budget):
        pooled = pool(model.encoder(Tokens.from_batch(batch)), batch.blocks, checkpoint.pooling, skip)
        for layer in model.dense:
            pooled = layer(pooled)
        vectors[list(batch.order)] = np.array(pooled.astype(mx.float32))[: len(batch.order)]
    if checkpoint.normalize:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def farthest(actual: Vector, expected: Vector) -> float:
    """Return the largest difference, in units of the largest entry where that is above one."""
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / max(1.0, np.abs(expected).max()))
