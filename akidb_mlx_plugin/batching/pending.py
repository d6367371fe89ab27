"""Who is owed an answer. Every request gets exactly one: vectors, an error, or its own cancellation."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass

from akidb_mlx_plugin.batching.deadlines import Clock, Watchdog
from akidb_mlx_plugin.batching.requests import Ticket
from akidb_mlx_plugin.errors import ServiceUnavailableError
from akidb_mlx_plugin.runtime.fork import ForkGuard
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse

logger = logging.getLogger(__name__)


class DeadlineExceededError(ServiceUnavailableError):
    """A request was not answered in the time it was given."""


@dataclass(frozen=True)
class BatchStats:
    """One batch that came back.

    Attributes:
        texts: how many it held.
        waits_s: how long each request that began with it had waited.
        run_s: how long the engine took.
    """

    texts: int
    waits_s: tuple[float, ...]
    run_s: float


class QueueObserver:
    """Told of what happens, on the thread where it happens; does nothing unless overridden."""

    def batch_ended(self, stats: BatchStats) -> None:
        """A batch came back, with vectors or with an error."""

    def request_ended(
        self,
        request: BatchEmbeddingRequest,
        seconds: float,
        response: BatchEmbeddingResponse | None,
        error: BaseException | None,
    ) -> None:
        """A request was answered or failed; neither a response nor an error: it was cancelled."""


class Ledger:
    """The open requests of a queue."""

    def __init__(
        self,
        lock: threading.Condition,
        clock: Clock,
        guard: ForkGuard,
        observer: QueueObserver,
        forget: Callable[[Ticket], None],
    ) -> None:
        """Open an empty ledger.

        Args:
            lock: the queue's.
            clock: what deadlines are held against.
            guard: the queue's.
            observer: told how each request ended.
            forget: called, with the lock held, with a request that no longer needs to wait.
        """
        self._lock = lock
        self._clock = clock
        self._guard = guard
        self._observer = observer
        self._forget = forget
        self._open: set[Ticket] = set()
        self._watchdog = Watchdog(clock, self._expire)

    def enter(self, ticket: Ticket) -> None:
        """Owe an answer; the lock is held."""
        self._open.add(ticket)
        self._watchdog.add(ticket)

    def claim(self, wanted: Callable[[Ticket], bool]) -> list[Ticket]:
        """Take out the open requests that are wanted, so that nobody else answers them; the lock is held."""
        return self._strike(ticket for ticket in list(self._open) if wanted(ticket))

    def settle(
        self,
        tickets: Iterable[Ticket],
        *,
        response: BatchEmbeddingResponse | None = None,
        error: Exception | None = None,
    ) -> None:
        """Answer those requests that are still open; neither a response nor an error: they were cancelled."""
        with self._lock:
            claimed = self._strike(tickets)
        self.answer(claimed, response=response, error=error)

    def answer(
        self,
        claimed: Iterable[Ticket],
        *,
        response: BatchEmbeddingResponse | None = None,
        error: Exception | None = None,
    ) -> None:
        """Answer claimed requests. No lock is held, for the callers' callbacks run here.

        What one of them raises is logged once all have their answer: a SystemExit on the thread that embeds would be
        the end of everybody else's batch. On the main thread it may be the user's interrupt, and is raised again.
        """
        self._answer_each((ticket, response, error) for ticket in claimed)

    def _answer_each(self, answers: Iterable[tuple[Ticket, BatchEmbeddingResponse | None, Exception | None]]) -> None:
        raised: BaseException | None = None
        for ticket, response, error in answers:
            try:
                self._answer(ticket, response, error)
            except BaseException as caught:
                raised = raised or caught
        if raised is None:
            return
        if threading.current_thread() is threading.main_thread():
            raise raised
        logger.error("the callback of an answered request raised %s", type(raised).__name__)

    def _answer(self, ticket: Ticket, response: BatchEmbeddingResponse | None, error: Exception | None) -> None:
        try:
            self._observer.request_ended(ticket.request, self._clock.now() - ticket.submitted, response, error)
        finally:
            # A caller may cancel at this very moment.
            with suppress(InvalidStateError):
                if response is not None:
                    ticket.future.set_result(response)
                elif error is not None:
                    ticket.future.set_exception(error)

    def allow_cancelling(self, ticket: Ticket) -> None:
        """Withdraw a request as soon as its future is cancelled; no lock is held."""

        def withdraw(future: Future[BatchEmbeddingResponse]) -> None:
            if future.cancelled() and not self._guard.is_foreign():
                # `concurrent.futures.wait` takes a cancelled future for done only after this.
                future.set_running_or_notify_cancel()
                self.settle([ticket])

        ticket.future.add_done_callback(withdraw)

    def is_expiring(self) -> bool:
        """Tell whether this is the thread that watches deadlines, which must not wait for one itself."""
        return self._watchdog.is_current()

    def close(self) -> None:
        """Watch no more deadlines."""
        self._watchdog.stop()

    def _strike(self, tickets: Iterable[Ticket]) -> list[Ticket]:
        claimed = [ticket for ticket in tickets if ticket in self._open]
        for ticket in claimed:
            self._open.discard(ticket)
            self._watchdog.discard(ticket)
            self._forget(ticket)
        return claimed

    def _expire(self, tickets: list[Ticket]) -> None:
        with self._lock:
            claimed = self._strike(tickets)
        self._answer_each((ticket, None, _explain_delay(ticket)) for ticket in claimed)


def _explain_delay(ticket: Ticket) -> DeadlineExceededError:
    allowed_s = ticket.expires - ticket.submitted
    if ticket.started is None:
        where = "it still waited in the queue; send fewer at a time, or allow more by deadline_ms"
    else:
        where = "the model had not come back with it; allow more by deadline_ms, or take a smaller model"
    return DeadlineExceededError(f"not answered within {allowed_s:g} s: {where}")
