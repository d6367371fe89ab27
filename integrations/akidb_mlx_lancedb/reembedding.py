"""A change of model for a LanceDB table."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
from lancedb.table import AsyncTable

from akidb_mlx_lancedb.function import MLXEmbeddings
from akidb_mlx_lancedb.handles import find_table, namespace_arguments, refresh, reject_checked_out
from akidb_mlx_lancedb.schema import ALIAS, FUNCTIONS_KEY, TableSchema
from akidb_mlx_lancedb.store import LanceSource, LanceStore, open_table_schema
from akidb_mlx_lancedb.tables import validate_table
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.stores.compatibility import make_stamp
from akidb_mlx_plugin.stores.reembed import SOURCE_KEY, check_source, default_name, reembed_documents
from akidb_mlx_plugin.types import UpsertResponse


def reembed(
    source: Any,
    embedding_function: MLXEmbeddings,
    *,
    name: str | None = None,
    show_progress: bool = False,
    batch_size: int | None = None,
    on: str = "id",
    text: str | None = None,
    vector: str | None = None,
    db: Any = None,
) -> Any:
    """Re-embed a table's texts with another function, into a new table beside it.

    Except for the vectors, the new one has the same columns and rows, with equal values; indexes are not rebuilt. The
    old one is only read. The same call continues an interrupted run without embedding anything twice. At the end both
    are compared.

    Args:
        source: `LanceTable` with any function; its newest version is read.
        embedding_function: makes the new vectors.
        name: of the new table. Defaults to the old name and the model's.
        show_progress: draw a bar with rate and time left.
        batch_size: rows embedded and written together.
        on: the key column.
        text, vector: columns of texts and vectors, for a table that stores no function, or several.
        db: connection of the new table. Defaults to the source's own.
    Returns:
        The new table.
    Raises:
        InvalidInputError: a row has no text, two rows have the same id, or the new name is that of another table;
            nothing was embedded.
        DimensionMismatchError: the new name is that of an earlier run with another function.
        UpsertError: it ended midway; the same call continues.
    """
    return reembed_table(
        source,
        embedding_function,
        name=name,
        show_progress=show_progress,
        batch_size=batch_size,
        on=on,
        text=text,
        vector=vector,
        db=db,
    )[0]


def reembed_table(
    source: Any,
    embedding_function: MLXEmbeddings,
    *,
    name: str | None = None,
    show_progress: bool = False,
    batch_size: int | None = None,
    on: str = "id",
    text: str | None = None,
    vector: str | None = None,
    db: Any = None,
) -> tuple[Any, UpsertResponse]:
    """Run `reembed`; also return its response."""
    if isinstance(source, AsyncTable):
        raise InvalidInputError("this table is from an asynchronous connection; open it with lancedb.connect instead")
    new_name = name or default_name(source.name, embedding_function.model_info())
    if new_name == source.name and db is None:
        raise InvalidInputError(f"the new table needs another name than {new_name!r}")
    reject_checked_out(source)
    refresh(source)
    schema = open_table_schema(source, on, text=text, vector=vector)
    if schema.text is None:
        raise InvalidInputError(f"{schema.label} has no column 'text'; name the one to embed with text=")
    table = _create_beside(_connection(source) if db is None else db, source, schema, new_name, embedding_function)
    check_source(f"table {new_name!r}", (table.schema.metadata or {}).get(SOURCE_KEY.encode()), source.name)
    validate_table(table, embedding_function, vector=schema.vector)
    response = reembed_documents(
        LanceSource(source, schema),
        LanceStore(table, on=on, text=schema.text, vector=schema.vector, embedding_function=embedding_function),
        show_progress=show_progress,
        batch_size=batch_size,
    )
    return table, response


def _connection(table: Any) -> Any:
    # A table's connection has no public name, and a table in LanceDB's cloud has none.
    connection = getattr(table, "_conn", None)
    if connection is None:
        raise InvalidInputError(f"{type(table).__name__} does not know its connection; give it as db=")
    return connection


def _create_beside(db: Any, source: Any, schema: TableSchema, name: str, function: MLXEmbeddings) -> Any:
    """Create or open a table in another one's namespace."""
    namespace = list(getattr(source, "namespace", None) or [])
    existing = find_table(db, name, namespace)
    if existing is not None:
        return existing
    vector = schema.arrow.field(schema.vector).with_type(pa.list_(pa.float32(), function.ndims()))
    fields = [vector if field.name == schema.vector else field for field in schema.arrow]
    entry = {
        "name": ALIAS,
        "model": function.safe_model_dump(),
        "source_column": schema.text,
        "vector_column": schema.vector,
    }
    others = [other for other in schema.functions if other.get("vector_column") != schema.vector]
    kept = {key: value for key, value in (schema.arrow.metadata or {}).items() if not key.startswith(b"akidb_mlx:")}
    # A stamp describes one column.
    is_only = all(other.get("name") != ALIAS for other in others)
    stamp = make_stamp(function.model_info()) if is_only else {}
    metadata = {
        **kept,
        **{key: str(value) for key, value in stamp.items()},
        FUNCTIONS_KEY: json.dumps([*others, entry]),
        SOURCE_KEY: source.name,
    }
    place = namespace_arguments(namespace)
    try:
        return db.create_table(name, schema=pa.schema(fields, metadata=metadata), **place)
    except ValueError as error:
        # Another process was first.
        if "already exists" not in str(error):
            raise
    return db.open_table(name, **place)
