"""Many callers, one batch: a queue in front of whatever embeds."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from akidb_mlx_plugin.batching.deadlines import Clock
from akidb_mlx_plugin.batching.pending import BatchStats, Ledger, QueueObserver
from akidb_mlx_plugin.batching.requests import Part, Ticket
from akidb_mlx_plugin.batching.scheduler import Lanes
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError, ServiceUnavailableError
from akidb_mlx_plugin.runtime.fork import ForkGuard
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse

EmbedRequests = Callable[[Sequence[BatchEmbeddingRequest]], Sequence[BatchEmbeddingResponse]]

logger = logging.getLogger(__name__)


_CLOSED_EARLY = "the service was closed before this was embedded; ask another one, or close with drain=True"


class QueueFullError(ServiceUnavailableError):
    """As many texts wait as may wait."""


class BatchQueue:
    """Merges the requests of many callers into batches and runs one batch at a time.

    An idle engine starts at once with whatever is there; while it runs, requests gather, up to `batch_size` texts to a
    batch. No batch could start earlier than that, so what `batch_timeout_ms` bounds is how long a slice of a large
    request may keep the engine from a batch that waits.

    Any thread may call. Threads start with the first request; they are daemons, so that a queue nobody closed
    keeps no interpreter alive. A process forked after that lacks them, and every request there is refused.
    """

    def __init__(
        self,
        embed: EmbedRequests,
        *,
        check: Callable[[BatchEmbeddingRequest], None] | None = None,
        batch_size: int = 10,
        batch_timeout_ms: float = 50,
        max_texts: int = 10_000,
        deadline_ms: float | None = None,
        observer: QueueObserver | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Make a queue; starts nothing.

        Args:
            embed: embeds several requests as one batch.
            check: raises for a request that cannot be answered, so that it spoils no batch.
            batch_size: most texts that are merged; a larger request goes in slices.
            batch_timeout_ms: about how long a slice takes while other callers wait.
            max_texts: most texts that wait, of small requests and of large ones each; a request larger than that is
                taken if no other one waits.
            deadline_ms: for a request of one batch; a larger one has as many times that as it holds batches.
            observer: told of batches and requests.
            clock: a test's own time.
        """
        self._embed = embed
        self._check = check or (lambda request: None)
        self._batch_size = batch_size
        self._max_texts = max_texts
        self._deadline_ms = deadline_ms
        self._observer = observer or QueueObserver()
        self._clock = clock or Clock()
        self._guard = ForkGuard()
        self._changed = threading.Condition()
        self._lanes = Lanes(batch_size, batch_timeout_ms / 1e3)
        self._ledger = Ledger(self._changed, self._clock, self._guard, self._observer, self._lanes.remove)
        self._running: list[Part] = []
        self._running_since = 0.0
        self._when_ended: Callable[[], None] = lambda: None
        self._worker: threading.Thread | None = None
        self._death: BaseException | None = None
        self._closing = False

    @property
    def waiting_texts(self) -> int:
        """Texts that have not gone to the engine yet."""
        return self._lanes.waiting_texts

    @property
    def is_foreign(self) -> bool:
        """Whether it belongs to the process this one was forked from."""
        return self._guard.is_foreign()

    @property
    def in_use(self) -> bool:
        """Whether there are threads to end, in this process."""
        return self._worker is not None and not self._closing and not self.is_foreign

    @property
    def closed(self) -> bool:
        """Whether requests are taken no longer."""
        return self._closing

    def submit(
        self, request: BatchEmbeddingRequest, *, deadline_ms: float | None = None
    ) -> Future[BatchEmbeddingResponse]:
        """Queue a request and return at once.

        Cancelling the future withdraws the request: what has not gone to the engine is not embedded, and what comes
        back is dropped.

        Args:
            request: what to embed.
            deadline_ms: time from now until the caller gets `ServiceUnavailableError`; None: the queue's.
        Raises:
            InvalidInputError: it failed the check.
            ServiceUnavailableError: full, closed, or forked.
        """
        self._guard.enter()
        now = self._clock.now()
        ticket = Ticket(request, now, now + self._time_allowed_s(request, deadline_ms))
        try:
            self._check(request)
            self._admit(ticket)
        except EmbeddingError as error:
            self._observer.request_ended(request, self._clock.now() - now, None, error)
            raise
        self._ledger.allow_cancelling(ticket)
        return ticket.future

    def embed(self, request: BatchEmbeddingRequest, *, deadline_ms: float | None = None) -> BatchEmbeddingResponse:
        """Queue a request and wait for it; an interrupt withdraws it."""
        if threading.current_thread() is self._worker or self._ledger.is_expiring():
            raise ServiceUnavailableError("the callback of a future must not wait for another one; use a thread for it")
        future = self.submit(request, deadline_ms=deadline_ms)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def aembed(
        self, request: BatchEmbeddingRequest, *, deadline_ms: float | None = None
    ) -> BatchEmbeddingResponse:
        """Queue a request and await it; cancelling the task withdraws it."""
        return await asyncio.wrap_future(self.submit(request, deadline_ms=deadline_ms))

    def health_check(self) -> None:
        """Return if requests are being answered.

        Raises:
            ServiceUnavailableError: closed, forked, a batch is past its deadline, or the worker has died since the
                last check; another has taken its place then, and the next check says how that goes.
        """
        self._guard.check()
        self._refuse_closed()
        with self._changed:
            death, self._death = self._death, None
            deadline = self._running_until()
        if death is not None:
            raise ServiceUnavailableError(f"the embedding worker died of {death!r} and was replaced") from death
        if (overdue := self._clock.now() - deadline) >= 0:
            raise ServiceUnavailableError(
                f"the model has not come back from a batch, {overdue:.1f} s past its deadline; "
                "if it does not come back at all, restart the process"
            )

    def close(self, *, drain: bool = True, timeout_s: float = 30.0) -> bool:
        """Take no more requests and end the threads.

        Args:
            drain: answer what waits first; otherwise it fails with `ServiceUnavailableError`.
            timeout_s: what is still open after that fails as well, even if the model has not come back.
        Returns:
            False if the model has not come back.
        """
        if self.is_foreign:
            return True
        with self._changed:
            self._closing = True
            dropped = [] if drain else self._ledger.claim(lambda ticket: ticket.waiting > 0)
            self._changed.notify_all()
        self._ledger.answer(dropped, error=ServiceUnavailableError(_CLOSED_EARLY))
        with self._changed:
            ended = threading.current_thread() is self._worker or self._changed.wait_for(
                lambda: self._worker is None, timeout_s
            )
            left = self._ledger.claim(lambda ticket: True)
        error = ServiceUnavailableError(f"the service was closed, and the model did not come back in {timeout_s:g} s")
        self._ledger.answer(left, error=error)
        self._ledger.close()
        return ended

    def when_ended(self, action: Callable[[], None]) -> None:
        """Run something once a closed queue's model has come back: at once, or on the worker's thread."""
        with self._changed:
            if self._worker is not None:
                self._when_ended = action
                return
        action()

    def _admit(self, ticket: Ticket) -> None:
        with self._changed:
            self._refuse_closed()
            self._refuse_full(ticket)
            self._ensure_worker()
            self._lanes.add(ticket)
            self._ledger.enter(ticket)
            self._changed.notify()

    def _work(self) -> None:
        try:
            while self._run_next():
                pass
        except BaseException as error:
            self._bury(error)
        if self._closing:
            self._when_ended()

    def _run_next(self) -> bool:
        """Wait for a batch and run it; False once closed and empty."""
        with self._changed:
            while not (parts := self._lanes.take(self._clock.now())):
                if self._closing:
                    self._worker = None
                    self._changed.notify_all()
                    return False
                self._clock.wait(self._changed, None)
            self._running = parts
            self._running_since = self._clock.now()
        self._run(parts)
        with self._changed:
            self._running = []
        return True

    def _run(self, parts: list[Part]) -> None:
        started = self._clock.now()
        waits_s = tuple(part.ticket.start(started) for part in parts if part.ticket.started is None)
        error: Exception | None = None
        try:
            responses = self._embed([part.request for part in parts])
            if len(responses) != len(parts):
                raise EmbeddingError(f"{len(responses)} responses came back for {len(parts)} requests")
        except Exception as caught:
            error = caught
        run_s = self._clock.now() - started
        with self._changed:
            self._lanes.finish(parts, run_s)
        self._observer.batch_ended(BatchStats(sum(len(part.request.inputs) for part in parts), waits_s, run_s))
        if error is None:
            self._deliver(parts, responses)
        elif isinstance(error, InvalidInputError) and len(parts) > 1:
            # Refused by the model, not by the check beforehand: only the one whose fault it was shall hear of it.
            for part in parts:
                self._run([part])
        else:
            logger.info("a batch of %d requests failed: %s", len(parts), type(error).__name__)
            self._ledger.settle([part.ticket for part in parts], error=error)

    def _deliver(self, parts: list[Part], responses: Sequence[BatchEmbeddingResponse]) -> None:
        for part, response in zip(parts, responses, strict=True):
            if part.ticket.future.done():
                continue
            try:
                complete = part.ticket.receive(part, response, self._clock.now())
            except Exception as error:
                self._ledger.settle([part.ticket], error=error)
            else:
                if complete is not None:
                    self._ledger.settle([part.ticket], response=complete)

    def _bury(self, error: BaseException) -> None:
        """Runs on the dying worker: put another in its place and tell those who waited for its batch."""
        with self._changed:
            self._death = error
            self._worker = None
            running = {part.ticket for part in self._running}
            lost = self._ledger.claim(running.__contains__)
            self._running = []
            if self._lanes.waiting_texts:
                self._ensure_worker()
            self._changed.notify_all()
        logger.error("the embedding worker died of %s and is replaced", type(error).__name__)
        unavailable = ServiceUnavailableError(f"the embedding worker died of {error!r} in this batch; try again")
        unavailable.__cause__ = error
        self._ledger.answer(lost, error=unavailable)

    def _ensure_worker(self) -> None:
        if self._worker is None or not self._worker.is_alive():
            self._worker = threading.Thread(target=self._work, name="akidb-mlx-batches", daemon=True)
            self._worker.start()

    def _time_allowed_s(self, request: BatchEmbeddingRequest, deadline_ms: float | None) -> float:
        if deadline_ms is not None:
            return deadline_ms / 1e3
        if self._deadline_ms is None:
            return math.inf
        return self._deadline_ms / 1e3 * max(1, math.ceil(len(request.inputs) / self._batch_size))

    def _running_until(self) -> float:
        """Return when the batch that runs is overdue; a slice of a large request is a batch like any other."""
        if not self._running:
            return math.inf
        allowed_s = math.inf if self._deadline_ms is None else self._deadline_ms / 1e3
        return min(max(part.ticket.expires for part in self._running), self._running_since + allowed_s)

    def _refuse_closed(self) -> None:
        if self._closing:
            raise ServiceUnavailableError("the embedding service is closed; make a new one")

    def _refuse_full(self, ticket: Ticket) -> None:
        waiting = self._lanes.waiting_like(ticket)
        if waiting and waiting + ticket.waiting > self._max_texts:
            raise QueueFullError(
                f"{waiting} texts wait and {self._max_texts} may, no room for {ticket.waiting} more; "
                "try again later, or raise service.queue_size"
            )
