"""Short convolutions along each text of a packed batch."""

from __future__ import annotations

from functools import partial

import mlx.core as mx

from akidb_mlx_plugin.nn.batch import Tokens


class Neighbors:
    """The tokens at given offsets from every token of a batch, within its own text."""

    def __init__(self, tokens: Tokens, offsets: tuple[int, ...]) -> None:
        """Determine which tokens have which neighbors.

        Args:
            tokens: the batch.
            offsets: positions relative to a token, negative before it.
        """
        self.offsets = offsets
        # (T, 1)
        length, position = mx.array(tokens.text_lengths)[:, None], tokens.positions[:, None]
        self._inside = [(position + offset >= 0) & (position + offset < length) for offset in offsets]

    def convolve(self, x: mx.array, taps: mx.array) -> mx.array:
        """Sum every token's neighbors, weighted per channel; a missing neighbor counts as zero.

        Args:
            x: (T, D) tokens.
            taps: (K, D) weights, one row per offset.
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
    """Return the tokens `offset` positions on, ignoring text boundaries; zero past the ends."""
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
