"""The threads that run a queue's batches; replaced if they die."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)


class BatchWorkers:
    """Some daemon threads, guarded by the queue's lock."""

    def __init__(
        self, changed: threading.Condition, run_next: Callable[[], bool], has_work: Callable[[], bool]
    ) -> None:
        """Make the workers; starts nothing.

        Args:
            changed: the queue's condition, notified when a thread ends.
            run_next: runs a batch; returns False when there will be no more.
            has_work: whether a dead thread must be replaced at once, not with the next request.
        """
        self._changed = changed
        self._run_next = run_next
        self._has_work = has_work
        self._when_ended: Callable[[], None] = lambda: None
        self._threads: set[threading.Thread] = set()
        self._death: BaseException | None = None

    @property
    def are_started(self) -> bool:
        """Whether a thread was started and has not ended."""
        return bool(self._threads)

    def include_current_thread(self) -> bool:
        """Return whether the caller runs on one of the threads."""
        return threading.current_thread() in self._threads

    def ensure_started(self, count: int) -> None:
        """Start threads until there are this many; the caller holds the lock."""
        # In a forked child those of the parent are not alive.
        self._threads = {thread for thread in self._threads if thread.is_alive()}
        while len(self._threads) < count:
            thread = threading.Thread(target=self._work, name="akidb-mlx-batches", daemon=True)
            thread.start()
            self._threads.add(thread)

    def pop_death(self) -> BaseException | None:
        """Return the error that killed a thread since the last call, if any."""
        death, self._death = self._death, None
        return death

    def wait_until_ended(self, timeout_s: float) -> bool:
        """Return whether all threads end in time; the caller holds the lock.

        One of the threads waits for no other: it returns whether it is the only one.
        """
        own = {threading.current_thread()} & self._threads
        return self._changed.wait_for(lambda: self._threads == own, 0 if own else timeout_s)

    def when_ended(self, action: Callable[[], None]) -> None:
        """Run an action after the threads have ended: at once, or as the last one's last step."""
        with self._changed:
            if self._threads:
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
            self._threads.discard(threading.current_thread())
            if self._has_work():
                self.ensure_started(1)
            self._changed.notify_all()
            have_ended = not self._threads
        if have_ended:
            self._when_ended()
