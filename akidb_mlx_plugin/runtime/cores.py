"""How many processors this process may use."""

from __future__ import annotations

import os


def core_count() -> int:
    """Return the number of processors this process may use.

    At most `OMP_NUM_THREADS` of those in its affinity mask: Ray and other launchers set that variable to each process's
    share of the machine.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(cores, int(share)) if share.isascii() and share.isdigit() and int(share) else cores
