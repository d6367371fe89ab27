"""The columns of a new table, and which of a table's columns a function fits."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from lancedb.embeddings import EmbeddingFunctionConfig, get_registry
from lancedb.pydantic import LanceModel

from akidb_mlx_lancedb.function import MLXEmbeddings, settings_of_fields
from akidb_mlx_lancedb.layout import FUNCTIONS_KEY, JSON_COLUMN, read_layout, read_layouts
from akidb_mlx_lancedb.vectors import with_width
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError
from akidb_mlx_plugin.stores.compatibility import StoredSpace, check_space, make_stamp


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
        embedding_function, schema, on, text, vector: as `create_table`.
        name: of the table, for messages.
    Raises:
        DimensionMismatchError: the vector column, or the model's own function, does not fit.
        InvalidInputError: a column cannot hold what it is for.
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
    every = read_layouts(name, made)
    layouts = every if text is None and vector is None else [read_layout(name, made, None, text=text, vector=vector)]
    if any(layout.stored is None for layout in layouts):
        raise InvalidInputError(f"the schema of table {name!r} names an embedding function that is not of this package")
    read_layout(name, made, on, vector=layouts[0].vector)
    fitting = check_any(
        [
            StoredSpace(layout.label, {}, settings_of_fields(layout.stored or {}), layout.dimension)
            for layout in layouts
        ],
        embedding_function,
    )
    fields = [
        with_width(field, embedding_function.ndims()) if field.name == layouts[fitting].vector else field
        for field in fields
    ]
    if len(every) == 1:
        # A stamp speaks of one column.
        metadata |= {key: str(value) for key, value in make_stamp(embedding_function.model_info()).items()}
    return pa.schema(fields, metadata=metadata)


def check_any(spaces: Sequence[StoredSpace], function: MLXEmbeddings) -> int:
    """Return the position of the first column that a function fits; raise what is wrong with the first of all."""
    errors: list[EmbeddingError] = []
    for position, space in enumerate(spaces):
        try:
            check_space(space, function.service)
        except EmbeddingError as error:
            errors.append(error)
        else:
            return position
    raise errors[0]


def _arrow_schema(schema: type[LanceModel] | pa.Schema | None) -> pa.Schema:
    if schema is None:
        return pa.schema([pa.field(JSON_COLUMN, pa.json_())])
    return schema if isinstance(schema, pa.Schema) else schema.to_arrow_schema()
