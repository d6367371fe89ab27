"""Forked processes: they inherit objects whose threads stayed in the parent, and locks that nobody will release."""

from __future__ import annotations

import os

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
