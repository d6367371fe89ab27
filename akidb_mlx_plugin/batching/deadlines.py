"""Deadlines: a thread that wakes when the next one is due, whatever the engine is doing."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable


class Clock:
    """Time as the queue sees it; tests replace it with their own."""

    def now(self) -> float:
        """Return the seconds of a monotonic clock."""
        return time.monotonic()

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> None:
        """Wait for a notification, at most the given time; the caller holds the condition."""
        condition.wait(timeout_s)


class DeadlineTimer:
    """Runs an action when the next deadline is due. Its thread starts with the first deadline and then sleeps."""

    def __init__(self, lock: threading.RLock, clock: Clock, expire: Callable[[], None]) -> None:
        """Make a timer; starts nothing.

        Args:
            lock: of the queue whose requests have the deadlines.
            clock: what deadlines are compared with.
            expire: called without the lock when a deadline is due; it schedules the next one.
        """
        self._changed = threading.Condition(lock)
        self._clock = clock
        self._expire = expire
        self._due = math.inf
        self._thread: threading.Thread | None = None
        self._stopped = False

    def schedule(self, deadline: float) -> None:
        """Run the action at this time, or earlier; the caller holds the lock."""
        if deadline == math.inf:
            return
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="akidb-mlx-deadlines", daemon=True)
            self._thread.start()
        # A later deadline does not wake the thread; with one limit for all, that is every deadline but the first.
        if deadline < self._due:
            self._due = deadline
            self._changed.notify()

    def is_current_thread(self) -> bool:
        """Return whether the caller runs on the timer's thread."""
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        """Stop the thread."""
        with self._changed:
            self._stopped = True
            thread = self._thread
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(1.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and (left_s := self._due - self._clock.now()) > 0:
                    self._clock.wait(self._changed, None if left_s == math.inf else left_s)
                if self._stopped:
                    return
                self._due = math.inf
            self._expire()
