"""Describe the machine that figures were measured on; without it they mean nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from akidb_mlx_plugin.runtime.cores import core_count

_PACKAGES = ("mlx", "numpy", "tokenizers")


def describe_machine() -> dict[str, str | int | float]:
    """Return processor, cores, memory, system, versions and, once MLX is loaded, its BLAS."""
    machine: dict[str, str | int | float] = {
        "processor": _processor(),
        "cores": core_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            machine[package] = version(package)
        except PackageNotFoundError:
            continue
    if "mlx.core" in sys.modules:
        from akidb_mlx_plugin.runtime.blas import load_blas
        from akidb_mlx_plugin.runtime.devices import choose_device

        machine["blas"] = str(load_blas())
        machine["device"] = choose_device("auto")
    return machine


def _processor() -> str:
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
