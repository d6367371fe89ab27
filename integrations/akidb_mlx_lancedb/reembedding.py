"""A change of model for a LanceDB table."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from akidb_mlx_lancedb.function import MLXEmbeddings
from akidb_mlx_lancedb.layout import ALIAS, FUNCTIONS_KEY, TableLayout
from akidb_mlx_lancedb.tables import validate_table
from akidb_mlx_lancedb.target import LanceSource, LanceTarget, open_layout
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.reembedding import SOURCE_KEY, check_source, default_name, reembed_documents
from akidb_mlx_plugin.spaces import make_stamp
from akidb_mlx_plugin.types import UpsertResponse


def reembed(
    source: Any,
    embedding_function: MLXEmbeddings,
    *,
    name: str | None = None,
    show_progress: bool = False,
    batch_size: int | None = None,
    on: str = "id",
) -> Any:
    """Embed a table's texts again, with another function, into a new table beside it.

    The new one has the same columns and rows but for the vectors; indexes are not made again. The old one is only
    read. A run that was cut off is continued by the same call, and what is done already is not embedded again. At the
    end both are compared.

    Args:
        source: `LanceTable`, whatever function it has.
        embedding_function: makes the new vectors.
        name: of the new table; None: the old name and the model's.
        show_progress: draw a bar with rate and time left.
        batch_size: rows embedded and written together.
        on: the column that tells rows apart.
    Returns:
        The new table.
    Raises:
        InvalidInputError: a row has no text, two rows have one id, or the new name is that of another table; nothing
            was embedded.
        DimensionMismatchError: the new name is that of an earlier run with another function.
        UpsertError: it ended midway; the same call continues.
    """
    return reembed_table(
        source, embedding_function, name=name, show_progress=show_progress, batch_size=batch_size, on=on
    )[0]


def reembed_table(
    source: Any,
    embedding_function: MLXEmbeddings,
    *,
    name: str | None = None,
    show_progress: bool = False,
    batch_size: int | None = None,
    on: str = "id",
) -> tuple[Any, UpsertResponse]:
    """Do what `reembed` does, and return what it took as well."""
    new_name = name or default_name(source.name, embedding_function.model_info())
    if new_name == source.name:
        raise InvalidInputError(f"the new table needs a name of its own, not {new_name!r} again")
    layout = open_layout(source, on)
    table = _create_beside(source, layout, new_name, embedding_function)
    check_source(f"table {new_name!r}", (table.schema.metadata or {}).get(SOURCE_KEY.encode()), source.name)
    validate_table(table, embedding_function)
    response = reembed_documents(
        LanceSource(source, layout),
        LanceTarget(table, on=on, embedding_function=embedding_function),
        show_progress=show_progress,
        batch_size=batch_size,
    )
    return table, response


def _create_beside(source: Any, layout: TableLayout, name: str, function: MLXEmbeddings) -> Any:
    """Create a table, or open it, in the database of another one."""
    # A table knows its connection under no public name.
    db = source._conn
    if name in db:
        return db.open_table(name)
    vector = pa.field(layout.vector, pa.list_(pa.float32(), function.ndims()))
    fields = [vector if field.name == layout.vector else field for field in layout.schema]
    entry = {
        "name": ALIAS,
        "model": function.safe_model_dump(),
        "source_column": layout.text,
        "vector_column": layout.vector,
    }
    others = [other for other in layout.functions if other.get("vector_column") != layout.vector]
    metadata = {
        **(layout.schema.metadata or {}),
        **{key: str(value) for key, value in make_stamp(function.model_info()).items()},
        FUNCTIONS_KEY: json.dumps([*others, entry]),
        SOURCE_KEY: source.name,
    }
    return db.create_table(name, schema=pa.schema(fields, metadata=metadata))
