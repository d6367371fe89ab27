"""The cache's disk: check for space and explain errors."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from akidb_mlx_plugin.errors import DownloadError

# Room for listings and file system overhead.
_SPARE_BYTES = 16 << 20


def free_bytes(folder: Path) -> int:
    """Return the free space on the disk of a folder that may not exist yet."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free


def check_free_space(folder: Path, needed_bytes: int, name: str) -> None:
    """Reject a download that the disk has no room for.

    Raises:
        DownloadError: too little space; it gives both sizes.
    """
    free = free_bytes(folder)
    if needed_bytes + _SPARE_BYTES > free:
        raise DownloadError(
            f"{name} needs {needed_bytes / 1e6:.0f} MB in {folder}, and only {free / 1e6:.0f} MB are free; make room "
            "('akidb-mlx cache clean' removes models), or set AKIDB_MODEL_CACHE_DIR to another disk"
        )


def disk_error(error: OSError, folder: Path) -> DownloadError:
    """Return an error that says what to do about a file system error."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DownloadError(f"the disk of {folder} is full; make room ('akidb-mlx cache clean' removes models)")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DownloadError(f"the model cache {folder} cannot be written; set AKIDB_MODEL_CACHE_DIR ({error})")
    return DownloadError(f"the model cache {folder} cannot be used: {error}")
