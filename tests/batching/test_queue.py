"""The queue: what is merged, what is cut, and what is refused."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
from queue_fakes import PATIENCE_S, FakeClock, GatedEngine, answer, numbered, occupy, request

from akidb_mlx_plugin.batching.observer import BatchStats, QueueObserver
from akidb_mlx_plugin.batching.queue import BatchQueue
from akidb_mlx_plugin.errors import DeadlineExceededError, InvalidInputError, QueueFullError, ServiceUnavailableError
from akidb_mlx_plugin.providers.mock import hash_texts
from akidb_mlx_plugin.types import BatchEmbeddingRequest


class TestMerging:
    def test_an_idle_engine_starts_at_once(self, queue: BatchQueue, engine: GatedEngine) -> None:
        # The clock stands still: an engine that waits for more requests would never start.
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

    def test_a_small_request_is_not_split(self, queue: BatchQueue, engine: GatedEngine) -> None:
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

    def test_usage_includes_the_wait(self, queue: BatchQueue, engine: GatedEngine, clock: FakeClock) -> None:
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

    def test_one_slice_is_passed_on_unchanged(self, queue: BatchQueue, engine: GatedEngine) -> None:
        queue.embed(request("a", "ccc", "bb", "d", "e"))
        assert engine.texts == [["a", "ccc", "bb", "d", "e"]]

    def test_small_requests_alternate_with_slices(self, queue: BatchQueue, engine: GatedEngine) -> None:
        engine.hold()
        large = queue.submit(request(*[f"large {i:04}" for i in range(600)]))
        engine.wait_for_batch()
        small = [queue.submit(request(f"small {i}")) for i in range(6)]
        engine.release()
        wait([large, *small], PATIENCE_S)
        shape = ["large" if texts[0].startswith("large") else "small" for texts in engine.texts]
        assert shape[:5] == ["large", "small", "large", "small", "large"]
        # The first slice began before any small request had come; those after it are short.
        assert [len(texts) for texts in engine.texts[:5]] == [512, 4, 4, 2, 4]

    def test_large_requests_share_batches(self, engine: GatedEngine) -> None:
        queue = BatchQueue(engine.embed_requests)
        occupy(queue, engine)
        futures = [queue.submit(request(*[f"{name}{i}" for i in range(1100)])) for name in "AB"]
        engine.release()
        wait(futures, PATIENCE_S)
        shares = [[len(request.inputs) for request in batch] for batch in engine.batches[1:]]
        assert shares == [[256, 256]] * 4 + [[76, 76]]
        for name, future in zip("AB", futures, strict=True):
            expected = hash_texts([f"{name}{i}" for i in range(1100)], 8)
            np.testing.assert_array_equal(answer(future).embeddings, expected)
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


class TestRoom:
    def test_a_full_queue(self, queue: BatchQueue, engine: GatedEngine) -> None:
        occupy(queue, engine)
        futures = [queue.submit(request(str(i))) for i in range(50)]
        with pytest.raises(QueueFullError, match="no room for 1 more"):
            queue.submit(request("one too many"))
        futures[0].cancel()
        last = queue.submit(request("room again"))
        engine.release()
        assert len(answer(last).embeddings) == 1

    def test_a_large_request_that_is_alone_is_accepted(self, queue: BatchQueue, engine: GatedEngine) -> None:
        occupy(queue, engine)
        large = queue.submit(request(*map(str, range(60))))
        with pytest.raises(QueueFullError, match="no room for 5 more"):
            queue.submit(request(*"large"))
        engine.release()
        assert len(answer(large).embeddings) == 60

    def test_a_large_request_takes_no_room_from_small_ones(self, queue: BatchQueue, engine: GatedEngine) -> None:
        occupy(queue, engine)
        queue.submit(request(*map(str, range(60))))
        small = queue.submit(request("small"))
        engine.release()
        assert len(answer(small).embeddings) == 1

    def test_a_request_that_fails_the_check(self, engine: GatedEngine) -> None:
        queue = BatchQueue(engine.embed_requests, prepare=engine.prepare)
        with pytest.raises(InvalidInputError, match="no texts"):
            queue.submit(request())
        assert engine.batches == []
        queue.close()

    def test_waiting_for_it(self, queue: BatchQueue, engine: GatedEngine) -> None:
        occupy(queue, engine)
        futures = [queue.submit(numbered(50)), queue.submit(numbered(50), wait_for_room=True)]
        with pytest.raises(QueueFullError):
            queue.submit(numbered(50))
        last = queue.submit(numbered(5), wait_for_room=True)
        assert queue.waiting_texts == 50
        engine.release()
        assert [len(answer(future).embeddings) for future in (*futures, last)] == [50, 50, 5]

    def test_cancelling_leaves_the_line(self, queue: BatchQueue, engine: GatedEngine) -> None:
        occupy(queue, engine)
        queue.submit(numbered(48, "a"))
        first, second = queue.submit(numbered(50), wait_for_room=True), queue.submit(numbered(5), wait_for_room=True)
        assert first.cancel()
        engine.release()
        assert len(answer(second).embeddings) == 5
        assert sum(map(len, engine.texts)) == 1 + 48 + 5

    def test_cancelling_what_waits_in_front_makes_room(self, queue: BatchQueue, engine: GatedEngine) -> None:
        occupy(queue, engine)
        first, second = queue.submit(numbered(50)), queue.submit(numbered(30), wait_for_room=True)
        first.cancel()
        assert queue.waiting_texts == 30
        engine.release()
        assert len(answer(second).embeddings) == 30

    def test_deadline_and_usage_count_from_when_there_is_room(
        self, queue: BatchQueue, engine: GatedEngine, clock: FakeClock
    ) -> None:
        occupy(queue, engine)
        first = queue.submit(numbered(50))
        second = queue.submit(numbered(50), deadline_ms=1000, wait_for_room=True)
        third = queue.submit(numbered(50), deadline_ms=1000, wait_for_room=True)
        clock.advance(5.0)
        first.cancel()
        clock.advance(0.9)
        assert not second.done()
        clock.advance(0.1)
        with pytest.raises(DeadlineExceededError, match="within 1 s"):
            answer(second)
        engine.release()
        assert answer(third).usage.duration_ms == 0

    @pytest.mark.parametrize("drain", [True, False])
    def test_closing(self, queue: BatchQueue, engine: GatedEngine, drain: bool) -> None:
        occupy(queue, engine)
        futures = [queue.submit(numbered(50), wait_for_room=True) for _ in range(3)]
        closing = threading.Thread(target=queue.close, kwargs={"drain": drain})
        closing.start()
        if drain:
            engine.release()
            assert [len(answer(future).embeddings) for future in futures] == [50] * 3
        else:
            for future in futures:
                with pytest.raises(ServiceUnavailableError, match="closed before"):
                    answer(future)
            engine.release()
        closing.join(PATIENCE_S)
        with pytest.raises(ServiceUnavailableError, match="closed"):
            queue.submit(request("late"), wait_for_room=True)

    def test_many_who_wait_get_all_their_vectors(self, engine: GatedEngine) -> None:
        queue = BatchQueue(engine.embed_requests, batch_size=4, max_texts=8)
        with ThreadPoolExecutor(16) as pool:
            counts = [i % 11 + 1 for i in range(200)]
            futures = list(pool.map(lambda count: queue.submit(numbered(count), wait_for_room=True), counts))
        assert [len(answer(future).embeddings) for future in futures] == counts
        assert queue.waiting_texts == 0
        queue.close()


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
