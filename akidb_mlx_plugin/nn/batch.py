"""The packed batch: rectangular blocks of token rows laid end to end on one token axis."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Block:
    """A rectangle of texts on the token axis.

    Attributes:
        start: its first position on the token axis.
        rows: texts in it, B.
        length: tokens per row, L.
        lengths: real tokens of each row where rows are padded on the right; None where every row is full.
    """

    start: int
    rows: int
    length: int
    lengths: tuple[int, ...] | None = None

    @property
    def stop(self) -> int:
        """Position behind its last token."""
        return self.start + self.rows * self.length


@dataclass(frozen=True)
class TokenBatch:
    """Texts that go through the encoder together.

    Attributes:
        ids: (T,) int32 token ids of all blocks, end to end.
        positions: (T,) int32 place of each token within its text.
        blocks: the rectangles that ids are made of.
        order: input index of each row, in the order of the blocks' rows; rows that only pad a block have none and
            come last in their block.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    blocks: tuple[Block, ...]
    order: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Prefix:
    """The tokens that every text of a batch begins with, as a causal model's layers see them.

    Attributes:
        length: how many there are, P.
        layers: for each layer (K, P, d) keys, rotated, and values.
    """

    length: int
    layers: tuple[tuple[mx.array, mx.array], ...]

    @property
    def nbytes(self) -> int:
        """Memory that the keys and values take."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)

    def first(self, length: int) -> Prefix:
        """Return the first tokens alone; no token before another depends on it."""
        if length == self.length:
            return self
        return Prefix(length, tuple((keys[:, :length], values[:, :length]) for keys, values in self.layers))


@dataclass(frozen=True)
class Tokens:
    """A `TokenBatch` as the encoder takes it.

    Attributes:
        ids: (T,) token ids.
        positions: (T,) place of each token within its text.
        blocks: the rectangles the token axis is made of.
        prefix: what comes before every row of the blocks; the token axis does not have it.
    """

    ids: mx.array
    positions: mx.array
    blocks: tuple[Block, ...]
    prefix: Prefix | None = None

    @classmethod
    def from_batch(cls, batch: TokenBatch, prefix: Prefix | None = None) -> Tokens:
        """Hand a packed batch to MLX; call it on the thread that evaluates.

        Args:
            batch: of the tokens after the prefix, their positions counted from there.
            prefix: see the attribute.
        """
        positions = batch.positions if prefix is None else batch.positions + np.int32(prefix.length)
        return cls(mx.array(batch.ids), mx.array(positions), batch.blocks, prefix)

    @property
    def longest(self) -> int:
        """Length of the longest text."""
        return max(block.length for block in self.blocks) + (self.prefix.length if self.prefix else 0)

    def positions_within(self, rows: int) -> mx.array:
        """Return the positions, those of padding that a table of `rows` rows is too short for cut to its last row."""
        return self.positions if self.longest <= rows else mx.minimum(self.positions, rows - 1)
