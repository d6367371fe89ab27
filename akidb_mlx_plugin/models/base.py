"""What every architecture shares: the packed input, the encoder's interface, attention and rotary positions."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from akidb_mlx_plugin.models.kernels import on_cpu, softmax
from akidb_mlx_plugin.packing import Block, TokenBatch

# Scores of one attention step on a CPU, in elements: longer texts attend in slices of queries, so that memory grows
# with the length and not with its square. 16 Mi float32 are 64 MiB.
_MAX_SCORES = 1 << 24


@dataclass(frozen=True)
class Tokens:
    """A `TokenBatch` as the encoder takes it.

    Attributes:
        ids: (T,) token ids.
        positions: (T,) place of each token within its text.
        blocks: the rectangles the token axis is made of.
    """

    ids: mx.array
    positions: mx.array
    blocks: tuple[Block, ...]

    @classmethod
    def from_batch(cls, batch: TokenBatch) -> Tokens:
        """Hand a packed batch to MLX; call it on the thread that evaluates."""
        return cls(mx.array(batch.ids), mx.array(batch.positions), batch.blocks)


class Encoder(nn.Module):
    """A transformer that turns packed tokens into token vectors.

    A subclass lives in the file named after its `model_type`, takes the checkpoint's configuration, and names its
    submodules as the checkpoint names its tensors, save for what `sanitize` renames.
    """

    hidden_size: int

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Encoder:
        """Build the encoder, weights uninitialised, for a `config.json`.

        Raises:
            ModelNotFoundError: a setting that this implementation does not cover.
        """

    @abstractmethod
    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Rename a checkpoint's tensors to this encoder's names and drop those known not to be needed."""

    def prepare(self) -> None:
        """Rearrange weights for speed once they are loaded, such as joining projections of one input."""

    @abstractmethod
    def __call__(self, tokens: Tokens) -> mx.array:
        """Return (T, D) token vectors on the packed axis."""


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    blocks: tuple[Block, ...],
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
) -> mx.array:
    """Attention within each text of a packed batch.

    Args:
        q: (T, H, d) queries.
        k, v: (T, K, d) keys and values; K divides H, and each key head serves H/K query heads.
        blocks: the rectangles of the batch.
        scale: applied to the scores.
        causal: a token sees itself and what is before it.
        window: a token sees only tokens less than this many places away.
    Returns:
        (T, H * d).
    """
    outputs = []
    for block in blocks:
        shape = (block.rows, block.length)
        # (T, H, d) -> (B, H, L, d)
        queries, keys, values = (
            x[block.start : block.stop].reshape(*shape, x.shape[-2], x.shape[-1]).transpose(0, 2, 1, 3)
            for x in (q, k, v)
        )
        step = _attend_sliced if on_cpu() else _attend_fused
        out = step(queries, keys, values, block.lengths, scale, causal, window)
        outputs.append(out.transpose(0, 2, 1, 3).reshape(block.rows * block.length, -1))
    return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=0)


def _attend_fused(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    lengths: tuple[int, ...] | None,
    scale: float,
    causal: bool,
    window: int | None,
) -> mx.array:
    """One fused kernel over (B, H, L, d); a boolean mask, because an additive one gives NaN on empty rows."""
    mask = _mask(0, q.shape[2], 0, k.shape[2], lengths, causal, window)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def _attend_sliced(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    lengths: tuple[int, ...] | None,
    scale: float,
    causal: bool,
    window: int | None,
) -> mx.array:
    """Scores, softmax and mixing over (B, H, L, d), by slices of queries that see only the keys they can reach."""
    rows, heads, length, size = q.shape
    groups = k.shape[1]
    q = (q * scale).reshape(rows, groups, heads // groups, length, size)
    k = k[:, :, None].swapaxes(-1, -2)
    v = v[:, :, None]
    step = max(16, _MAX_SCORES // (rows * heads * length))
    outputs = []
    for start in range(0, length, step):
        stop = min(start + step, length)
        first = 0 if window is None else max(0, start - window + 1)
        last = stop if causal else length if window is None else min(length, stop + window - 1)
        scores = q[:, :, :, start:stop] @ k[..., first:last]
        mask = _mask(start, stop, first, last, lengths, causal, window)
        if mask is not None:
            scores = mx.where(mask if mask.ndim == 2 else mask[:, None], scores, -mx.inf)
        outputs.append(softmax(scores) @ v[:, :, :, first:last])
    out = outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=3)
    return out.reshape(rows, heads, length, size)


def _mask(
    start: int,
    stop: int,
    first: int,
    last: int,
    lengths: tuple[int, ...] | None,
    causal: bool,
    window: int | None,
) -> mx.array | None:
    """Return which keys (first to last) each query (start to stop) sees: (Q, K) or (B, 1, Q, K) bool, None for all.

    Every query keeps sight of itself, also in padding, so that no softmax runs over nothing.
    """
    query = np.arange(start, stop)[:, None]
    key = np.arange(first, last)[None, :]
    seen = np.ones((stop - start, last - first), dtype=bool)
    if causal:
        seen &= key <= query
    if window is not None:
        seen &= np.abs(query - key) < window
    if lengths is not None and not (causal and all(length >= 1 for length in lengths)):
        real = (key < np.asarray(lengths)[:, None, None]) | (key == query)
        return mx.array((seen & real)[:, None])
    # With right padding and a causal mask no real token sees padding.
    return None if seen.all() else mx.array(seen)


class Rotary:
    """Rotary position embedding for packed tokens, cosines and sines computed once per length.

    Source: Su et al. 2021, in the half-split layout of Hugging Face's decoders.
    """

    def __init__(self, size: int, theta: float) -> None:
        """Prepare for heads of `size` channels and base `theta`."""
        self._frequencies = 1.0 / theta ** (np.arange(0, size, 2, dtype=np.float64) / size)
        self._table = np.zeros((0, size), dtype=np.float32)

    def angles(self, positions: mx.array, longest: int) -> tuple[mx.array, mx.array]:
        """Return cosines and sines, (T, 1, d/2) each, of the positions; `longest` is above every one of them."""
        if longest > len(self._table):
            rows = 1 << math.ceil(math.log2(max(longest, 64)))
            angles = np.outer(np.arange(rows), self._frequencies)
            self._table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        rows_of_tokens = mx.array(self._table[: max(longest, 1)])[positions][:, None]
        cos, sin = mx.split(rows_of_tokens, 2, axis=-1)
        return cos, sin


def rotate(x: mx.array, angles: tuple[mx.array, mx.array]) -> mx.array:
    """Turn (T, H, d) queries or keys by their positions' angles; keeps the dtype."""
    cos, sin = (part.astype(x.dtype) for part in angles)
    first, second = mx.split(x, 2, axis=-1)
    return mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def join_linears(*linears: nn.Linear) -> nn.Linear:
    """Return one linear layer whose output is theirs side by side; quantized ones of one kind join too."""
    first = linears[0]
    for name in ("weight", "scales", "biases", "bias"):
        if name in first:
            first[name] = mx.concatenate([linear[name] for linear in linears], axis=0)
    return first


def longest_row(blocks: tuple[Block, ...]) -> int:
    """Return the length of the longest row of a batch."""
    return max(block.length for block in blocks)
