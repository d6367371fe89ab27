"""Slices of large requests, two batches deep: while one is computed, the next is tokenized and packed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Sequence
from contextlib import suppress

from akidb_mlx_plugin.batching.deadlines import Clock
from akidb_mlx_plugin.batching.requests import PendingRequest, RequestSlice
from akidb_mlx_plugin.batching.scheduler import Scheduler
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, StartedBatch

# As `EmbeddingProvider.begin`.
Begin = Callable[[Sequence[BatchEmbeddingRequest]], StartedBatch | None]


class Lookahead:
    """Begins a batch of slices, and the next one before it waits; used by one of the queue's workers at a time."""

    def __init__(
        self,
        begin: Begin | None,
        scheduler: Scheduler,
        lock: threading.RLock,
        clock: Clock,
        pending: Container[PendingRequest],
    ) -> None:
        """Store the parts of the queue.

        Args:
            begin: starts to compute the first texts of some requests, if anything can.
            scheduler: cuts slices; guarded by the lock.
            lock: the queue's.
            clock: the queue's.
            pending: requests that somebody waits for; guarded by the lock.
        """
        self._begin = begin or (lambda requests: None)
        self._scheduler = scheduler
        self._lock = lock
        self._clock = clock
        self._pending = pending

    def compute(self, slices: list[RequestSlice]) -> list[BatchEmbeddingResponse] | None:
        """Compute slices of large requests, shortened to what the engine computes at once.

        Returns:
            None if the engine cannot compute them in the background.
        """
        started = self._start(slices)
        if started is None:
            return None
        with self._lock:
            ahead = self._scheduler.look_ahead(self._clock.now())
        if ahead:
            # It fails again, for its own callers, when its turn comes.
            with suppress(Exception):
                self._start(ahead)
        return started.result()

    def drop(self) -> list[RequestSlice]:
        """Forget the slices that were begun ahead, and return them, if any."""
        with self._lock:
            return self._scheduler.drop_ahead()

    def _start(self, slices: list[RequestSlice]) -> StartedBatch | None:
        if slices[0].started is None and (started := self._begin([part.request for part in slices])) is not None:
            with self._lock:
                for part, texts in zip(slices, started.texts, strict=True):
                    self._scheduler.shorten(part, texts, wanted=part.pending in self._pending)
                    part.started = started
        return slices[0].started
