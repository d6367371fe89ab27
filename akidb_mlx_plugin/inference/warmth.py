"""Keep a GPU awake for a while after the last text: one that has rested takes tens of milliseconds to start."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# An M5 Max was measured elsewhere to be slow after 15 seconds without work.
TICK_S = 5.0


class Warmth:
    """A thread that lives from the first use until `seconds` after the last, and computes a little whenever idle."""

    def __init__(
        self, compute: Callable[[], None], *, tick_s: float = TICK_S, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Start nothing yet.

        Args:
            compute: starts a little work and returns at once.
            tick_s: how often to check.
            now: a clock in seconds.
        """
        self._compute = compute
        self._tick_s = tick_s
        self._now = now
        self._seconds = 0.0
        self._used = 0.0
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def extend(self, seconds: float) -> None:
        """Stay warm for at least so many seconds after each use."""
        self._seconds = max(self._seconds, seconds)

    def use(self) -> None:
        """Note that the GPU is in use now."""
        if not self._seconds:
            return
        with self._changed:
            self._used = self._now()
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, name="akidb-mlx-warmth", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop the thread; safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _work(self) -> None:
        while self._wait():
            self._compute()

    def _wait(self) -> bool:
        """Return once there was nothing to do for a tick; False when the thread is to end."""
        with self._changed:
            while not self._closed and self._now() - self._used < self._seconds:
                self._changed.wait(self._tick_s)
                if not self._closed and self._tick_s <= self._now() - self._used < self._seconds:
                    return True
            self._thread = None
            return False
