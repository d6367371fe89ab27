"""Attention within each text of a packed batch."""

from __future__ import annotations

from collections.abc import Hashable

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from akidb_mlx_plugin.nn.activations import softmax_parts, swap_outer_axes
from akidb_mlx_plugin.nn.batch import Block, Blocks, Pick, join_blocks
from akidb_mlx_plugin.nn.layout import in_cpu_layout
from akidb_mlx_plugin.nn.position_bias import PositionBias

# Most scores computed at once on a CPU: longer texts attend in slices of queries, so that memory grows linearly with
# length, not quadratically. 1 Mi float32 take 4 MiB, which fits the cache and one heap of the allocator: anything
# larger is returned to the system and paged in again with every batch.
_MAX_SCORES = 1 << 20
# With a mask, shorter slices skip more masked keys; below some length a slice's matrix products become too small to be
# efficient.
_MASKED_QUERIES, _FEWEST_QUERIES = 128, 32
# Most elements of the float mask that a fused kernel needs for a bias: longer texts attend in slices of queries.
_MAX_MASK = 1 << 26
# Queries of one fused kernel over a longer text: a GPU ends a kernel that runs for seconds, and nothing interrupts it.
_FUSED_QUERIES = 8192


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    blocks: tuple[Block, ...],
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    bias: PositionBias | None = None,
    before: tuple[mx.array, mx.array] | None = None,
    pick: Pick | None = None,
) -> mx.array:
    """Attention within each text of a packed batch.

    Args:
        q: (T, H, d) queries; (N, H, d) of the picked tokens only.
        k, v: (T, K, d) keys and values; K divides H, and each key head serves H/K query heads.
        blocks: the rectangles of the batch.
        scale: applied to the scores.
        causal: a token sees only itself and earlier tokens.
        window: a token sees only tokens fewer than this many positions away.
        bias: added to the scaled scores.
        before: (K, P, d) keys and values of a prefix that all texts share; causal attention without a bias only.
        pick: the tokens that q belongs to, in the order of the blocks' rows; without a bias only.
    Returns:
        (T, H * d), or (N, H * d).
    """
    assert before is None or (causal and bias is None), "what comes before a text is kept for causal models alone"
    if pick is not None:
        assert bias is None, "a bias needs every query"
        return _attend_picked(q, k, v, blocks, scale, causal, window, before, pick)
    if in_cpu_layout():
        # Heads first, once for all blocks: a matrix product copies non-contiguous arrays.
        q, k, v = (swap_outer_axes(x) for x in (q * scale, k, v))
        return _attend_sliced(q, k, v, blocks, causal, window, bias, before)
    outputs = []
    for block in blocks:
        # (T, H, d) -> (B, L, H, d)
        queries, keys, values = (
            x[block.start : block.stop].reshape(block.rows, block.length, x.shape[-2], x.shape[-1]) for x in (q, k, v)
        )
        if bias is None:
            out = _attend_fused(queries, keys, values, block, scale, causal, window, before, _masks(blocks))
        else:
            out = _attend_fused_biased(queries, keys, values, block, scale, causal, window, bias)
        outputs.append(out.reshape(block.rows * block.length, -1))
    return join_blocks(outputs, len(q))


def attend_joined(qkv: mx.array, blocks: tuple[Block, ...], bias: PositionBias | None = None) -> mx.array:
    """Return what `attend` does of scaled queries, keys and values in one array, (T, 3 * H, d), on a CPU.

    Every token sees its whole text. One array takes one transposition in place of three.
    """
    q, k, v = mx.split(swap_outer_axes(qkv), 3)
    return _attend_sliced(q, k, v, blocks, False, None, bias, None)


