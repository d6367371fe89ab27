"""A change of model for a Chroma collection."""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
import warnings
from collections.abc import Coroutine
from typing import Any, cast

from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.api.models.Collection import Collection
from chromadb.api.types import EmbeddingFunction, Schema

from akidb_mlx_chroma.clients import AnyCollection, Wait, reject_async, reject_waiting, run_sync, wait_on
from akidb_mlx_chroma.creation import bind_function
from akidb_mlx_chroma.function import MLXEmbeddingFunction
from akidb_mlx_chroma.schemas import schema_for_new_vectors
from akidb_mlx_chroma.store import ChromaSource, ChromaStore, read_model
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError
from akidb_mlx_plugin.stores.compatibility import make_stamp, without_stamp
from akidb_mlx_plugin.stores.reembed import SOURCE_KEY, check_source, default_name, reembed_documents
from akidb_mlx_plugin.types import ModelInfo, UpsertResponse

# Index settings are copied to the new collection; the distance is not, since it belongs to the vectors.
_TUNING = ("ef_construction", "ef_search", "max_neighbors", "resize_factor", "sync_threshold")
_SHORTEST, _LONGEST = 3, 512
_HASH_LENGTH = 8
# Chroma rejects an IP address as a name.
_ADDRESS = re.compile(r"\d+(\.\d+){3}")


def reembed(
    source: Collection,
    embedding_function: MLXEmbeddingFunction,
    *,
    name: str | None = None,
    show_progress: bool = False,
    batch_size: int | None = None,
) -> Collection:
    """Re-embed a collection's documents with another function, into a new collection beside it.

    The new one has the same ids, texts, metadata, URIs and index settings; the old one does not change. The same call
    continues an interrupted run without embedding anything twice. At the end both are compared.

    Args:
        source: the collection, with any function.
        embedding_function: makes the new vectors.
        name: of the new collection. Defaults to the old name and the model's, made a valid name.
        show_progress: draw a bar with rate and time left.
        batch_size: documents embedded and written together.
    Returns:
        The new collection.
    Raises:
        InvalidInputError: a document has no text, or the new name is that of another collection; nothing was embedded.
        DimensionMismatchError: the new name is that of an earlier run with another function.
        UpsertError: it ended midway; the same call continues.
    """
    reject_async(source, "await areembed(...) instead")
    return reembed_collection(
        source, embedding_function, name=name, show_progress=show_progress, batch_size=batch_size
    )[0]


async def areembed(
    source: AnyCollection,
    embedding_function: MLXEmbeddingFunction,
    *,
    name: str | None = None,
    show_progress: bool = False,
    batch_size: int | None = None,
) -> AnyCollection:
    """Re-embed a collection's documents without blocking the event loop; arguments and errors as for `reembed`.

    Canceling the task ends it before its next request to Chroma; the same call continues.

    Args:
        source: from the asynchronous client, or from a synchronous one.
    """
    cancelled = threading.Event()
    wait_for_loop = wait_on(asyncio.get_running_loop())

    def wait(result: Any) -> Any:
        if cancelled.is_set():
            if isinstance(result, Coroutine):
                result.close()
            raise EmbeddingError("the re-embedding was cancelled")
        return wait_for_loop(result)

    running = asyncio.ensure_future(
        asyncio.to_thread(_reembed, source, embedding_function, name, show_progress, batch_size, wait)
    )
    try:
        return (await asyncio.shield(running))[0]
    except asyncio.CancelledError as cancellation:
        cancelled.set()
        await asyncio.wait([running])
        raise cancellation from running.exception()


def reembed_collection(
    source: Collection,
    embedding_function: MLXEmbeddingFunction,
    *,
    name: str | None = None,
    show_progress: bool = False,
    batch_size: int | None = None,
) -> tuple[Collection, UpsertResponse]:
    """Run `reembed`; also return its response."""
    wait = reject_waiting("await areembed(...) instead")
    made, response = _reembed(source, embedding_function, name, show_progress, batch_size, wait)
    return cast(Collection, made), response


def valid_name(name: str) -> str:
    """Return a valid collection name for Chroma: the same if it is valid, else a similar one.

    Names that are too long are cut, and end in a hash of the full name.
    """
    valid = re.sub(r"[^a-zA-Z0-9._-]+|\.{2,}", "-", name).strip("._-")
    if len(valid) < _SHORTEST or _ADDRESS.fullmatch(valid):
        valid = f"docs-{valid}".rstrip("-")
    if len(valid) > _LONGEST:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_LENGTH]
        valid = f"{valid[: _LONGEST - _HASH_LENGTH - 1]}-{digest}"
    return valid


def _reembed(
    source: AnyCollection,
    function: MLXEmbeddingFunction,
    name: str | None,
    show_progress: bool,
    batch_size: int | None,
    wait: Wait = run_sync,
) -> tuple[AnyCollection, UpsertResponse]:
    info = function.model_info()
    new_name = name or valid_name(default_name(source.name, info))
    if new_name == source.name:
        raise InvalidInputError(f"the new collection needs another name than {new_name!r}")
    collection = _create_beside(source, new_name, function, info, wait)
    check_source(f"collection {new_name!r}", (collection.metadata or {}).get(SOURCE_KEY), str(source.id))
    bind_function(collection, function, wait)
    response = reembed_documents(
        ChromaSource(source, wait), ChromaStore(collection, wait), show_progress=show_progress, batch_size=batch_size
    )
    return collection, response


def _create_beside(
    source: AnyCollection, name: str, function: MLXEmbeddingFunction, info: ModelInfo, wait: Wait
) -> AnyCollection:
    """Create or open a collection in another one's database."""
    host_function = cast(EmbeddingFunction[Any], function)
    # Read again: the object may be out of date.
    model = read_model(source, wait)
    own = {key: value for key, value in without_stamp(model.metadata or {}).items() if not key.startswith("hnsw:")}
    # A collection knows its server but no client; the server makes the new one without the client's checks.
    made = wait(
        source._client.get_or_create_collection(
            name=name,
            metadata={**own, **make_stamp(info), SOURCE_KEY: str(source.id)},
            tenant=source.tenant,
            database=source.database,
            **_index_settings(model, function),
        )
    )
    kind: Any = AsyncCollection if isinstance(source, AsyncCollection) else Collection
    collection: AnyCollection = kind(
        client=source._client, model=made, embedding_function=host_function, data_loader=source._data_loader
    )
    return collection


def _index_settings(model: Any, function: MLXEmbeddingFunction) -> dict[str, Any]:
    """Return the new collection's index settings: the old one's, except for the function's distance."""
    if model.serialized_schema:
        with warnings.catch_warnings():
            # It is about a function that this process cannot build, which is replaced anyway.
            warnings.simplefilter("ignore", UserWarning)
            schema = Schema.deserialize_from_json(model.serialized_schema)
        return {"schema": schema_for_new_vectors(schema, function)}
    # A server from before schemas.
    hnsw = (model.configuration_json or {}).get("hnsw") or {}
    tuning = {key: hnsw[key] for key in _TUNING if key in hnsw}
    return {
        "configuration": {
            "hnsw": {"space": function.default_space(), **tuning},
            "embedding_function": cast(EmbeddingFunction[Any], function),
        }
    }
