"""What every architecture shares: the packed input, the encoder's interface, attention and rotary positions."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from akidb_mlx_plugin.models.kernels import on_cpu, softmax_parts, swap_outer_axes
from akidb_mlx_plugin.packing import Block, TokenBatch

# Scores of one attention step on a CPU, in elements: longer texts attend in slices of queries, so that memory grows
# with the length and not with its square. 1 Mi float32 are 4 MiB, which stays in the cache and well inside one heap of
# the allocator: what outgrows a heap is given back and paged in anew with every batch.
_MAX_SCORES = 1 << 20
# Where a query does not see every key, shorter slices leave more of the unseen ones out; below some length, the matrix
# products of a slice become too small to be efficient.
_MASKED_QUERIES, _FEWEST_QUERIES = 128, 32
# Tokens from which computing a layer takes longer than waking the thread that waits for it.
_SETTLED_TOKENS = 64


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

    @property
    def longest(self) -> int:
        """Length of the longest row."""
        return max(block.length for block in self.blocks)


class Encoder(nn.Module):
    """A transformer that turns packed tokens into token vectors.

    A subclass lives in the file named after its `model_type`, takes the checkpoint's configuration, and names its
    submodules as the checkpoint names its tensors, save for what `sanitize` renames.
    """

    hidden_size: int
    # Whether activations stay within what float16 can hold.
    float16_is_safe = True
    # Whether it casts what it looks up in an embedding table, so that the table may stay as it is stored.
    keeps_tables = True

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
        """Rearrange weights for speed once they are loaded, such as splitting fused projections."""

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
    if on_cpu():
        return _attend_sliced(q * scale, k, v, blocks, causal, window)
    outputs = []
    for block in blocks:
        # (T, H, d) -> (B, L, H, d)
        queries, keys, values = (
            x[block.start : block.stop].reshape(block.rows, block.length, x.shape[-2], x.shape[-1]) for x in (q, k, v)
        )
        out = _attend_fused(queries, keys, values, block.lengths, scale, causal, window)
        outputs.append(out.reshape(block.rows * block.length, -1))
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
    """One fused kernel over (B, L, H, d); a boolean mask, because an additive one gives NaN on empty rows."""
    length = q.shape[1]
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    if causal and (window is None or window >= length):
        # With right padding and a causal mask no real token sees padding.
        mask: mx.array | str | None = "causal"
    else:
        mask = _visible(0, length, 0, length, lengths, causal, window)
        mask = mask if mask is None or mask.ndim == 2 else mask[:, None]
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask).transpose(0, 2, 1, 3)


def _attend_sliced(
    q: mx.array, k: mx.array, v: mx.array, blocks: tuple[Block, ...], causal: bool, window: int | None
) -> mx.array:
    """Scores, softmax and mixing over (T, H, d), q scaled, by slices of queries that see only the keys they reach."""
    heads, groups, size = q.shape[1], k.shape[1], q.shape[2]
    # Heads first in one go for all blocks: a matrix product copies what is not in one piece.
    q, k, v = (swap_outer_axes(x) for x in (q, k, v))
    outputs = []
    for block in blocks:
        rows, length = block.rows, block.length
        # (H, T, d) -> (K, H/K, B, L, d)
        queries, keys, values = (
            x[:, block.start : block.stop].reshape(groups, -1, rows, length, size) for x in (q, k, v)
        )
        step = max(_FEWEST_QUERIES, _MAX_SCORES // (rows * heads * length))
        if causal or window is not None:
            step = min(step, _MASKED_QUERIES)
        slices = []
        for start in range(0, length, step):
            stop = min(start + step, length)
            first = 0 if window is None else max(0, start - window + 1)
            last = stop if causal else length if window is None else min(length, stop + window - 1)
            scores = queries[..., start:stop, :] @ keys[..., first:last, :].swapaxes(-1, -2)
            visible = _visible(start, stop, first, last, block.lengths, causal, window)
            if visible is not None:
                # (Q, K) or (B, Q, K), against (K, H/K, B, Q, K)
                scores = scores + mx.where(visible, 0.0, -mx.inf).astype(scores.dtype)
            weights, total = softmax_parts(scores)
            # Divided once they are mixed: mostly fewer numbers, and never more passes.
            slices.append((weights @ values[..., first:last, :]) / total)
        out = slices[0] if len(slices) == 1 else mx.concatenate(slices, axis=-2)
        outputs.append(out.reshape(heads, -1, size))
    mixed = outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=1)
    return swap_outer_axes(mixed).reshape(-1, heads * size)


def _visible(
    start: int,
    stop: int,
    first: int,
    last: int,
    lengths: tuple[int, ...] | None,
    causal: bool,
    window: int | None,
) -> mx.array | None:
    """Return which keys (first to last) each query (start to stop) sees; every query sees at least one.

    Returns:
        (Q, K) or (B, Q or 1, K) bool; None where every query sees every key.
    """
    query, key = mx.arange(start, stop)[:, None], mx.arange(first, last)
    visible: mx.array | None = None
    if causal and last - 1 > start:
        visible = key <= query
    if window is not None and max(stop - 1 - first, last - 1 - start) >= window:
        near = mx.abs(query - key) < window
        visible = near if visible is None else visible & near
    # With right padding and a causal mask no real token sees padding.
    if lengths is not None and not causal and min(lengths) < last:
        real = key < mx.array(lengths)[:, None, None]
        if window is not None:
            # Far in the padding, a window holds no real token: a query there sees itself.
            real = real | (key == query)
        visible = real if visible is None else visible & real
    return visible


def settle(x: mx.array) -> mx.array:
    """Have a layer's output computed on a CPU before the next layer is described; returns it.

    MLX on a CPU lets only so many operations of all streams together wait their turn. Whoever adds more sleeps until
    there are fewer, and where two threads compute side by side one sleeps while its own stream runs dry: a fifth of
    their time. A layer at a time stays below. For the few tokens of a query waiting would cost more than it saves: its
    layers are computed while the next are described. A GPU gets the whole graph at once.
    """
    if on_cpu():
        if len(x) >= _SETTLED_TOKENS:
            mx.eval(x)
        else:
            mx.async_eval(x)  # type: ignore[no-untyped-call]
    return x


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


def split_linear(linear: nn.Module, parts: int) -> list[nn.Module]:
    """Return linear layers for equal shares of a fused one's outputs, quantized like it.

    On a CPU, what works on a part of a fused output walks memory in strides, several times slower than in one piece.
    """
    shares = [copy(linear) for _ in range(parts)]
    for name in ("weight", "scales", "biases", "bias"):
        if linear.get(name) is not None:
            for share, rows in zip(shares, mx.split(linear[name], parts, axis=0), strict=True):
                share[name] = mx.contiguous(rows)
    return shares
