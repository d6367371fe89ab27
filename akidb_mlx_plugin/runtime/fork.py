"""Forked processes: they inherit objects whose threads stayed in the parent, and locks that nobody will release."""

from __future__ import annotations

import os
import threading

from akidb_mlx_plugin.errors import ServiceUnavailableError


class ForkGuard:
    """Remembers which process uses an object. It takes no lock, and is checked before any lock is taken."""

    def __init__(self) -> None:
        """Belong to no process yet: an object not used before a fork works in the child."""
        self._pid: int | None = None

    def enter(self) -> None:
        """Bind to this process; raises like `check`."""
        self.check()
        self._pid = os.getpid()

    def check(self) -> None:
        """Check that this process may use the object.

        Raises:
            ServiceUnavailableError: it belongs to the process this one was forked from.
        """
        if self.is_foreign():
            raise ServiceUnavailableError(
                f"process {self._pid} used the embedding service before this process was forked from it, so the "
                "service does not work here; start processes with 'spawn', or use it only after the fork"
            )

    def is_foreign(self) -> bool:
        """Return whether this process was forked from the one it is bound to."""
        return self._pid not in (None, os.getpid())


class ForkBarrier:
    """Keeps forks and matrix products apart.

    OpenBLAS ends its threads when the process is about to fork. If another thread is in a product just then, it waits
    for them, they are gone, and the fork waits for it: the process hangs. So a fork by Python waits until no product
    runs, and none begins until the fork is done.
    """

    # A pass takes seconds at most; after this long the fork takes the risk.
    _PATIENCE_S = 60.0

    def __init__(self) -> None:
        """Make a barrier that this process's forks observe."""
        self._reset()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(before=self._stop, after_in_parent=self._resume, after_in_child=self._reset)

    def enter(self) -> None:
        """Begin to compute; waits while the process forks."""
        with self._changed:
            self._changed.wait_for(lambda: not self._forks)
            self._computing.append(threading.get_ident())

    def leave(self) -> None:
        """Note that this thread no longer computes."""
        with self._changed:
            self._computing.remove(threading.get_ident())
            self._changed.notify_all()

    def _stop(self) -> None:
        # A thread that forks amid its own work does not wait for itself.
        own = threading.get_ident()
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: all(thread == own for thread in self._computing), self._PATIENCE_S)

    def _resume(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()

    def _reset(self) -> None:
        """Begin anew, as in a child, whose parent's threads may have held the lock."""
        self._changed = threading.Condition()
        self._computing: list[int] = []
        self._forks = 0


# Of this process: all models share its BLAS.
FORK_BARRIER = ForkBarrier()
