"""Tables that stay right: made, opened, checked and filled with the function's vector space in view."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from lancedb.db import AsyncConnection
from lancedb.embeddings import EmbeddingFunctionConfig, get_registry
from lancedb.pydantic import LanceModel
from lancedb.table import AsyncTable

from akidb_mlx_lancedb.function import MLXEmbeddings, settings_of_fields
from akidb_mlx_lancedb.layout import FUNCTIONS_KEY, JSON_COLUMN, read_layout
from akidb_mlx_lancedb.target import LanceTarget, function_at_hand, open_layout, read_space
from akidb_mlx_plugin.background import run_in_background
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.spaces import StoredSpace, check_query_vector, check_space, make_stamp
from akidb_mlx_plugin.types import Document, UpsertResponse
from akidb_mlx_plugin.upserts import Upsert


def create_table(
    db: Any,
    name: str,
    embedding_function: MLXEmbeddings,
    *,
    schema: type[LanceModel] | pa.Schema | None = None,
    mode: str = "create",
    exist_ok: bool = False,
    on: str = "id",
) -> Any:
    """Create a table that says which vectors it holds.

    Model, dimension and fingerprint go into its metadata, beside the function itself. A table stores no metric: see
    `MLXEmbeddings.distance_type` for models whose vectors have no unit length.

    Args:
        db: a synchronous connection.
        name: of the table.
        embedding_function: embeds its texts; in mode "user_provided" it has the vectors brought.
        schema: the columns; those for id, text and vector are added if they are missing. None: these and "metadata",
            JSON, which LanceDB can filter by.
        mode: "create", or "overwrite" in place of a table that exists.
        exist_ok: open the table if it exists; another model is refused then.
        on: the column that tells documents apart.
    Returns:
        The table, as `db.create_table` does.
    Raises:
        DimensionMismatchError: the vector column is of another width, or the table exists with another model.
        ModelNotFoundError, DownloadError: the model is not here and cannot be fetched; no weights are loaded.
    """
    if isinstance(db, AsyncConnection):
        raise InvalidInputError(
            "this needs a synchronous connection; await db.create_table(name, schema=table_schema(...)) instead"
        )
    made = table_schema(embedding_function, schema, name=name, on=on)
    if exist_ok and mode == "create" and name in db:
        return open_table(db, name, embedding_function)
    return db.create_table(name, schema=made, mode=mode)


def table_schema(
    embedding_function: MLXEmbeddings,
    schema: type[LanceModel] | pa.Schema | None = None,
    *,
    name: str = "",
    on: str = "id",
) -> pa.Schema:
    """Return the Arrow schema that `create_table` uses; also for an asynchronous connection.

    Args:
        embedding_function, schema, on: as `create_table`.
        name: of the table, for messages.
    Raises:
        DimensionMismatchError: the vector column, or the model's own function, does not fit.
    """
    given = _arrow_schema(schema)
    columns = [pa.field(on, pa.string(), nullable=False)]
    metadata = dict(given.metadata or {})
    if FUNCTIONS_KEY not in metadata:
        vector_type = pa.list_(pa.float32(), embedding_function.ndims())
        columns += [pa.field("text", pa.string()), pa.field("vector", vector_type)]
        config = EmbeddingFunctionConfig(vector_column="vector", source_column="text", function=embedding_function)
        metadata |= get_registry().get_table_metadata([config])  # type: ignore[no-untyped-call]
    stamp = {key: str(value) for key, value in make_stamp(embedding_function.model_info()).items()}
    fields = [*(field for field in columns if field.name not in given.names), *given]
    made = pa.schema(fields, metadata={**metadata, **stamp})
    layout = read_layout(name, made, on)
    if layout.stored is None:
        raise InvalidInputError(f"the schema of {layout.label} names an embedding function that is not of this package")
    unstamped = StoredSpace(layout.label, {}, settings_of_fields(layout.stored), layout.dimension)
    check_space(unstamped, embedding_function.service)
    return made


def open_table(db: Any, name: str, embedding_function: MLXEmbeddings | None = None) -> Any:
    """Open a table and hold its vectors against a function; loads no weights.

    Args:
        db: a synchronous connection.
        name: of the table.
        embedding_function: None: the one that the table stores. Its model is then downloaded only if it is in the
            registry or named in `AKIDB_ALLOWED_MODELS`.
    Raises:
        DimensionMismatchError: the function makes other vectors than the table holds.
        InvalidInputError: the table stores no function of this package, or settings that cannot be used.
    """
    if isinstance(db, AsyncConnection):
        raise InvalidInputError("this needs a synchronous connection; await db.open_table(...), and aupsert checks it")
    table = db.open_table(name)
    if embedding_function is None and open_layout(table, None).stored is None:
        raise InvalidInputError(
            f"table {name!r} stores no function of this package; name the one that its vectors were made with, "
            "embedding_function=MLXEmbeddings.create(...) (on the command line: --model)"
        )
    validate_table(table, embedding_function)
    return table


def validate_table(table: Any, embedding_function: MLXEmbeddings | None = None, *, query_vector: object = None) -> None:
    """Return if a table and a function fit, and a query vector if one is given; loads no weights.

    Args:
        table: `LanceTable`.
        embedding_function: None: the one that the table stores.
        query_vector: D numbers that the table is to be searched with.
    Raises:
        DimensionMismatchError: they do not; it names both dimensions, both models and the remedy.
        InvalidInputError: stored settings or a vector that cannot be used.
    """
    layout = open_layout(table, None)
    function = embedding_function or function_at_hand(layout)
    dimension = check_space(read_space(table, layout), function.service if function else None)
    if query_vector is not None:
        check_query_vector(layout.label, dimension, query_vector)


def upsert(
    table: Any,
    documents: Iterable[Document],
    *,
    show_progress: bool = False,
    batch_size: int | None = None,
    skip_unchanged: bool = False,
    on: str = "id",
    embedding_function: MLXEmbeddings | None = None,
) -> UpsertResponse:
    """Write documents with texts, vectors or both; vectors that are missing are embedded.

    A document takes the place of the row that has its id: what it does not have is null then. Metadata goes to the
    columns of its names, and the rest to the JSON column "metadata" if there is one. Documents in a list are all
    checked before the first text is embedded. A stream may be longer than memory; it is checked chunk by chunk.

    Args:
        table: `LanceTable`, made by `create_table` or by LanceDB itself.
        documents: a list, or a stream of any length.
        show_progress: draw a bar with rate and time left.
        batch_size: documents embedded and written together; None: as many as embed well.
        skip_unchanged: embed no text that is stored already, and write no document that is stored as it is. What is
            stored is compared itself, not a hash of it: that is right even after a write past this package.
        on: the column that tells documents apart.
        embedding_function: None: the one that the table stores.
    Raises:
        InvalidInputError: a document cannot be used; nothing was embedded or written.
        DimensionMismatchError: the function does not fit the table, or a vector does not; likewise.
        UpsertError: it ended midway; it says which documents are in. Running it again is safe.
    """
    if isinstance(table, AsyncTable):
        raise InvalidInputError("this table is from an asynchronous connection; await aupsert(...) instead")
    return Upsert(
        LanceTarget(table, on=on, embedding_function=embedding_function),
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
    embedding_function: MLXEmbeddings | None = None,
) -> UpsertResponse:
    """Write documents without holding up the event loop; arguments and errors as `upsert`.

    Everything runs on other threads, a stream of documents too. Cancelling the task ends it after the write that is
    under way; the CancelledError's `__cause__` is the UpsertError that says what is in, or None if everything is.

    Args:
        table: `AsyncTable` or `LanceTable`.
    """
    return await run_in_background(
        lambda: Upsert(
            LanceTarget(table, on=on, embedding_function=embedding_function),
            documents,
            show_progress=show_progress,
            batch_size=batch_size,
            skip_unchanged=skip_unchanged,
        )
    )


def _arrow_schema(schema: type[LanceModel] | pa.Schema | None) -> pa.Schema:
    if schema is None:
        return pa.schema([pa.field(JSON_COLUMN, pa.json_())])
    return schema if isinstance(schema, pa.Schema) else schema.to_arrow_schema()
