"""Many callers, one batch: a queue in front of whatever embeds."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial

from akidb_mlx_plugin.batching.deadlines import Clock, DeadlineTimer
from akidb_mlx_plugin.batching.lookahead import Begin, Lookahead
from akidb_mlx_plugin.batching.observer import QueueObserver
from akidb_mlx_plugin.batching.outcomes import resolve_all
from akidb_mlx_plugin.batching.requests import Outcome, PendingRequest, RequestSlice
from akidb_mlx_plugin.batching.runner import BatchRunner, EmbedRequests
from akidb_mlx_plugin.batching.scheduler import Scheduler
from akidb_mlx_plugin.batching.workers import BatchWorkers
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError, QueueFullError, ServiceUnavailableError
from akidb_mlx_plugin.runtime.fork import ForkGuard
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse


class BatchQueue:
    """Merges requests from many callers into batches, and runs as many at a time as the engine is best given.

    An idle engine starts at once on whatever is waiting; while it runs, requests gather into batches of up to
    `batch_size` texts. Only large requests can delay them for longer than a batch: they are cut into slices, and a
    batch of slices takes about `batch_timeout_ms` while small requests arrive.

    One lock guards everything. Each pending request is resolved exactly once: whoever takes it out of `_pending` under
    the lock resolves it afterwards, without the lock, because that runs its caller's callbacks.

    Any thread may call. Threads start with the first request; they are daemons, so an unclosed queue does not keep the
    interpreter alive. A process forked after that lacks them, and every request there is rejected.
    """

    def __init__(
        self,
        embed: EmbedRequests,
        *,
        prepare: Callable[[BatchEmbeddingRequest], BatchEmbeddingRequest] | None = None,
        begin: Begin | None = None,
        concurrency: Callable[[], int] = lambda: 1,
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
            prepare: completes a request, and raises for one that cannot be answered, before it can fail a batch.
            begin: as `EmbeddingProvider.begin`.
            concurrency: how many batches may run at a time; of these, one may have slices of large requests.
            batch_size: most texts to merge; a larger request is cut into slices.
            batch_timeout_ms: about how long a slice takes while small requests arrive.
            max_texts: most texts that may wait, of small and of large requests each; one larger request may wait alone.
            deadline_ms: for a request of one batch; a larger one gets that much per batch.
            observer: receives batches and requests.
            clock: replaces the system's clock in tests.
        """
        self._prepare = prepare or (lambda request: request)
        self._concurrency = concurrency
        self._batch_size = batch_size
        self._max_texts = max_texts
        self._deadline_s = math.inf if deadline_ms is None else deadline_ms / 1e3
        self._observer = observer or QueueObserver()
        self._clock = clock or Clock()
        self._guard = ForkGuard()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._pending: set[PendingRequest] = set()
        self._scheduler = Scheduler(batch_size, batch_timeout_ms / 1e3, max_texts)
        self._lookahead = Lookahead(begin, self._scheduler, self._lock, self._clock, self._pending)
        self._timer = DeadlineTimer(self._lock, self._clock, self._expire)
        self._workers = BatchWorkers(self._changed, self._run_next, lambda: self._scheduler.waiting_texts > 0)
        self._runner = BatchRunner(
            embed,
            self._lookahead,
            self._scheduler,
            self._lock,
            self._clock,
            self._observer,
            deadline_s=self._deadline_s,
            finish=lambda pending, outcome: self._resolve(self._take(pending), outcome),
        )
        self._closing = False

    @property
    def waiting_texts(self) -> int:
        """Number of texts not yet sent to the engine, except those that wait for room."""
        return self._scheduler.waiting_texts

    @property
    def is_foreign(self) -> bool:
        """Whether it belongs to the process this one was forked from."""
        return self._guard.is_foreign()

    @property
    def in_use(self) -> bool:
        """Whether there are threads to stop, in this process."""
        return self._workers.are_started and not self._closing and not self.is_foreign

    @property
    def closed(self) -> bool:
        """Whether it has stopped accepting requests."""
        return self._closing

    def submit(
        self,
        request: BatchEmbeddingRequest,
        *,
        deadline_ms: float | None = None,
        wait_for_room: bool = False,
        bulk: bool = False,
    ) -> Future[BatchEmbeddingResponse]:
        """Queue a request and return at once.

        Canceling the future withdraws the request: texts not yet sent to the engine are not embedded, and results are
        dropped.

        Args:
            request: what to embed.
            deadline_ms: time until the caller gets `ServiceUnavailableError`, counted from when the request enters the
                queue. Defaults to the queue's.
            wait_for_room: wait in line for room in a full queue instead of being rejected.
            bulk: treat it as a large request, whatever its size.
        Raises:
            InvalidInputError: it cannot be answered, or the deadline is not above 0.
            ServiceUnavailableError: full, closed, or forked.
        """
        self._guard.enter()
        submitted = self._clock.now()
        allowed_s = self._time_allowed_s(request, deadline_ms)
        try:
            pending = PendingRequest(self._prepare(request), submitted, allowed_s, bulk=bulk)
            self._enqueue(pending, wait_for_room)
        except EmbeddingError as error:
            self._observer.request_ended(request, self._clock.now() - submitted, error)
            raise
        pending.future.add_done_callback(partial(self._withdraw, pending))
        return pending.future

    def embed(self, request: BatchEmbeddingRequest, *, deadline_ms: float | None = None) -> BatchEmbeddingResponse:
        """Queue a request and wait for it; an interrupt withdraws it."""
        if self._workers.include_current_thread() or self._timer.is_current_thread():
            raise ServiceUnavailableError("a future's callback must not wait for another future; use a thread for that")
        future = self.submit(request, deadline_ms=deadline_ms)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def aembed(
        self, request: BatchEmbeddingRequest, *, deadline_ms: float | None = None
    ) -> BatchEmbeddingResponse:
        """Queue a request and await it; canceling the task withdraws it."""
        return await asyncio.wrap_future(self.submit(request, deadline_ms=deadline_ms))

    def health_check(self) -> None:
        """Check that requests are being answered.

        Raises:
            ServiceUnavailableError: closed, forked, a batch is overdue, or the worker died and was replaced.
        """
        self._guard.check()
        self._raise_if_closed()
        with self._lock:
            death = self._workers.pop_death()
            overdue_at = self._runner.overdue_at
        if death is not None:
            raise ServiceUnavailableError(f"the embedding worker died of {death!r} and was replaced") from death
        if (overdue_s := self._clock.now() - overdue_at) >= 0:
            raise ServiceUnavailableError(
                f"the model has not come back from a batch, {overdue_s:.1f} s past its deadline; "
                "if it does not come back at all, restart the process"
            )

    def close(self, *, drain: bool = True, timeout_s: float = 30.0) -> bool:
        """Stop accepting requests and stop the threads.

        Args:
            drain: whether to answer waiting requests first; otherwise they fail with `ServiceUnavailableError`.
            timeout_s: requests still pending after this time fail as well.
        Returns:
            Whether the threads have ended; False if the model has not come back.
        """
        if self.is_foreign:
            return True
        with self._lock:
            self._closing = True
            dropped = [] if drain else self._take(pending for pending in self._pending if pending.waiting)
            self._changed.notify_all()
        early = "the service was closed before this was embedded; use another one, or close with drain=True"
        self._resolve(dropped, ServiceUnavailableError(early))
        with self._lock:
            ended = self._workers.wait_until_ended(timeout_s)
            left = self._take(self._pending)
        late = f"the service was closed, and the model did not come back in {timeout_s:g} s"
        self._resolve(left, ServiceUnavailableError(late))
        self._timer.stop()
        return ended

    def when_ended(self, action: Callable[[], None]) -> None:
        """Run an action once a closed queue's threads have ended: at once, or as the last one's last step."""
        self._workers.when_ended(action)

    def _enqueue(self, pending: PendingRequest, wait_for_room: bool) -> None:
        with self._lock:
            self._raise_if_closed()
            if not wait_for_room and not self._scheduler.has_room(pending):
                raise QueueFullError(
                    f"the queue is full: up to {self._max_texts} texts may wait, and there is no room for "
                    f"{pending.waiting} more; try again later, use submit_when_room, or raise service.queue_size"
                )
            self._workers.ensure_started(min(self._runner.count + 1, max(1, self._concurrency())))
            self._pending.add(pending)
            self._scheduler.add(pending)
            self._admit()
            self._changed.notify()

    def _admit(self) -> None:
        """Admit the requests that there is room for; the caller holds the lock."""
        for pending in self._scheduler.admit(self._clock.now()):
            self._timer.schedule(pending.expires)

    def _take(self, wanted: Iterable[PendingRequest]) -> list[PendingRequest]:
        """Take out the requests that are still pending; the caller must resolve them."""
        with self._lock:
            taken = [pending for pending in wanted if pending in self._pending]
            self._pending.difference_update(taken)
            for pending in taken:
                self._scheduler.remove(pending)
            self._admit()
            return taken

    def _resolve(self, taken: Iterable[PendingRequest], outcome: Outcome) -> None:
        """Give taken requests their outcome, without the lock: their callers' callbacks run here."""
        resolve_all(taken, outcome, self._observer, self._clock.now)

    def _withdraw(self, pending: PendingRequest, future: Future[BatchEmbeddingResponse]) -> None:
        """Withdraw a request whose future was canceled; called by every finished future."""
        if future.cancelled() and not self.is_foreign:
            # `concurrent.futures.wait` counts a canceled future as done only after this.
            future.set_running_or_notify_cancel()
            self._resolve(self._take([pending]), None)

    def _expire(self) -> None:
        """Fail requests past their deadline, and schedule the next deadline; called by the timer."""
        with self._lock:
            now = self._clock.now()
            expired = self._take(pending for pending in self._pending if pending.expires <= now)
            self._timer.schedule(min((pending.expires for pending in self._pending), default=math.inf))
        for pending in expired:
            self._resolve([pending], pending.deadline_error())

    def _run_next(self) -> bool:
        """Wait for a batch and run it; False once closed and empty."""
        with self._lock:
            while not (slices := self._next_batch()):
                # What still waits is taken by the thread whose batch it cannot run beside.
                if self._closing:
                    return False
                self._clock.wait(self._changed, None)
            self._runner.begin()
            self._admit()
            if self._scheduler.waiting_texts:
                self._changed.notify()
        try:
            self._runner.run(slices)
        except BaseException as error:
            # This kills the worker.
            lost = [*slices, *self._lookahead.drop()] if self._scheduler.are_of_large(slices) else slices
            unavailable = ServiceUnavailableError(f"the embedding worker died of {error!r} in this batch; try again")
            unavailable.__cause__ = error
            self._resolve(self._take({part.pending for part in lost}), unavailable)
            raise
        finally:
            with self._lock:
                self._runner.end()
                if self._scheduler.are_of_large(slices):
                    self._scheduler.allow_slices()
        return True

    def _next_batch(self) -> list[RequestSlice]:
        """Return what this thread may run now, if anything; the caller holds the lock."""
        if self._runner.count and self._runner.count >= self._concurrency():
            return []
        return self._scheduler.next_batch(self._clock.now())

    def _time_allowed_s(self, request: BatchEmbeddingRequest, deadline_ms: float | None) -> float:
        if deadline_ms is not None:
            if not deadline_ms > 0:
                raise InvalidInputError(f"deadline_ms must be above 0, got {deadline_ms!r}")
            return deadline_ms / 1e3
        return self._deadline_s * max(1, math.ceil(len(request.inputs) / self._batch_size))

    def _raise_if_closed(self) -> None:
        if self._closing:
            raise ServiceUnavailableError("the embedding service is closed; make a new one")
