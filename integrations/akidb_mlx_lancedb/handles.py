"""Table handles: each is a snapshot, and several writers may hold one of the same table."""

from __future__ import annotations

import fcntl
import inspect
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from lancedb.background_loop import LOOP
from lancedb.db import AsyncConnection
from lancedb.table import AsyncTable

from akidb_mlx_plugin.errors import InvalidInputError

_LOCK_FILE = "_akidb_mlx.lock"
_locks: dict[str, threading.Lock] = {}
_locks_guard = threading.Lock()


def run_sync(result: Any) -> Any:
    """Return the result of a table's method; coroutines run on LanceDB's own loop, never on the caller's."""
    return LOOP.run(result) if inspect.iscoroutine(result) else result  # type: ignore[no-untyped-call]


def read_schema(table: Any) -> Any:
    """Return the Arrow schema of a table, synchronous or not."""
    return run_sync(table.schema()) if isinstance(table, AsyncTable) else table.schema


def reject_asynchronous(db: Any, remedy: str) -> None:
    """Raise InvalidInputError for an asynchronous connection; the message ends with the remedy."""
    if isinstance(db, AsyncConnection) or inspect.iscoroutinefunction(getattr(db, "open_table", None)):
        raise InvalidInputError(f"this needs a synchronous connection; {remedy}")


def namespace_arguments(namespace_path: Sequence[str]) -> dict[str, Any]:
    """Return the argument for a namespace, which not every connection takes."""
    return {"namespace_path": list(namespace_path)} if namespace_path else {}


def find_table(db: Any, name: str, namespace_path: Sequence[str] = ()) -> Any:
    """Open a table, or return None if there is none of that name."""
    try:
        return db.open_table(name, **namespace_arguments(namespace_path))
    except Exception as error:  # of another type for each kind of connection
        # `name in db` fails on namespace connections.
        if "not found" in str(error).lower():
            return None
        raise


def reject_checked_out(table: Any) -> None:
    """Raise InvalidInputError for a handle checked out at an older version, which would not show its own writes."""
    if _is_checked_out(table):
        raise InvalidInputError(
            f"table {table.name!r} is checked out at an older version; call table.checkout_latest() to continue with "
            "the newest, or table.restore() to make the old one the newest"
        )


def refresh(table: Any) -> None:
    """Update a handle to the table's newest version."""
    run_sync(table.checkout_latest())


@contextmanager
def write_lock(table: Any) -> Iterator[None]:
    """Let one upsert at a time write to a table: in this process and, for a local folder, on this machine.

    LanceDB considers two concurrent merges that insert the same new key independent, and keeps both rows.
    """
    with _lock_of(_uri(table)):
        yield


@contextmanager
def creation_lock(db: Any) -> Iterator[None]:
    """Let one at a time look for a table and make it, as `write_lock` does for upserts.

    Of several that make one table at the same moment, LanceDB fails one now and then with a commit conflict.
    """
    with _lock_of(str(getattr(db, "uri", type(db).__name__))):
        yield


@contextmanager
def _lock_of(uri: str) -> Iterator[None]:
    with _locks_guard:
        lock = _locks.setdefault(uri, threading.Lock())
    with lock, _file_lock(uri):
        yield


def _is_checked_out(table: Any) -> bool:
    if hasattr(table, "_checkout_version"):
        return table._checkout_version is not None
    # LanceDB has no query for it, but a handle of an old version cannot drop even an index that does not exist.
    try:
        run_sync(table.drop_index(f"akidb-mlx-{uuid.uuid4().hex}"))
    except Exception as error:  # LanceDB has no type for "no such index"
        return "checked out" in str(error)
    return False


def _uri(table: Any) -> str:
    try:
        found = table.uri
        return str(run_sync(found() if callable(found) else found))
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        # A table in LanceDB's cloud, where a lock would not stop other machines anyway.
        return f"{type(table).__name__}:{table.name}"


@contextmanager
def _file_lock(uri: str) -> Iterator[None]:
    descriptor = _open_lock(uri)
    try:
        if descriptor is not None:
            # Without file system locks, only the process's lock remains.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open_lock(uri: str) -> int | None:
    """Return a descriptor of a local folder's lock file, or None for other storage."""
    parsed = urlparse(uri)
    if parsed.scheme not in ("", "file"):
        return None
    path = Path(unquote(parsed.path) if parsed.scheme else uri) / _LOCK_FILE
    # Another user's file can be locked even with read permission only.
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        with suppress(OSError):
            return os.open(path, flags, 0o666)
    return None
