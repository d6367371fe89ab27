"""Records removed from a collection for a moment, and how they survive if the process dies meanwhile.

Chroma cannot remove a record's text: the record must be deleted and added again, in two requests. Between the two, the
old one is in the collection under another id, `akidb_mlx:kept:…`, with its own id in its metadata. If the process dies
there, this package's next upsert, `get_collection` or `reembed` restores its id.

Every step may run twice, even in two processes: a record is restored by `add`, which changes nothing if its id is
taken. Records that another process is still working on are left alone.
"""

from __future__ import annotations

import math
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from chromadb.errors import InvalidArgumentError

from akidb_mlx_chroma.clients import AnyCollection, Wait, get_records
from akidb_mlx_chroma.metadata import KEPT_BY_KEY, KEPT_ID_KEY, KEPT_KEY
from akidb_mlx_chroma.stray_lists import clear_strays

PREFIX = "akidb_mlx:kept:"
# Written and deleted at once, so that the database itself requires the dimension from the start.
PROBE = "akidb_mlx:dimension"
# After this long, a process on another machine has given up or died.
_LONGEST_S = 60.0
_PAGE = 1000
_EVERYTHING: Any = ["documents", "metadatas", "embeddings", "uris"]
# Kept ids that a thread of this process is working on.
_in_use: set[str] = set()


def fix_dimension(collection: AnyCollection, dimension: int, wait: Wait) -> None:
    """Make the database require this dimension of every later vector."""
    vector = np.eye(1, dimension, dtype=np.float32)[0]
    wait(collection.upsert(ids=[PROBE], embeddings=[vector], metadatas=[{KEPT_KEY: 0}]))
    wait(collection.delete(ids=[PROBE]))


@contextmanager
def taken_out(collection: AnyCollection, wait: Wait, ids: Sequence[str]) -> Iterator[list[str | None]]:
    """Delete records while others are added in their place; restore them if that fails.

    Args:
        collection: holds the records.
        wait: of its client.
        ids: of the records, which must all exist.
    Yields:
        The URI of each.
    Raises:
        RuntimeError: it failed, and they could not be restored; they remain under other ids.
    """
    found = get_records(collection, wait, ids=list(ids), include=_EVERYTHING)
    if not found["ids"]:
        # Another process has just removed them all.
        yield [None] * len(ids)
        return
    uris = dict(zip(found["ids"], found["uris"], strict=True))
    kept = [f"{PREFIX}{uuid.uuid4().hex}" for _ in found["ids"]]
    _in_use.update(kept)
    try:
        _keep(collection, wait, found, kept)
        try:
            wait(collection.delete(ids=found["ids"]))
            yield [uris.get(id_) for id_ in ids]
        except Exception as error:
            try:
                _restore(collection, wait, found, found["ids"])
                wait(collection.delete(ids=kept))
            except Exception as again:
                raise RuntimeError(
                    f"{error}; {len(kept)} documents were removed to write them without their text, "
                    f"for example {ids[0]!r}, and could not be restored ({again}); the collection keeps them under ids "
                    f"that begin with {PREFIX!r}, and the next upsert restores them"
                ) from error
            raise
        wait(collection.delete(ids=kept))
    finally:
        _in_use.difference_update(kept)


def recover(collection: AnyCollection, wait: Wait) -> int:
    """Restore what dead processes had removed, and delete what they left.

    Returns:
        How many records of theirs there were.
    """
    left = [
        (id_, owner)
        for id_, owner in _find_kept(collection, wait)
        if id_ not in _in_use and is_kept(id_) and _is_abandoned(owner)
    ]
    # If two processes kept copies of one document, the later is restored, which changes nothing for the other.
    left.sort(key=lambda kept: _begun(kept[1]), reverse=True)
    for start in range(0, len(left), _PAGE):
        ids = [id_ for id_, _ in left[start : start + _PAGE]]
        found = get_records(collection, wait, ids=ids, include=_EVERYTHING)
        _restore_kept(collection, wait, found, ids)
        wait(collection.delete(ids=ids))
    return len(left)


