"""Which requests go next: merging, turns, the size of slices, and the line for room."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queue_fakes import numbered, request

from akidb_mlx_plugin.batching.requests import PendingRequest, RequestSlice
from akidb_mlx_plugin.batching.scheduler import SLICE_CHARACTERS, SLICE_TEXTS, Scheduler


def pending(texts: int, *, length: int = 1) -> PendingRequest:
    return PendingRequest(request(*["x" * length] * texts), 0.0)


def scheduler_with(*requests: PendingRequest, batch_size: int = 10, max_texts: int = 10_000) -> Scheduler:
    scheduler = Scheduler(batch_size, 0.05, max_texts)
    for each in requests:
        enter(scheduler, each)
    return scheduler


def enter(scheduler: Scheduler, pending: PendingRequest, *, at: float = 0.0) -> list[PendingRequest]:
    scheduler.add(pending)
    return scheduler.admit(at)


def end(scheduler: Scheduler, slices: list[RequestSlice], *, seconds: float) -> None:
    """End a batch of slices that took so long."""
    scheduler.note_speed(slices, seconds)
    scheduler.allow_slices()


def next_slices(scheduler: Scheduler, now: float = 0.0) -> list[RequestSlice]:
    """Return the next batch; it has ended."""
    slices = scheduler.next_batch(now)
    scheduler.allow_slices()
    return slices


def sizes(slices: list[RequestSlice]) -> list[int]:
    return [len(part.request.inputs) for part in slices]


@pytest.mark.parametrize(
    ("texts", "length", "size"),
    [(2000, 1, SLICE_TEXTS), (20, SLICE_CHARACTERS // 4, 4), (20, SLICE_CHARACTERS * 2, 1)],
)
def test_a_slice_is_limited_in_texts_and_characters(texts: int, length: int, size: int) -> None:
    assert sizes(scheduler_with(pending(texts, length=length)).next_batch(0)) == [size]


def test_the_longest_texts_go_first() -> None:
    texts = request("a" * 5_000, "b" * 15_000, "c" * 10_000, "d" * 6_000)
    scheduler = scheduler_with(PendingRequest(texts, 0.0), batch_size=2)
    slices = [next_slices(scheduler)[0].request.inputs for _ in range(3)]
    assert [[text[0] for text in texts] for texts in slices] == [["b"], ["c", "d"], ["a"]]


def test_slices_take_the_batch_timeout_while_small_requests_arrive() -> None:
    scheduler = scheduler_with(pending(5000, length=10))
    slices = scheduler.next_batch(0.0)
    enter(scheduler, pending(1), at=0.5)
    end(scheduler, slices, seconds=5.12)  # 1000 characters a second
    assert sizes(next_slices(scheduler, 5.12)) == [1]
    assert sizes(next_slices(scheduler, 5.2)) == [5]
    assert sizes(next_slices(scheduler, 10.4)) == [5]
    # No small request has been held up for ten seconds.
    assert sizes(next_slices(scheduler, 10.6)) == [SLICE_TEXTS]


def test_a_small_request_before_a_large_one_changes_nothing() -> None:
    scheduler = scheduler_with(pending(1))
    scheduler.next_batch(0)
    enter(scheduler, pending(600))
    assert sizes(scheduler.next_batch(0)) == [SLICE_TEXTS]


@pytest.mark.parametrize(("texts", "length"), [(3, SLICE_CHARACTERS // 5), (1, 10_000)])
def test_a_request_of_few_long_texts_is_a_large_one(texts: int, length: int) -> None:
    scheduler = scheduler_with(pending(2 * SLICE_TEXTS))
    slices = scheduler.next_batch(0.0)
    enter(scheduler, pending(texts, length=length), at=0.5)
    end(scheduler, slices, seconds=5.12)
    # It does not shorten the slices of others, as small requests do, but shares a batch with them.
    assert sizes(next_slices(scheduler, 5.12)) == [SLICE_TEXTS // 2, texts]


def test_bulk_work_is_large_whatever_its_size() -> None:
    bulk = [PendingRequest(request("x"), 0.0, bulk=True) for _ in range(2)]
    small = pending(1)
    scheduler = scheduler_with(*bulk, small)
    assert [part.pending for part in next_slices(scheduler)] == [small]
    assert [part.pending for part in next_slices(scheduler)] == bulk


def test_small_requests_are_merged_up_to_a_batch_of_characters() -> None:
    scheduler = scheduler_with(*(pending(1, length=SLICE_CHARACTERS // 3) for _ in range(4)))
    assert sizes(scheduler.next_batch(0.0)) == [1, 1, 1]
    assert sizes(scheduler.next_batch(0.0)) == [1]


def test_removing_frees_what_waits() -> None:
    requests = [pending(3), pending(600), pending(4)]
    scheduler = scheduler_with(*requests)
    scheduler.next_batch(0)
    assert scheduler.waiting_texts == 600
    scheduler.next_batch(0)
    for each in requests:
        scheduler.remove(each)
    assert scheduler.waiting_texts == 0
    assert scheduler.next_batch(0) == []


class TestRoom:
    def test_those_who_wait_for_room_get_it_in_order(self) -> None:
        scheduler = scheduler_with(pending(2), pending(2), batch_size=2, max_texts=4)
        first, second, third = pending(2), pending(1), pending(1)
        for each in (first, second, third):
            assert enter(scheduler, each) == []
        scheduler.next_batch(1.0)
        assert scheduler.admit(2.0) == [first]
        assert (first.submitted, second.submitted) == (2.0, 0.0)
        scheduler.next_batch(3.0)
        assert scheduler.admit(4.0) == [second, third]
        assert scheduler.waiting_texts == 4

    def test_nobody_passes_the_line(self) -> None:
        scheduler = scheduler_with(pending(3), batch_size=3, max_texts=4)
        enter(scheduler, pending(2))
        assert not scheduler.has_room(pending(1))

    def test_small_and_large_requests_have_lines_of_their_own(self) -> None:
        scheduler = scheduler_with(pending(3), pending(3), batch_size=2, max_texts=4)
        assert not scheduler.has_room(pending(3))
        assert scheduler.has_room(pending(2))

    def test_leaving_the_line_lets_the_next_one_in(self) -> None:
        scheduler = scheduler_with(pending(3), batch_size=3, max_texts=4)
        large, small = pending(2), pending(1)
        enter(scheduler, large)
        enter(scheduler, small)
        scheduler.remove(large)
        assert scheduler.admit(0.0) == [small]
        assert scheduler.waiting_texts == 4

    def test_a_request_above_the_limit_enters_where_none_waits(self) -> None:
        scheduler = scheduler_with(pending(1), batch_size=1, max_texts=1)
        above = pending(5)
        assert enter(scheduler, above) == [above]


class TestSeveralLargeRequests:
    def test_a_batch_has_a_slice_of_each(self) -> None:
        scheduler = scheduler_with(*(pending(400, length=length) for length in (30, 20, 10)))
        # A third of the characters each; what one leaves, the others get.
        assert sizes(next_slices(scheduler)) == [171, 171, 170]
        assert scheduler.waiting_texts == 1200 - SLICE_TEXTS

    def test_the_characters_are_shared(self) -> None:
        scheduler = scheduler_with(*(pending(100, length=SLICE_CHARACTERS // 16) for _ in range(4)), batch_size=2)
        assert sizes(next_slices(scheduler)) == [4, 4, 4, 4]

    def test_who_came_away_with_nothing_is_first_in_the_next_batch(self) -> None:
        requests = [pending(20, length=SLICE_CHARACTERS // 3) for _ in range(5)]
        scheduler = scheduler_with(*requests, batch_size=2)
        owners = [[requests.index(part.pending) for part in next_slices(scheduler)] for _ in range(5)]
        assert owners == [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1], [2, 3, 4]]

    def test_one_batch_of_slices_runs_at_a_time_beside_small_requests(self) -> None:
        scheduler = scheduler_with(pending(2000))
        slices = scheduler.next_batch(0)
        assert scheduler.next_batch(0) == []
        for _ in range(2):
            enter(scheduler, pending(1))
            assert sizes(scheduler.next_batch(0)) == [1]
        end(scheduler, slices, seconds=1)
        assert len(scheduler.next_batch(0)) == 1


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 12), st.integers(1, 100))
def test_every_text_goes_once(counts: list[int], batch_size: int, max_texts: int) -> None:
    requests = [PendingRequest(numbered(count, f"{i}-"), 0.0) for i, count in enumerate(counts)]
    scheduler = scheduler_with(*requests, batch_size=batch_size, max_texts=max_texts)
    gone: list[str] = []
    while slices := next_slices(scheduler):
        small = [part for part in slices if not part.pending.is_large(batch_size)]
        assert not small or (small == slices and sum(sizes(slices)) <= batch_size)
        assert sum(sizes(slices)) <= SLICE_TEXTS
        gone += [text for part in slices for text in part.request.inputs]
        scheduler.admit(0.0)
    assert scheduler.waiting_texts == 0
    assert sorted(gone) == sorted(text for each in requests for text in each.request.inputs)


@pytest.mark.parametrize("batch_timeout_s", [0.0, 0.001])
def test_a_slice_holds_at_least_one_text(batch_timeout_s: float) -> None:
    scheduler = Scheduler(2, batch_timeout_s, 10_000)
    enter(scheduler, pending(2000, length=100))
    slices = scheduler.next_batch(0)
    enter(scheduler, pending(1))
    end(scheduler, slices, seconds=100)
    scheduler.next_batch(0)
    assert sizes(scheduler.next_batch(0)) == [1]
