"""How much memory is left, so that a model that cannot fit is refused instead of the process being killed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from akidb_mlx_plugin.errors import ServiceUnavailableError

# Beside the weights: the activations of a batch and the buffers that are kept for the next one.
_WORKING_BYTES = 96 << 20
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def check_memory(needed: int, name: str, *, available: int | None = None) -> None:
    """Refuse to load a model that does not fit.

    Args:
        needed: bytes of its weights.
        name: the model, for the message.
        available: bytes left of another memory than this machine's own; None: of that.
    Raises:
        ServiceUnavailableError: less is left than it needs.
    """
    left = available_memory() if available is None else available
    if left is not None and needed + _WORKING_BYTES > left:
        raise ServiceUnavailableError(
            f"{name} needs {_gib(needed + _WORKING_BYTES)} of memory and {_gib(left)} are left; close other "
            "programs or models, or take a smaller one (akidb-mlx models list)"
        )


def available_memory() -> int | None:
    """Return the bytes this process may still take, by the machine and by its container; None where unknown."""
    if sys.platform == "darwin":
        return _available_on_mac()
    limits = [limit for limit in (_available_on_linux(), _left_in_container()) if limit is not None]
    return min(limits, default=None)


def _available_on_linux(meminfo: Path = _MEMINFO) -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _left_in_container(root: Path = _CGROUP) -> int | None:
    """Return what a container's limit leaves; pages of files are given back when memory is short."""
    for limit, usage in (
        (root / "memory.max", root / "memory.current"),
        (root / "memory" / "memory.limit_in_bytes", root / "memory" / "memory.usage_in_bytes"),
    ):
        try:
            left = int(limit.read_text()) - int(usage.read_text())
            statistics = (limit.parent / "memory.stat").read_text()
        except (OSError, ValueError):  # not there, or "max"
            continue
        found = re.search(r"^(?:total_)?inactive_file (\d+)$", statistics, re.MULTILINE)
        return left + (int(found[1]) if found else 0)
    return None


def _available_on_mac() -> int | None:
    """Return free, inactive and purgeable pages."""
    try:
        text = subprocess.run(["/usr/bin/vm_stat"], capture_output=True, text=True, check=True, timeout=5).stdout
        page = int(re.search(r"page size of (\d+) bytes", text)[1])  # type: ignore[index]
        pages = {name: int(count) for name, count in re.findall(r"Pages ([\w ]+):\s+(\d+)", text)}
        return page * sum(pages[kind] for kind in ("free", "inactive", "speculative", "purgeable"))
    except (OSError, subprocess.SubprocessError, TypeError, KeyError):
        return None


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
