"""Rotary positions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.nn.batch import Tokens
from akidb_mlx_plugin.nn.compiled import Kernels, is_guarded
from akidb_mlx_plugin.nn.layout import in_cpu_layout
from akidb_mlx_plugin.nn.rope_scaling import Frequencies, RopeSettings, plain_frequencies


@dataclass(frozen=True, eq=False)
class Angles:
    """How far each token's channels are rotated, in pairs of one from each half of a head.

    Attributes:
        cos, sin: (T, 1, d/2) float32.
        positions: (T,) of the tokens.
        periods: (d/2,) positions per radian, from which MLX's own kernel computes the angles; None if it cannot.
    """

    cos: mx.array
    sin: mx.array
    positions: mx.array
    periods: mx.array | None = None

    def at(self, places: mx.array) -> Angles:
        """Return the angles of some tokens only."""
        return Angles(self.cos[places], self.sin[places], self.positions[places], self.periods)

    def lengthened(self, factors: mx.array) -> Angles:
        """Return angles that also multiply what they rotate by (T, 1, 1) factors."""
        return Angles(self.cos * factors, self.sin * factors, self.positions)


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

    def angles(self, tokens: Tokens) -> Angles:
        """Return the angles of every token."""
        longest = tokens.longest
        plain = self.settings.attention_factor == 1
        table, rows = self._short.rows(longest), tokens.positions
        if self._long is not None and longest > self.settings.short_length:
            # Rows for long texts follow those for short ones.
            table = np.concatenate([table, self._long.rows(longest)])
            plain = False
            rows = rows + mx.array((tokens.text_lengths > self.settings.short_length).astype(np.int32)) * longest
        cos, sin = mx.split(mx.array(table)[rows][:, None], 2, axis=-1)
        periods = mx.array(1 / self.settings.frequencies) if plain else None
        return Angles(mx.contiguous(cos), mx.contiguous(sin), tokens.positions, periods)


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


def _rotate_plain(x: mx.array, y: mx.array, cos: mx.array, sin: mx.array) -> tuple[mx.array, mx.array]:
    return (x * cos - y * sin).astype(x.dtype), (y * cos + x * sin).astype(x.dtype)


_rotate_fused = mx.compile(_rotate_plain, shapeless=True)
_kernels = Kernels()


def _rotate_halves(x: mx.array, y: mx.array, angles: Angles) -> list[mx.array]:
    if not is_guarded():
        return list(_rotate_fused(x, y, angles.cos, angles.sin))
    # Without axes of length one, which count as axes or not depending on their strides: (T, d) or (T, H, d).
    arrays = [x, y, mx.contiguous(angles.cos), mx.contiguous(angles.sin)]
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


def rotate(x: mx.array, angles: Angles) -> mx.array:
    """Rotate (T, H, d) queries or keys by their positions' angles, in float32; keep the dtype.

    If the angles cover fewer than d channels, the others stay unchanged.
    """
    size = 2 * angles.cos.shape[-1]
    if angles.periods is not None and not in_cpu_layout():
        # (T, H, 1, d): to MLX every token is a text of one.
        turned = mx.fast.rope(
            x[:, :, None], size, traditional=False, base=None, scale=1.0, offset=angles.positions, freqs=angles.periods
        )
        return mx.squeeze(turned, 2)
    if size < x.shape[-1]:
        return mx.concatenate([rotate(x[..., :size], angles), x[..., size:]], axis=-1)
    first, second = mx.split(x, 2, axis=-1)
    return mx.concatenate(_rotate_halves(first, second, angles), axis=-1)
