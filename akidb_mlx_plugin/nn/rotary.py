"""Rotary positions."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.nn.batch import Tokens
from akidb_mlx_plugin.nn.compiled import Kernels, is_guarded
from akidb_mlx_plugin.nn.rope_scaling import Frequencies, RopeSettings, plain_frequencies


class Rotary:
    """Rotary position embedding with cosines and sines computed once per length.

    Source: Su et al. 2021, in the half-split layout of Hugging Face's decoders.
    """

    def __init__(self, size: int, theta: float, factor: float = 1.0) -> None:
        """Prepare for heads of `size` channels and base `theta`; positions are divided by `factor`."""
        self._use(RopeSettings(plain_frequencies(size, theta) / np.float32(factor)))

    @classmethod
    def from_settings(cls, settings: RopeSettings) -> Rotary:
        """Prepare for the frequencies of a checkpoint."""
        rotary = cls.__new__(cls)
        rotary._use(settings)
        return rotary

    def _use(self, settings: RopeSettings) -> None:
        self.settings = settings
        self._short = _Table(settings.frequencies, settings.attention_factor)
        long = settings.long_frequencies
        self._long = None if long is None else _Table(long, settings.attention_factor)

    def check_length(self, max_tokens: int) -> None:
        """Raise ModelNotFoundError if the frequencies are not exact for texts of `max_tokens` tokens."""
        limit = self.settings.max_length
        if limit is not None and max_tokens > limit:
            raise ModelNotFoundError(
                f"rotary positions of rope type 'dynamic' are supported up to max_position_embeddings, {limit} tokens, "
                f"but the checkpoint allows {max_tokens}; lower max_seq_length in sentence_bert_config.json"
            )

    def angles(self, tokens: Tokens) -> tuple[mx.array, mx.array]:
        """Return the (T, 1, d/2) cosines and sines of every token's position."""
        longest = tokens.longest
        table, rows = self._short.rows(longest), tokens.positions
        if self._long is not None and longest > self.settings.short_length:
            # The rows for long texts follow those for short ones.
            table = np.concatenate([table, self._long.rows(longest)])
            rows = rows + mx.array(_in_long_texts(tokens, self.settings.short_length)) * longest
        cos, sin = mx.split(mx.array(table)[rows][:, None], 2, axis=-1)
        return mx.contiguous(cos), mx.contiguous(sin)


class _Table:
    """Cosines and sines by position, (L, d); it grows with the longest text."""

    def __init__(self, frequencies: Frequencies, factor: float) -> None:
        self._frequencies = frequencies
        self._factor = np.float32(factor)
        self._rows: NDArray[np.float32] = np.zeros((0, 2 * len(frequencies)), dtype=np.float32)

    def rows(self, length: int) -> NDArray[np.float32]:
        """Return the first positions."""
        rows = self._rows
        if length > len(rows):
            count = 1 << math.ceil(math.log2(max(length, 64)))
            angles = np.outer(np.arange(count, dtype=np.float32), self._frequencies)
            self._rows = rows = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * self._factor
        return rows[:length]


def _in_long_texts(tokens: Tokens, short_length: int) -> NDArray[np.int32]:
    """Return a (T,) array: 1 for each token of a text longer than `short_length`, else 0."""
    texts = [np.repeat(block.lengths or (block.length,) * block.rows, block.length) for block in tokens.blocks]
    return (np.concatenate(texts) > short_length).astype(np.int32)


def _rotate_plain(x: mx.array, y: mx.array, cos: mx.array, sin: mx.array) -> tuple[mx.array, mx.array]:
    return (x * cos - y * sin).astype(x.dtype), (y * cos + x * sin).astype(x.dtype)


_rotate_fused = mx.compile(_rotate_plain, shapeless=True)
_kernels = Kernels()


def _rotate_halves(x: mx.array, y: mx.array, angles: tuple[mx.array, mx.array]) -> list[mx.array]:
    if not is_guarded():
        return list(_rotate_fused(x, y, *angles))
    # Without axes of length one, whose strides decide whether MLX counts them as axes: (T, d) or (T, H, d).
    arrays = [x, y, *map(mx.contiguous, angles)]
    one_head = x.shape[1] == 1
    if one_head:
        arrays = [mx.squeeze(array, 1) for array in arrays]
    usable = 1 not in arrays[0].shape and _kernels.may_use((one_head, x.dtype), lambda: _example(one_head, x.dtype))
    rotated = (_rotate_fused if usable else _rotate_plain)(*arrays)
    return [mx.expand_dims(part, 1) for part in rotated] if one_head else list(rotated)


def _example(one_head: bool, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    x, y = mx.split(mx.zeros((2, 4) if one_head else (2, 2, 4), dtype), 2, axis=-1)
    angle = mx.zeros((2, 2) if one_head else (2, 1, 2))
    return _rotate_fused(x, y, angle, angle)


def rotate(x: mx.array, angles: tuple[mx.array, mx.array]) -> mx.array:
    """Rotate (T, H, d) queries or keys by their positions' angles, in float32; keeps the dtype.

    Where the angles cover fewer than d channels, the remaining ones are left unchanged.
    """
    size = 2 * angles[0].shape[-1]
    if size < x.shape[-1]:
        return mx.concatenate([rotate(x[..., :size], angles), x[..., size:]], axis=-1)
    first, second = mx.split(x, 2, axis=-1)
    return mx.concatenate(_rotate_halves(first, second, angles), axis=-1)
