"""Collections that stay right: made, opened, checked and filled with the function's vector space in view."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, cast

from chromadb.api import AsyncClientAPI, ClientAPI
from chromadb.api.collection_configuration import CreateCollectionConfiguration
from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.api.models.Collection import Collection
from chromadb.api.types import DataLoader, EmbeddingFunction, Schema

from akidb_mlx_chroma.clients import AnyCollection, Wait, refuse_async, refuse_waiting, take, wait_on
from akidb_mlx_chroma.function import MLXEmbeddingFunction
from akidb_mlx_chroma.recovery import PROBE, fix_dimension, recover
from akidb_mlx_chroma.schemas import schema_with
from akidb_mlx_chroma.target import ChromaTarget, function_at_hand, read_model, read_space
from akidb_mlx_plugin.background import run_in_background
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError
from akidb_mlx_plugin.spaces import check_query_vector, check_space, make_stamp
from akidb_mlx_plugin.types import Document, UpsertResponse
from akidb_mlx_plugin.upserts import Upsert


def create_collection(
    client: ClientAPI,
    name: str,
    embedding_function: MLXEmbeddingFunction,
    *,
    metadata: Mapping[str, Any] | None = None,
    configuration: CreateCollectionConfiguration | None = None,
    schema: Schema | None = None,
    data_loader: DataLoader[Any] | None = None,
    get_or_create: bool = False,
) -> Collection:
    """Create a collection that says which vectors it holds, and that no client can fill with others.

    Model, dimension and fingerprint go into its metadata. The dimension is also fixed in the database, which otherwise
    takes it from the first write, whoever makes that one. The distance is cosine unless the configuration says so.

    Args:
        client: any synchronous client.
        name: of the collection.
        embedding_function: embeds its texts; in mode "user_provided" it has the vectors brought.
        metadata: of the user's own, beside the three values.
        configuration: Chroma's, without an embedding function.
        schema: Chroma's, in place of a configuration; the function is put into a copy of it.
        data_loader: Chroma's, for records with URIs.
        get_or_create: open the collection if it exists; another model is refused then, and the function is stored where
            the collection has none.
    Returns:
        The collection, as `client.create_collection` does.
    Raises:
        DimensionMismatchError: it exists, with another model or dimension.
        InvalidInputError: it exists, with the function of another package; or a schema with one.
        ModelNotFoundError, DownloadError: the model is not here and cannot be fetched; no weights are loaded.
    """
    wait = refuse_waiting("await acreate_collection(...) instead")
    host_arguments = {"configuration": configuration, "schema": schema, "data_loader": data_loader}
    made = _create(client, name, embedding_function, metadata, host_arguments, get_or_create, wait)
    return cast(Collection, made)


async def acreate_collection(
    client: AsyncClientAPI,
    name: str,
    embedding_function: MLXEmbeddingFunction,
    *,
    metadata: Mapping[str, Any] | None = None,
    configuration: CreateCollectionConfiguration | None = None,
    schema: Schema | None = None,
    data_loader: DataLoader[Any] | None = None,
    get_or_create: bool = False,
) -> AsyncCollection:
    """Create a collection by an asynchronous client; arguments and errors as `create_collection`.

    All but Chroma's own requests runs on another thread, a model's download too.
    """
    wait = wait_on(asyncio.get_running_loop())
    host_arguments = {"configuration": configuration, "schema": schema, "data_loader": data_loader}
    made = await asyncio.to_thread(
        _create, client, name, embedding_function, metadata, host_arguments, get_or_create, wait
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
        Collection, _open(client, name, embedding_function, refuse_waiting("await aget_collection(...) instead"))
    )


async def aget_collection(
    client: AsyncClientAPI, name: str, embedding_function: MLXEmbeddingFunction | None = None
) -> AsyncCollection:
    """Open a collection by an asynchronous client; arguments and errors as `get_collection`."""
    wait = wait_on(asyncio.get_running_loop())
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
    refuse_async(collection, "aget_collection checks it, and aupsert with every write")
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
    refuse_async(collection, "await aupsert(...) instead")
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
    wait = wait_on(asyncio.get_running_loop())
    return await run_in_background(
        lambda: Upsert(
            ChromaTarget(collection, wait),
            documents,
            show_progress=show_progress,
            batch_size=batch_size,
            skip_unchanged=skip_unchanged,
        )
    )


def bind_function(collection: AnyCollection, function: MLXEmbeddingFunction, wait: Wait = take) -> None:
    """Check that a function fits a collection, and have the database hold it to that from now on.

    The collection's dimension is fixed if no write has done so yet, and the function is stored where none is.

    Raises:
        DimensionMismatchError: they do not fit.
        InvalidInputError: the collection stores the function of another package, or none and takes none.
    """
    stored = read_space(collection, wait)
    dimension = check_space(stored, function.service)
    if stored.settings is None:
        _store_function(collection, function, wait)
    recover(collection, wait)
    if not stored.dimension and dimension:
        fix_dimension(collection, dimension, wait)
    else:
        # A process that ended too early may have left it, of a version that did not mark it.
        wait(collection.delete(ids=[PROBE]))


def _store_function(collection: AnyCollection, function: MLXEmbeddingFunction, wait: Wait) -> None:
    label = f"collection {collection.name!r}"
    own_name = (read_model(collection, wait).configuration_json.get("embedding_function") or {}).get("name")
    if own_name is not None:
        raise InvalidInputError(
            f"{label} stores the embedding function {own_name!r} of another package, and whoever opens it embeds with "
            "that; give another name for the new collection"
        )
    wait(collection.modify(configuration={"embedding_function": _as_host_type(function)}))
    stored = read_space(collection, wait)
    if stored.settings is None:
        raise InvalidInputError(
            f"{label} stores no embedding function, and this Chroma server takes none for a collection that exists: "
            "open it with get_collection(client, name, embedding_function), or make a new one"
        )
    # Another process may have been quicker, with another function.
    check_space(stored, function.service)


def _create(
    client: ClientAPI | AsyncClientAPI,
    name: str,
    function: MLXEmbeddingFunction,
    metadata: Mapping[str, Any] | None,
    host_arguments: Mapping[str, Any],
    get_or_create: bool,
    wait: Wait,
) -> AnyCollection:
    make = client.get_or_create_collection if get_or_create else client.create_collection
    # Chroma writes into what it is given.
    configuration, schema = deepcopy(host_arguments["configuration"]), host_arguments["schema"]
    if schema is not None and configuration is not None:
        raise InvalidInputError("give either schema or configuration: Chroma takes one of them")
    arguments = {
        "metadata": {**(metadata or {}), **make_stamp(function.model_info())},
        "data_loader": host_arguments["data_loader"],
        # With a schema, Chroma wants the function there and nowhere else.
        **(
            {"configuration": configuration, "embedding_function": _as_host_type(function)}
            if schema is None
            else {"schema": schema_with(schema, function), "embedding_function": None}
        ),
    }
    try:
        collection: AnyCollection = wait(make(name, **arguments))
    except ValueError as error:
        # Chroma's word for a collection that has the function of another package; its other errors have other types.
        if isinstance(error, EmbeddingError) or "mbedding function" not in str(error):
            raise
        raise InvalidInputError(f"collection {name!r}: {error}") from error
    collection._embedding_function = _as_host_type(function)
    bind_function(collection, function, wait)
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
