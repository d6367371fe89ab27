"""Vectors without a model, for tests: the same text gives the same vector in every process, on every machine."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from akidb_mlx_plugin.providers.base import EmbeddingProvider
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, ModelInfo, Usage, Vector
from akidb_mlx_plugin.validation import check_request

# 24 bits around zero, as many as a float32 holds exactly.
_HALF_RANGE = 1 << 23
_CHUNK = 1 << 20


class MockProvider(EmbeddingProvider):
    """Hashes texts to vectors: a query matches the document of the same text; other texts are nearly orthogonal."""

    def __init__(self, dimension: int = 384) -> None:
        """Make vectors of this length; a request may override it."""
        self._dimension = dimension

    def embed_batch(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResponse:
        """Hash one request; prompts and kinds make no difference, and tokens are words."""
        begun = time.perf_counter()
        check_request(request)
        dimension = request.dimension or self._dimension
        vectors = hash_texts(request.inputs, dimension, normalize=request.normalize is not False)
        tokens = sum(max(1, len(text.split())) for text in request.inputs)
        return BatchEmbeddingResponse(vectors, "mock", Usage(tokens, (time.perf_counter() - begun) * 1e3))

    def model_info(self) -> ModelInfo:
        """Describe the vectors."""
        return ModelInfo(
            model="mock",
            dimension=self._dimension,
            max_tokens=1_000_000,
            native_dimension=self._dimension,
            fingerprint=f"mock:1:{self._dimension}",
        )

    def health_check(self) -> None:
        """Do nothing: it is always healthy."""

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def hash_texts(texts: Sequence[str], dimension: int, *, normalize: bool = True) -> Vector:
    """Return pseudo-random vectors, the same bits everywhere.

    Component i of a text is output i of SplitMix64 seeded with the text's BLAKE2b digest, so that a shorter vector is
    a prefix of a longer one. Everything before the last division is exact integer arithmetic.

    Args:
        texts: N strings.
        dimension: D.
        normalize: scale to unit length; otherwise components are in [-1, 1).
    Returns:
        (N, D) float32.
    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    digests = b"".join(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest() for text in texts)
    seeds = np.frombuffer(digests, dtype="<u8").astype(np.uint64)
    vectors = np.empty((len(texts), dimension), dtype=np.float32)
    rows = max(1, _CHUNK // dimension)
    for start in range(0, len(texts), rows):
        components = _split_mix(seeds[start : start + rows], dimension)
        lengths = np.sqrt(np.square(components).sum(axis=1, keepdims=True).astype(np.float64))
        vectors[start : start + rows] = components / (np.maximum(lengths, 1.0) if normalize else _HALF_RANGE)
    return vectors


def _split_mix(seeds: NDArray[np.uint64], dimension: int) -> NDArray[np.int64]:
    """Return (N, D) integers in ±2^23; the generator relies on unsigned arithmetic wrapping around."""
    steps = np.arange(1, dimension + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = seeds[:, None] + steps
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    components: NDArray[np.int64] = (mixed >> np.uint64(40)).astype(np.int64) - _HALF_RANGE
    return components
