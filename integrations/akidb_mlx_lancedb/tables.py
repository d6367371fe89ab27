"""Tables that stay right: made, opened, checked and filled with the function's vector space in view."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from lancedb.db import AsyncConnection
from lancedb.pydantic import LanceModel
from lancedb.table import AsyncTable

from akidb_mlx_lancedb.function import MLXEmbeddings
from akidb_mlx_lancedb.handles import find_table, read_schema
from akidb_mlx_lancedb.layout import TableLayout, read_layout, read_layouts
from akidb_mlx_lancedb.schema import check_any, table_schema
from akidb_mlx_lancedb.target import LanceTarget, function_at_hand, read_space
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.stores.async_upsert import run_in_background
from akidb_mlx_plugin.stores.compatibility import as_vector, check_query_vector, check_space
from akidb_mlx_plugin.stores.upsert import Upsert
from akidb_mlx_plugin.types import Document, UpsertResponse


def create_table(
    db: Any,
    name: str,
    embedding_function: MLXEmbeddings,
    *,
    schema: type[LanceModel] | pa.Schema | None = None,
    mode: str = "create",
    exist_ok: bool = False,
    on: str = "id",
    text: str | None = None,
    vector: str | None = None,
    namespace_path: Sequence[str] = (),
) -> Any:
    """Create a table that says which vectors it holds.

    Model, dimension and fingerprint go into its metadata, beside the function itself. A table stores no metric: see
    `MLXEmbeddings.distance_type` for models whose vectors have no unit length.

    Args:
        db: a synchronous connection, to a database or to a namespace.
        name: of the table.
        embedding_function: embeds its texts; in mode "user_provided" it has the vectors brought.
        schema: the columns; those for id, text and vector are added if they are missing, and a vector column without a
            width gets the function's. None: these and "metadata", JSON, which LanceDB can filter by.
        mode: "create", or "overwrite" in place of a table that exists.
        exist_ok: open the table if it exists; another model is refused then, and a table that stores no function.
        on: the column that distinguishes documents: strings, whole numbers or UUIDs.
        text, vector: columns of texts and vectors; None: those of the schema's function, else "text" and "vector".
        namespace_path: where in the database the table is; empty: at its root.
    Returns:
        The table, as `db.create_table` does.
    Raises:
        DimensionMismatchError: the vector column is of another width, or the table exists with another model.
        InvalidInputError: a column cannot hold what it is for.
        ModelNotFoundError, DownloadError: the model is not here and cannot be fetched; no weights are loaded.
    """
    _refuse_asynchronous(db, "await db.create_table(name, schema=table_schema(...)) instead")
    made = table_schema(embedding_function, schema, name=name, on=on, text=text, vector=vector)
    place = _place(namespace_path)
    reopen = partial(open_table, db, name, embedding_function, text=text, vector=vector, namespace_path=namespace_path)
    is_reused = exist_ok and mode == "create"
    if is_reused and find_table(db, name, namespace_path) is not None:
        return reopen()
    try:
        return db.create_table(name, schema=made, mode=mode, **place)
    except ValueError as error:
        # Another process was faster.
        if is_reused and "already exists" in str(error):
            return reopen()
        raise


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
        embedding_function: None: the one that the table stores. Its model is then downloaded only if it is in the
            registry or named in `AKIDB_ALLOWED_MODELS`.
        text, vector: columns to check, of a table that embeds several.
        namespace_path: where in the database the table is; empty: at its root.
    Raises:
        DimensionMismatchError: the function makes other vectors than the table holds.
        InvalidInputError: the table stores no function of this package, or settings that cannot be used.
    """
    _refuse_asynchronous(db, "await db.open_table(...), and aupsert checks it")
    table = db.open_table(name, **_place(namespace_path))
    layouts = _layouts(table, text, vector)
    if all(layout.stored is None for layout in layouts):
        refuse_without_function(layouts[0].label, embedding_function)
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
    """Return if a table and a function fit, and a query vector if one is given; loads no weights.

    Args:
        table: `LanceTable`.
        embedding_function: None: the one that the table stores. Of a table that embeds several columns it has to fit
            one, or the one that is named.
        query_vector: D numbers that the table is to be searched with.
        text, vector: columns to check, of a table that embeds several.
    Raises:
        DimensionMismatchError: they do not; it names both dimensions, both models and the remedy.
        InvalidInputError: stored settings or a vector that cannot be used.
    """
    layouts = _layouts(table, text, vector)
    spaces = [read_space(table, layout) for layout in layouts]
    if embedding_function is not None:
        chosen = check_any(spaces, embedding_function)
        layouts, spaces = [layouts[chosen]], [spaces[chosen]]
    functions = [embedding_function or function_at_hand(layout) for layout in layouts]
    dimensions = [
        check_space(space, function.service if function else None)
        for space, function in zip(spaces, functions, strict=True)
    ]
    if query_vector is not None:
        length = len(as_vector(query_vector, f"the query vector for {layouts[0].label}"))
        check_query_vector(layouts[0].label, length if length in dimensions else dimensions[0], query_vector)


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
    """Write documents with texts, vectors or both; vectors that are missing are embedded.

    A document takes the place of the row that has its id: what it does not have is null then. Metadata goes to the
    columns of its names, and the rest to the JSON column "metadata" if there is one; every value comes back equal, or
    is refused. Documents in a list are all checked before the first text is embedded. A stream may be longer than
    memory; it is checked chunk by chunk. The handle is brought to the table's newest version first, and upserts of
    several threads or processes of one machine write one row per id.

    Args:
        table: `LanceTable`, made by `create_table` or by LanceDB itself.
        documents: a list, or a stream of any length.
        show_progress: draw a bar with rate and time left.
        batch_size: documents embedded and written together; None: as many as embed well.
        skip_unchanged: embed no text that is stored already, and write no document that is stored as it is. What is
            stored is compared itself, not a hash of it: that is right even after a write past this package.
        on: the column that distinguishes documents. Document ids are strings, also of a column of whole numbers ("17")
            or UUIDs.
        text, vector: columns of texts and vectors; None: those of the table's function, else "text" and the only column
            of vectors. Another column that a function fills is embedded as well, from the metadata of its name.
        embedding_function: None: the one that the table stores.
    Raises:
        InvalidInputError: a document cannot be used, or the handle is checked out; nothing was embedded or written.
        DimensionMismatchError: the function does not fit the table, or a vector does not; likewise.
        UpsertError: it ended midway; it says which documents are in. Running it again is safe.
    """
    if isinstance(table, AsyncTable):
        raise InvalidInputError("this table is from an asynchronous connection; await aupsert(...) instead")
    return Upsert(
        LanceTarget(table, on=on, text=text, vector=vector, embedding_function=embedding_function),
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
    """Write documents without holding up the event loop; arguments and errors as `upsert`.

    Everything runs on other threads, a stream of documents too. Cancelling the task ends it after the write that is
    under way; the CancelledError's `__cause__` is the UpsertError that says what is in, or None if everything is.

    Args:
        table: `AsyncTable` or `LanceTable`.
    """
    return await run_in_background(
        lambda: Upsert(
            LanceTarget(table, on=on, text=text, vector=vector, embedding_function=embedding_function),
            documents,
            show_progress=show_progress,
            batch_size=batch_size,
            skip_unchanged=skip_unchanged,
        )
    )


def refuse_without_function(label: str, embedding_function: MLXEmbeddings | None) -> None:
    """Refuse a table that stores no function, unless its vectors are always brought.

    Raises:
        InvalidInputError: LanceDB's own `add` would leave the vectors null, and nothing can be searched by text.
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


def _refuse_asynchronous(db: Any, remedy: str) -> None:
    if isinstance(db, AsyncConnection) or inspect.iscoroutinefunction(getattr(db, "open_table", None)):
        raise InvalidInputError(f"this needs a synchronous connection; {remedy}")


def _place(namespace_path: Sequence[str]) -> dict[str, Any]:
    """Return the argument that names a namespace; not every connection takes one."""
    return {"namespace_path": list(namespace_path)} if namespace_path else {}


def _layouts(table: Any, text: str | None, vector: str | None) -> list[TableLayout]:
    schema = read_schema(table)
    if text is None and vector is None:
        return read_layouts(table.name, schema)
    return [read_layout(table.name, schema, None, text=text, vector=vector)]
