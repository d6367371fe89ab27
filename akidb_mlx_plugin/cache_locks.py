"""Who may do what in the model cache at one moment: locks of users, downloads and evictions.

A process that uses a model holds a shared `flock` on the model's lock file, which the kernel drops when the process
ends, however it ends; eviction needs the exclusive one. Lock files stay behind: deleting one that somebody waits for
would give two processes two different locks.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.manifest import MANIFEST_NAME, read_manifest

_LOCKS = ".locks"
# Whoever looks whether a model is used holds its lock for an instant, and is not to be taken for a user: a lock counts
# as taken when it is for this long.
PROBE_S = 0.06
_PROBES = 4


class ModelInUse:
    """Shields a cached model from eviction by any process until it is closed or the process ends."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def share(self) -> None:
        """Wait until no process evicts the model, and keep any from beginning to."""
        # A file system without locks has no evictions that could be kept off.
        with suppress(OSError):
            if self._descriptor is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def close(self) -> None:
        """Let the model be evicted again; more than once does no harm."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> ModelInUse:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def mark_in_use(folder: Path) -> ModelInUse:
    """Shield a model from eviction, and note that it was used.

    Args:
        folder: of a cached model; a checkpoint outside the cache is never evicted, and nothing happens to it.
    Returns:
        A handle to keep as long as the model is in use; also a context manager.
    Raises:
        ModelNotFoundError: evicted since it was found; ask for it again.
    """
    lock = use_lock(folder)
    if lock is None:
        if not folder.is_dir():
            raise ModelNotFoundError(f"{folder} is gone from the model cache; ask for the model again")
        return ModelInUse(None)
    try:
        handle = ModelInUse(_open_lock(lock))
    except OSError:
        # A read-only cache, where nothing can be evicted either.
        return ModelInUse(None)
    handle.share()
    if not (folder / MANIFEST_NAME).is_file():
        handle.close()
        raise ModelNotFoundError(f"{folder} was evicted from the model cache; ask for the model again")
    touch(folder)
    return handle


def touch(folder: Path) -> None:
    """Note that a cached model was used now."""
    with suppress(OSError):
        os.utime(folder / MANIFEST_NAME)


def repo_folder(cache_dir: Path, repo: str) -> Path:
    """Return the folder of a repository in the cache."""
    return cache_dir / repo.replace("/", "--")


def download_lock(cache_dir: Path, repo: str) -> FileLock:
    """Return the lock under which one process at a time puts a repository into the cache."""
    return file_lock(cache_dir, repo_folder(cache_dir, repo).name)


def file_lock(cache_dir: Path, name: str) -> FileLock:
    """Return an exclusive lock of the cache; taking it needs a writable cache."""
    folder = cache_dir / _LOCKS
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def use_lock(folder: Path) -> Path | None:
    """Return the lock file of a cached model; None for a checkpoint that is no part of a cache."""
    folder = folder.absolute()
    manifest = read_manifest(folder)
    root = folder.parent.parent
    # A copy of a cached folder elsewhere carries a manifest too.
    if manifest is None or folder.parent != repo_folder(root, manifest.repo):
        return None
    return root / _LOCKS / f"{folder.parent.name}--{folder.name}.lock"


def _open_lock(lock: Path) -> int:
    lock.parent.mkdir(parents=True, exist_ok=True)
    return os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)


@contextmanager
def held_alone(lock: Path) -> Iterator[bool]:
    """Try to hold a lock that users share; yields whether nobody else has it."""
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
