"""Release what has been idle for some time; a thread of its own waits for it, and ends with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Release = Callable[[], None]


class IdleRelease:
    """Counts the uses of something, and releases it once there has been none for some time."""

    def __init__(self, idle_s: float, detach: Callable[[], Release | None]) -> None:
        """Watch something; starts nothing.

        Args:
            idle_s: how long it may be idle; 0 releases it with the end of each use, below 0 never.
            detach: takes it away from later uses, at once, and returns what frees it; None if there is nothing. No
                use runs or begins meanwhile.
        """
        self._idle_s = idle_s
        self._detach = detach
        self._changed = threading.Condition()
        self._uses = 0
        self._last = time.monotonic()
        self._thread: threading.Thread | None = None
        self._stopped = False

    @contextmanager
    def use(self) -> Iterator[None]:
        """Hold it meanwhile."""
        if self._idle_s < 0:
            yield
            return
        with self._changed:
            self._uses += 1
        try:
            yield
        finally:
            self._end_use()

    def stop(self) -> None:
        """Release nothing any more; the thread ends."""
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def _end_use(self) -> None:
        release = None
        with self._changed:
            self._uses -= 1
            self._last = time.monotonic()
            if self._idle_s == 0:
                release = None if self._uses else self._detach()
            elif self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._wait, name="akidb-mlx-idle", daemon=True)
                self._thread.start()
        if release is not None:
            release()

    def _wait(self) -> None:
        with self._changed:
            while not self._stopped:
                left_s = self._idle_s - (time.monotonic() - self._last)
                if not self._uses and left_s <= 0:
                    break
                self._changed.wait(self._idle_s if self._uses else left_s)
            self._thread = None
            release = None if self._stopped else self._detach()
        if release is not None:
            release()
