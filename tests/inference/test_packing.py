"""Packing: every text once, in the right position, within the budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from akidb_mlx_plugin.inference.packing import pack_exact, pack_padded
from akidb_mlx_plugin.nn.batch import Block

ROWS = st.lists(st.integers(1, 70).map(lambda length: list(range(100, 100 + length))), max_size=30)


@pytest.mark.slow
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


@pytest.mark.slow
@given(rows=ROWS, budget=st.integers(1, 600))
def test_padded_packing(rows: list[list[int]], budget: int) -> None:
    seen: list[int] = []
    for batch in pack_padded(rows, budget):
        seen += batch.order
        assert batch.ids.dtype == batch.positions.dtype == np.int32
        assert len(batch.ids) == len(batch.positions)
        assert sum(len(rows[i]) for i in batch.order) <= budget or len(batch.order) == 1
        filler = len(batch.ids) - batch.blocks[-1].stop
        assert 0 <= filler < 32
        assert len(batch.ids) % 32 == 0 or len(batch.order) == 1
        assert not batch.ids[batch.blocks[-1].stop :].any()
        chosen = iter(batch.order)
        stop = 0
        for block in batch.blocks:
            assert block.start == stop
            stop = block.stop
            ids = batch.ids[block.start : block.stop].reshape(block.rows, block.length)
            lengths = block.lengths or (block.length,) * block.rows
            assert max(lengths) == block.length
            assert (min(lengths) == block.length) == (block.lengths is None)
            for row, length in zip(ids, lengths, strict=True):
                text = rows[next(chosen)]
                assert row[:length].tolist() == text
                assert not row[length:].any()
            assert np.array_equal(
                batch.positions[block.start : block.stop], np.tile(np.arange(block.length), block.rows)
            )
        assert next(chosen, None) is None
    assert sorted(seen) == list(range(len(rows)))


@pytest.mark.slow
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=9))
def test_no_other_cut_costs_less(lengths: list[int]) -> None:
    lengths.sort(reverse=True)
    (batch,) = pack_padded([[5] * length for length in lengths], 10_000)

    def cheapest(rest: list[int]) -> int:
        return min((rest[0] * n + 8 + cheapest(rest[n:]) for n in range(1, len(rest) + 1)), default=0) if rest else 0

    assert sum(block.rows * block.length + 8 for block in batch.blocks) == cheapest(lengths)


class TestCounts:
    """What a GPU is given: passes, and padded over real tokens."""

    def test_passages(self) -> None:
        generator = np.random.default_rng(0)
        lengths = generator.lognormal(4.5, 0.6, 1000).clip(4, 512).astype(int)
        batches = list(pack_padded([[5] * length for length in lengths], 4096))
        assert sum(len(batch.ids) for batch in batches) / lengths.sum() <= 1.05
        assert len(batches) <= np.ceil(lengths.sum() / 4096) + 1
        assert max(len(batch.blocks) for batch in batches) <= 12

    def test_merged_queries(self) -> None:
        generator = np.random.default_rng(0)
        ratios = []
        for _ in range(200):
            lengths = generator.poisson(10, 10) + 3
            (batch,) = pack_padded([[5] * length for length in lengths], 2048)
            ratios.append(len(batch.ids) / lengths.sum())
        assert np.mean(ratios) <= 1.25
        assert max(ratios) <= 1.45

    def test_one_row_is_not_padded(self) -> None:
        (batch,) = pack_padded([[5] * 13], 2048)
        assert len(batch.ids) == 13
        assert batch.blocks == (Block(0, 1, 13),)


def test_rows_of_one_length_share_a_block() -> None:
    (batch,) = pack_exact([[1, 2], [3], [4, 5], [6]], 100)
    assert batch.blocks == (Block(0, 2, 2), Block(4, 2, 1))
    assert batch.ids.tolist() == [1, 2, 4, 5, 3, 6]
    assert batch.order == (0, 2, 1, 3)


def test_longest_texts_go_first() -> None:
    lengths = [batch.blocks[0].length for batch in pack_exact([[0] * n for n in (3, 50, 20)], 10)]
    assert lengths == [50, 20, 3]


@pytest.mark.parametrize("pack", [pack_exact, pack_padded])
def test_nothing_packs_to_nothing(pack: object) -> None:
    assert callable(pack)
    assert list(pack([], 10)) == []
