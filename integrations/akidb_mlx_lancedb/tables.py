"""Existing tables: open them, check them against a function, and fill them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lancedb.table import AsyncTable

from akidb_mlx_lancedb.function import MLXEmbeddings
from akidb_mlx_lancedb.handles import namespace_arguments, read_schema, refresh, reject_asynchronous, reject_checked_out
from akidb_mlx_lancedb.schema import TableSchema, read_table_schema, read_table_schemas
from akidb_mlx_lancedb.store import LanceStore, read_stored_vectors, resolve_function
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError
from akidb_mlx_plugin.stores.async_upsert import run_in_background
from akidb_mlx_plugin.stores.columns import Columns
from akidb_mlx_plugin.stores.compatibility import StoredVectors, as_vector, check_compatible, check_query_vector
from akidb_mlx_plugin.stores.rows import Documents, Rows
from akidb_mlx_plugin.stores.split import Split
from akidb_mlx_plugin.stores.upsert import Upsert
from akidb_mlx_plugin.types import UpsertResponse


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
    documents: Documents,
    *,
    id: str | None = None,
    text: str | None = None,
    vector: str | None = None,
    make_ids: bool = False,
    split: Split = None,
    show_progress: bool = False,
    batch_size: int | None = None,
    skip_unchanged: bool = False,
    on: str = "id",
    embedding_function: MLXEmbeddings | None = None,
) -> UpsertResponse:
    """Write documents with texts, vectors or both, or the rows of a table; missing vectors are embedded.

    A document replaces the row with the same id: values it lacks become null. Metadata goes to the columns of the same
    names, and the rest to the JSON column "metadata" if there is one; every value is read back equal, or is rejected.
    What is in memory is all checked before the first text is embedded. A stream may be larger than memory; it is
    checked chunk by chunk. The handle is first updated to the table's newest version, and upserts from several threads
    or processes on one machine write one row per id.

    Args:
        table: `LanceTable`, made by `create_table` or by LanceDB itself.
        documents: `Document`s, mappings, pandas and Polars frames, Arrow tables and readers, the path of a Parquet file
            or of a folder of them, or a list or generator of these.
        id: which column of rows holds the ids; defaults to `on`. Integers and UUIDs become strings.
        text, vector: columns of texts and vectors, of rows and of the table. Default to those of the table's function,
            else "text" and the only column of vectors. A column that only the rows have is written to that one. Any
            other column that a function fills is embedded too, from the metadata of its name.
        make_ids: give a row without an id one that is made from its text, or else its vector: a hash, the same each
            time. Rows of equal content are one document, the first of them.
        split: True writes long documents as pieces that the model takes whole, with ids "id#0", "id#1", … and
            `parent_id`, `start` and `end` in their metadata; a function from a text to strings, or to objects with
            text and perhaps their place, splits in its own way. What an earlier version of a document has left, split
            or whole, is removed after its last piece is written; False does only that. None writes documents whole and
            leaves all others alone. A document with its own vector stays whole.
        show_progress: draw a bar with rate and time left.
        batch_size: documents embedded and written together. Defaults to as many as embed well.
        skip_unchanged: do not embed stored texts again, nor write documents that are stored unchanged. The stored data
            itself is compared, not a hash, so writes without this package are noticed.
        on: the table's key column. Document ids are strings, even if the column holds integers ("17") or UUIDs.
        embedding_function: defaults to the one that the table stores.
    Raises:
        InvalidInputError: a document cannot be used, or the handle is checked out; nothing was embedded or written.
        DimensionMismatchError: the function or a vector does not fit the table; likewise.
        UpsertError: it ended midway, in a stream also because of a document, which is then its cause; it says which
            documents are in. Running it again is safe.
    """
    if isinstance(table, AsyncTable):
        raise InvalidInputError("this table is from an asynchronous connection; await aupsert(...) instead")
    store, columns = _open_store(table, id, text, vector, make_ids, on, embedding_function)
    return Upsert(
        store,
        Rows(documents, columns),
        show_progress=show_progress,
        batch_size=batch_size,
        skip_unchanged=skip_unchanged,
        split=split,
    ).run()


async def aupsert(
    table: Any,
    documents: Documents,
    *,
    id: str | None = None,
    text: str | None = None,
    vector: str | None = None,
    make_ids: bool = False,
    split: Split = None,
    show_progress: bool = False,
    batch_size: int | None = None,
    skip_unchanged: bool = False,
    on: str = "id",
    embedding_function: MLXEmbeddings | None = None,
) -> UpsertResponse:
    """Write documents without blocking the event loop; arguments and errors as for `upsert`.

    Everything runs on other threads, including a stream of documents. Canceling the task ends it after the current
    write; the CancelledError's `__cause__` is the UpsertError that says what is in, or None if everything is.

    Args:
        table: `AsyncTable` or `LanceTable`.
    """

    def make() -> Upsert:
        store, columns = _open_store(table, id, text, vector, make_ids, on, embedding_function)
        return Upsert(
            store,
            Rows(documents, columns),
            show_progress=show_progress,
            batch_size=batch_size,
            skip_unchanged=skip_unchanged,
            split=split,
        )

    return await run_in_background(make)


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


def _open_store(
    table: Any,
    id: str | None,
    text: str | None,
    vector: str | None,
    make_ids: bool,
    on: str,
    function: MLXEmbeddings | None,
) -> tuple[LanceStore, Columns]:
    """Return a table to write to, and which columns of rows go there.

    A name that the table does not have is one of the rows alone, which Documents cannot have.
    """
    reject_checked_out(table)
    refresh(table)
    names = read_schema(table).names
    foreign = [name for name in (text, vector) if name is not None and name not in names]
    ours = {"text": None if text in foreign else text, "vector": None if vector in foreign else vector}
    missing = f"table {table.name!r} has no column {foreign[0]!r}; it has {', '.join(names)}" if foreign else ""
    try:
        store = LanceStore(table, on=on, **ours, embedding_function=function)
    except InvalidInputError as error:
        if not missing:
            raise
        # Such as a table of several vectors, of which the name should choose one.
        raise InvalidInputError(f"{missing}; {error}") from error
    columns = Columns(
        id=id or on,
        text=text or store.text or "text",
        vector=vector or store.vector,
        make_ids=make_ids,
        chosen=frozenset(name for name in (id, text, vector) if name is not None),
        no_documents=missing,
    )
    return store, columns


def _read_schemas(table: Any, text: str | None, vector: str | None) -> list[TableSchema]:
    arrow = read_schema(table)
    if text is None and vector is None:
        return read_table_schemas(table.name, arrow)
    return [read_table_schema(table.name, arrow, None, text=text, vector=vector)]
