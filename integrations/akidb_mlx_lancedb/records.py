"""Documents as the rows of a table, and rows as documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lancedb.embeddings import get_registry

from akidb_mlx_lancedb.keys import key_array
from akidb_mlx_lancedb.layout import JSON_COLUMN, TableLayout
from akidb_mlx_lancedb.rows import Page, Row, as_type, join_rows
from akidb_mlx_lancedb.values import make_array
from akidb_mlx_lancedb.vectors import vector_array
from akidb_mlx_plugin.stores.base import StoredDocument
from akidb_mlx_plugin.types import Document, Vector


def make_rows(layout: TableLayout, documents: Sequence[Document], vectors: Vector) -> pa.Table:
    """Return Arrow rows with every column of the table; what a document does not have is null.

    Args:
        layout: of the table.
        documents: N, checked.
        vectors: (N, D) float32.
    """
    schema = layout.schema.remove_metadata()
    columns = _metadata_columns(layout, documents)
    columns[layout.id] = key_array([document.id for document in documents], schema.field(layout.id).type)
    columns[layout.vector] = vector_array(vectors, schema.field(layout.vector))
    if layout.text is not None:
        texts = [document.text for document in documents]
        columns[layout.text] = pa.array(texts, schema.field(layout.text).type)
    rows = pa.table([columns[name] for name in schema.names], schema=schema)
    return _fill_derived(layout, rows).combine_chunks()


def read_rows(layout: TableLayout, rows: pa.Table) -> dict[str, StoredDocument]:
    """Return documents by id, from rows with every column."""
    vectors = rows[layout.vector].combine_chunks().to_numpy(zero_copy_only=False)
    return {
        document.id: StoredDocument(
            document.text,
            None if vector is None else np.asarray(vector, dtype=np.float32),
            {} if document.metadata is None else document.metadata,
        )
        for document, vector in zip(read_documents(layout, rows), vectors, strict=True)
    }


def read_documents(layout: TableLayout, rows: pa.Table) -> list[Document]:
    """Return documents without their vectors, from rows with every other column."""
    page = Page(rows.select(layout.metadata_names))
    ids = rows[layout.id].to_pylist()
    texts = rows[layout.text].to_pylist() if layout.text is not None else [None] * len(ids)
    return [
        Document(str(id_), text=text, metadata=Row(page, index))
        for index, (id_, text) in enumerate(zip(ids, texts, strict=True))
    ]


def has_metadata(layout: TableLayout, stored: StoredDocument, document: Document) -> bool:
    """Return whether a row has what would be written of a document beside its text and vector."""
    row = stored.metadata
    assert isinstance(row, Row), "read_rows makes no other"
    if isinstance(document.metadata, Row):
        return row.has(document.metadata, layout.metadata_names)
    given = document.metadata or {}
    for name, array in _metadata_columns(layout, [document]).items():
        if name in layout.derived and given.get(name) is None:
            # A vector that a function makes of a text is not in the document.
            if row[name] is None and row[layout.derived[name]] is not None:
                return False
        elif not row.has_value(name, array):
            return False
    return True


def bad_vectors(layout: TableLayout, rows: pa.Table) -> str:
    """Return what LanceDB is to do with vectors that it does not like: to keep nulls, and to refuse anything else."""
    has_nulls = False
    for field in layout.fields:
        if not layout.looks_like_vectors(field):
            continue
        column = rows[field.name].combine_chunks()
        has_nan = pc.any(pc.is_nan(column.flatten().cast(pa.float64()))).as_py()
        if has_nan or len(pc.unique(pc.list_value_length(column.drop_null()))) > 1:
            return "error"
        has_nulls = has_nulls or column.null_count > 0
    return "null" if has_nulls else "error"


def _metadata_columns(layout: TableLayout, documents: Sequence[Document]) -> dict[str, Any]:
    given = [document.metadata or {} for document in documents]
    rows = [metadata for metadata in given if isinstance(metadata, Row)]
    if rows:
        joined = join_rows(rows)
        return {name: as_type(joined[name], layout.schema.field(name).type) for name in layout.metadata_names}
    columns = {
        field.name: make_array([metadata.get(field.name) for metadata in given], field.with_nullable(True))
        for field in layout.fields
    }
    if layout.has_json:
        columns[JSON_COLUMN] = pa.array([layout.dump_json(metadata) for metadata in given], pa.json_())
    return columns


def _fill_derived(layout: TableLayout, rows: pa.Table) -> pa.Table:
    """Embed the other texts that the table has functions for, where no vector of theirs is given."""
    for vector, source in layout.derived.items():
        is_missing = pc.and_(rows[vector].is_null(), rows[source].is_valid())
        positions = np.flatnonzero(is_missing.to_numpy())
        if not len(positions):
            continue
        functions = get_registry().parse_functions(layout.schema.metadata)
        texts = rows[source].take(positions).to_pylist()
        made = functions[vector].function.compute_source_embeddings_with_retry(texts)
        vectors = rows[vector].to_pylist()
        for position, values in zip(positions, made, strict=True):
            vectors[position] = values
        field = rows.schema.field(vector)
        rows = rows.set_column(rows.schema.names.index(vector), field, pa.array(vectors, field.type))
    return rows
