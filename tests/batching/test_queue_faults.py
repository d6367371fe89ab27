"""Who gets an answer when something breaks: the model, a callback, the worker, or a fork."""

from __future__ import annotations

import textwrap
import threading

import numpy as np
import pytest
from processes import run_python
from queue_fakes import PATIENCE_S, FakeClock, GatedEngine, answer, embed_within_callback, occupy, request

from akidb_mlx_plugin.batching.observer import QueueObserver
from akidb_mlx_plugin.batching.queue import BatchQueue
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError, ServiceUnavailableError
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, Usage


class TestFaults:
    def test_an_error_reaches_its_batch_alone(self, queue: BatchQueue, engine: GatedEngine) -> None:
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

    def test_a_callback_that_raises_costs_no_other_caller_the_error(
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

    def test_a_callback_that_raises_costs_no_other_caller_the_vectors(
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

    def test_an_observer_that_raises_costs_no_caller_the_answer(self, engine: GatedEngine) -> None:
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
        victim = next(thread for thread in threading.enumerate() if thread.ident in engine.threads)
        clock.deadly = True
        victim.join(PATIENCE_S)
        with pytest.raises(ServiceUnavailableError, match="died of SystemExit"):
            queue.health_check()
        assert len(queue.embed(request("after")).embeddings) == 1
        queue.close()

    def test_a_worker_killed_after_the_close_ends_the_queue(self, queue: BatchQueue, engine: GatedEngine) -> None:
        def die(requests: object) -> None:
            raise SystemExit

        occupy(queue, engine)
        ended = threading.Event()
        assert not queue.close(timeout_s=0)
        queue.when_ended(ended.set)
        assert not ended.is_set()
        engine.before_each = die
        engine.release()
        assert ended.wait(PATIENCE_S)
        assert queue.close()

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


class TestProcesses:
    """Each runs in an interpreter of its own, which must exit by itself and without complaint."""

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
        return run_python(textwrap.dedent(header) + textwrap.dedent(script), silent=True)

    @pytest.mark.slow
    def test_a_forked_child_is_refused(self) -> None:
        out = self.run("""
            queue = BatchQueue(MockProvider(8).embed_requests, deadline_ms=1000)
            queue.embed(request)
            # The worst moment: a thread holds the lock, and the child inherits it locked.
            queue._lock.acquire()
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
            queue._lock.release()
            assert os.waitpid(child, 0)[1] == 0
            print(queue.embed(request).embeddings.shape)
            queue.close()
        """)
        assert out.split("\n") == ["refused True"] * 3 + ["child done", "(1, 8)", ""]

    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_a_queue_that_is_never_closed_keeps_no_interpreter_alive(self) -> None:
        out = self.run("""
            hang = threading.Event()
            def embed(requests):
                hang.wait()
            queue = BatchQueue(embed, deadline_ms=60_000)
            future = queue.submit(request)
            print("end")
        """)
        assert out == "end\n"
