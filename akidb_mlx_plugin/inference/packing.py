"""Token rows of many texts laid out for one forward pass: padding-free on a CPU, padded rectangles on a GPU.

A `TokenBatch` is a list of rectangular blocks laid end to end on one token axis. Linear layers see all tokens in one
matmul; attention runs block by block. On a CPU a block holds texts of exactly one length, so nothing is padded or
masked. On a GPU every block costs extra kernels, so texts of similar length share one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from akidb_mlx_plugin.nn.batch import Block, TokenBatch

# What a block costs a GPU besides its tokens, in tokens: about five kernels a layer of ~3.6 µs each, against the
# time of a token on chips that compute 3,000 to 49,000 a second (a derived figure; no GPU was measured).
_BLOCK_PRICE = 8
# A GPU's matrix product computes tiles of this many rows, and reuses buffers of equal size.
_TILE = 32


def pack_exact(rows: Sequence[Sequence[int]], token_budget: int) -> Iterator[TokenBatch]:
    """Pack rows of equal length together, longest first, without any padding.

    Args:
        rows: token ids of each text, at least one each.
        token_budget: most tokens in a batch; a longer row gets its own batch.
    Yields:
        Batches that together hold every row once.
    """
    for chosen in _split_by_budget(rows, token_budget):
        blocks = []
        start = 0
        for length, group in groupby(chosen, key=lambda i: len(rows[i])):
            block = Block(start, len(list(group)), length)
            blocks.append(block)
            start = block.stop
        ids = np.concatenate([np.asarray(rows[i], dtype=np.int32) for i in chosen])
        positions = np.concatenate([np.tile(np.arange(b.length, dtype=np.int32), b.rows) for b in blocks])
        yield TokenBatch(ids, positions, tuple(blocks), tuple(chosen))


def pack_padded(rows: Sequence[Sequence[int]], token_budget: int) -> Iterator[TokenBatch]:
    """Pack rows of similar length into rectangles, several per batch, longest first.

    The token axis is filled up to a multiple of 32, unless there is only one row.

    Args:
        rows: token ids of each text, at least one each.
        token_budget: most tokens in a batch, padding not counted; a longer row gets its own batch.
    Yields:
        Batches that together hold every row once.
    """
    for chosen in _split_by_budget(rows, token_budget):
        lengths = np.array([len(rows[i]) for i in chosen], dtype=np.int64)
        blocks = []
        start = 0
        for first, stop in _cut(lengths):
            own = lengths[first:stop]
            padded = tuple(own.tolist()) if own[-1] < own[0] else None
            block = Block(start, stop - first, int(own[0]), padded)
            blocks.append(block)
            start = block.stop
        total = start if len(chosen) == 1 else -(-start // _TILE) * _TILE
        ids, positions = np.zeros((2, total), dtype=np.int32)
        row = 0
        for block in blocks:
            rectangle = ids[block.start : block.stop].reshape(block.rows, block.length)
            for r, i in enumerate(chosen[row : row + block.rows]):
                rectangle[r, : len(rows[i])] = rows[i]
            positions[block.start : block.stop] = np.tile(np.arange(block.length, dtype=np.int32), block.rows)
            row += block.rows
        yield TokenBatch(ids, positions, tuple(blocks), tuple(chosen))


def _cut(lengths: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Cut rows into the cheapest blocks, by dynamic programming.

    A block costs its rows times its longest row, plus a fixed price.

    Args:
        lengths: (N,) of the rows, in descending order.
    Returns:
        First row and one past the last of each block.
    """
    # A block begins where the length drops: rows of one length stay together.
    starts = np.concatenate([[0], np.flatnonzero(np.diff(lengths)) + 1, [len(lengths)]])
    longest = lengths[starts[:-1]]
    best = np.zeros(len(starts))
    previous = np.zeros(len(starts), dtype=np.int64)
    for stop in range(1, len(starts)):
        costs = best[:stop] + longest[:stop] * (starts[stop] - starts[:stop]) + _BLOCK_PRICE
        previous[stop] = costs.argmin()
        best[stop] = costs[previous[stop]]
    cuts = [len(starts) - 1]
    while cuts[-1]:
        cuts.append(int(previous[cuts[-1]]))
    bounds = starts[cuts[::-1]].tolist()
    return list(pairwise(bounds))


def _split_by_budget(rows: Sequence[Sequence[int]], budget: int) -> Iterator[list[int]]:
    """Yield indexes of rows, longest first, in groups whose tokens stay within the budget."""
    chosen: list[int] = []
    spent = 0
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        if chosen and spent + len(rows[i]) > budget:
            yield chosen
            chosen, spent = [], 0
        chosen.append(i)
        spent += len(rows[i])
    if chosen:
        yield chosen
