"""Every pooling mode against its definition, on full and padded rectangles, with and without the prompt."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.nn.batch import Block
from akidb_mlx_plugin.nn.pooling import POOLINGS, check_modes, pool


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def definition(mode: str, tokens: NDArray[np.float64], skip: int) -> NDArray[np.float64]:
    """Pool one text, (L, D) to (D,), like sentence-transformers; its prompt is shorter than the text."""
    rest, places = tokens[skip:], np.arange(skip + 1, len(tokens) + 1)[:, None]
    return {
        "cls": lambda: rest[0],
        "max": lambda: rest.max(axis=0),
        "mean": lambda: rest.mean(axis=0),
        "mean_sqrt_len_tokens": lambda: rest.sum(axis=0) / np.sqrt(len(rest)),
        "weightedmean": lambda: (rest * places).sum(axis=0) / places.sum(),
        "lasttoken": lambda: rest[-1],
    }[mode]()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(4, 12), min_size=1, max_size=3), min_size=1, max_size=3),
    padded=st.booleans(),
    modes=st.lists(st.sampled_from(sorted(POOLINGS)), min_size=1, max_size=6),
    skip=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_pooling_is_as_defined(lengths: list[list[int]], padded: bool, modes: list[str], skip: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks: list[Block] = []
    for rows in lengths:
        start = blocks[-1].stop if blocks else 0
        real = rows if padded else [rows[0]] * len(rows)
        blocks.append(Block(start, len(rows), max(real), tuple(real) if padded else None))
    hidden = rng.standard_normal((blocks[-1].stop, 5), dtype=np.float32)
    expected = []
    for block in blocks:
        for row in range(block.rows):
            first = block.start + row * block.length
            last = first + (block.lengths[row] if block.lengths else block.length)
            # An encoder may leave any values in the padding.
            hidden[last : first + block.length] = np.nan
            tokens = hidden[first:last].astype(np.float64)
            expected.append(np.concatenate([definition(mode, tokens, skip) for mode in modes]))
    pooled = np.array(pool(mx.array(hidden), blocks, modes, skip))
    assert pooled.dtype == np.float32
    assert np.abs(pooled - np.array(expected)).max() < 1e-5


def test_narrow_formats_are_summed_in_float32() -> None:
    hidden = mx.full((3000, 1), 1.01, dtype=mx.bfloat16)
    for block in (Block(0, 1, 3000), Block(0, 1, 3000, (3000,))):
        pooled = pool(hidden, [block], ["mean"])
        assert pooled.dtype == mx.float32
        assert abs(pooled.item() - hidden[0].item()) < 1e-5


@pytest.mark.parametrize("modes", [(), ("median",), ("mean", "first")])
def test_an_unknown_mode_is_refused(modes: tuple[str, ...]) -> None:
    with pytest.raises(ModelNotFoundError, match=r"unsupported pooling.*cls, max, mean"):
        check_modes(modes)


def test_known_modes_are_taken() -> None:
    check_modes(tuple(POOLINGS))
