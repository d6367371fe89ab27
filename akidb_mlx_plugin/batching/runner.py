"""What happens to a batch: it is computed, and its vectors or its error go to its requests."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Sequence

from akidb_mlx_plugin.batching.deadlines import Clock
from akidb_mlx_plugin.batching.lookahead import Lookahead
from akidb_mlx_plugin.batching.observer import BatchStats, QueueObserver
from akidb_mlx_plugin.batching.requests import Outcome, PendingRequest, RequestSlice
from akidb_mlx_plugin.batching.scheduler import Scheduler
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse

EmbedRequests = Callable[[Sequence[BatchEmbeddingRequest]], Sequence[BatchEmbeddingResponse]]

logger = logging.getLogger(__name__)


class BatchRunner:
    """Runs batches, one per thread, and knows when each is overdue.

    `begin`, `end`, `count` and `overdue_at` are guarded by the queue's lock.
    """

    def __init__(
        self,
        embed: EmbedRequests,
        lookahead: Lookahead,
        scheduler: Scheduler,
        lock: threading.RLock,
        clock: Clock,
        observer: QueueObserver,
        *,
        deadline_s: float,
        finish: Callable[[Iterable[PendingRequest], Outcome], None],
    ) -> None:
        """Store the parts of the queue.

        Args:
            embed: embeds several requests as one batch.
            lookahead: computes slices of large requests where the engine can do that in the background.
            scheduler: learns the engine's speed; guarded by the lock.
            lock: the queue's.
            clock: the queue's.
            observer: receives batches.
            deadline_s: how long a batch may take.
            finish: gives requests their outcome, unless they have one.
        """
        self._embed = embed
        self._lookahead = lookahead
        self._scheduler = scheduler
        self._lock = lock
        self._clock = clock
        self._observer = observer
        self._deadline_s = deadline_s
        self._finish = finish
        # When each running batch is overdue, by the thread that runs it.
        self._running: dict[int, float] = {}

    @property
    def count(self) -> int:
        """Number of batches that run."""
        return len(self._running)

    @property
    def overdue_at(self) -> float:
        """When the first of them is overdue."""
        return min(self._running.values(), default=math.inf)

    def begin(self) -> None:
        """Count a batch of this thread as running; before `run`."""
        self._running[threading.get_ident()] = math.inf

    def end(self) -> None:
        """Count it no longer, however it ended."""
        del self._running[threading.get_ident()]

    def run(self, slices: list[RequestSlice]) -> None:
        """Compute a batch, and give its requests their vectors, or the engine's error."""
        started = self._clock.now()
        # A slice gets the time of a batch, however long its request may take.
        overdue_at = min(max(part.pending.expires for part in slices), started + self._deadline_s)
        self._running[threading.get_ident()] = overdue_at
        waits_s = tuple(part.pending.start(started) for part in slices if part.pending.started is None)
        error: Exception | None = None
        try:
            responses = self._compute(slices)
            if len(responses) != len(slices):
                raise EmbeddingError(f"{len(responses)} responses came back for {len(slices)} requests")
        except Exception as caught:
            error = caught
        run_s = self._clock.now() - started
        self._running[threading.get_ident()] = math.inf
        if self._scheduler.are_of_large(slices):
            with self._lock:
                self._scheduler.note_speed(slices, run_s)
        self._observer.batch_ended(BatchStats(sum(len(part.request.inputs) for part in slices), waits_s, run_s))
        if error is None:
            self._deliver(slices, responses)
        elif isinstance(error, InvalidInputError) and len(slices) > 1:
            # Rejected by the model after passing `prepare`: only the request that caused it must fail.
            for part in slices:
                part.started = None
                self.run([part])
        else:
            logger.info("a batch of %d requests failed: %s", len(slices), type(error).__name__)
            self._finish((part.pending for part in slices), error)

    def _compute(self, slices: list[RequestSlice]) -> Sequence[BatchEmbeddingResponse]:
        if self._scheduler.are_of_large(slices) and (responses := self._lookahead.compute(slices)) is not None:
            return responses
        return self._embed([part.request for part in slices])

    def _deliver(self, slices: list[RequestSlice], responses: Sequence[BatchEmbeddingResponse]) -> None:
        for part, response in zip(slices, responses, strict=True):
            if part.pending.future.done():
                continue
            outcome: Outcome
            try:
                outcome = part.pending.receive(part, response, self._clock.now())
            except Exception as error:
                outcome = error
            if outcome is not None:
                self._finish([part.pending], outcome)