def _attend_picked(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    blocks: tuple[Block, ...],
    scale: float,
    causal: bool,
    window: int | None,
    before: tuple[mx.array, mx.array] | None,
    pick: Pick,
) -> mx.array:
    """Attention of one token of each text, (N, H, d), over the whole text."""
    outputs = []
    row = 0
    for block, columns in zip(blocks, pick.columns, strict=True):
        # (T, K, d) -> (B, K, L, d)
        keys, values = (
            x[block.start : block.stop].reshape(block.rows, block.length, *x.shape[1:]).swapaxes(1, 2) for x in (k, v)
        )
        if before is not None:
            keys, values = (_prepend(x, y) for x, y in zip(before, (keys, values), strict=True))
        mask = _picked_mask(block, columns, keys.shape[2], causal, window)
        out = mx.fast.scaled_dot_product_attention(
            q[row : row + block.rows, :, None], keys, values, scale=scale, mask=mask
        )
        outputs.append(out.reshape(block.rows, -1))
        row += block.rows
    return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=0)


def _picked_mask(
    block: Block, columns: NDArray[np.int32], length: int, causal: bool, window: int | None
) -> mx.array | None:
    """Return which of `length` keys each row's token in a column sees, (B, 1, 1, L); None if each sees all."""
    # Counted like keys, from the start of the text.
    prefix = length - block.length
    query, stop = columns[:, None] + prefix, block.last[:, None] + 1 + prefix
    key = np.arange(length)
    visible = key < (np.minimum(query + 1, stop) if causal else stop)
    if window is not None:
        # In a row of padding only, a query sees itself.
        visible = (visible & (np.abs(query - key) < window)) | (key == query)
    return None if visible.all() else mx.array(visible[:, None, None])


def _masks(blocks: tuple[Block, ...]) -> dict[Hashable, mx.array | None]:
    """Return the masks that the layers of this forward pass share."""
    return blocks.masks if isinstance(blocks, Blocks) else {}


def _attend_fused(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    block: Block,
    scale: float,
    causal: bool,
    window: int | None,
    before: tuple[mx.array, mx.array] | None,
    masks: dict[Hashable, mx.array | None],
) -> mx.array:
    """One fused kernel over (B, L, H, d); a boolean mask, because an additive one gives NaN on empty rows."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    if before is not None:
        k, v = (_prepend(x, y) for x, y in zip(before, (k, v), strict=True))
    length = k.shape[2]
    offset = length - q.shape[2]
    slices = []
    for start in range(offset, length, _FUSED_QUERIES):
        stop = min(start + _FUSED_QUERIES, length)
        # The keys within these queries' reach.
        first = 0 if window is None else max(0, start - window + 1)
        last = stop if causal else length if window is None else min(length, stop + window - 1)
        if causal and first == 0 and (window is None or window >= last):
            # The last query sees the last key; with right padding and a causal mask no real token sees padding.
            mask: mx.array | str | None = "causal"
        else:
            mask = _shared_mask(masks, block, start, stop, first, last, causal, window)
        part = q[:, :, start - offset : stop - offset]
        slices.append(
            mx.fast.scaled_dot_product_attention(part, k[:, :, first:last], v[:, :, first:last], scale=scale, mask=mask)
        )
    out = slices[0] if len(slices) == 1 else mx.concatenate(slices, axis=2)
    return out.transpose(0, 2, 1, 3)


def _shared_mask(
    masks: dict[Hashable, mx.array | None],
    block: Block,
    start: int,
    stop: int,
    first: int,
    last: int,
    causal: bool,
    window: int | None,
) -> mx.array | None:
    """Return `_visible` for (B, H, Q, K) scores, made by the first layer that needs it."""
    key = block, start, stop, first, last, causal, window
    if key not in masks:
        visible = _visible(start, stop, first, last, block.lengths, causal, window)
        masks[key] = visible if visible is None or visible.ndim == 2 else visible[:, None]
    return masks[key]


def _attend_fused_biased(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    block: Block,
    scale: float,
    causal: bool,
    window: int | None,
    bias: PositionBias,
) -> mx.array:
    """One fused kernel per slice of queries over (B, L, H, d), whose mask holds the bias."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    step = max(1, _MAX_MASK // (block.rows * q.shape[1] * block.length))
    slices = []
    for start in range(0, block.length, step):
        stop = min(start + step, block.length)
        key = block, start, causal, window
        mask = bias.masks.get(key)
        if mask is None:
            mask = _float_mask(block, start, stop, causal, window, bias)
            # A sliced mask is rebuilt for each layer: keeping every slice would take too much memory.
            if step >= block.length:
                bias.masks[key] = mask
        slices.append(mx.fast.scaled_dot_product_attention(q[:, :, start:stop], k, v, scale=scale, mask=mask))
    out = slices[0] if len(slices) == 1 else mx.concatenate(slices, axis=2)
    return out.transpose(0, 2, 1, 3)


