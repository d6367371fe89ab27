"""Who goes next: merging, turns, and the length of slices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queue_fakes import request

from akidb_mlx_plugin.batching.requests import Part, Ticket
from akidb_mlx_plugin.batching.scheduler import SLICE_CHARACTERS, SLICE_TEXTS, Lanes


def ticket(texts: int, *, at: float = 0.0, length: int = 1) -> Ticket:
    return Ticket(request(*["x" * length] * texts), at)


def sizes(parts: list[Part]) -> list[int]:
    return [len(part.request.inputs) for part in parts]


def test_a_slice_has_bounds_in_texts_and_characters() -> None:
    lanes = Lanes(10, 0.05)
    lanes.add(ticket(2000))
    assert sizes(lanes.take(0)) == [SLICE_TEXTS]
    lanes = Lanes(10, 0.05)
    lanes.add(ticket(20, length=SLICE_CHARACTERS // 4))
    assert sizes(lanes.take(0)) == [4]
    lanes = Lanes(10, 0.05)
    lanes.add(ticket(20, length=SLICE_CHARACTERS * 2))
    assert sizes(lanes.take(0)) == [1]


def test_the_longest_texts_go_first() -> None:
    lanes = Lanes(2, 0.05)
    lanes.add(Ticket(request("a" * 5_000, "b" * 15_000, "c" * 10_000, "d" * 6_000), 0.0))
    slices = [lanes.take(0)[0].request.inputs for _ in range(3)]
    assert [[text[0] for text in texts] for texts in slices] == [["b"], ["c", "d"], ["a"]]


def test_slices_take_the_batch_timeout_while_small_requests_come() -> None:
    lanes = Lanes(10, batch_timeout_s=0.05)
    lanes.add(ticket(5000, length=10))
    parts = lanes.take(0.0)
    lanes.add(ticket(1, at=0.5))
    lanes.finish(parts, seconds=5.12)  # 1000 characters a second
    assert sizes(lanes.take(5.12)) == [1]
    assert sizes(lanes.take(5.2)) == [5]
    assert sizes(lanes.take(10.4)) == [5]
    # Nobody has been held up for a while.
    assert sizes(lanes.take(10.6)) == [SLICE_TEXTS]


def test_a_small_request_before_a_large_one_changes_nothing() -> None:
    lanes = Lanes(10, 0.05)
    lanes.add(ticket(1))
    lanes.finish(lanes.take(0), seconds=0.01)
    lanes.add(ticket(600))
    assert sizes(lanes.take(0)) == [SLICE_TEXTS]


def test_removing_frees_what_waits() -> None:
    lanes = Lanes(10, 0.05)
    tickets = [ticket(3), ticket(600), ticket(4)]
    for each in tickets:
        lanes.add(each)
    lanes.take(0)
    assert lanes.waiting_texts == 600
    lanes.take(0)
    for each in tickets:
        lanes.remove(each)
    assert lanes.waiting_texts == 0
    assert lanes.take(0) == []


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 12))
def test_every_text_goes_once(counts: list[int], batch_size: int) -> None:
    lanes = Lanes(batch_size, 0.05)
    tickets = [Ticket(request(*[f"{i}-{j}" for j in range(count)]), 0.0) for i, count in enumerate(counts)]
    for each in tickets:
        lanes.add(each)
    assert lanes.waiting_texts == sum(counts)
    gone: list[str] = []
    while parts := lanes.take(0.0):
        assert len(parts) == 1 or sum(sizes(parts)) <= batch_size
        gone += [text for part in parts for text in part.request.inputs]
        assert lanes.waiting_texts == sum(counts) - len(gone)
    assert sorted(gone) == sorted(text for each in tickets for text in each.request.inputs)


@pytest.mark.parametrize("batch_timeout_s", [0.0, 0.001])
def test_a_slice_holds_at_least_one_text(batch_timeout_s: float) -> None:
    lanes = Lanes(2, batch_timeout_s)
    lanes.add(ticket(2000, length=100))
    parts = lanes.take(0)
    lanes.add(ticket(1))
    lanes.finish(parts, seconds=100)
    lanes.take(0)
    assert sizes(lanes.take(0)) == [1]
