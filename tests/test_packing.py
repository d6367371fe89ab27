"""Packing: every text once, in its place, within the budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from akidb_mlx_plugin.inference.packing import bucket_length, pack_exact, pack_padded
from akidb_mlx_plugin.nn.batch import Block

ROWS = st.lists(st.integers(1, 70).map(lambda length: list(range(100, 100 + length))), max_size=30)


@given(rows=ROWS, budget=st.integers(1, 300))
def test_exact_packing(rows: list[list[int]], budget: int) -> None:
    seen: list[int] = []
    for batch in pack_exact(rows, budget):
        seen += batch.order
        assert batch.ids.dtype == batch.positions.dtype == np.int32
        assert len(batch.ids) == len(batch.positions) == batch.blocks[-1].stop
        assert len(batch.ids) <= budget or len(batch.order) == 1
        places = iter(batch.order)
        for block in batch.blocks:
            assert block.lengths is None
            for r in range(block.rows):
                span = slice(block.start + r * block.length, block.start + (r + 1) * block.length)
                assert batch.ids[span].tolist() == rows[next(places)]
                assert batch.positions[span].tolist() == list(range(block.length))
        assert next(places, None) is None
    assert sorted(seen) == list(range(len(rows)))


@given(rows=ROWS, budget=st.integers(1, 600))
def test_padded_packing(rows: list[list[int]], budget: int) -> None:
    seen: list[int] = []
    for batch in pack_padded(rows, budget):
        seen += batch.order
        (block,) = batch.blocks
        assert block.start == 0
        assert block.rows * block.length <= max(budget, block.length)
        assert block.length == bucket_length(block.length)
        assert block.lengths is not None
        assert len(block.lengths) == block.rows >= len(batch.order)
        ids = batch.ids.reshape(block.rows, block.length)
        for place, i in enumerate(batch.order):
            assert block.lengths[place] == len(rows[i])
            assert ids[place, : len(rows[i])].tolist() == rows[i]
        assert all(length == 1 for length in block.lengths[len(batch.order) :])
        assert np.array_equal(batch.positions, np.tile(np.arange(block.length), block.rows))
    assert sorted(seen) == list(range(len(rows)))


def test_rows_of_one_length_share_a_block() -> None:
    (batch,) = pack_exact([[1, 2], [3], [4, 5], [6]], 100)
    assert batch.blocks == (Block(0, 2, 2), Block(4, 2, 1))
    assert batch.ids.tolist() == [1, 2, 4, 5, 3, 6]
    assert batch.order == (0, 2, 1, 3)


def test_longest_texts_go_first() -> None:
    lengths = [batch.blocks[0].length for batch in pack_exact([[0] * n for n in (3, 50, 20)], 10)]
    assert lengths == [50, 20, 3]


def test_shapes_are_few() -> None:
    lengths = {bucket_length(length) for length in range(1, 8193)}
    assert len(lengths) < 45
    assert all(length <= bucket_length(length) <= max(length + 7, 1.5 * length) for length in range(1, 8193))
    shapes = {
        (batch.blocks[0].rows, batch.blocks[0].length)
        for count in range(1, 60)
        for batch in pack_padded([[0] * 20] * count, 4096)
    }
    assert shapes == {(1 << i, 24) for i in range(7)}


@pytest.mark.parametrize("pack", [pack_exact, pack_padded])
def test_nothing_packs_to_nothing(pack: object) -> None:
    assert callable(pack)
    assert list(pack([], 10)) == []
