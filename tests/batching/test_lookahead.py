"""Slices of large requests: as many texts as the engine computes at once, and the next one begun meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from queue_fakes import PATIENCE_S, FakeClock, GatedEngine, answer, numbered, request

from akidb_mlx_plugin.batching.queue import BatchQueue
from akidb_mlx_plugin.errors import InvalidInputError, ServiceUnavailableError
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse


@dataclass(frozen=True)
class Started:
    texts: list[int]
    result: Callable[[], list[BatchEmbeddingResponse]]


class BackgroundEngine(GatedEngine):
    """Computes slices in the background, a few texts of each; notes when a batch begins and is waited for."""

    def __init__(self, at_once: int = 3) -> None:
        super().__init__()
        self.at_once = at_once
        self.events: list[str] = []
        self.refused: set[str] = set()
        self.on_wait: Callable[[str], None] = lambda first: None

    def begin(self, requests: Sequence[BatchEmbeddingRequest]) -> Started:
        firsts = [request.inputs[0] for request in requests]
        name = "+".join(firsts)
        self.events.append(f"begin {name}")
        for first in self.refused.intersection(firsts):
            raise InvalidInputError(f"{first} cannot be read")
        parts = [replace(request, inputs=request.inputs[: self.at_once]) for request in requests]

        def result() -> list[BatchEmbeddingResponse]:
            self.events.append(f"wait {name}")
            self.on_wait(firsts[0])
            return [self.embed_batch(part) for part in parts]

        return Started([len(part.inputs) for part in parts], result)

    def embed_requests(self, requests: list[BatchEmbeddingRequest]) -> list[BatchEmbeddingResponse]:  # type: ignore[override]
        self.events.append("small " + " ".join(text for each in requests for text in each.inputs))
        return super().embed_requests(requests)


@pytest.fixture
def engine() -> BackgroundEngine:
    return BackgroundEngine()


@pytest.fixture
def queue(engine: BackgroundEngine) -> Iterator[BatchQueue]:
    queue = BatchQueue(engine.embed_requests, begin=engine.begin, batch_size=2, max_texts=50, clock=FakeClock())
    yield queue
    engine.release()
    queue.close(drain=False)


def test_the_next_slice_is_begun_before_the_queue_waits(queue: BatchQueue, engine: BackgroundEngine) -> None:
    queue.embed(numbered(8))
    assert engine.events == ["begin 0", "begin 3", "wait 0", "begin 6", "wait 3", "wait 6"]


@pytest.mark.parametrize("texts", [["a", "ccc", "bb", "d", "eeee"], [f"{i} " * (i % 7 + 1) for i in range(23)]])
def test_each_text_gets_its_vector(queue: BatchQueue, engine: BackgroundEngine, texts: list[str]) -> None:
    expected = engine.embed_batch(request(*texts)).embeddings
    assert np.array_equal(queue.embed(request(*texts)).embeddings, expected)
    assert queue.waiting_texts == 0


def test_a_slice_is_what_the_engine_takes_even_of_one_text(queue: BatchQueue, engine: BackgroundEngine) -> None:
    engine.at_once = 1
    assert len(queue.embed(numbered(5)).embeddings) == 5
    assert sum(event.startswith("wait") for event in engine.events) == 5


def test_large_requests_share_batches(queue: BatchQueue, engine: BackgroundEngine) -> None:
    submitted = []

    def submit_once(first: str) -> None:
        if not submitted:
            submitted.append(queue.submit(numbered(6, "b")))

    engine.on_wait = submit_once
    queue.embed(request(*(f"a{i:02}" for i in range(15))))
    answer(submitted[0])
    waits = [event.removeprefix("wait ") for event in engine.events if event.startswith("wait")]
    # The second one was begun before "b" came.
    assert waits == ["a00", "a03", "a06+b0", "a09+b3", "a12"]


def test_while_small_requests_arrive_nothing_is_begun_ahead(queue: BatchQueue, engine: BackgroundEngine) -> None:
    small = []

    def submit_small(first: str) -> None:
        small.append(queue.submit(request(f"s{first}")))

    engine.on_wait = submit_small
    queue.embed(numbered(9))
    for future in small:
        answer(future)
    assert engine.events == [
        "begin 0", "begin 3", "wait 0", "small s0", "wait 3", "small s3", "begin 6", "wait 6", "small s6",
        "begin 8", "wait 8", "small s8",
    ]  # fmt: skip


def test_what_is_refused_in_a_shared_batch_fails_for_its_own_caller(
    queue: BatchQueue, engine: BackgroundEngine
) -> None:
    engine.refused = {"b0"}
    futures = []

    def submit_bad(first: str) -> None:
        if not futures:
            futures.append(queue.submit(numbered(3, "b")))

    engine.on_wait = submit_bad
    assert len(queue.embed(numbered(9, "a")).embeddings) == 9
    with pytest.raises(InvalidInputError, match="b0 cannot be read"):
        answer(futures[0])


def test_a_withdrawn_request_is_not_put_back(queue: BatchQueue, engine: BackgroundEngine) -> None:
    future = queue.submit(numbered(3, "x"))
    answer(future)
    cancelled = []

    def cancel(first: str) -> None:
        if first == "a0":
            cancelled.append(large.cancel())

    engine.on_wait = cancel
    engine.hold()
    blocker = queue.submit(request("first"))
    engine.wait_for_batch()
    large = queue.submit(numbered(20, "a"))
    engine.release()
    answer(blocker)
    assert len(queue.embed(numbered(3, "y")).embeddings) == 3
    assert cancelled == [True]
    assert queue.waiting_texts == 0
    assert not any(event.endswith(("a9", "a12", "a15")) for event in engine.events)


def test_a_dead_worker_loses_both_slices_and_no_other(queue: BatchQueue, engine: BackgroundEngine) -> None:
    others = []

    def die(first: str) -> None:
        if first == "a0":
            others.append(queue.submit(numbered(3, "b")))
            raise SystemExit(1)

    engine.on_wait = die
    with pytest.raises(ServiceUnavailableError, match="worker died"):
        queue.embed(numbered(9, "a"))
    assert len(others[0].result(PATIENCE_S).embeddings) == 3
