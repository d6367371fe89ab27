"""Short convolutions along each text of a packed batch."""

from __future__ import annotations

from functools import partial

import mlx.core as mx

from akidb_mlx_plugin.nn.batch import Tokens


class Neighbours:
    """The tokens at given places around every token of a batch, none of them of another text."""

    def __init__(self, tokens: Tokens, offsets: tuple[int, ...]) -> None:
        """Find out which tokens have them.

        Args:
            tokens: the batch.
            offsets: places from a token, negative ones before it.
        """
        self.offsets = offsets
        # (T, 1)
        length, position = mx.array(tokens.text_lengths)[:, None], tokens.positions[:, None]
        self._inside = [(position + offset >= 0) & (position + offset < length) for offset in offsets]

    def convolve(self, x: mx.array, taps: mx.array) -> mx.array:
        """Sum every token's neighbours, each channel with weights of its own.

        Args:
            x: (T, D) tokens; zero where a text has none.
            taps: (K, D), a row for each of the offsets.
        Returns:
            (T, D).
        """
        total: mx.array | None = None
        for tap, offset, inside in zip(taps, self.offsets, self._inside, strict=True):
            if total is None:
                total = _weighted(_shift(x, offset), tap, inside)
            else:
                total = _add_weighted(total, _shift(x, offset), tap, inside)
        assert total is not None
        return total


def _shift(x: mx.array, offset: int) -> mx.array:
    """Return the tokens that lie `offset` places on, whatever texts they belong to; zero past the ends."""
    if offset == 0:
        return x
    gap = mx.zeros((min(abs(offset), len(x)), x.shape[1]), x.dtype)
    return mx.concatenate([x[offset:], gap] if offset > 0 else [gap, x[:offset]])


@partial(mx.compile, shapeless=True)
def _weighted(x: mx.array, tap: mx.array, inside: mx.array) -> mx.array:
    return mx.where(inside, x * tap, 0.0).astype(x.dtype)


@partial(mx.compile, shapeless=True)
def _add_weighted(total: mx.array, x: mx.array, tap: mx.array, inside: mx.array) -> mx.array:
    return total + mx.where(inside, x * tap, 0.0).astype(x.dtype)
