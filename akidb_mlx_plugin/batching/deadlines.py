"""Deadlines: a thread that calls out when a request's time is up, whatever the engine is doing."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable

from akidb_mlx_plugin.batching.requests import Ticket

logger = logging.getLogger(__name__)


class Clock:
    """Time as the queue sees it; a test brings its own."""

    def now(self) -> float:
        """Return seconds that only go forward."""
        return time.monotonic()

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> None:
        """Wait until notified or until the time is up; the caller holds the condition."""
        condition.wait(timeout_s)


class Watchdog:
    """Watches tickets that have a deadline. Its thread starts with the first one and sleeps until a deadline is due."""

    def __init__(self, clock: Clock, expire: Callable[[list[Ticket]], None]) -> None:
        """Make a watchdog; starts nothing.

        Args:
            clock: what deadlines are held against.
            expire: called, with no lock held, with the tickets whose time is up.
        """
        self._clock = clock
        self._expire = expire
        self._tickets: set[Ticket] = set()
        self._changed = threading.Condition()
        self._wakes_at = math.inf
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, ticket: Ticket) -> None:
        """Watch a ticket."""
        if ticket.expires == math.inf:
            return
        with self._changed:
            self._tickets.add(ticket)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="akidb-mlx-deadlines", daemon=True)
                self._thread.start()
            # With one deadline for all, a later request never falls due before the thread wakes anyway.
            if ticket.expires < self._wakes_at:
                self._changed.notify()

    def discard(self, ticket: Ticket) -> None:
        """Watch it no longer; the thread is not woken for that."""
        with self._changed:
            self._tickets.discard(ticket)

    def is_current(self) -> bool:
        """Tell whether this is its thread."""
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._stopped = True
            thread = self._thread
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._stopped:
                    return
                now = self._clock.now()
                due = [ticket for ticket in self._tickets if ticket.expires <= now]
                if not due:
                    self._wakes_at = min((ticket.expires for ticket in self._tickets), default=math.inf)
                    self._clock.wait(self._changed, None if self._wakes_at == math.inf else self._wakes_at - now)
                    continue
                self._tickets.difference_update(due)
            try:
                self._expire(due)
            except BaseException as error:  # of a caller's callback: the others' deadlines are watched on
                logger.error("a callback of a request past its deadline raised %s", type(error).__name__)
