"""Attention and rotary positions against textbook implementations, one query at a time."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from akidb_mlx_plugin.inference.packing import pack_exact, pack_padded
from akidb_mlx_plugin.models.base import split_linear
from akidb_mlx_plugin.nn import attention, layout
from akidb_mlx_plugin.nn.attention import attend
from akidb_mlx_plugin.nn.batch import Block, TokenBatch, Tokens
from akidb_mlx_plugin.nn.position_bias import PositionBias
from akidb_mlx_plugin.nn.rotary import Rotary, rotate

Array = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


# Distances in the table of a bias, to each side.
FARTHEST = 20


def textbook(
    q: Array, k: Array, v: Array, scale: float, causal: bool, window: int | None, bias: Array | None = None
) -> Array:
    """Attention of one text, (L, H, d) queries and (L, K, d) keys and values to (L, H * d), query by query."""
    length, heads, size = q.shape
    out = np.zeros((length, heads, size))
    for i in range(length):
        seen = [
            j for j in range(length) if not (causal and j > i) and not (window is not None and abs(i - j) >= window)
        ]
        for h in range(heads):
            shared = h * k.shape[1] // heads
            scores = np.array([q[i, h] @ k[j, shared] for j in seen], dtype=np.float64) * scale
            if bias is not None:
                scores += [bias[h, j - i + FARTHEST] for j in seen]
            weights = np.exp(scores - scores.max())
            out[i, h] = weights / weights.sum() @ v[seen, shared]
    return out.reshape(length, -1).astype(np.float32)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[Block, ...]:
    """Draw adjacent rectangles, full or padded."""
    found: list[Block] = []
    for _ in range(draw(st.integers(1, 3))):
        start = found[-1].stop if found else 0
        rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 20))
        padded = draw(st.booleans())
        lengths = tuple(draw(st.integers(1, length)) for _ in range(rows)) if padded else None
        found.append(Block(start, rows, length, lengths))
    return tuple(found)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    blocks=blocks(),
    key_heads=st.integers(1, 2),
    share=st.integers(1, 3),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 24),
    biased=st.booleans(),
    on_cpu=st.booleans(),
    slice_length=st.sampled_from([1, 5, 256]),
    seed=st.integers(0, 99),
)
def test_attention_is_that_of_the_textbook(
    blocks: tuple[Block, ...],
    key_heads: int,
    share: int,
    causal: bool,
    window: int | None,
    biased: bool,
    on_cpu: bool,
    slice_length: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    total, heads = blocks[-1].stop, key_heads * share
    q, k, v = (3 * rng.standard_normal((total, n, 8), dtype=np.float32) for n in (heads, key_heads, key_heads))
    numbers = 2 * rng.standard_normal((heads, 2 * FARTHEST + 1), dtype=np.float32) if biased else None
    bias = PositionBias(lambda distances: mx.array(numbers[:, distances + FARTHEST]), mx.float32) if biased else None
    inputs = [mx.array(x) for x in (q, k, v)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "_emulated", not on_cpu)
        patch.setattr(attention, "_MAX_MASK", slice_length**3)
        patch.setattr(attention, "_FUSED_QUERIES", slice_length)
        patch.setattr(attention, "_MASKED_QUERIES", slice_length)
        patch.setattr(attention, "_MAX_SCORES", 1 if slice_length == 1 else 1 << 22)
        patch.setattr(attention, "_FEWEST_QUERIES", slice_length)
        for _ in range(2):  # the second layer reuses the first one's masks
            out = np.array(attend(*inputs, blocks, scale=0.3, causal=causal, window=window, bias=bias))
    assert np.isfinite(out).all()
    for block in blocks:
        for row in range(block.rows):
            first = block.start + row * block.length
            real = slice(first, first + (block.lengths[row] if block.lengths else block.length))
            expected = textbook(q[real], k[real], v[real], 0.3, causal, window, numbers)
            assert np.abs(out[real] - expected).max() < 2e-5


def test_long_texts_attend_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = []
    softmax_parts = attention.softmax_parts
    monkeypatch.setattr(
        attention, "softmax_parts", lambda scores, axis: largest.append(scores.size) or softmax_parts(scores, axis)
    )
    length, heads = 3000, 2
    q = mx.random.normal((length, heads, 4))
    mx.eval(attend(q, q, q, (Block(0, 1, length),), scale=1.0))
    assert max(largest) <= attention._MAX_SCORES
    # With a window, only the keys within reach are computed.
    largest.clear()
    mx.eval(attend(q, q, q, (Block(0, 1, length),), scale=1.0, window=10))
    assert sum(largest) < 0.15 * heads * length**2


def test_what_is_behind_the_padding_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    for window in (None, 3):
        block = (Block(0, 2, 9, (4, 9)),)
        q = rng.standard_normal((18, 2, 8), dtype=np.float32)
        out = attend(*(mx.array(q) for _ in range(3)), block, scale=0.3, window=window)
        q[4:9] = 1e4
        other = attend(*(mx.array(q) for _ in range(3)), block, scale=0.3, window=window)
        assert np.array_equal(np.array(out)[:4], np.array(other)[:4])


class TestRotary:
    @staticmethod
    def _tokens(lengths: list[int], *, padded: bool = False) -> Tokens:
        pack = pack_padded if padded else pack_exact
        (batch,) = pack([[0] * length for length in lengths], 1 << 20)
        return Tokens.from_batch(batch)

    @pytest.mark.parametrize(("theta", "factor"), [(10_000.0, 1.0), (1e6, 1.0), (1e4, 4.0)])
    def test_angles_are_those_of_the_definition(self, theta: float, factor: float) -> None:
        tokens = self._tokens([3, 70, 9])
        angles_found = Rotary(16, theta, factor).angles(tokens)
        cos, sin = angles_found.cos, angles_found.sin
        angles = np.array(tokens.positions)[:, None] / factor / theta ** (np.arange(0, 16, 2) / 16)
        assert np.abs(np.array(cos)[:, 0] - np.cos(angles)).max() < 1e-5
        assert np.abs(np.array(sin)[:, 0] - np.sin(angles)).max() < 1e-5

    def test_far_positions_are_rounded_as_torch_rounds_them(self) -> None:
        # torch: cos(torch.tensor(30000.) * (1.0 / 1e6 ** (torch.arange(0, 8, 2).float() / 8))), all float32.
        tokens = Tokens(mx.zeros(1, dtype=mx.int32), mx.array([30000]), (Block(0, 1, 30001),))
        cos = Rotary(8, 1e6).angles(tokens).cos
        frequencies = 1.0 / np.float32(1e6) ** (np.arange(0, 8, 2, dtype=np.float32) / 8)
        expected = np.cos((np.float32(30000) * frequencies.astype(np.float32)).astype(np.float64))
        assert np.abs(np.array(cos).ravel() - expected).max() < 1e-6

    def test_a_later_longer_text_extends_the_table(self) -> None:
        rotary = Rotary(8, 1e4)
        short = rotary.angles(self._tokens([5])).cos
        long = rotary.angles(self._tokens([200])).cos
        again = rotary.angles(self._tokens([5])).cos
        assert np.array_equal(np.array(short), np.array(again))
        assert np.array_equal(np.array(long)[:5], np.array(short))

    @settings(max_examples=20, deadline=None)
    @given(shift=st.integers(0, 40), seed=st.integers(0, 9))
    def test_scores_depend_on_distance_alone(self, shift: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rotary = Rotary(16, 100.0)
        q, k = (mx.array(np.repeat(rng.standard_normal((1, 1, 16)), 50, axis=0).astype(np.float32)) for _ in range(2))
        angles = rotary.angles(self._tokens([50]))
        q, k = (np.array(rotate(x, angles))[:, 0] for x in (q, k))
        assert abs(q[9] @ k[4] - q[9 + shift] @ k[4 + shift]) < 1e-4

    def test_channels_without_an_angle_stay(self) -> None:
        x = mx.random.normal((5, 2, 12))
        angles = Rotary(8, 1e4).angles(self._tokens([5]))
        turned = np.array(rotate(x, angles))
        assert np.array_equal(turned[..., 8:], np.array(x)[..., 8:])
        assert np.array_equal(turned[..., :8], np.array(rotate(x[..., :8], angles)))

    def test_halves_are_turned_together_and_the_format_stays(self) -> None:
        x = mx.random.normal((5, 2, 8))
        angles = Rotary(8, 1e4).angles(self._tokens([5]))
        cos, sin = np.array(angles.cos), np.array(angles.sin)
        first, second = np.split(np.array(x), 2, axis=-1)
        expected = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
        assert np.abs(np.array(rotate(x, angles)) - expected).max() < 1e-6
        assert rotate(x.astype(mx.bfloat16), angles).dtype == mx.bfloat16


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("parts", [3, [16, 20]])
def test_a_split_layer_computes_the_same(parts: int | list[int], quantized: bool) -> None:
    import mlx.nn as nn

    linear = nn.Linear(64, 24)
    layer = linear.to_quantized(group_size=32, bits=4) if quantized else linear
    x = mx.random.normal((3, 64))
    whole = np.array(layer(x))
    parts = np.concatenate([np.array(part(x)) for part in split_linear(layer, parts)], axis=-1)
    assert np.abs(whole - parts).max() < 1e-6
    assert np.array_equal(np.array(layer(x)), whole)


def test_a_batch_knows_its_longest_row() -> None:
    batch = TokenBatch(np.zeros(11, np.int32), np.zeros(11, np.int32), (Block(0, 1, 7), Block(7, 2, 2)), (0, 1, 2))
    assert Tokens.from_batch(batch).longest == 7


def test_padding_has_no_position_past_the_longest_text() -> None:
    (batch,) = pack_padded([[5] * 50, [5] * 47], 1 << 20)
    tokens = Tokens.from_batch(batch)
    assert len(batch.ids) == 128
    assert tokens.longest == 50
    assert batch.positions.max() == 49
    assert tokens.text_lengths.tolist() == [*[50] * 50, *[47] * 50, *[1] * 28]
