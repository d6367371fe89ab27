"""The packed batch: rectangular blocks of token rows laid end to end on one token axis.

Tokens after the last block belong to no text: they only fill the axis up to a length that suits a GPU.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
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
        lengths: real tokens of each row if rows are padded on the right; None if every row is full.
    """

    start: int
    rows: int
    length: int
    lengths: tuple[int, ...] | None = None

    @property
    def stop(self) -> int:
        """One past its last position."""
        return self.start + self.rows * self.length

    @property
    def last(self) -> NDArray[np.int32]:
        """Column of each row's last real token, (B,)."""
        return np.array(self.lengths or (self.length,) * self.rows, dtype=np.int32) - 1


class Blocks(tuple[Block, ...]):
    """The blocks of one forward pass, with its layers' shared masks.

    Attributes:
        masks: by what they depend on; filled by the first layer that needs one.
    """

    masks: dict[Hashable, mx.array | None]

    def __new__(cls, blocks: Iterable[Block]) -> Blocks:
        made = super().__new__(cls, blocks)
        made.masks = {}
        return made


@dataclass(frozen=True)
class TokenBatch:
    """Texts encoded together.

    Attributes:
        ids: (T,) int32 token ids of all blocks, end to end, then any that fill the axis.
        positions: (T,) int32 position of each token within its text.
        blocks: the rectangles that make up ids.
        order: input index of each row, in the order of the blocks' rows.
        seconds: for pairs of texts, position in each row at which the second text begins, in the same order.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    blocks: tuple[Block, ...]
    order: tuple[int, ...]
    seconds: tuple[int, ...] | None = None

    def rows(self) -> list[list[int]]:
        """Return the token ids of each text, in the order of the blocks' rows."""
        texts: list[list[int]] = []
        for block in self.blocks:
            rectangle = self.ids[block.start : block.stop].reshape(block.rows, block.length)
            lengths = block.lengths or (block.length,) * block.rows
            texts += [row[:length].tolist() for row, length in zip(rectangle, lengths, strict=True)]
        return texts

    def segments(self) -> NDArray[np.int32] | None:
        """Return (T,) the segment of each token, 0 or 1; None if rows are single texts."""
        if self.seconds is None:
            return None
        segments = np.zeros(len(self.ids), dtype=np.int32)
        row = 0
        for block in self.blocks:
            begins = np.array(self.seconds[row : row + block.rows], dtype=np.int32)
            inside = np.arange(block.length, dtype=np.int32) >= begins[:, None]
            segments[block.start : block.stop] = inside.reshape(-1)
            row += block.rows
        return segments


@dataclass(frozen=True, eq=False)
class Prefix:
    """Cached keys and values of a batch's common first tokens, for a causal model.

    Attributes:
        length: number of these tokens, P.
        layers: (K, P, d) rotated keys, and values, of each layer.
    """

    length: int
    layers: tuple[tuple[mx.array, mx.array], ...]

    @property
    def nbytes(self) -> int:
        """Size of the keys and values in bytes."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)

    def first(self, length: int) -> Prefix:
        """Return the prefix cut to its first tokens, none of which depends on a later one."""
        if length == self.length:
            return self
        return Prefix(length, tuple((keys[:, :length], values[:, :length]) for keys, values in self.layers))


@dataclass(frozen=True)
class Tokens:
    """A `TokenBatch` as MLX arrays.

    Attributes:
        ids: (T,) token ids.
        positions: (T,) position of each token within its text.
        blocks: the rectangles that the token axis consists of.
        prefix: cached tokens before every row of the blocks; not part of the token axis.
        segments: (T,) segment of each token, 0 or 1; None if every token is in segment 0.
    """

    ids: mx.array
    positions: mx.array
    blocks: tuple[Block, ...]
    prefix: Prefix | None = None
    segments: mx.array | None = None

    @classmethod
    def from_batch(cls, batch: TokenBatch, prefix: Prefix | None = None) -> Tokens:
        """Convert a packed batch; call on the thread that evaluates.

        Args:
            batch: the tokens after the prefix, with positions counted from its end.
            prefix: see the attribute.
        """
        positions = batch.positions if prefix is None else batch.positions + np.int32(prefix.length)
        segments = batch.segments()
        known = None if segments is None else mx.array(segments)
        return cls(mx.array(batch.ids), mx.array(positions), Blocks(batch.blocks), prefix, known)

    @property
    def longest(self) -> int:
        """Length of the longest text."""
        return max(block.length for block in self.blocks) + (self.prefix.length if self.prefix else 0)

    @property
    def text_lengths(self) -> NDArray[np.int32]:
        """Tokens of the text that each token belongs to, (T,); 1 for those of no text."""
        lengths = np.ones(len(self.ids), dtype=np.int32)
        for block in self.blocks:
            lengths[block.start : block.stop] = np.repeat(block.lengths or (block.length,) * block.rows, block.length)
        return lengths


@dataclass(frozen=True, eq=False)
class Pick:
    """One token of each text: all that a last layer need compute if the others are not pooled.

    Attributes:
        columns: (B,) of each block, counted from the start of its rows.
        places: (N,) positions on the token axis.
    """

    columns: tuple[NDArray[np.int32], ...]
    places: mx.array

    @classmethod
    def of_columns(cls, blocks: Sequence[Block], columns: Sequence[NDArray[np.int32]]) -> Pick:
        """Pick a column of each row; call on the thread that evaluates."""
        rows = [block.start + block.length * np.arange(block.rows, dtype=np.int32) for block in blocks]
        return cls(tuple(columns), mx.array(np.concatenate(rows) + np.concatenate(columns)))

    @classmethod
    def last(cls, blocks: Sequence[Block]) -> Pick:
        """Pick each text's last token."""
        return cls.of_columns(blocks, [block.last for block in blocks])

    @classmethod
    def first(cls, blocks: Sequence[Block], skip: int = 0) -> Pick:
        """Pick each text's first token after `skip` others, or the last one of a row that has no more."""
        columns = [np.full(block.rows, min(skip, block.length - 1), dtype=np.int32) for block in blocks]
        return cls.of_columns(blocks, columns)


def take(x: mx.array, pick: Pick | None) -> mx.array:
    """Return the picked rows of (T, …); all of them for None."""
    return x if pick is None else x[pick.places]


def join_blocks(outputs: Sequence[mx.array], tokens: int) -> mx.array:
    """Join the outputs of blocks, (t, D) each, on one axis of `tokens` tokens; zeros after the last."""
    rest = tokens - sum(map(len, outputs))
    parts = [*outputs, mx.zeros((rest, outputs[0].shape[1]), outputs[0].dtype)] if rest else outputs
    return parts[0] if len(parts) == 1 else mx.concatenate(list(parts), axis=0)
