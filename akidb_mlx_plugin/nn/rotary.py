"""Rotary positions."""

from __future__ import annotations

import math
from functools import partial

import mlx.core as mx
import numpy as np

from akidb_mlx_plugin.nn.batch import Tokens


class Rotary:
    """Rotary position embedding, cosines and sines computed once per length.

    Source: Su et al. 2021, in the half-split layout of Hugging Face's decoders.
    """

    def __init__(self, size: int, theta: float, factor: float = 1.0) -> None:
        """Prepare for heads of `size` channels and base `theta`; positions are divided by `factor`."""
        # In float32 as transformers computes it: at far positions the rounding of a frequency shows in the angle.
        exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        self._frequencies = (np.float32(1.0) / np.float32(theta) ** exponents) / np.float32(factor)
        self._table = np.zeros((0, size), dtype=np.float32)

    def angles(self, tokens: Tokens) -> tuple[mx.array, mx.array]:
        """Return cosines and sines, (T, 1, d/2) each, of every token's position."""
        longest = tokens.longest
        table = self._table
        if longest > len(table):
            rows = 1 << math.ceil(math.log2(max(longest, 64)))
            angles = np.outer(np.arange(rows, dtype=np.float32), self._frequencies)
            self._table = table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
        cos, sin = mx.split(mx.array(table[:longest])[tokens.positions][:, None], 2, axis=-1)
        return mx.contiguous(cos), mx.contiguous(sin)


@partial(mx.compile, shapeless=True)
def _turn(x: mx.array, y: mx.array, cos: mx.array, sin: mx.array) -> tuple[mx.array, mx.array]:
    return (x * cos - y * sin).astype(x.dtype), (y * cos + x * sin).astype(x.dtype)


def rotate(x: mx.array, angles: tuple[mx.array, mx.array]) -> mx.array:
    """Turn (T, H, d) queries or keys by their positions' angles, in float32; keeps the dtype."""
    first, second = mx.split(x, 2, axis=-1)
    return mx.concatenate(list(_turn(first, second, *angles)), axis=-1)
