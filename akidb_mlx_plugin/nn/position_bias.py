"""Biases that attention adds to its scores by the distance of query and key: T5's buckets and ALiBi's slopes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


class PositionBias:
    """Bias of the scores of every layer in one forward pass: a number per head and distance.

    An encoder makes one per pass. It depends only on distances, so that a text of L tokens needs 2L - 1 numbers per
    head, computed once per length; the (H, Q, K) array that attention adds is a view of these.

    Attributes:
        masks: float masks built by one layer's attention, reused by the next.
    """

    def __init__(self, by_distance: Callable[[NDArray[np.int64]], mx.array], dtype: mx.Dtype) -> None:
        """Prepare for one forward pass.

        Args:
            by_distance: from (N,) distances, key position minus query position, to (H, N) numbers.
            dtype: of the scores.
        """
        self._by_distance = by_distance
        self._dtype = dtype
        self._by_length: dict[int, mx.array] = {}
        self.masks: dict[tuple[Any, ...], mx.array] = {}

    def between(self, length: int, start: int, stop: int, first: int, last: int) -> mx.array:
        """Return the (H, Q, K) numbers for queries start to stop and keys first to last of texts of `length` tokens."""
        diagonals = self._by_length.get(length)
        if diagonals is None:
            # (H, 2L - 1), from the last query's distance to the first key up to the first query's to the last key.
            diagonals = mx.contiguous(self._by_distance(np.arange(1 - length, length)).astype(self._dtype))
            self._by_length[length] = diagonals
        # From the last query to the first, each row begins one element later.
        shape = len(diagonals), stop - start, last - first
        strides = diagonals.shape[1], 1, 1
        return mx.as_strided(diagonals, shape, strides, offset=length - stop + first)[:, ::-1]


def relative_buckets(distances: NDArray[np.int64], buckets: int = 32, max_distance: int = 128) -> NDArray[np.int32]:
    """Return the bucket of each distance: one each for short distances, then ever wider ones up to `max_distance`.

    Args:
        distances: key position minus query position.
        buckets: number of buckets, at least 4; the second half is for keys after the query.
        max_distance: distances from here on share the last bucket; more than a quarter of the buckets.
    Source: Raffel et al. 2019; Hugging Face `T5Attention`, whose float32 rounding decides at the edge of a bucket.
    """
    half = buckets // 2
    exact = half // 2
    places = np.abs(distances)
    growth = np.log(np.maximum(places, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(max_distance / exact)
    )
    far = np.minimum(exact + (growth * np.float32(half - exact)).astype(np.int64), half - 1)
    return (np.where(distances > 0, half, 0) + np.where(places < exact, places, far)).astype(np.int32)


def alibi_slopes(heads: int) -> NDArray[np.float32]:
    """Return the slope of each head: what it subtracts per unit of distance.

    Source: Press et al. 2021: powers of 2^(-8/H); where H is not a power of two, those of the next lower one, then
    every other one of the next higher.
    """
    lower = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * i / lower) for i in range(1, lower + 1)]
    slopes += [2.0 ** (-4.0 * i / lower) for i in range(1, 2 * (heads - lower), 2)]
    return np.array(slopes, dtype=np.float32)
