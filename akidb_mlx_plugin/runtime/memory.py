"""How much memory is used and left, to reject a model that cannot fit before the system kills the process."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from akidb_mlx_plugin.errors import ServiceUnavailableError

# On top of the weights: the activations of a batch and the buffers kept for the next one.
_WORKING_BYTES = 96 << 20
# In a limited address space: stacks and buffers of the BLAS threads, which abort the process if there is no room.
_THREADS_BYTES = 512 << 20
# Peak memory of a batch, in float32 activations of its widest layer.
_ACTIVATIONS = 8
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_PROCESS = Path("/proc/self")


def check_memory(needed: int, name: str, *, available: int | None = None) -> None:
    """Raise if a model does not fit.

    Args:
        needed: bytes of its weights.
        name: the model, for the message.
        available: bytes left in another memory, such as a GPU's. Defaults to this machine's own memory.
    Raises:
        ServiceUnavailableError: less is left than it needs.
    """
    if available is None:
        _raise_above(left_of_address_space(), needed + _THREADS_BYTES, name, "address space (ulimit -v)")
        available = available_memory()
    _raise_above(available, needed + _WORKING_BYTES, name, "memory")


def check_batch(tokens: int, width: int, name: str) -> None:
    """Reject a batch that a limited address space has no room for: MLX and the BLAS abort when it is exhausted.

    Args:
        tokens: of the batch.
        width: of the model's widest layer.
        name: the model, for the message.
    Raises:
        ServiceUnavailableError: less is left than the batch may need.
    """
    needed = activation_bytes(tokens, width) + _WORKING_BYTES
    _raise_above(left_of_address_space(), needed, f"a batch of {tokens} tokens for {name}", "address space (ulimit -v)")


def activation_bytes(tokens: int, width: int) -> int:
    """Return the peak memory of a batch's activations, in float32, given the width of the model's widest layer."""
    return tokens * width * 4 * _ACTIVATIONS


def _raise_above(left: int | None, needed: int, name: str, what: str) -> None:
    if left is not None and needed > left:
        raise ServiceUnavailableError(
            f"{name} needs {_gib(needed)} of {what} and {_gib(left)} are left; close other programs or models, or use "
            "a smaller one (akidb-mlx models list)"
        )


def resident_bytes(process: Path = _PROCESS) -> int:
    """Return how much memory this process holds; 0 if unknown."""
    try:
        return int((process / "statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        command = ["ps", "-o", "rss=", "-p", str(os.getpid())]
        return int(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or 0) * 1024


def available_memory() -> int | None:
    """Return how many bytes this process may still allocate; None if unknown.

    The least of what is left on the machine, in the process's control groups (such as a container's) and in its address
    space.
    """
    if sys.platform == "darwin":
        return _available_on_mac()
    left = (_available_on_linux(), _left_in_control_groups(), left_of_address_space())
    return min((size for size in left if size is not None), default=None)


def left_of_address_space(process: Path = _PROCESS) -> int | None:
    """Return how many bytes RLIMIT_AS (`ulimit -v`) leaves; None if there is no readable limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        pages = int((process / "statm").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return max(0, limit - pages * resource.getpagesize())


def _available_on_linux(meminfo: Path = _MEMINFO) -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _left_in_control_groups(root: Path = _CGROUP, process: Path = _PROCESS) -> int | None:
    """Return what the limits of the process's control groups and their parents leave."""
    left = (_left_in_group(folder, *names) for folder, names in _groups(root, process))
    return min((size for size in left if size is not None), default=None)


def _groups(root: Path, process: Path) -> Iterator[tuple[Path, tuple[str, str]]]:
    """Yield the folder of each control group, with the names of its limit and usage files."""
    try:
        lines = (process / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    # In a container the path may be the one outside; the container's own group is then the root.
    for line in ("0::/", "0:memory:/", *lines):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if "memory" in controllers.split(","):
            top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        elif not controllers:
            top, names = root, ("memory.max", "memory.current")
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            yield top.joinpath(*parts[:depth]), names


def _left_in_group(folder: Path, limit: str, usage: str) -> int | None:
    """Return what a group's limit leaves. Inactive file pages count as free: the kernel reclaims them first."""
    try:
        left = int((folder / limit).read_text()) - int((folder / usage).read_text())
        statistics = (folder / "memory.stat").read_text()
    except (OSError, ValueError):  # no such file, or "max"
        return None
    found = re.search(r"^(?:total_)?inactive_file (\d+)$", statistics, re.MULTILINE)
    return left + (int(found[1]) if found else 0)


def _available_on_mac() -> int | None:
    """Return the bytes of free, inactive, speculative and purgeable pages."""
    try:
        text = subprocess.run(["/usr/bin/vm_stat"], capture_output=True, text=True, check=True, timeout=5).stdout
        page = int(re.search(r"page size of (\d+) bytes", text)[1])  # type: ignore[index]
        pages = {name: int(count) for name, count in re.findall(r"Pages ([\w ]+):\s+(\d+)", text)}
        return page * sum(pages[kind] for kind in ("free", "inactive", "speculative", "purgeable"))
    except (OSError, subprocess.SubprocessError, TypeError, KeyError):
        return None


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