def _float_mask(block: Block, start: int, stop: int, causal: bool, window: int | None, bias: PositionBias) -> mx.array:
    """Return the (1 or B, H, Q, L) bias, with the lowest finite number where a query does not see a key.

    With -inf, kernels that process keys in chunks give NaN for a chunk in which a query sees nothing.
    """
    numbers = bias.between(block.length, start, stop, 0, block.length)[None]
    visible = _visible(start, stop, 0, block.length, block.lengths, causal, window)
    if visible is None:
        return mx.contiguous(numbers)
    return mx.where(visible if visible.ndim == 2 else visible[:, None], numbers, mx.finfo(numbers.dtype).min)


def _attend_sliced(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    blocks: tuple[Block, ...],
    causal: bool,
    window: int | None,
    bias: PositionBias | None,
    before: tuple[mx.array, mx.array] | None,
) -> mx.array:
    """Attention over (H, T, d) with scaled q, in slices of queries against only the keys they see."""
    heads, groups, size = len(q), len(k), q.shape[2]
    outputs = []
    for block in blocks:
        rows = block.rows
        # (H, T, d) -> (K, H/K, B, L, d)
        queries, keys, values = (
            x[:, block.start : block.stop].reshape(groups, -1, rows, block.length, size) for x in (q, k, v)
        )
        if before is not None:
            keys, values = (_prepend(x[:, None, None], y) for x, y in zip(before, (keys, values), strict=True))
        # Queries are counted like keys, from the start of the text.
        length, offset = keys.shape[-2], keys.shape[-2] - block.length
        step = max(_FEWEST_QUERIES, _MAX_SCORES // (rows * heads * length))
        if causal or window is not None:
            step = min(step, _MASKED_QUERIES)
        slices = []
        for start in range(offset, length, step):
            stop = min(start + step, length)
            first = 0 if window is None else max(0, start - window + 1)
            last = stop if causal else length if window is None else min(length, stop + window - 1)
            # Keys before queries: MLX vectorizes maxima and sums along any axis but the last.
            scores = keys[..., first:last, :] @ queries[..., start - offset : stop - offset, :].swapaxes(-1, -2)
            if bias is not None:
                # (H, Q, K)
                added = mx.unflatten(bias.between(length, start, stop, first, last), 0, (groups, -1))[:, :, None]
                scores = scores + added.swapaxes(-1, -2)
            visible = _visible(start, stop, first, last, block.lengths, causal, window)
            if visible is not None:
                # (Q, K) or (B, Q, K)
                scores = scores + mx.where(visible, 0.0, -mx.inf).astype(scores.dtype).swapaxes(-1, -2)
            weights, total = (x.swapaxes(-1, -2) for x in softmax_parts(scores, axis=-2))
            # Divided after the sum: usually fewer elements, and never more passes.
            slices.append((weights @ values[..., first:last, :]) / total)
        out = slices[0] if len(slices) == 1 else mx.concatenate(slices, axis=-2)
        outputs.append(out.reshape(heads, -1, size))
    rest = q.shape[1] - blocks[-1].stop
    if rest:
        outputs.append(mx.zeros((heads, rest, size), q.dtype))
    mixed = outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=1)
    return swap_outer_axes(mixed).reshape(-1, heads * size)


def _prepend(prefix: mx.array, x: mx.array) -> mx.array:
    """Prepend (K, …, P, d) keys or values to those of every text, (…, L, d); returns (…, P + L, d)."""
    return mx.concatenate([mx.broadcast_to(prefix, (*x.shape[:-2], *prefix.shape[-2:])), x], axis=-2)


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
        (Q, K) or (B, Q or 1, K) bool; None if every query sees every key.
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
            # Deep in the padding a window holds no real token: a query there sees itself.
            real = real | (key == query)
        visible = real if visible is None else visible & real
    return visible
