"""An engine and a clock that do what a test tells them to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from akidb_mlx_plugin.batching.deadlines import Clock
from akidb_mlx_plugin.batching.queue import BatchQueue
from akidb_mlx_plugin.errors import ServiceUnavailableError
from akidb_mlx_plugin.providers.mock import MockProvider
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse

PATIENCE_S = 30.0


class FakeClock(Clock):
    """Stands still until it is advanced; waiting threads check it every few milliseconds of real time."""

    def __init__(self) -> None:
        self._now = 1000.0

    def now(self) -> float:
        return self._now

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> None:
        condition.wait(0.005)

    def advance(self, seconds: float) -> None:
        self._now += seconds


class GatedEngine(MockProvider):
    """Makes mock vectors, records every batch, and holds each one while its gate is closed."""

    def __init__(self, dimension: int = 8) -> None:
        super().__init__(dimension)
        self.batches: list[list[BatchEmbeddingRequest]] = []
        self.threads: list[int | None] = []
        self.before_each: Callable[[Sequence[BatchEmbeddingRequest]], None] = lambda requests: None
        self.closed = threading.Event()
        self._gate = threading.Event()
        self._gate.set()
        self._entered = threading.Semaphore(0)

    def embed_requests(self, requests: Sequence[BatchEmbeddingRequest]) -> list[BatchEmbeddingResponse]:
        self.batches.append(list(requests))
        self.threads.append(threading.current_thread().ident)
        self._entered.release()
        assert self._gate.wait(PATIENCE_S), "the test left the gate closed"
        self.before_each(requests)
        return super().embed_requests(requests)

    def hold(self) -> None:
        """Let the next batch in, but not out."""
        self._gate.clear()

    def release(self) -> None:
        """Let everything out."""
        self._gate.set()

    def wait_for_batch(self) -> None:
        """Return when one more batch has come in."""
        assert self._entered.acquire(timeout=PATIENCE_S), "no batch came"

    def close(self) -> None:
        self.closed.set()

    @property
    def texts(self) -> list[list[str]]:
        """The texts of each batch."""
        return [[text for request in batch for text in request.inputs] for batch in self.batches]


def request(*texts: str) -> BatchEmbeddingRequest:
    """Return a request for some texts."""
    return BatchEmbeddingRequest(list(texts))


def numbered(count: int, prefix: str = "") -> BatchEmbeddingRequest:
    """Return a request for so many different texts."""
    return request(*(f"{prefix}{i}" for i in range(count)))


def occupy(queue: BatchQueue, engine: GatedEngine) -> Future[BatchEmbeddingResponse]:
    """Keep the engine busy until it is released."""
    engine.hold()
    future = queue.submit(request("first"))
    engine.wait_for_batch()
    return future


def answer(future: Future[BatchEmbeddingResponse]) -> BatchEmbeddingResponse:
    """Return a future's response, or raise its error."""
    return future.result(PATIENCE_S)


def embed_within_callback(queue: BatchQueue, future: Future[BatchEmbeddingResponse]) -> Future[BaseException]:
    """Call the queue again, and wait, as soon as a future is done; return the refusal this brings."""
    caught: Future[BaseException] = Future()

    def embed_again(done: object) -> None:
        try:
            queue.embed(request("inner"))
        except ServiceUnavailableError as error:
            caught.set_result(error)

    future.add_done_callback(embed_again)
    return caught
