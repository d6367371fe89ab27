"""An engine and a clock that do what a test tells them to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from akidb_mlx_plugin.batching.deadlines import Clock
from akidb_mlx_plugin.providers.mock import MockProvider
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse

PATIENCE_S = 30.0


class FakeClock(Clock):
    """Stands still until it is advanced; waiting threads look at it every few milliseconds of real time."""

    def __init__(self) -> None:
        self._now = 1000.0

    def now(self) -> float:
        return self._now

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> None:
        condition.wait(0.005)

    def advance(self, seconds: float) -> None:
        self._now += seconds


class GatedEngine(MockProvider):
    """Makes mock vectors, notes every batch, and holds each one while its gate is closed."""

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
        """Let the next batch come in, and not out."""
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
    """Ask for some texts."""
    return BatchEmbeddingRequest(list(texts))
