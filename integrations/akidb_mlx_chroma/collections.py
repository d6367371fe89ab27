"""Existing collections: open them, check them against a function, and fill them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from chromadb.api import AsyncClientAPI, ClientAPI
from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.api.models.Collection import Collection
from chromadb.api.types import DataLoader
from chromadb.errors import ChromaError

from akidb_mlx_chroma.clients import AnyCollection, Wait, reject_async, reject_waiting, run_sync, wait_on
from akidb_mlx_chroma.creation import as_host_type, explained_conflict
from akidb_mlx_chroma.function import MLXEmbeddingFunction
from akidb_mlx_chroma.recovery import recover
from akidb_mlx_chroma.store import ChromaStore, read_stored_vectors, resolve_function
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.stores.async_upsert import run_in_background
from akidb_mlx_plugin.stores.columns import Columns
from akidb_mlx_plugin.stores.compatibility import check_compatible, check_query_vector
from akidb_mlx_plugin.stores.rows import Documents, Rows
from akidb_mlx_plugin.stores.split import Split
from akidb_mlx_plugin.stores.upsert import Upsert
from akidb_mlx_plugin.types import UpsertResponse

logger = logging.getLogger(__name__)


def get_collection(
    client: ClientAPI,
    name: str,
    embedding_function: MLXEmbeddingFunction | None = None,
    *,
    data_loader: DataLoader[Any] | None = None,
) -> Collection:
    """Open a collection and check that a function's vectors fit it; loads no weights.

    Args:
        client: any synchronous client.
        name: of the collection.
        embedding_function: defaults to the collection's stored one, whose model is downloaded only if it is in the
            registry or named in `AKIDB_ALLOWED_MODELS`.
        data_loader: Chroma's, for records with URIs.
    Raises:
        DimensionMismatchError: the function's vectors differ from the collection's.
        InvalidInputError: the collection stores no function of this package, or unusable settings.
    """
    wait = reject_waiting("await aget_collection(...) instead")
    return cast(Collection, _open(client, name, embedding_function, data_loader, wait))


async def aget_collection(
    client: AsyncClientAPI,
    name: str,
    embedding_function: MLXEmbeddingFunction | None = None,
    *,
    data_loader: DataLoader[Any] | None = None,
) -> AsyncCollection:
    """Open a collection with an asynchronous client; arguments and errors as for `get_collection`."""
    wait = wait_on(asyncio.get_running_loop())
    return cast(AsyncCollection, await asyncio.to_thread(_open, client, name, embedding_function, data_loader, wait))


def validate_collection(
    collection: Collection,
    embedding_function: MLXEmbeddingFunction | None = None,
    *,
    query_vector: object = None,
) -> None:
    """Check that a function's vectors, and a query vector if given, fit a collection; loads no weights.

    Args:
        collection: from any synchronous client.
        embedding_function: defaults to the one the collection was opened with, else the one it stores.
        query_vector: (D,) numbers to search the collection with.
    Raises:
        DimensionMismatchError: they do not fit; it names both dimensions, both models and the remedy.
        InvalidInputError: unusable stored settings or vector.
    """
    reject_async(collection, "await avalidate_collection(...) instead")
    label, dimension = _validate(collection, embedding_function, run_sync)
    if query_vector is not None:
        check_query_vector(label, dimension, query_vector)


async def avalidate_collection(
    collection: AnyCollection,
    embedding_function: MLXEmbeddingFunction | None = None,
    *,
    query_vector: object = None,
) -> None:
    """Check an asynchronous client's collection; arguments and errors as for `validate_collection`."""
    wait = wait_on(asyncio.get_running_loop())
    label, dimension = await asyncio.to_thread(_validate, collection, embedding_function, wait)
    if query_vector is not None:
        check_query_vector(label, dimension, query_vector)


