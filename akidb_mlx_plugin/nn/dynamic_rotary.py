"""Rotary positions whose base grows with the length of a text."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from akidb_mlx_plugin.nn.batch import Tokens
from akidb_mlx_plugin.nn.rotary import Angles, Rotary


class DynamicRotary(Rotary):
    """Rotary position embedding with dynamic NTK scaling, by each text's own length.

    The reference scales by the longest text of this batch and all earlier ones. This always gives the reference's
    result for a text that is alone in the first batch.
    Source: `_compute_dynamic_ntk_parameters` of Hugging Face transformers; `NomicBertDynamicNTKRotaryEmbedding`.
    """

    def __init__(self, size: int, theta: float, factor: float, trained_length: int) -> None:
        """Prepare for heads of `size` channels and base `theta`, which grows beyond `trained_length` tokens."""
        super().__init__(size, theta)
        self._size, self._theta, self._factor, self._trained_length = size, theta, factor, trained_length

    def angles(self, tokens: Tokens) -> Angles:
        if tokens.longest <= self._trained_length:
            return super().angles(tokens)
        rows = [
            np.outer(np.arange(block.length, dtype=np.float32), self._frequencies_for(length))
            for block in tokens.blocks
            for length in block.lengths or (block.length,) * block.rows
        ]
        filler = len(tokens.ids) - tokens.blocks[-1].stop
        # (T, d/2) -> (T, 1, d/2)
        angles = np.concatenate([*rows, np.zeros((filler, self._size // 2), dtype=np.float32)])[:, None]
        return Angles(mx.array(np.cos(angles)), mx.array(np.sin(angles)), tokens.positions)

    def _frequencies_for(self, length: int) -> NDArray[np.float32]:
        """Return (d/2,) angles per position in a text of `length` tokens."""
        growth = self._factor * max(length, self._trained_length) / self._trained_length - (self._factor - 1.0)
        theta = np.float32(self._theta * growth ** (self._size / (self._size - 2)))
        exponents = np.arange(0, self._size, 2, dtype=np.float32) / np.float32(self._size)
        return np.float32(1.0) / theta**exponents
