"""New collections bound to one function, whose vectors the database then requires of every client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, cast

from chromadb.api import AsyncClientAPI, ClientAPI
from chromadb.api.collection_configuration import CreateCollectionConfiguration
from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.api.models.Collection import Collection
from chromadb.api.types import DataLoader, EmbeddingFunction, Schema

from akidb_mlx_chroma.clients import AnyCollection, Wait, reject_waiting, run_sync, wait_on
from akidb_mlx_chroma.function import MLXEmbeddingFunction
from akidb_mlx_chroma.recovery import PROBE, fix_dimension, recover
from akidb_mlx_chroma.schemas import schema_with
from akidb_mlx_chroma.store import read_model, read_stored_vectors
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError
from akidb_mlx_plugin.stores.compatibility import check_compatible, make_stamp


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
    """Create a collection that records which vectors it holds, and rejects others from any client.

    Its metadata records model, dimension and fingerprint. The dimension is also fixed in the database, which otherwise
    takes it from any client's first write. The distance is the one the model was trained for, which is looked up first
    (see `MLXEmbeddingFunction.default_space`), unless the configuration or schema names another.

    Args:
        client: any synchronous client.
        name: of the collection.
        embedding_function: embeds its texts; in mode "user_provided" it embeds nothing, and documents have vectors.
        metadata: the user's own, besides the three values.
        configuration: Chroma's, without an embedding function.
        schema: Chroma's, instead of a configuration; the function is put into a copy of it.
        data_loader: Chroma's, for records with URIs.
        get_or_create: open the collection if it exists; another model is then rejected, and the function is stored if
            the collection has none.
    Returns:
        The collection, as `client.create_collection` does.
    Raises:
        DimensionMismatchError: it exists, with another model or dimension.
        InvalidInputError: it exists, or the schema comes, with another package's function.
        ModelNotFoundError, DownloadError: the model is not available locally and cannot be fetched; loads no weights.
    """
    wait = reject_waiting("await acreate_collection(...) instead")
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
    """Create a collection with an asynchronous client; arguments and errors as for `create_collection`.

    Everything but Chroma's own requests runs on another thread, including a model's download.
    """
    wait = wait_on(asyncio.get_running_loop())
    host_arguments = {"configuration": configuration, "schema": schema, "data_loader": data_loader}
    made = await asyncio.to_thread(
        _create, client, name, embedding_function, metadata, host_arguments, get_or_create, wait
    )
    return cast(AsyncCollection, made)


def bind_function(collection: AnyCollection, function: MLXEmbeddingFunction, wait: Wait = run_sync) -> None:
    """Check that a function fits a collection, and bind the collection to it.

    The collection's dimension is fixed if no write has done so yet, and the function is stored if none is.

    Raises:
        DimensionMismatchError: they do not fit.
        InvalidInputError: the collection stores another package's function, or none and accepts none.
    """
    stored = read_stored_vectors(collection, wait)
    dimension = check_compatible(stored, function.service)
    if stored.settings is None:
        _store_function(collection, function, wait)
    recover(collection, wait)
    if not stored.dimension and dimension:
        fix_dimension(collection, dimension, wait)
    else:
        # A process of an earlier version, which did not mark it, may have died leaving it.
        wait(collection.delete(ids=[PROBE]))


def _store_function(collection: AnyCollection, function: MLXEmbeddingFunction, wait: Wait) -> None:
    label = f"collection {collection.name!r}"
    own = read_model(collection, wait).configuration_json.get("embedding_function") or {}
    if own.get("name") is not None:
        raise InvalidInputError(
            f"{label} stores the embedding function {own['name']!r} of another package, and every client "
            "embeds with that; give the new collection another name"
        )
    if own.get("type") == "legacy" and wait(collection.count()):
        raise InvalidInputError(
            f"{label} was made without an embedding function, or with one that Chroma cannot store, so nothing says "
            "which model its vectors come from; if it is this function's, open it with get_collection(client, name, "
            "embedding_function), otherwise give the new one another name"
        )
    try:
        wait(collection.modify(configuration={"embedding_function": as_host_type(function)}))
    except ValueError as error:
        # It is already stored: the client fails on its own copy of the schema, which servers before 1.5 lack.
        if isinstance(error, EmbeddingError) or "Schema is missing" not in str(error):
            raise
    stored = read_stored_vectors(collection, wait)
    if stored.settings is None:
        raise InvalidInputError(
            f"{label} stores no embedding function, and this Chroma server cannot add one to a collection that exists: "
            "open it with get_collection(client, name, embedding_function), or make a new one"
        )
    # Another process may have been first, with another function.
    check_compatible(stored, function.service)


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
    # Chroma modifies its arguments.
    configuration, schema = deepcopy(host_arguments["configuration"]), host_arguments["schema"]
    if schema is not None and configuration is not None:
        raise InvalidInputError("give either schema or configuration: Chroma accepts only one of them")
    arguments = {
        "metadata": {**(metadata or {}), **make_stamp(function.model_info())},
        "data_loader": host_arguments["data_loader"],
        # With a schema, Chroma accepts the function only there.
        **(
            {"configuration": configuration, "embedding_function": as_host_type(function)}
            if schema is None
            else {"schema": schema_with(schema, function), "embedding_function": None}
        ),
    }
    with explained_conflict(name):
        collection: AnyCollection = wait(make(name, **arguments))
    if schema is not None and not collection._model.serialized_schema:
        if not get_or_create:
            wait(client.delete_collection(name))
        raise InvalidInputError(
            "this Chroma server does not support schemas, which need version 1.5 or later; give configuration= instead"
        )
    collection._embedding_function = as_host_type(function)
    bind_function(collection, function, wait)
    return collection


@contextmanager
def explained_conflict(name: str) -> Iterator[None]:
    """Turn Chroma's error for a collection with another package's function into one that says what to do.

    Raises:
        InvalidInputError: in its place.
    """
    try:
        yield
    except ValueError as error:
        # Chroma's other errors have other types.
        if isinstance(error, EmbeddingError) or "mbedding function" not in str(error):
            raise
        raise InvalidInputError(
            f"collection {name!r} stores the embedding function of another package, which Chroma does not exchange "
            f"({error}). If its vectors are this model's, copy them to a new collection, which embeds nothing: "
            "old.get(include=['documents', 'embeddings', 'metadatas']), then upsert(new, [Document(id, text, vector, "
            "metadata), ...])"
        ) from error


def as_host_type(function: MLXEmbeddingFunction) -> EmbeddingFunction[Any]:
    """Cast a function to Chroma's annotation, which allows more input than text."""
    return cast(EmbeddingFunction[Any], function)
