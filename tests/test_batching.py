"""The queue: what is merged, what is refused, and who gets an answer when something breaks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait

import numpy as np
import pytest
from queue_fakes import PATIENCE_S, FakeClock, GatedEngine, request

from akidb_mlx_plugin.batching.pending import BatchStats, DeadlineExceededError, QueueObserver
from akidb_mlx_plugin.batching.queue import BatchQueue, QueueFullError
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError, ServiceUnavailableError
from akidb_mlx_plugin.providers.mock import hash_texts
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, Usage


@pytest.fixture
def engine() -> GatedEngine:
    return GatedEngine()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def queue(engine: GatedEngine, clock: FakeClock) -> Iterator[BatchQueue]:
    queue = BatchQueue(engine.embed_requests, batch_size=4, max_texts=50, clock=clock)
    yield queue
    engine.release()
    queue.close(drain=False)


def occupy(queue: BatchQueue, engine: GatedEngine) -> Future[BatchEmbeddingResponse]:
    """Give the engine something to do until it is released."""
    engine.hold()
    future = queue.submit(request("first"))
    engine.wait_for_batch()
    return future


def answer(future: Future[BatchEmbeddingResponse]) -> BatchEmbeddingResponse:
    return future.result(PATIENCE_S)


def embed_within_callback(queue: BatchQueue, future: Future[BatchEmbeddingResponse]) -> Future[BaseException]:
    """Ask the queue again, and wait, as soon as a future is done; returns the refusal that brings."""
    caught: Future[BaseException] = Future()

    def embed_again(done: object) -> None:
        try:
            queue.embed(request("inner"))
        except ServiceUnavailableError as error:
            caught.set_result(error)

    future.add_done_callback(embed_again)
    return caught


def worker_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("akidb-mlx-")]


class TestMerging:
    def test_an_idle_engine_starts_at_once(self, queue: BatchQueue, engine: GatedEngine) -> None:
        # The clock stands still: nothing that waits for company would ever start.
        assert answer(queue.submit(request("alone"))).embeddings.shape == (1, 8)
        assert engine.texts == [["alone"]]

    def test_requests_gather_while_the_engine_is_busy(self, queue: BatchQueue, engine: GatedEngine) -> None:
        first = occupy(queue, engine)
        others = [queue.submit(request(f"text {i}")) for i in range(9)]
        engine.release()
        for i, future in enumerate(others):
            np.testing.assert_array_equal(answer(future).embeddings, hash_texts([f"text {i}"], 8))
        assert answer(first).embeddings.shape == (1, 8)
        assert [len(texts) for texts in engine.texts] == [1, 4, 4, 1]
        assert [text for texts in engine.texts[1:] for text in texts] == [f"text {i}" for i in range(9)]

    def test_a_small_request_is_not_torn_apart(self, queue: BatchQueue, engine: GatedEngine) -> None:
        occupy(queue, engine)
        futures = [queue.submit(request("a", "b", "c")), queue.submit(request("d", "e")), queue.submit(request("f"))]
        engine.release()
        assert [len(answer(future).embeddings) for future in futures] == [3, 2, 1]
        assert engine.texts[1:] == [["a", "b", "c"], ["d", "e", "f"]]

    def test_each_request_keeps_its_settings(self, queue: BatchQueue, engine: GatedEngine) -> None:
        occupy(queue, engine)
        requests = [
            BatchEmbeddingRequest(["x"], kind="query", dimension=3),
            BatchEmbeddingRequest(["x"], normalize=False, prompt="p"),
        ]
        futures = [queue.submit(each) for each in requests]
        engine.release()
        assert [answer(future).embeddings.shape for future in futures] == [(1, 3), (1, 8)]
        assert engine.batches[1] == requests

    def test_usage_covers_the_waiting(self, queue: BatchQueue, engine: GatedEngine, clock: FakeClock) -> None:
        occupy(queue, engine)
        future = queue.submit(request("two words"))
        clock.advance(1.5)
        engine.release()
        usage = answer(future).usage
        assert (usage.total_tokens, usage.truncated) == (2, 0)
        assert usage.duration_ms == pytest.approx(1500)


class TestLargeRequests:
    def test_comes_back_whole_and_in_order(self, queue: BatchQueue, engine: GatedEngine) -> None:
        texts = [f"{i} " * (i % 7 + 1) for i in range(1300)]
        response = queue.embed(request(*texts))
        np.testing.assert_array_equal(response.embeddings, hash_texts(texts, 8))
        assert response.usage.total_tokens == sum(i % 7 + 1 for i in range(1300))
        assert [len(batch) for batch in engine.texts] == [512, 512, 276]

    def test_one_slice_is_passed_on_as_it_came(self, queue: BatchQueue, engine: GatedEngine) -> None:
        queue.embed(request("a", "ccc", "bb", "d", "e"))
        assert engine.texts == [["a", "ccc", "bb", "d", "e"]]

    def test_small_requests_take_turns_with_the_slices(self, queue: BatchQueue, engine: GatedEngine) -> None:
        engine.hold()
        large = queue.submit(request(*[f"large {i:04}" for i in range(600)]))
        engine.wait_for_batch()
        small = [queue.submit(request(f"small {i}")) for i in range(6)]
        engine.release()
        wait([large, *small], PATIENCE_S)
        shape = ["large" if texts[0].startswith("large") else "small" for texts in engine.texts]
        assert shape[:5] == ["large", "small", "large", "small", "large"]
        # Nobody knew of small requests when the first slice began; those after it are short.
        assert [len(texts) for texts in engine.texts[:5]] == [512, 4, 4, 2, 4]

    def test_large_requests_take_turns(self, engine: GatedEngine) -> None:
        queue = BatchQueue(engine.embed_requests)
        occupy(queue, engine)
        futures = [queue.submit(request(*[f"{name}{i}" for i in range(1100)])) for name in "AB"]
        engine.release()
        wait(futures, PATIENCE_S)
        assert [texts[0][0] for texts in engine.texts[1:]] == ["A", "B"] * 3
        queue.close()

    def test_fails_as_a_whole(self, queue: BatchQueue, engine: GatedEngine) -> None:
        def fail_at_the_second(requests: object) -> None:
            if len(engine.batches) == 2:
                raise RuntimeError("out of memory")

        engine.before_each = fail_at_the_second
        with pytest.raises(RuntimeError, match="out of memory"):
            queue.embed(request(*map(str, range(2000))))
        assert queue.waiting_texts == 0
        assert len(queue.embed(request("next")).embeddings) == 1
        assert len(engine.batches) == 3


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


class TestRefusing:
    def test_a_full_queue(self, queue: BatchQueue, engine: GatedEngine) -> None:
        occupy(queue, engine)
        futures = [queue.submit(request(str(i))) for i in range(50)]
        with pytest.raises(QueueFullError, match=r"50 texts wait and 50 may"):
            queue.submit(request("one too many"))
        futures[0].cancel()
        last = queue.submit(request("room again"))
        engine.release()
        assert len(answer(last).embeddings) == 1

    def test_not_a_large_request_that_is_alone(self, queue: BatchQueue, engine: GatedEngine) -> None:
        occupy(queue, engine)
        large = queue.submit(request(*map(str, range(60))))
        with pytest.raises(QueueFullError, match="60 texts wait and 50 may"):
            queue.submit(request(*"large"))
        engine.release()
        assert len(answer(large).embeddings) == 60

    def test_no_small_request_on_account_of_a_large_one(self, queue: BatchQueue, engine: GatedEngine) -> None:
        occupy(queue, engine)
        queue.submit(request(*map(str, range(60))))
        small = queue.submit(request("small"))
        engine.release()
        assert len(answer(small).embeddings) == 1

    def test_what_fails_the_check(self, engine: GatedEngine) -> None:
        queue = BatchQueue(engine.embed_requests, check=engine.check_request)
        with pytest.raises(InvalidInputError, match="no texts"):
            queue.submit(request())
        assert engine.batches == []
        queue.close()


class TestDeadlines:
    def test_a_model_that_hangs_keeps_nobody(self, queue: BatchQueue, engine: GatedEngine, clock: FakeClock) -> None:
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
        with pytest.raises(ServiceUnavailableError, match=r"within 3 s: it still waited"):
            answer(waiting)
        assert queue.waiting_texts == 0
        engine.release()
        assert len(queue.embed(request("later")).embeddings) == 1
        queue.health_check()
        assert engine.texts == [["running"], ["later"]]

    def test_of_the_queue_grow_with_the_request(self, engine: GatedEngine, clock: FakeClock) -> None:
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

    def test_a_hang_in_a_slice_of_a_large_request_is_seen(self, engine: GatedEngine, clock: FakeClock) -> None:
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

    def test_a_callback_must_not_wait_on_the_thread_that_watches_them(
        self, queue: BatchQueue, engine: GatedEngine, clock: FakeClock
    ) -> None:
        engine.hold()
        first = queue.submit(request("first"), deadline_ms=1000)
        caught = embed_within_callback(queue, first)
        engine.wait_for_batch()
        clock.advance(1.0)
        assert "callback" in str(caught.result(PATIENCE_S))

    def test_a_callback_that_raises_ends_no_watch(
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


class TestFaults:
    def test_an_error_reaches_its_batch_and_no_other(self, queue: BatchQueue, engine: GatedEngine) -> None:
        occupy(queue, engine)
        futures = [queue.submit(request(f"text {i}")) for i in range(8)]

        def fail_on_text_2(requests: list[BatchEmbeddingRequest]) -> None:
            if any("text 2" in each.inputs for each in requests):
                raise RuntimeError("the model broke")

        engine.before_each = fail_on_text_2
        engine.release()
        for future in futures[:4]:
            with pytest.raises(RuntimeError, match="the model broke"):
                answer(future)
        assert [len(answer(future).embeddings) for future in futures[4:]] == [1] * 4
        assert len(set(engine.threads)) == 1
        queue.health_check()

    def test_a_callback_that_raises_keeps_no_answer_from_the_others(
        self, queue: BatchQueue, engine: GatedEngine
    ) -> None:
        def fail(requests: object) -> None:
            raise RuntimeError("the model broke")

        def leave(future: object) -> None:
            raise SystemExit

        occupy(queue, engine)
        futures = [queue.submit(request(str(i))) for i in range(4)]
        futures[0].add_done_callback(leave)
        engine.before_each = fail
        engine.release()
        for future in futures:
            with pytest.raises(RuntimeError, match="the model broke"):
                answer(future)
        engine.before_each = lambda requests: None
        assert len(queue.embed(request("after")).embeddings) == 1

    def test_a_callback_that_raises_takes_no_vectors_from_the_others(
        self, queue: BatchQueue, engine: GatedEngine
    ) -> None:
        def leave(future: object) -> None:
            raise SystemExit

        occupy(queue, engine)
        futures = [queue.submit(request(str(i))) for i in range(4)]
        futures[0].add_done_callback(leave)
        engine.release()
        assert [len(answer(future).embeddings) for future in futures] == [1] * 4
        assert len(set(engine.threads)) == 1
        queue.health_check()

    def test_an_observer_that_raises_keeps_no_answer_from_anybody(self, engine: GatedEngine) -> None:
        class Broken(QueueObserver):
            def request_ended(self, *_: object) -> None:
                raise RuntimeError("no room to count")

        queue = BatchQueue(engine.embed_requests, observer=Broken())
        assert len(queue.embed(request("a")).embeddings) == 1
        queue.close(drain=False)

    def test_a_request_the_model_refuses_spoils_no_batch(self, queue: BatchQueue, engine: GatedEngine) -> None:
        occupy(queue, engine)
        futures = [queue.submit(request(text)) for text in ("good", "bad", "fine")]

        def refuse_bad(requests: list[BatchEmbeddingRequest]) -> None:
            if any("bad" in each.inputs for each in requests):
                raise InvalidInputError("no token")

        engine.before_each = refuse_bad
        engine.release()
        with pytest.raises(InvalidInputError, match="no token"):
            answer(futures[1])
        assert [len(answer(futures[i]).embeddings) for i in (0, 2)] == [1, 1]

    @pytest.mark.parametrize("fatal", [SystemExit, KeyboardInterrupt, GeneratorExit])
    def test_a_killed_worker_is_replaced(
        self, queue: BatchQueue, engine: GatedEngine, fatal: type[BaseException]
    ) -> None:
        occupy(queue, engine)
        futures = [queue.submit(request(f"text {i}")) for i in range(8)]

        def die_on_text_2(requests: list[BatchEmbeddingRequest]) -> None:
            if any("text 2" in each.inputs for each in requests):
                raise fatal

        engine.before_each = die_on_text_2
        engine.release()
        for future in futures[:4]:
            with pytest.raises(ServiceUnavailableError, match=f"died of {fatal.__name__}"):
                answer(future)
        assert [len(answer(future).embeddings) for future in futures[4:]] == [1] * 4
        assert len(set(engine.threads)) == 2
        with pytest.raises(ServiceUnavailableError, match="was replaced"):
            queue.health_check()
        queue.health_check()

    def test_a_worker_killed_while_idle_is_replaced(self, engine: GatedEngine) -> None:
        class DeadlyClock(FakeClock):
            deadly = False

            def wait(self, condition: threading.Condition, timeout_s: float | None) -> None:
                if self.deadly:
                    self.deadly = False
                    raise SystemExit
                super().wait(condition, timeout_s)

        clock = DeadlyClock()
        queue = BatchQueue(engine.embed_requests, clock=clock)
        queue.embed(request("before"))
        victim = next(thread for thread in worker_threads() if thread.ident in engine.threads)
        clock.deadly = True
        victim.join(PATIENCE_S)
        with pytest.raises(ServiceUnavailableError, match="died of SystemExit"):
            queue.health_check()
        assert len(queue.embed(request("after")).embeddings) == 1
        queue.close()

    @pytest.mark.parametrize("vectors", [0, 1, 3])
    def test_missing_vectors_are_an_error(self, vectors: int) -> None:
        def short(requests: object) -> list[BatchEmbeddingResponse]:
            return [BatchEmbeddingResponse(np.zeros((vectors, 8), np.float32), "short", Usage(1, 1.0))]

        queue = BatchQueue(short)
        with pytest.raises(EmbeddingError, match=f"{vectors} vectors for 2 texts"):
            queue.embed(request("a", "b"))
        queue.close()

    def test_missing_responses_are_an_error(self) -> None:
        queue = BatchQueue(lambda requests: [])
        with pytest.raises(EmbeddingError, match="0 responses"):
            queue.embed(request("a"))
        queue.close()

    def test_waiting_inside_a_callback_is_refused(self, queue: BatchQueue, engine: GatedEngine) -> None:
        first = occupy(queue, engine)
        caught = embed_within_callback(queue, first)
        engine.release()
        assert "callback" in str(caught.result(PATIENCE_S))


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

    def test_under_load_answers_everybody(self, engine: GatedEngine) -> None:
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


class TestProcesses:
    """Each runs in an interpreter of its own: it must end by itself, and well."""

    def run(self, script: str) -> str:
        header = """
            import os, signal, sys, threading
            from akidb_mlx_plugin.batching.queue import BatchQueue
            from akidb_mlx_plugin.errors import ServiceUnavailableError
            from akidb_mlx_plugin.providers.mock import MockProvider
            from akidb_mlx_plugin.types import BatchEmbeddingRequest
            signal.alarm(60)
            request = BatchEmbeddingRequest(["text"])
        """
        code = textwrap.dedent(header) + textwrap.dedent(script)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def test_a_forked_child_is_refused(self) -> None:
        out = self.run("""
            queue = BatchQueue(MockProvider(8).embed_requests, deadline_ms=1000)
            queue.embed(request)
            # The worst moment: another thread holds the lock, and the child has it locked for ever.
            queue._changed.acquire()
            child = os.fork()
            if child == 0:
                held = threading.Thread(target=lambda: None)
                for call in (lambda: queue.embed(request), lambda: queue.submit(request), queue.health_check):
                    try:
                        call()
                    except ServiceUnavailableError as error:
                        print("refused", "forked" in str(error))
                queue.close()
                print("child done", flush=True)
                os._exit(0)
            queue._changed.release()
            assert os.waitpid(child, 0)[1] == 0
            print(queue.embed(request).embeddings.shape)
            queue.close()
        """)
        assert out.split("\n") == ["refused True"] * 3 + ["child done", "(1, 8)", ""]

    def test_a_queue_not_used_before_the_fork_works_after_it(self) -> None:
        out = self.run("""
            queue = BatchQueue(MockProvider(8).embed_requests)
            child = os.fork()
            # One write each: both processes share the pipe, and print may take two.
            os.write(1, f"{queue.embed(request).embeddings.shape}\\n".encode())
            queue.close()
            if child == 0:
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        """)
        assert out == "(1, 8)\n" * 2

    def test_a_forgotten_close_keeps_no_interpreter_alive(self) -> None:
        out = self.run("""
            hang = threading.Event()
            def embed(requests):
                hang.wait()
            queue = BatchQueue(embed, deadline_ms=60_000)
            future = queue.submit(request)
            print("end")
        """)
        assert out == "end\n"


class TestCrowd:
    async def test_64_threads_and_64_coroutines(self) -> None:
        sizes: list[int] = []

        class Sizes(QueueObserver):
            def batch_ended(self, stats: BatchStats) -> None:
                sizes.append(stats.texts)

        engine = GatedEngine(16)
        queue = BatchQueue(engine.embed_requests, batch_size=10, observer=Sizes())
        texts = [f"text {i}" for i in range(512)]
        vectors = np.empty((512, 16), np.float32)

        def call(start: int) -> None:
            for i in range(start, start + 4):
                vectors[i] = queue.embed(request(texts[i])).embeddings[0]

        async def acall(start: int) -> None:
            for i in range(start, start + 4):
                vectors[i] = (await queue.aembed(request(texts[i]))).embeddings[0]

        occupy(queue, engine)
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(64) as pool:
            threads = [loop.run_in_executor(pool, call, i * 4) for i in range(64)]
            tasks = [asyncio.create_task(acall(256 + i * 4)) for i in range(64)]
            while queue.waiting_texts < 128:
                await asyncio.sleep(0.001)
            engine.release()
            await asyncio.gather(*threads, *tasks)
        np.testing.assert_array_equal(vectors, hash_texts(texts, 16))
        assert sum(sizes) == 513
        assert max(sizes) == 10
        assert sum(sizes) / len(sizes) > 2
        assert queue.close()
