"""Pool token vectors into one vector per text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.nn.batch import Block, Pick


def pool(hidden: mx.array, blocks: Sequence[Block], modes: Sequence[str], skip: int = 0) -> mx.array:
    """Pool every text of a batch.

    Args:
        hidden: (T, D) encoder output on the packed token axis.
        blocks: the rectangles of the batch.
        modes: one or more of `POOLINGS`; several are concatenated, as sentence-transformers does.
        skip: leading tokens of every text to leave out of means and maxima (a prompt that is not pooled).
    Returns:
        (N, D * len(modes)) float32, rows in the order of the blocks.
    Source: sentence-transformers `Pooling`.
    """
    pooled = []
    for block in blocks:
        # (T, D) -> (B, L, D)
        tokens = hidden[block.start : block.stop].reshape(block.rows, block.length, -1).astype(mx.float32)
        lengths = None if block.lengths is None else mx.array(block.lengths)
        pooled.append(mx.concatenate([POOLINGS[mode](tokens, lengths, skip) for mode in modes], axis=-1))
    return mx.concatenate(pooled, axis=0)


def pick_tokens(blocks: Sequence[Block], modes: Sequence[str], skip: int = 0) -> Pick | None:
    """Return the one token of each text that is pooled; None if there are more. Arguments as for `pool`."""
    if tuple(modes) == ("lasttoken",):
        return Pick.last(blocks)
    return Pick.first(blocks, skip) if tuple(modes) == ("cls",) else None


def check_modes(modes: Sequence[str]) -> None:
    """Raise ModelNotFoundError for an unsupported pooling mode."""
    unknown = [mode for mode in modes if mode not in POOLINGS]
    if unknown or not modes:
        raise ModelNotFoundError(f"unsupported pooling {unknown or 'none'}; supported are {', '.join(POOLINGS)}")


def _pool_cls(tokens: mx.array, lengths: mx.array | None, skip: int) -> mx.array:
    return tokens[:, min(skip, tokens.shape[1] - 1)]


def _pool_last(tokens: mx.array, lengths: mx.array | None, skip: int) -> mx.array:
    if lengths is None:
        return tokens[:, -1]
    return mx.take_along_axis(tokens, (lengths - 1)[:, None, None], axis=1).squeeze(1)


def _pool_mean(tokens: mx.array, lengths: mx.array | None, skip: int) -> mx.array:
    total, count = _masked_sum(tokens, lengths, skip)
    return total / count


def _pool_mean_sqrt(tokens: mx.array, lengths: mx.array | None, skip: int) -> mx.array:
    total, count = _masked_sum(tokens, lengths, skip)
    return total / mx.sqrt(count)


def _pool_max(tokens: mx.array, lengths: mx.array | None, skip: int) -> mx.array:
    return mx.max(_masked(tokens, lengths, skip, -mx.inf), axis=1)


def _pool_weighted_mean(tokens: mx.array, lengths: mx.array | None, skip: int) -> mx.array:
    weights = mx.arange(1, tokens.shape[1] + 1, dtype=mx.float32)[None, :, None]
    total = mx.sum(_masked(tokens * weights, lengths, skip, 0.0), axis=1)
    ones = mx.broadcast_to(weights, (*tokens.shape[:2], 1))
    return total / mx.sum(_masked(ones, lengths, skip, 0.0), axis=1)


def _masked(values: mx.array, lengths: mx.array | None, skip: int, fill: float) -> mx.array:
    """Fill the positions before `skip` and from each row's length on; with `where`, because padding may hold NaN."""
    if skip:
        values = values[:, skip:]
    if lengths is None:
        return values
    inside = mx.arange(skip, skip + values.shape[1])[None, :, None] < lengths[:, None, None]
    return mx.where(inside, values, fill)


def _masked_sum(tokens: mx.array, lengths: mx.array | None, skip: int) -> tuple[mx.array, mx.array]:
    total = mx.sum(_masked(tokens, lengths, skip, 0.0), axis=1)
    if lengths is None:
        return total, mx.array(float(max(tokens.shape[1] - skip, 1)))
    return total, mx.maximum(lengths - skip, 1)[:, None].astype(mx.float32)


POOLINGS: dict[str, Callable[[mx.array, mx.array | None, int], mx.array]] = {
    "cls": _pool_cls,
    "max": _pool_max,
    "mean": _pool_mean,
    "mean_sqrt_len_tokens": _pool_mean_sqrt,
    "weightedmean": _pool_weighted_mean,
    "lasttoken": _pool_last,
}
