"""New tables: their columns, and their record of the vectors they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from lancedb.embeddings import EmbeddingFunctionConfig, get_registry
from lancedb.pydantic import LanceModel

from akidb_mlx_lancedb.function import MLXEmbeddings, settings_from_fields
from akidb_mlx_lancedb.handles import creation_lock, find_table, namespace_arguments, read_schema, reject_asynchronous
from akidb_mlx_lancedb.schema import FUNCTIONS_KEY, JSON_COLUMN, read_table_schema, read_table_schemas
from akidb_mlx_lancedb.tables import find_fitting, open_table
from akidb_mlx_lancedb.vectors import with_width
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.stores.compatibility import StoredVectors, make_stamp


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
    """Create a table that records which vectors it holds.

    Its metadata records model, dimension and fingerprint, with the function itself. A table stores no metric: see
    `MLXEmbeddings.distance_type` for models whose vectors do not have unit length.

    Args:
        db: a synchronous connection, to a database or to a namespace.
        name: of the table.
        embedding_function: embeds its texts; in mode "user_provided" it embeds nothing, and documents have vectors.
        schema: the columns; those for id, text and vector are added if missing, and a vector column without a width
            gets the function's. Defaults to these and "metadata", JSON, which LanceDB can filter by.
        mode: "create", or "overwrite" to replace a table that exists.
        exist_ok: open the table if it exists; another model, a table without a stored function, or one without the
            columns of the schema, is then rejected.
        on: the key column: strings, integers or UUIDs.
        text, vector: columns of texts and vectors. Default to those of the schema's function, else "text" and "vector".
        namespace_path: the table's namespace; empty for the database's root.
    Returns:
        The table, as `db.create_table` does.
    Raises:
        DimensionMismatchError: the vector column has another width, or the table exists with another model.
        InvalidInputError: a column is of an unsuitable type, or the table exists with other columns.
        ModelNotFoundError, DownloadError: the model is not available locally and cannot be fetched; loads no weights.
    """
    reject_asynchronous(db, "await db.create_table(name, schema=table_schema(...)) instead")
    made = table_schema(embedding_function, schema, name=name, on=on, text=text, vector=vector)
    place = namespace_arguments(namespace_path)
    given = pa.schema([]) if schema is None else made

    def reopen() -> Any:
        table = open_table(db, name, embedding_function, text=text, vector=vector, namespace_path=namespace_path)
        _check_columns(table, given)
        return table

    if not exist_ok or mode != "create":
        return db.create_table(name, schema=made, mode=mode, **place)
    with creation_lock(db):
        if find_table(db, name, namespace_path) is not None:
            return reopen()
        try:
            return db.create_table(name, schema=made, mode=mode, **place)
        except ValueError as error:
            # Somebody was first who does not hold this lock.
            if "already exists" in str(error):
                return reopen()
            raise


def table_schema(
    embedding_function: MLXEmbeddings,
    schema: type[LanceModel] | pa.Schema | None = None,
    *,
    name: str = "",
    on: str = "id",
    text: str | None = None,
    vector: str | None = None,
) -> pa.Schema:
    """Return the Arrow schema that `create_table` uses; also for an asynchronous connection.

    Args:
        embedding_function, schema, on, text, vector: as for `create_table`.
        name: of the table, for messages.
    Raises:
        DimensionMismatchError: the vector column, or the model's own function, does not fit.
        InvalidInputError: a column is of an unsuitable type.
    """
    given = _arrow_schema(schema)
    columns = [pa.field(on, pa.string(), nullable=False)]
    metadata = dict(given.metadata or {})
    if FUNCTIONS_KEY not in metadata:
        text, vector = text or "text", vector or "vector"
        columns += [pa.field(text, pa.string()), pa.field(vector, pa.list_(pa.float32(), embedding_function.ndims()))]
        config = EmbeddingFunctionConfig(vector_column=vector, source_column=text, function=embedding_function)
        metadata |= get_registry().get_table_metadata([config])  # type: ignore[no-untyped-call]
    fields = [*(field for field in columns if field.name not in given.names), *given]
    made = pa.schema(fields, metadata=metadata)
    every = read_table_schemas(name, made)
    schemas = (
        every if text is None and vector is None else [read_table_schema(name, made, None, text=text, vector=vector)]
    )
    if any(column.stored is None for column in schemas):
        raise InvalidInputError(f"the schema of table {name!r} names an embedding function of another package")
    read_table_schema(name, made, on, vector=schemas[0].vector)
    fitting = find_fitting(
        [
            StoredVectors(column.label, {}, settings_from_fields(column.stored or {}), column.dimension)
            for column in schemas
        ],
        embedding_function,
    )
    fields = [
        with_width(field, embedding_function.ndims()) if field.name == schemas[fitting].vector else field
        for field in fields
    ]
    if len(every) == 1:
        # A stamp describes one column.
        metadata |= {key: str(value) for key, value in make_stamp(embedding_function.model_info()).items()}
    return pa.schema(fields, metadata=metadata)


def _check_columns(table: Any, wanted: pa.Schema) -> None:
    """Check that a table has the columns of a schema; it may have others, too.

    Raises:
        InvalidInputError: one is missing, or has another type.
    """
    there = read_schema(table)
    for field in wanted:
        if field.name not in there.names:
            fault = f"has no column {field.name!r}, which the schema has; its columns are {', '.join(there.names)}"
        elif there.field(field.name).type != field.type:
            fault = f"has {there.field(field.name).type} in column {field.name!r}, and the schema {field.type}"
        else:
            continue
        raise InvalidInputError(
            f"table {table.name!r} exists and {fault}; choose another name, change the table with add_columns or "
            "alter_columns, or replace it with mode='overwrite'"
        )


def _arrow_schema(schema: type[LanceModel] | pa.Schema | None) -> pa.Schema:
    if schema is None:
        return pa.schema([pa.field(JSON_COLUMN, pa.json_())])
    return schema if isinstance(schema, pa.Schema) else schema.to_arrow_schema()
