"""Locks that detect two processes writing to a persistent client's folder, which is for one at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import threading

from akidb_mlx_chroma.clients import AnyCollection

logger = logging.getLogger(__name__)

# A descriptor per folder, held until the process ends; None if another process holds it, which was logged.
_held: dict[str, int | None] = {}
_lock = threading.Lock()


def is_local(collection: AnyCollection) -> bool:
    """Return whether a collection is in this process, in memory or a folder, not on a server."""
    return "fastapi" not in str(collection._client._system.settings.chroma_api_impl)


def warn_of_other_writers(collection: AnyCollection) -> None:
    """Log once if another process also writes to this collection's folder.

    Each would keep an in-memory index without the other's documents, and write it over the other's. Only processes that
    write with this package are noticed.
    """
    settings = collection._client._system.settings
    if not is_local(collection) or not settings.is_persistent:
        return
    folder = os.path.realpath(settings.persist_directory)
    with _lock:
        if folder in _held:
            return
        _held[folder] = descriptor = _hold(folder)
    if descriptor is None:
        logger.warning(
            "another process is writing to the Chroma folder %s too, but only one process at a time may use its files: "
            "searches may miss documents. Run a server, chroma run --path %s, and write to it with chromadb.HttpClient",
            folder,
            folder,
        )


def _hold(folder: str) -> int | None:
    """Lock a folder until the process ends; return None if another process has it locked. Creates no file."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        # A file system without locks.
        os.close(descriptor)
        return -1
    return descriptor
