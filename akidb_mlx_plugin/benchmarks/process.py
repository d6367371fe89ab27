"""Resources of this process: memory, threads, file descriptors."""

from __future__ import annotations

import os
import re
import resource
import sys
import threading
from pathlib import Path

_STATUS = Path("/proc/self/status")
_TASKS = Path("/proc/self/task")
_DESCRIPTORS = Path("/proc/self/fd")


def peak_bytes() -> int:
    """Return the peak memory use.

    On Linux not from `getrusage`, where a program inherits the peak of the one that started it.
    """
    if _STATUS.exists():
        return _status_bytes("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def thread_count() -> int:
    """Return the number of threads, including those of native libraries where the system reports them."""
    return len(os.listdir(_TASKS)) if _TASKS.exists() else threading.active_count()


def descriptor_count() -> int:
    """Return the number of open file descriptors."""
    # One of them is the listing itself.
    return len(os.listdir(_DESCRIPTORS if _DESCRIPTORS.exists() else "/dev/fd")) - 1


def _status_bytes(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
