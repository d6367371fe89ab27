"""Chroma's two kinds of clients behind one interface: every call's result goes through a `Wait`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.api.models.Collection import Collection
from chromadb.errors import InternalError

from akidb_mlx_plugin.errors import InvalidInputError

AnyCollection: TypeAlias = "Collection | AsyncCollection"
# Returns the result of a host's call: unchanged, or what its coroutine returns on the caller's event loop.
Wait: TypeAlias = "Callable[[Any], Any]"

_NO_INDEX_YET = "Nothing found on disk"
_PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.5)


def run_sync(result: Any) -> Any:
    """Return the result of a synchronous call unchanged."""
    return result


def get_records(collection: AnyCollection, wait: Wait, **arguments: Any) -> Any:
    """Return what a collection's `get` returns, vectors included.

    A server has no index to read vectors from, and returns an error, while another process writes the first vector, and
    as long as a process killed before that has left the collection without any.
    """
    for pause_s in _PAUSES_S:
        try:
            return wait(collection.get(**arguments))
        except InternalError as error:
            if _NO_INDEX_YET not in str(error):
                raise
        found = wait(collection.get(**{**arguments, "include": []}))
        if not found["ids"]:
            return {**found, "documents": [], "metadatas": [], "embeddings": [], "uris": []}
        time.sleep(pause_s)
    return wait(collection.get(**arguments))


def reject_async(result: object, remedy: str) -> None:
    """Raise for an asynchronous client's collections, and the coroutines that return them.

    Raises:
        InvalidInputError: it is one of these; the message ends with the remedy.
    """
    if isinstance(result, Coroutine):
        # Never awaited, so nothing was done.
        result.close()
    if isinstance(result, Coroutine | AsyncCollection):
        raise InvalidInputError(f"this needs a synchronous client; {remedy}")


def reject_waiting(remedy: str) -> Wait:
    """Return a `Wait` for synchronous clients that rejects what an asynchronous one returns."""

    def take_synchronous(result: Any) -> Any:
        reject_async(result, remedy)
        return result

    return take_synchronous


def wait_on(loop: asyncio.AbstractEventLoop) -> Wait:
    """Return a function for other threads that runs coroutines on an event loop and waits for them."""

    def wait(result: Any) -> Any:
        is_coroutine = isinstance(result, Coroutine)
        return asyncio.run_coroutine_threadsafe(result, loop).result() if is_coroutine else result

    return wait
