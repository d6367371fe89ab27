"""How requests end early: cancelled, past a deadline, or with the queue closed."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress

import pytest
from queue_fakes import PATIENCE_S, FakeClock, GatedEngine, answer, embed_within_callback, numbered, occupy, request

from akidb_mlx_plugin.batching.observer import QueueObserver
from akidb_mlx_plugin.batching.queue import BatchQueue
from akidb_mlx_plugin.batching.requests import Outcome
from akidb_mlx_plugin.errors import DeadlineExceededError, ServiceUnavailableError
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse


class TestCancelling:
    def test_before_the_batch(self, queue: BatchQueue, engine: GatedEngine) -> None:
        occupy(queue, engine)
        futures = [queue.submit(request(f"text {i}")) for i in range(3)]
        assert futures[1].cancel()
        assert queue.waiting_texts == 2
        assert wait([futures[1]], PATIENCE_S).done == {futures[1]}
        engine.release()
        answer(futures[0])
        answer(futures[2])
        assert engine.texts == [["first"], ["text 0", "text 2"]]
        with pytest.raises(CancelledError):
            futures[1].result()

    def test_during_the_batch(self, queue: BatchQueue, engine: GatedEngine) -> None:
        occupy(queue, engine)
        futures = [queue.submit(request(f"text {i}")) for i in range(2)]
        engine.release()
        answer(futures[0])
        running = occupy(queue, engine)
        assert running.cancel()
        after = queue.submit(request("after"))
        engine.release()
        assert len(answer(after).embeddings) == 1
        assert running.cancelled()

    def test_of_a_large_request_ends_its_slices(self, queue: BatchQueue, engine: GatedEngine) -> None:
        engine.hold()
        large = queue.submit(request(*map(str, range(5000))))
        engine.wait_for_batch()
        assert large.cancel()
        assert queue.waiting_texts == 0
        engine.release()
        queue.embed(request("after"))
        assert [len(texts) for texts in engine.texts] == [512, 1]

    async def test_of_a_task(self, engine: GatedEngine) -> None:
        queue = BatchQueue(engine.embed_requests, batch_size=4)
        occupy(queue, engine)
        task = asyncio.create_task(queue.aembed(request("withdrawn")))
        await asyncio.sleep(0)
        assert queue.waiting_texts == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert queue.waiting_texts == 0
        engine.release()
        assert len((await queue.aembed(request("kept"))).embeddings) == 1
        assert engine.texts == [["first"], ["kept"]]
        queue.close()

    def test_by_an_interrupt(self, queue: BatchQueue, engine: GatedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        occupy(queue, engine)

        def interrupted(future: object, timeout: float | None = None) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Future, "result", interrupted)
            with pytest.raises(KeyboardInterrupt):
                queue.embed(request("interrupted"))
        assert queue.waiting_texts == 0


class TestDeadlines:
    def test_a_model_that_hangs_detains_no_caller(
        self, queue: BatchQueue, engine: GatedEngine, clock: FakeClock
    ) -> None:
        engine.hold()
        running = queue.submit(request("running"), deadline_ms=2000)
        engine.wait_for_batch()
        waiting = queue.submit(request("waiting"), deadline_ms=3000)
        clock.advance(2.0)
        with pytest.raises(DeadlineExceededError, match=r"within 2 s: the model had not come back"):
            answer(running)
        assert not waiting.done()
        with pytest.raises(ServiceUnavailableError, match="past its deadline"):
            queue.health_check()
        clock.advance(1.0)
        with pytest.raises(ServiceUnavailableError, match=r"within 3 s: it was still waiting"):
            answer(waiting)
        assert queue.waiting_texts == 0
        engine.release()
        assert len(queue.embed(request("later")).embeddings) == 1
        queue.health_check()
        assert engine.texts == [["running"], ["later"]]

    def test_grow_with_the_request(self, engine: GatedEngine, clock: FakeClock) -> None:
        queue = BatchQueue(engine.embed_requests, batch_size=4, deadline_ms=1000, clock=clock)
        engine.hold()
        small, large = queue.submit(request("small")), queue.submit(request(*map(str, range(12))))
        clock.advance(2.9)
        with pytest.raises(DeadlineExceededError):
            answer(small)
        assert not large.done()
        clock.advance(0.1)
        with pytest.raises(DeadlineExceededError):
            answer(large)
        engine.release()
        queue.close()

    def test_a_hang_in_a_slice_of_a_large_request_is_noticed(self, engine: GatedEngine, clock: FakeClock) -> None:
        queue = BatchQueue(engine.embed_requests, batch_size=4, deadline_ms=1000, clock=clock)
        engine.hold()
        large = queue.submit(request(*map(str, range(400))))
        engine.wait_for_batch()
        queue.health_check()
        clock.advance(1.0)
        with pytest.raises(ServiceUnavailableError, match="past its deadline"):
            queue.health_check()
        assert not large.done()
        engine.release()
        assert len(answer(large).embeddings) == 400
        queue.health_check()
        queue.close()

    def test_a_callback_must_not_wait_on_the_timers_thread(
        self, queue: BatchQueue, engine: GatedEngine, clock: FakeClock
    ) -> None:
        engine.hold()
        first = queue.submit(request("first"), deadline_ms=1000)
        caught = embed_within_callback(queue, first)
        engine.wait_for_batch()
        clock.advance(1.0)
        assert "callback" in str(caught.result(PATIENCE_S))

    def test_the_timer_survives_a_callback_that_raises(
        self, queue: BatchQueue, engine: GatedEngine, clock: FakeClock
    ) -> None:
        def leave(future: object) -> None:
            raise SystemExit

        occupy(queue, engine)
        together = [queue.submit(request(str(i)), deadline_ms=1000) for i in range(3)]
        later = queue.submit(request("later"), deadline_ms=2000)
        for future in together:
            future.add_done_callback(leave)
        clock.advance(1.0)
        for future in together:
            with pytest.raises(DeadlineExceededError):
                answer(future)
        clock.advance(1.0)
        with pytest.raises(DeadlineExceededError):
            answer(later)

    async def test_reach_coroutines(self, engine: GatedEngine, clock: FakeClock) -> None:
        queue = BatchQueue(engine.embed_requests, deadline_ms=1000, clock=clock)
        engine.hold()
        task = asyncio.create_task(queue.aembed(request("hangs")))
        await asyncio.sleep(0)
        clock.advance(1.0)
        with pytest.raises(DeadlineExceededError):
            await task
        engine.release()
        queue.close()


class TestClosing:
    def test_drains(self, queue: BatchQueue, engine: GatedEngine) -> None:
        first = occupy(queue, engine)
        futures = [queue.submit(request(str(i))) for i in range(9)]
        threading.Timer(0.05, engine.release).start()
        assert queue.close(drain=True)
        assert all(len(future.result(0).embeddings) == 1 for future in [first, *futures])
        with pytest.raises(ServiceUnavailableError, match="closed"):
            queue.submit(request("late"))
        with pytest.raises(ServiceUnavailableError, match="closed"):
            queue.health_check()
        assert queue.close()

    def test_drops_what_waits(self, queue: BatchQueue, engine: GatedEngine) -> None:
        first = occupy(queue, engine)
        futures = [queue.submit(request(str(i))) for i in range(9)]
        closing = threading.Thread(target=queue.close, kwargs={"drain": False})
        closing.start()
        for future in futures:
            with pytest.raises(ServiceUnavailableError, match="closed before"):
                answer(future)
        engine.release()
        closing.join(PATIENCE_S)
        assert len(first.result(0).embeddings) == 1
        assert engine.texts == [["first"]]

    def test_does_not_wait_for_a_model_that_hangs(self, queue: BatchQueue, engine: GatedEngine) -> None:
        first = occupy(queue, engine)
        second = queue.submit(request("waiting"))
        assert not queue.close(drain=True, timeout_s=0.05)
        for future in (first, second):
            with pytest.raises(ServiceUnavailableError, match="did not come back"):
                future.result(0)

    def test_under_load_answers_every_caller(self, engine: GatedEngine) -> None:
        queue = BatchQueue(engine.embed_requests, batch_size=4)
        outcomes: list[object] = []
        started = threading.Semaphore(0)

        def call_until_closed() -> None:
            while True:
                try:
                    outcomes.append(len(queue.embed(request("x")).embeddings))
                    started.release()
                except ServiceUnavailableError as error:
                    outcomes.append(error)
                    return

        with ThreadPoolExecutor(16) as pool:
            callers = [pool.submit(call_until_closed) for _ in range(16)]
            for _ in range(50):
                started.acquire(timeout=PATIENCE_S)
            assert queue.close(drain=False)
            for caller in callers:
                caller.result(PATIENCE_S)
        assert sum(isinstance(outcome, ServiceUnavailableError) for outcome in outcomes) == 16
        assert outcomes.count(1) >= 50

    def test_from_a_callback(self, queue: BatchQueue, engine: GatedEngine) -> None:
        closed: Future[bool] = Future()
        first = occupy(queue, engine)
        first.add_done_callback(lambda future: closed.set_result(queue.close()))
        engine.release()
        assert closed.result(PATIENCE_S)

    def test_leaves_no_thread(self, engine: GatedEngine) -> None:
        before = set(threading.enumerate())
        queue = BatchQueue(engine.embed_requests, deadline_ms=1000)
        queue.embed(request("x"))
        started = set(threading.enumerate()) - before
        assert len(started) == 2
        queue.close()
        for thread in started:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_every_request_ends_exactly_once(seed: int, concurrency: int) -> None:
    """Whatever ends it: vectors, an error, a deadline, a cancellation, a refusal, or the closing of the queue."""
    ended: Counter[str] = Counter()

    class Counting(QueueObserver):
        def request_ended(self, request: BatchEmbeddingRequest, seconds: float, outcome: Outcome) -> None:
            ended[request.inputs[0]] += 1

    def fail_sometimes(requests: Sequence[BatchEmbeddingRequest]) -> None:
        if len(engine.batches) % 7 == 3:
            raise SystemExit if len(engine.batches) % 2 else RuntimeError

    engine = GatedEngine()
    engine.before_each = fail_sometimes
    queue = BatchQueue(
        engine.embed_requests,
        concurrency=lambda: concurrency,
        batch_size=4,
        max_texts=20,
        observer=Counting(),
    )
    futures: list[Future[BatchEmbeddingResponse]] = []

    def call(caller: int) -> None:
        generator = random.Random(seed * 100 + caller)
        for i in range(40):
            texts = numbered(generator.randint(1, 9), f"{caller}-{i}-")
            deadline_ms = generator.choice([None, None, 0.5, 5.0])
            with suppress(ServiceUnavailableError):
                futures.append(queue.submit(texts, deadline_ms=deadline_ms, wait_for_room=generator.random() < 0.5))
                if generator.random() < 0.2:
                    futures[-1].cancel()

    with ThreadPoolExecutor(8) as pool:
        callers = [pool.submit(call, caller) for caller in range(8)]
        callers[seed].result(PATIENCE_S)
        assert queue.close(drain=seed % 2 == 0)
    assert wait(futures, PATIENCE_S).not_done == set()
    assert len(ended) == 8 * 40
    assert set(ended.values()) == {1}
    assert queue.waiting_texts == 0
