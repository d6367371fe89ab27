"""The thread that runs a queue's batches; replaced if it dies."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class BatchWorker:
    """One daemon thread at a time, guarded by the queue's lock."""

    def __init__(
        self, changed: threading.Condition, run_next: Callable[[], bool], has_work: Callable[[], bool]
    ) -> None:
        """Make a worker; starts nothing.

        Args:
            changed: the queue's condition, notified when the thread ends.
            run_next: runs a batch; returns False when there will be no more.
            has_work: whether a dead thread must be replaced at once, not with the next request.
        """
        self._changed = changed
        self._run_next = run_next
        self._has_work = has_work
        self._when_ended: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None
        self._death: BaseException | None = None

    @property
    def is_started(self) -> bool:
        """Whether a thread was started and has not ended."""
        return self._thread is not None

    def is_current_thread(self) -> bool:
        """Return whether the caller runs on the worker's thread."""
        return threading.current_thread() is self._thread

    def ensure_started(self) -> None:
        """Start the thread if there is none; the caller holds the lock."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="akidb-mlx-batches", daemon=True)
            self._thread.start()

    def pop_death(self) -> BaseException | None:
        """Return the error that killed a thread since the last call, if any."""
        death, self._death = self._death, None
        return death

    def wait_until_ended(self, timeout_s: float) -> bool:
        """Return whether the thread ends in time or is the caller's own; the caller holds the lock."""
        return self.is_current_thread() or self._changed.wait_for(lambda: self._thread is None, timeout_s)

    def when_ended(self, action: Callable[[], None]) -> None:
        """Run an action after the thread has ended: at once, or as its last step."""
        with self._changed:
            if self._thread is not None:
                self._when_ended = action
                return
        action()

    def _work(self) -> None:
        try:
            while self._run_next():
                pass
        except BaseException as error:
            logger.error("the embedding worker died of %s and is replaced", type(error).__name__)
            self._death = error
        with self._changed:
            self._thread = None
            if self._has_work():
                self.ensure_started()
            self._changed.notify_all()
            has_ended = self._thread is None
        if has_ended:
            self._when_ended()
