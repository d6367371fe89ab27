"""Existing tables: open them, check them against a function, and fill them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lancedb.table import AsyncTable

from akidb_mlx_lancedb.function import MLXEmbeddings
from akidb_mlx_lancedb.handles import namespace_arguments, read_schema, reject_asynchronous
from akidb_mlx_lancedb.schema import TableSchema, read_table_schema, read_table_schemas
from akidb_mlx_lancedb.store import LanceStore, read_stored_vectors, resolve_function
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError
from akidb_mlx_plugin.stores.async_upsert import run_in_background
from akidb_mlx_plugin.stores.compatibility import StoredVectors, as_vector, check_compatible, check_query_vector
from akidb_mlx_plugin.stores.upsert import Upsert
from akidb_mlx_plugin.types import Document, UpsertResponse


def open_table(
    db: Any,
    name: str,
    embedding_function: MLXEmbeddings | None = None,
    *,
    text: str | None = None,
    vector: str | None = None,
    namespace_path: Sequence[str] = (),
) -> Any:
    """Open a table that embeds and check that its vectors fit a function; loads no weights.

    Args:
        db: a synchronous connection, to a database or to a namespace.
        name: of the table.
        embedding_function: defaults to the table's stored one, whose model is downloaded only if it is in the registry
            or named in `AKIDB_ALLOWED_MODELS`.
        text, vector: columns to check, of a table that embeds several.
        namespace_path: the table's namespace; empty for the database's root.
    Raises:
        DimensionMismatchError: the function's vectors differ from the table's.
        InvalidInputError: the table stores no function of this package, or unusable settings.
    """
    reject_asynchronous(db, "await db.open_table(...), and aupsert checks it")
    table = db.open_table(name, **namespace_arguments(namespace_path))
    schemas = _read_schemas(table, text, vector)
    if all(schema.stored is None for schema in schemas):
        reject_without_function(schemas[0].label, embedding_function)
    validate_table(table, embedding_function, text=text, vector=vector)
    return table


def validate_table(
    table: Any,
    embedding_function: MLXEmbeddings | None = None,
    *,
    query_vector: object = None,
    text: str | None = None,
    vector: str | None = None,
) -> None:
    """Check that a function's vectors, and a query vector if given, fit a table; loads no weights.

    Args:
        table: `LanceTable`.
        embedding_function: defaults to the one that the table stores. In a table that embeds several columns it must
            fit one of them, or the named one.
        query_vector: (D,) numbers to search the table with.
        text, vector: columns to check, of a table that embeds several.
    Raises:
        DimensionMismatchError: they do not fit; it names both dimensions, both models and the remedy.
        InvalidInputError: unusable stored settings or vector.
    """
    schemas = _read_schemas(table, text, vector)
    stored = [read_stored_vectors(table, schema) for schema in schemas]
    if embedding_function is not None:
        chosen = find_fitting(stored, embedding_function)
        schemas, stored = [schemas[chosen]], [stored[chosen]]
    functions = [embedding_function or resolve_function(schema) for schema in schemas]
    dimensions = [
        check_compatible(column, function.service if function else None)
        for column, function in zip(stored, functions, strict=True)
    ]
    if query_vector is not None:
        length = len(as_vector(query_vector, f"the query vector for {schemas[0].label}"))
        check_query_vector(schemas[0].label, length if length in dimensions else dimensions[0], query_vector)


def upsert(
    table: Any,
    documents: Iterable[Document],
    *,
    show_progress: bool = False,
    batch_size: int | None = None,
    skip_unchanged: bool = False,
    on: str = "id",
    text: str | None = None,
    vector: str | None = None,
    embedding_function: MLXEmbeddings | None = None,
) -> UpsertResponse:
    """Write documents with texts, vectors or both; missing vectors are embedded.

    A document replaces the row with the same id: values it lacks become null. Metadata goes to the columns of the same
    names, and the rest to the JSON column "metadata" if there is one; every value is read back equal, or is rejected.
    Documents in a list are all checked before the first text is embedded. A stream may be larger than memory; it is
    checked chunk by chunk. The handle is first updated to the table's newest version, and upserts from several threads
    or processes on one machine write one row per id.

    Args:
        table: `LanceTable`, made by `create_table` or by LanceDB itself.
        documents: a list, or a stream of any length.
        show_progress: draw a bar with rate and time left.
        batch_size: documents embedded and written together. Defaults to as many as embed well.
        skip_unchanged: do not embed stored texts again, nor write documents that are stored unchanged. The stored data
            itself is compared, not a hash, so writes without this package are noticed.
        on: the key column. Document ids are strings, even if the column holds integers ("17") or UUIDs.
        text, vector: columns of texts and vectors. Default to those of the table's function, else "text" and the only
            column of vectors. Any other column that a function fills is embedded too, from the metadata of its name.
        embedding_function: defaults to the one that the table stores.
    Raises:
        InvalidInputError: a document cannot be used, or the handle is checked out; nothing was embedded or written.
        DimensionMismatchError: the function or a vector does not fit the table; likewise.
        UpsertError: it ended midway; it says which documents are in. Running it again is safe.
    """
    if isinstance(table, AsyncTable):
        raise InvalidInputError("this table is from an asynchronous connection; await aupsert(...) instead")
    return Upsert(
        LanceStore(table, on=on, text=text, vector=vector, embedding_function=embedding_function),
        documents,
        show_progress=show_progress,
        batch_size=batch_size,
        skip_unchanged=skip_unchanged,
    ).run()


async def aupsert(
    table: Any,
    documents: Iterable[Document],
    *,
    show_progress: bool = False,
    batch_size: int | None = None,
    skip_unchanged: bool = False,
    on: str = "id",
    text: str | None = None,
    vector: str | None = None,
    embedding_function: MLXEmbeddings | None = None,
) -> UpsertResponse:
    """Write documents without blocking the event loop; arguments and errors as for `upsert`.

    Everything runs on other threads, including a stream of documents. Canceling the task ends it after the current
    write; the CancelledError's `__cause__` is the UpsertError that says what is in, or None if everything is.

    Args:
        table: `AsyncTable` or `LanceTable`.
    """
    return await run_in_background(
        lambda: Upsert(
            LanceStore(table, on=on, text=text, vector=vector, embedding_function=embedding_function),
            documents,
            show_progress=show_progress,
            batch_size=batch_size,
            skip_unchanged=skip_unchanged,
        )
    )


def find_fitting(stored: Sequence[StoredVectors], function: MLXEmbeddings) -> int:
    """Return the position of the first column that a function fits, or raise the first column's error."""
    errors: list[EmbeddingError] = []
    for position, column in enumerate(stored):
        try:
            check_compatible(column, function.service)
        except EmbeddingError as error:
            errors.append(error)
        else:
            return position
    raise errors[0]


def reject_without_function(label: str, embedding_function: MLXEmbeddings | None) -> None:
    """Reject a table that stores no function, unless users give all its vectors.

    Raises:
        InvalidInputError: LanceDB's own `add` would leave the vectors null, and text searches could not work.
    """
    if embedding_function is None:
        raise InvalidInputError(
            f"{label} stores no function of this package; name the one that its vectors were made with, "
            "embedding_function=MLXEmbeddings.create(...) (on the command line: --model)"
        )
    if embedding_function.service.config.mode != "user_provided":
        raise InvalidInputError(
            f"{label} stores no function of this package, and LanceDB cannot add one to a table that exists: its own "
            "add would leave vectors null. reembed(...) makes a table that has one; upsert(db.open_table(...), "
            "embedding_function=...) writes to this one"
        )


def _read_schemas(table: Any, text: str | None, vector: str | None) -> list[TableSchema]:
    arrow = read_schema(table)
    if text is None and vector is None:
        return read_table_schemas(table.name, arrow)
    return [read_table_schema(table.name, arrow, None, text=text, vector=vector)]