def upsert(
    collection: Collection,
    documents: Documents,
    *,
    id: str = "id",
    text: str = "text",
    vector: str = "vector",
    make_ids: bool = False,
    split: Split = None,
    show_progress: bool = False,
    batch_size: int | None = None,
    skip_unchanged: bool = False,
) -> UpsertResponse:
    """Write documents with texts, vectors or both, or the rows of a table; missing vectors are embedded.

    A document replaces the one with the same id: text, vector and metadata that it lacks are removed; a URI, which a
    document cannot have, stays. Metadata is read back equal or is rejected; Chroma itself may change the last digit of
    floats beyond 15 digits. What is in memory is all checked before the first text is embedded. A stream may be larger
    than memory; it is checked chunk by chunk.

    Threads may write to one collection at the same time. So may processes, through a server; a `PersistentClient`'s
    folder is for one process. Chroma has no transactions: if two processes replace a document at the same moment, one
    may leave its own metadata beside the other's.

    Args:
        collection: from any synchronous client, made by `create_collection` or by Chroma itself.
        documents: `Document`s, mappings, pandas and Polars frames, Arrow tables and readers, the path of a Parquet file
            or of a folder of them, or a list or generator of these.
        id, text, vector: which columns of rows hold what; all others are metadata. Integers and UUIDs become the
            strings that ids are. None, NaN and NaT mean that a value is missing.
        make_ids: give a row without an id one that is made from its text, or else its vector: a hash, the same each
            time. Rows of equal content are one document, the first of them.
        split: True writes long documents as pieces that the model takes whole, with ids "id#0", "id#1", … and
            `parent_id`, `start` and `end` in their metadata; a function from a text to strings, or to objects with
            text and perhaps their place, splits in its own way. What an earlier version of a document has left, split
            or whole, is removed after its last piece is written; False does only that. None writes documents whole and
            leaves all others alone. A document with its own vector stays whole.
        show_progress: draw a bar with rate and time left.
        batch_size: documents embedded and written together, within Chroma's limit. Defaults to as many as embed
            well.
        skip_unchanged: do not embed stored texts again, nor write documents that are stored unchanged. The stored data
            itself is compared, not a hash, so writes without this package are noticed.
    Raises:
        InvalidInputError: a document cannot be used; nothing was embedded or written.
        DimensionMismatchError: the function or a vector does not fit the collection; likewise.
        UpsertError: it ended midway, in a stream also because of a document, which is then its cause; it says which
            documents are in. Running it again is safe.
    """
    reject_async(collection, "await aupsert(...) instead")
    return Upsert(
        ChromaStore(collection),
        Rows(documents, Columns.choose(id, text, vector, make_ids=make_ids)),
        show_progress=show_progress,
        batch_size=batch_size,
        skip_unchanged=skip_unchanged,
        split=split,
    ).run()


async def aupsert(
    collection: AnyCollection,
    documents: Documents,
    *,
    id: str = "id",
    text: str = "text",
    vector: str = "vector",
    make_ids: bool = False,
    split: Split = None,
    show_progress: bool = False,
    batch_size: int | None = None,
    skip_unchanged: bool = False,
) -> UpsertResponse:
    """Write documents without blocking the event loop; arguments and errors as for `upsert`.

    Everything but Chroma's own requests runs on a separate thread, including a stream of documents. Canceling the task
    ends it after the current write; the CancelledError's `__cause__` is the UpsertError that says what is in, or None
    if everything is.

    Args:
        collection: from the asynchronous client, or from a synchronous one.
    """
    wait = wait_on(asyncio.get_running_loop())
    return await run_in_background(
        lambda: Upsert(
            ChromaStore(collection, wait),
            Rows(documents, Columns.choose(id, text, vector, make_ids=make_ids)),
            show_progress=show_progress,
            batch_size=batch_size,
            skip_unchanged=skip_unchanged,
            split=split,
        )
    )


def _open(
    client: ClientAPI | AsyncClientAPI,
    name: str,
    function: MLXEmbeddingFunction | None,
    data_loader: DataLoader[Any] | None,
    wait: Wait,
) -> AnyCollection:
    if function is None:
        collection: AnyCollection = wait(client.get_collection(name))
        stored = read_stored_vectors(collection, wait)
        function = resolve_function(collection, stored)
        if function is None:
            raise InvalidInputError(
                f"{stored.label} stores no function of this package; name the one that its vectors were made with, "
                "embedding_function=MLXEmbeddingFunction(...) (on the command line: --model)"
            )
    with explained_conflict(name):
        collection = wait(
            client.get_collection(name, embedding_function=as_host_type(function), data_loader=data_loader)
        )
    _validate(collection, None, wait)
    try:
        recover(collection, wait)
    except ChromaError as error:
        # A client without write permission can still read.
        logger.warning(
            "documents that another process had removed from collection %r for a moment could not be restored: %s",
            name,
            error,
        )
    return collection


def _validate(collection: AnyCollection, function: MLXEmbeddingFunction | None, wait: Wait) -> tuple[str, int]:
    """Check that a function fits a collection; return its label for messages and its vectors' dimension."""
    stored = read_stored_vectors(collection, wait)
    function = function or resolve_function(collection, stored)
    return stored.label, check_compatible(stored, function.service if function else None)
