"""Collections that stay right: made, opened, checked and filled with the function's vector space in view."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from copy import deepcopy
from typing import Any, cast

import numpy as np
from chromadb.api import AsyncClientAPI, ClientAPI
from chromadb.api.collection_configuration import CreateCollectionConfiguration
from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.api.models.Collection import Collection
from chromadb.api.types import EmbeddingFunction

from akidb_mlx_chroma.function import MLXEmbeddingFunction
from akidb_mlx_chroma.target import AnyCollection, ChromaTarget, Wait, function_at_hand, read_space, take
from akidb_mlx_plugin.background import run_in_background
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.spaces import check_query_vector, check_space, make_stamp
from akidb_mlx_plugin.types import Document, UpsertResponse
from akidb_mlx_plugin.upserts import Upsert

# Written and taken out again at once, so that the database itself knows the dimension from the beginning.
_PROBE = "akidb_mlx:dimension"


def create_collection(
    client: ClientAPI,
    name: str,
    embedding_function: MLXEmbeddingFunction,
    *,
    metadata: Mapping[str, Any] | None = None,
    configuration: CreateCollectionConfiguration | None = None,
    get_or_create: bool = False,
) -> Collection:
    """Create a collection that says which vectors it holds, and that no client can fill with others.

    Model, dimension and fingerprint go into its metadata. The dimension is also fixed in the database, which otherwise
    takes it from the first write, whoever makes that one. The distance is the one that the model was trained for, which
    is looked up before (see `MLXEmbeddingFunction.default_space`), unless the configuration names another.

    Args:
        client: any synchronous client.
        name: of the collection.
        embedding_function: embeds its texts; in mode "user_provided" it has the vectors brought.
        metadata: of the user's own, beside the three values.
        configuration: Chroma's, without an embedding function.
        get_or_create: open the collection if it exists; another model is refused then.
    Returns:
        The collection, as `client.create_collection` does.
    Raises:
        DimensionMismatchError: it exists, with another model or dimension.
        ModelNotFoundError, DownloadError: the model is not here and cannot be fetched; no weights are loaded.
    """
    wait = _refuse_waiting("await acreate_collection(...) instead")
    made = _create(client, name, embedding_function, metadata, configuration, get_or_create, wait)
    return cast(Collection, made)


async def acreate_collection(
    client: AsyncClientAPI,
    name: str,
    embedding_function: MLXEmbeddingFunction,
    *,
    metadata: Mapping[str, Any] | None = None,
    configuration: CreateCollectionConfiguration | None = None,
    get_or_create: bool = False,
) -> AsyncCollection:
    """Create a collection by an asynchronous client; arguments and errors as `create_collection`.

    All but Chroma's own requests runs on another thread, a model's download too.
    """
    wait = _wait_on(asyncio.get_running_loop())
    made = await asyncio.to_thread(
        _create, client, name, embedding_function, metadata, configuration, get_or_create, wait
    )
    return cast(AsyncCollection, made)


def get_collection(client: ClientAPI, name: str, embedding_function: MLXEmbeddingFunction | None = None) -> Collection:
    """Open a collection and hold its vectors against a function; loads no weights.

    Args:
        client: any synchronous client.
        name: of the collection.
        embedding_function: None: the one that the collection stores. Its model is then downloaded only if it is in the
            registry or named in `AKIDB_ALLOWED_MODELS`.
    Raises:
        DimensionMismatchError: the function makes other vectors than the collection holds.
        InvalidInputError: the collection stores no function of this package, or settings that cannot be used.
    """
    return cast(
        Collection, _open(client, name, embedding_function, _refuse_waiting("await aget_collection(...) instead"))
    )


async def aget_collection(
    client: AsyncClientAPI, name: str, embedding_function: MLXEmbeddingFunction | None = None
) -> AsyncCollection:
    """Open a collection by an asynchronous client; arguments and errors as `get_collection`."""
    wait = _wait_on(asyncio.get_running_loop())
    return cast(AsyncCollection, await asyncio.to_thread(_open, client, name, embedding_function, wait))


def validate_collection(
    collection: Collection,
    embedding_function: MLXEmbeddingFunction | None = None,
    *,
    query_vector: object = None,
) -> None:
    """Return if a collection and a function fit, and a query vector if one is given; loads no weights.

    Args:
        collection: from any synchronous client.
        embedding_function: None: the one the collection was opened with, else the one it stores.
        query_vector: D numbers that the collection is to be searched with.
    Raises:
        DimensionMismatchError: they do not; it names both dimensions, both models and the remedy.
        InvalidInputError: stored settings or a vector that cannot be used.
    """
    _refuse_async(collection, "aget_collection checks it, and aupsert with every write")
    label, dimension = _validate(collection, embedding_function, take)
    if query_vector is not None:
        check_query_vector(label, dimension, query_vector)


def upsert(
    collection: Collection,
    documents: Iterable[Document],
    *,
    show_progress: bool = False,
    batch_size: int | None = None,
    skip_unchanged: bool = False,
) -> UpsertResponse:
    """Write documents with texts, vectors or both; vectors that are missing are embedded.

    A document takes the place of the one that has its id: text, vector and metadata that it does not have are gone.
    Documents in a list are all checked before the first text is embedded. A stream may be longer than memory; it is
    checked chunk by chunk.

    Args:
        collection: from any synchronous client, made by `create_collection` or by Chroma itself.
        documents: a list, or a stream of any length.
        show_progress: draw a bar with rate and time left.
        batch_size: documents embedded and written together, within Chroma's limit; None: as many as embed well.
        skip_unchanged: embed no text that is stored already, and write no document that is stored as it is. What is
            stored is compared itself, not a hash of it: that is right even after a write past this package.
    Raises:
        InvalidInputError: a document cannot be used; nothing was embedded or written.
        DimensionMismatchError: the function does not fit the collection, or a vector does not; likewise.
        UpsertError: it ended midway; it says which documents are in. Running it again is safe.
    """
    _refuse_async(collection, "await aupsert(...) instead")
    return Upsert(
        ChromaTarget(collection),
        documents,
        show_progress=show_progress,
        batch_size=batch_size,
        skip_unchanged=skip_unchanged,
    ).run()


async def aupsert(
    collection: AnyCollection,
    documents: Iterable[Document],
    *,
    show_progress: bool = False,
    batch_size: int | None = None,
    skip_unchanged: bool = False,
) -> UpsertResponse:
    """Write documents without holding up the event loop; arguments and errors as `upsert`.

    All but Chroma's own requests runs on a thread of its own, a stream of documents too. Cancelling the task ends it
    after the write that is under way; the CancelledError's `__cause__` is the UpsertError that says what is in, or None
    if everything is.

    Args:
        collection: from the asynchronous client, or from a synchronous one.
    """
    wait = _wait_on(asyncio.get_running_loop())
    return await run_in_background(
        lambda: Upsert(
            ChromaTarget(collection, wait),
            documents,
            show_progress=show_progress,
            batch_size=batch_size,
            skip_unchanged=skip_unchanged,
        )
    )


def fix_dimension(collection: AnyCollection, embedding_function: MLXEmbeddingFunction, wait: Wait = take) -> None:
    """Hold a collection against a function, and fix its dimension in the database if nobody has yet.

    Raises:
        DimensionMismatchError: they do not fit.
    """
    stored = read_space(collection, wait)
    dimension = check_space(stored, embedding_function.service)
    if not stored.dimension and dimension:
        wait(collection.upsert(ids=[_PROBE], embeddings=[np.eye(1, dimension, dtype=np.float32)[0]]))
    # Also what a process has left that ended between these two lines.
    wait(collection.delete(ids=[_PROBE]))


def _create(
    client: ClientAPI | AsyncClientAPI,
    name: str,
    function: MLXEmbeddingFunction,
    metadata: Mapping[str, Any] | None,
    configuration: CreateCollectionConfiguration | None,
    get_or_create: bool,
    wait: Wait,
) -> AnyCollection:
    make = client.get_or_create_collection if get_or_create else client.create_collection
    collection: AnyCollection = wait(
        make(
            name,
            metadata={**(metadata or {}), **make_stamp(function.model_info())},
            # Chroma writes into what it is given.
            configuration=deepcopy(configuration),
            embedding_function=_as_host_type(function),
        )
    )
    fix_dimension(collection, function, wait)
    return collection


def _open(
    client: ClientAPI | AsyncClientAPI, name: str, function: MLXEmbeddingFunction | None, wait: Wait
) -> AnyCollection:
    if function is None:
        collection: AnyCollection = wait(client.get_collection(name))
        stored = read_space(collection, wait)
        function = function_at_hand(collection, stored)
        if function is None:
            raise InvalidInputError(
                f"{stored.label} stores no function of this package; name the one that its vectors were made with, "
                "embedding_function=MLXEmbeddingFunction(...) (on the command line: --model)"
            )
    collection = wait(client.get_collection(name, embedding_function=_as_host_type(function)))
    _validate(collection, None, wait)
    return collection


def _validate(collection: AnyCollection, function: MLXEmbeddingFunction | None, wait: Wait) -> tuple[str, int]:
    """Return what messages call a collection, and the dimension of its vectors, if a function fits it."""
    stored = read_space(collection, wait)
    function = function or function_at_hand(collection, stored)
    return stored.label, check_space(stored, function.service if function else None)


def _as_host_type(function: MLXEmbeddingFunction) -> EmbeddingFunction[Any]:
    """Chroma annotates its functions with a wider input than text."""
    return cast(EmbeddingFunction[Any], function)


def _refuse_async(result: object, remedy: str) -> None:
    """Refuse what an asynchronous client gives: its collections, and the coroutines that lead to them."""
    if isinstance(result, Coroutine):
        # Never awaited, so nothing was done.
        result.close()
    if isinstance(result, Coroutine | AsyncCollection):
        raise InvalidInputError(f"this needs a synchronous client; {remedy}")


def _refuse_waiting(remedy: str) -> Wait:
    """Return a function that takes what a synchronous client gives and refuses what an asynchronous one does."""

    def take_synchronous(result: Any) -> Any:
        _refuse_async(result, remedy)
        return result

    return take_synchronous


def _wait_on(loop: asyncio.AbstractEventLoop) -> Wait:
    """Return a function that runs coroutines on an event loop and waits for them, called on another thread."""

    def wait(result: Any) -> Any:
        is_coroutine = isinstance(result, Coroutine)
        return asyncio.run_coroutine_threadsafe(result, loop).result() if is_coroutine else result

    return wait
