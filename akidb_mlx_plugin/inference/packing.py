"""Token rows of many texts laid out for one forward pass.

A `TokenBatch` is a list of rectangular blocks laid end to end on one token axis. Linear layers see all tokens in one
matmul; attention runs block by block. On a CPU a block holds texts of exactly one length, so nothing is padded and
nothing masked. On a GPU lengths and row counts are rounded up to few values, because every new shape costs a kernel
choice and a buffer of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from akidb_mlx_plugin.nn.batch import Block, TokenBatch


def pack_exact(rows: Sequence[Sequence[int]], token_budget: int) -> Iterator[TokenBatch]:
    """Pack rows of equal length side by side, longest first, without any padding.

    Args:
        rows: token ids of each text, at least one each.
        token_budget: most tokens in a batch; a longer row makes a batch of its own.
    Yields:
        Batches that together hold every row once.
    """
    by_length = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    for chosen in _split(by_length, [len(row) for row in rows], token_budget):
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
    """Pack rows into one rectangle per batch, its sides rounded up to few values, longest first.

    Args:
        rows: token ids of each text, at least one each.
        token_budget: most tokens in a batch, padding included; a longer row makes a batch of its own.
    Yields:
        Batches of one padded block each, that together hold every row once.
    """
    padded = [bucket_length(len(row)) for row in rows]
    by_length = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    for _, group in groupby(by_length, key=lambda i: padded[i]):
        for chosen in _split(list(group), padded, token_budget):
            length = padded[chosen[0]]
            height = 1 << (len(chosen) - 1).bit_length()
            if height * length > token_budget:
                height = len(chosen)
            ids = np.zeros((height, length), dtype=np.int32)
            for place, i in enumerate(chosen):
                ids[place, : len(rows[i])] = rows[i]
            # A row that only fills the rectangle counts as one token, so that no softmax or mean runs over nothing.
            lengths = [len(rows[i]) for i in chosen] + [1] * (height - len(chosen))
            positions = np.tile(np.arange(length, dtype=np.int32), height)
            yield TokenBatch(ids.ravel(), positions, (Block(0, height, length, tuple(lengths)),), tuple(chosen))


def bucket_length(length: int) -> int:
    """Round a length up to 8, 16, 24, 32, 48, 64, 96, 128, …: at most half of it is padding, a quarter on average."""
    step = 8
    while length > 4 * step:
        step *= 2
    return -(-length // step) * step


def _split(order: list[int], costs: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut an order of indexes into runs whose costs stay within the budget, at least one index a run."""
    run: list[int] = []
    spent = 0
    for i in order:
        if run and spent + costs[i] > budget:
            yield run
            run, spent = [], 0
        run.append(i)
        spent += costs[i]
    if run:
        yield run
