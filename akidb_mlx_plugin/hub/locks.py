"""Locks of the model cache: for users, downloads and evictions.

A process that uses a model holds a shared `flock` on the model's lock file, which the kernel drops however the process
ends; eviction needs an exclusive one. Lock files are not deleted: deleting one that somebody waits for would give two
processes two different locks.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.hub import legacy
from akidb_mlx_plugin.hub.snapshots import RECORDS, repo_folder

_LOCKS = ".locks"
# Checking whether a model is in use holds its lock for an instant, which must not count as use: a lock counts as taken
# once it is held for this long.
PROBE_S = 0.06
_PROBES = 4


def mark_in_use(folder: Path) -> ExitStack:
    """Shield a model from eviction by any process, and record that it was used.

    Args:
        folder: of a cached model; does nothing for a checkpoint outside the cache, which is never evicted.
    Returns:
        To be closed when the model is no longer used; the process's end closes it too.
    Raises:
        ModelNotFoundError: evicted since it was found; request it again.
    """
    in_use = ExitStack()
    lock = use_lock(folder)
    # Without a writable cache, or on a file system without locks, nothing can be evicted either.
    with suppress(OSError):
        if lock:
            descriptor = _open_lock(lock)
            in_use.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
    if not folder.is_dir():
        in_use.close()
        raise ModelNotFoundError(f"{folder} was removed from the model cache; request the model again")
    touch(folder)
    return in_use


def touch(folder: Path) -> None:
    """Record that a cached model was used now."""
    with suppress(OSError):
        os.utime(record_of(folder))


def record_of(folder: Path) -> Path:
    """Return the file that marks a folder as a cached model; its time is when the model was last used."""
    if folder.parent.name == "snapshots":
        return folder.parent.parent / RECORDS / f"{folder.name}.json"
    return folder / legacy.MANIFEST_NAME


def download_lock(cache_dir: Path, repo: str) -> FileLock:
    """Return the lock that lets one process at a time add a repository to the cache."""
    return file_lock(cache_dir, repo_folder(cache_dir, repo).name)


def file_lock(cache_dir: Path, name: str) -> FileLock:
    """Return an exclusive lock of the cache; taking it needs a writable cache."""
    folder = cache_dir / _LOCKS
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def use_lock(folder: Path) -> Path | None:
    """Return the lock file of a cached model; None for a checkpoint outside this package's caches."""
    folder = folder.absolute()
    if folder.parent.name == "snapshots":
        # Checks the folder of records, which outlives the record during an eviction.
        repo = folder.parent.parent
        return repo.parent / _LOCKS / f"{repo.name}--{folder.name}.lock" if (repo / RECORDS).is_dir() else None
    snapshot, _ = legacy.read(folder) or (None, {})
    # A copy of a cached folder elsewhere has a manifest too.
    if snapshot is None or folder.parent.name != snapshot.repo.replace("/", "--"):
        return None
    return folder.parent.parent / _LOCKS / f"{folder.parent.name}--{folder.name}.lock"


def _open_lock(lock: Path) -> int:
    lock.parent.mkdir(parents=True, exist_ok=True)
    return os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)


@contextmanager
def held_alone(lock: Path) -> Iterator[bool]:
    """Try to take a users' shared lock exclusively; yield whether that succeeded."""
    descriptor = _open_lock(lock)
    try:
        yield _lock_alone(descriptor)
    finally:
        os.close(descriptor)


def _lock_alone(descriptor: int) -> bool:
    for attempt in range(_PROBES):
        if attempt:
            time.sleep(PROBE_S / (_PROBES - 1))
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False
