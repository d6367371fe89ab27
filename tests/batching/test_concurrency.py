"""Several batches at a time, where one alone leaves cores idle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from queue_fakes import PATIENCE_S, FakeClock, GatedEngine, answer, numbered, request

from akidb_mlx_plugin.batching.queue import BatchQueue
from akidb_mlx_plugin.errors import ServiceUnavailableError
from akidb_mlx_plugin.types import BatchEmbeddingRequest

MakeQueue = Callable[[int], BatchQueue]


@pytest.fixture
def make_queue(engine: GatedEngine, clock: FakeClock) -> Iterator[MakeQueue]:
    """Makes a queue that runs so many batches at a time; its engine is held."""
    queues: list[BatchQueue] = []

    def make(concurrency: int) -> BatchQueue:
        queues.append(
            BatchQueue(
                engine.embed_requests,
                concurrency=lambda: concurrency,
                batch_size=4,
                max_texts=5000,
                deadline_ms=60_000,
                clock=clock,
            )
        )
        return queues[-1]

    engine.hold()
    yield make
    engine.release()
    for queue in queues:
        queue.close(drain=False)


def hang_on_request(engine: GatedEngine) -> threading.Event:
    """Let the engine hang on the text "hang" until the event is set."""
    hanging = threading.Event()

    def hang(requests: Sequence[BatchEmbeddingRequest]) -> None:
        if requests[0].inputs[0] == "hang":
            assert hanging.wait(PATIENCE_S)

    engine.before_each = hang
    return hanging


@pytest.mark.parametrize("concurrency", [1, 2, 3])
def test_so_many_run_at_a_time_and_the_others_gather(
    make_queue: MakeQueue, engine: GatedEngine, concurrency: int
) -> None:
    queue = make_queue(concurrency)
    futures = []
    for i in range(concurrency):
        futures.append(queue.submit(request(f"alone {i}")))
        engine.wait_for_batch()
    futures += [queue.submit(request(f"merged {i}")) for i in range(4)]
    assert queue.waiting_texts == 4
    engine.release()
    for future in futures:
        answer(future)
    assert engine.texts == [[f"alone {i}"] for i in range(concurrency)] + [[f"merged {i}" for i in range(4)]]
    assert len(set(engine.threads[:concurrency])) == concurrency


def test_small_requests_run_beside_slices_but_no_second_batch_of_slices_does(
    make_queue: MakeQueue, engine: GatedEngine
) -> None:
    queue = make_queue(3)
    large = [queue.submit(numbered(1000, "large ")), queue.submit(numbered(600, "other "))]
    engine.wait_for_batch()
    small = queue.submit(request("small"))
    engine.wait_for_batch()
    assert queue.waiting_texts == 1600 - 512
    engine.release()
    assert [len(answer(future).embeddings) for future in (*large, small)] == [1000, 600, 1]
    assert engine.texts[1] == ["small"]


def test_one_batch_that_hangs_is_noticed_while_others_are_answered(
    make_queue: MakeQueue, engine: GatedEngine, clock: FakeClock
) -> None:
    queue = make_queue(2)
    hanging = hang_on_request(engine)
    engine.release()
    queue.submit(request("hang"))
    engine.wait_for_batch()
    answer(queue.submit(request("before")))
    queue.health_check()
    clock.advance(61)
    answer(queue.submit(request("after")))
    with pytest.raises(ServiceUnavailableError, match="has not come back from a batch"):
        queue.health_check()
    hanging.set()


@pytest.mark.parametrize("victim", ["small", "large"])
def test_a_worker_that_dies_costs_the_other_one_nothing(
    make_queue: MakeQueue, engine: GatedEngine, victim: str
) -> None:
    queue = make_queue(2)
    deaths = [victim]

    def die(requests: Sequence[BatchEmbeddingRequest]) -> None:
        if deaths and requests[0].inputs[0].startswith(victim):
            raise SystemExit(deaths.pop())

    engine.before_each = die
    futures = {"large": queue.submit(numbered(1000, "large "))}
    engine.wait_for_batch()
    futures["small"] = queue.submit(request("small"))
    engine.wait_for_batch()
    engine.release()
    with pytest.raises(ServiceUnavailableError, match="worker died of SystemExit"):
        answer(futures.pop(victim))
    for future in futures.values():
        assert len(answer(future).embeddings) in (1, 1000)
    # Slices run again after those that died.
    assert len(answer(queue.submit(numbered(1000, "next "))).embeddings) == 1000
    assert queue.waiting_texts == 0


def test_closing_answers_what_runs_and_what_waits(make_queue: MakeQueue, engine: GatedEngine) -> None:
    queue = make_queue(2)
    futures = [queue.submit(numbered(2000, "large "))]
    engine.wait_for_batch()
    futures += [queue.submit(request(f"small {i}")) for i in range(9)]
    closing = threading.Thread(target=queue.close)
    closing.start()
    engine.release()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert [len(answer(future).embeddings) for future in futures] == [2000] + [1] * 9
    assert not any(thread.ident in engine.threads for thread in threading.enumerate())


def test_closing_within_a_callback_waits_for_no_other_batch(make_queue: MakeQueue, engine: GatedEngine) -> None:
    queue = make_queue(2)
    hanging = hang_on_request(engine)
    engine.release()
    slow = queue.submit(request("hang"))
    engine.wait_for_batch()
    results: list[bool] = []
    ended = threading.Event()

    def close(_: object) -> None:
        results.append(queue.close(drain=False, timeout_s=0.1))
        queue.when_ended(ended.set)

    engine.hold()
    fast = queue.submit(request("fast"))
    engine.wait_for_batch()
    fast.add_done_callback(close)
    engine.release()
    answer(fast)
    assert not ended.wait(0.05)
    hanging.set()
    assert ended.wait(PATIENCE_S)
    assert results == [False]
    assert slow.done()
