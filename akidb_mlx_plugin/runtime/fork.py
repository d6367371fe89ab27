"""Forked processes: they inherit objects whose threads stayed in the parent, and locks nobody will release."""

from __future__ import annotations

import os

from akidb_mlx_plugin.errors import ServiceUnavailableError


class ForkGuard:
    """Remembers which process put something to use. Takes no lock, and is asked before any is taken."""

    def __init__(self) -> None:
        """Belong to no process yet: what was never used may be used in a forked child."""
        self._pid: int | None = None

    def enter(self) -> None:
        """Bind to this process, which puts it to use now; raises as `check`."""
        self.check()
        self._pid = os.getpid()

    def check(self) -> None:
        """Return if this process may use it.

        Raises:
            ServiceUnavailableError: it belongs to the process this one was forked from.
        """
        if self.is_foreign():
            raise ServiceUnavailableError(
                f"the embedding service was in use in process {self._pid} before this one was forked from it, and does "
                "not work here; start processes with 'spawn', or use it only after the fork"
            )

    def is_foreign(self) -> bool:
        """Tell whether this is a child of the process it is bound to."""
        return self._pid not in (None, os.getpid())