def _restore_kept(collection: AnyCollection, wait: Wait, found: Any, order: list[str]) -> None:
    """Restore kept records under their own ids; of two with the same id, the first in order."""
    positions = {id_: index for index, id_ in enumerate(found["ids"])}
    lost: dict[str, int] = {}
    for kept in order:
        own = (found["metadatas"][positions[kept]] or {}).get(KEPT_ID_KEY) if kept in positions else None
        if isinstance(own, str) and own:
            lost.setdefault(own, positions[kept])
    if lost:
        records = {key: [found[key][index] for index in lost.values()] for key in ("embeddings", "documents", "uris")}
        records["metadatas"] = [_without_marks(found["metadatas"][index]) for index in lost.values()]
        _restore(collection, wait, records, list(lost))


def is_kept(id_: str) -> bool:
    """Return whether an id is a temporary record's and not a document's."""
    return id_ == PROBE or id_.startswith(PREFIX)


def _keep(collection: AnyCollection, wait: Wait, found: Any, kept: list[str]) -> None:
    owner = f"{socket.gethostname()}:{os.getpid()}:{time.time():.3f}"
    marks = [{KEPT_KEY: 1, KEPT_ID_KEY: id_, KEPT_BY_KEY: owner} for id_ in found["ids"]]
    metadatas = [{**(old or {}), **mark} for old, mark in zip(found["metadatas"], marks, strict=True)]
    _add(collection, wait, kept, {**found, "metadatas": metadatas})


def _restore(collection: AnyCollection, wait: Wait, records: Any, ids: list[str]) -> None:
    # Metadata with only keys that Chroma hides is read as {}, which it rejects.
    _add(collection, wait, ids, {**records, "metadatas": [metadata or None for metadata in records["metadatas"]]})


def _add(collection: AnyCollection, wait: Wait, ids: list[str], records: Any) -> None:
    """Add records as they were read, except those whose id is taken."""
    columns = {key: records[key] for key in ("documents", "metadatas", "uris")}
    given = {key: values if any(value is not None for value in values) else None for key, values in columns.items()}
    wait(collection.add(ids=ids, embeddings=list(records["embeddings"]), **given))
    clear_strays(collection, wait, ids, records["documents"], records["metadatas"])


def _find_kept(collection: AnyCollection, wait: Wait) -> list[tuple[str, object]]:
    """Return the ids of records marked as kept, and the owner of each."""
    try:
        found = wait(collection.get(where={KEPT_KEY: {"$in": [0, 1]}}, include=["metadatas"]))  # type: ignore[dict-item]
    except InvalidArgumentError:
        # A schema without an integer index.
        ids = [id_ for page in read_pages(collection, wait, []) for id_ in page["ids"] if is_kept(id_)]
        found = wait(collection.get(ids=ids, include=["metadatas"])) if ids else {"ids": [], "metadatas": []}
    owners = [(metadata or {}).get(KEPT_BY_KEY) for metadata in found["metadatas"]]
    return list(zip(found["ids"], owners, strict=True))


def read_pages(collection: AnyCollection, wait: Wait, include: Any) -> Iterator[Any]:
    """Yield all records of a collection, a page at a time."""
    offset = 0
    while (page := wait(collection.get(limit=_PAGE, offset=offset, include=include)))["ids"]:
        offset += len(page["ids"])
        yield page


def _without_marks(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in (KEPT_KEY, KEPT_ID_KEY, KEPT_BY_KEY)}


def _begun(owner: object) -> float:
    """Return when a record was kept, in seconds; 0 if unreadable."""
    try:
        begun = float(str(owner).rpartition(":")[2])
    except ValueError:
        return 0.0
    return begun if math.isfinite(begun) else 0.0


def _is_abandoned(owner: object) -> bool:
    """Return whether the process that kept a record is gone; malformed values count as gone."""
    try:
        host, number, _ = str(owner).rsplit(":", 2)
        pid = int(number)
        # Not a number, too old, or from a clock that is far ahead.
        if not abs(time.time() - _begun(owner)) <= _LONGEST_S:
            return True
        if host != socket.gethostname():
            return False
        # This process's, but not in use: left by a failed write.
        if pid <= 0 or pid == os.getpid():
            return True
        os.kill(pid, 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return True
    except PermissionError:
        return False
    return False
