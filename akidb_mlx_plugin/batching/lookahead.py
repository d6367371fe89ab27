"""Slices of large requests, two deep: while one is computed, the next is tokenized and packed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container
from contextlib import suppress

from akidb_mlx_plugin.batching.deadlines import Clock
from akidb_mlx_plugin.batching.requests import PendingRequest, RequestSlice
from akidb_mlx_plugin.batching.scheduler import Scheduler
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, StartedRequest

# As `EmbeddingProvider.begin`.
Begin = Callable[[BatchEmbeddingRequest], StartedRequest | None]


class Lookahead:
    """Begins slices, and the next one before it waits; used by the queue's worker."""

    def __init__(
        self,
        begin: Begin | None,
        scheduler: Scheduler,
        lock: threading.RLock,  # type: ignore[valid-type]
        clock: Clock,
        pending: Container[PendingRequest],
    ) -> None:
        """Store the parts of the queue.

        Args:
            begin: starts to compute the first texts of a request, if anything can.
            scheduler: cuts slices; guarded by the lock.
            lock: the queue's.
            clock: the queue's.
            pending: requests that somebody waits for; guarded by the lock.
        """
        self._begin = begin or (lambda request: None)
        self._scheduler = scheduler
        self._lock = lock
        self._clock = clock
        self._pending = pending

    def compute(self, part: RequestSlice) -> BatchEmbeddingResponse | None:
        """Compute a slice of a large request, shortened to what the engine computes at once.

        Returns:
            None if the engine cannot compute it in the background.
        """
        self._start(part)
        if part.started is None:
            return None
        with self._lock:
            ahead = self._scheduler.look_ahead(self._clock.now())
        if ahead is not None:
            # It fails again, for its own callers, when its turn comes.
            with suppress(Exception):
                self._start(ahead)
        return part.started.result()

    def drop(self) -> list[RequestSlice]:
        """Forget the slice that was begun ahead, and return it, if any."""
        with self._lock:
            return self._scheduler.drop_ahead()

    def _start(self, part: RequestSlice) -> None:
        if part.started is None and (started := self._begin(part.request)) is not None:
            with self._lock:
                self._scheduler.shorten(part, started.texts, wanted=part.pending in self._pending)
            part.started = started
