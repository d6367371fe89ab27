"""Convert documents to a table's rows, and rows to documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lancedb.embeddings import get_registry

from akidb_mlx_lancedb.keys import key_array
from akidb_mlx_lancedb.rows import Page, Row, as_type, join_rows
from akidb_mlx_lancedb.schema import JSON_COLUMN, TableSchema
from akidb_mlx_lancedb.values import dump_json, make_array
from akidb_mlx_lancedb.vectors import vector_array
from akidb_mlx_plugin.stores.base import StoredDocument
from akidb_mlx_plugin.types import Document, Vector


def make_rows(schema: TableSchema, documents: Sequence[Document], vectors: Vector) -> pa.Table:
    """Return Arrow rows with every column of the table; values a document lacks are null.

    Args:
        schema: of the table.
        documents: N, checked.
        vectors: (N, D) float32.
    """
    arrow = schema.arrow.remove_metadata()
    columns = _metadata_columns(schema, documents)
    columns[schema.id] = key_array([document.id for document in documents], arrow.field(schema.id).type)
    columns[schema.vector] = vector_array(vectors, arrow.field(schema.vector))
    if schema.text is not None:
        texts = [document.text for document in documents]
        columns[schema.text] = pa.array(texts, arrow.field(schema.text).type)
    rows = pa.table([columns[name] for name in arrow.names], schema=arrow)
    return _fill_derived(schema, rows).combine_chunks()


def read_rows(schema: TableSchema, rows: pa.Table) -> dict[str, StoredDocument]:
    """Return documents by id, from rows with every column."""
    vectors = rows[schema.vector].combine_chunks().to_numpy(zero_copy_only=False)
    return {
        document.id: StoredDocument(
            document.text,
            None if vector is None else np.asarray(vector, dtype=np.float32),
            {} if document.metadata is None else document.metadata,
        )
        for document, vector in zip(read_documents(schema, rows), vectors, strict=True)
    }


def read_documents(schema: TableSchema, rows: pa.Table) -> list[Document]:
    """Return documents without their vectors, from rows with every other column."""
    page = Page(rows.select(schema.metadata_names))
    ids = rows[schema.id].to_pylist()
    texts = rows[schema.text].to_pylist() if schema.text is not None else [None] * len(ids)
    return [
        Document(str(id_), text=text, metadata=Row(page, index))
        for index, (id_, text) in enumerate(zip(ids, texts, strict=True))
    ]


def has_metadata(schema: TableSchema, stored: StoredDocument, document: Document) -> bool:
    """Return whether a row equals what would be written of a document, text and vector aside."""
    row = stored.metadata
    assert isinstance(row, Row), "read_rows makes no other"
    if isinstance(document.metadata, Row):
        return row.has(document.metadata, schema.metadata_names)
    given = document.metadata or {}
    for name, array in _metadata_columns(schema, [document]).items():
        if name in schema.derived and given.get(name) is None:
            # A vector that a function makes from a text is not in the document.
            if row[name] is None and row[schema.derived[name]] is not None:
                return False
        elif not row.has_value(name, array):
            return False
    return True


def bad_vectors(schema: TableSchema, rows: pa.Table) -> str:
    """Return LanceDB's setting for invalid vectors: keep nulls and reject anything else."""
    has_nulls = False
    for field in schema.fields:
        if not schema.looks_like_vectors(field):
            continue
        column = rows[field.name].combine_chunks()
        has_nan = pc.any(pc.is_nan(column.flatten().cast(pa.float64()))).as_py()
        if has_nan or len(pc.unique(pc.list_value_length(column.drop_null()))) > 1:
            return "error"
        has_nulls = has_nulls or column.null_count > 0
    return "null" if has_nulls else "error"


def _metadata_columns(schema: TableSchema, documents: Sequence[Document]) -> dict[str, Any]:
    given = [document.metadata or {} for document in documents]
    rows = [metadata for metadata in given if isinstance(metadata, Row)]
    if rows:
        joined = join_rows(rows)
        return {name: as_type(joined[name], schema.arrow.field(name).type) for name in schema.metadata_names}
    columns = {
        field.name: make_array([metadata.get(field.name) for metadata in given], field.with_nullable(True))
        for field in schema.fields
    }
    if schema.has_json:
        rest = [schema.without_column(metadata) for metadata in given]
        columns[JSON_COLUMN] = pa.array([dump_json(values) if values else None for values in rest], pa.json_())
    return columns


def _fill_derived(schema: TableSchema, rows: pa.Table) -> pa.Table:
    """Embed the other texts that the table has functions for, unless their vectors are given."""
    for vector, source in schema.derived.items():
        is_missing = pc.and_(rows[vector].is_null(), rows[source].is_valid())
        positions = np.flatnonzero(is_missing.to_numpy())
        if not len(positions):
            continue
        functions = get_registry().parse_functions(schema.arrow.metadata)
        texts = rows[source].take(positions).to_pylist()
        made = functions[vector].function.compute_source_embeddings_with_retry(texts)
        vectors = rows[vector].to_pylist()
        for position, values in zip(positions, made, strict=True):
            vectors[position] = values
        field = rows.schema.field(vector)
        rows = rows.set_column(rows.schema.names.index(vector), field, pa.array(vectors, field.type))
    return rows
