"""A LanceDB table to write documents to and read them from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from lancedb.table import AsyncTable

from akidb_mlx_lancedb.documents import bad_vectors, has_metadata, make_rows, read_documents, read_rows
from akidb_mlx_lancedb.function import MLXEmbeddings, settings_from_fields
from akidb_mlx_lancedb.handles import read_schema, refresh, reject_checked_out, run_sync, write_lock
from akidb_mlx_lancedb.keys import key_literal
from akidb_mlx_lancedb.schema import ALIAS, JSON_COLUMN, TableSchema, read_table_schema
from akidb_mlx_lancedb.vectors import as_stored
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.service import EmbeddingService
from akidb_mlx_plugin.stores.base import Source, Store, StoredDocument
from akidb_mlx_plugin.stores.compatibility import StoredVectors, check_compatible, without_stamp
from akidb_mlx_plugin.stores.split import END, PARENT, START
from akidb_mlx_plugin.types import Document, Vector

_PAGE = 1000
# Of columns for where a piece is from, in SQL.
_PIECE_TYPES = {PARENT: "string", START: "bigint", END: "bigint"}


def open_table_schema(table: Any, on: str | None, *, text: str | None = None, vector: str | None = None) -> TableSchema:
    """Read the columns of a table, synchronous or not; arguments as for `read_table_schema`."""
    return read_table_schema(table.name, read_schema(table), on, text=text, vector=vector)


def read_stored_vectors(table: Any, schema: TableSchema) -> StoredVectors:
    """Return what a table says about its vectors; a column without a width gets the first vector's."""
    metadata = {key.decode("utf-8", "replace"): value for key, value in (schema.arrow.metadata or {}).items()}
    if sum(entry.get("name") == ALIAS for entry in schema.functions) > 1:
        # The stamp describes one column, but does not say which.
        metadata = without_stamp(metadata)
    dimension = schema.dimension
    if not dimension:
        rows = _select(table, [schema.vector], f"`{schema.vector}` IS NOT NULL", limit=1)
        dimension = len(rows[schema.vector][0]) if rows.num_rows else 0
    settings = settings_from_fields(schema.stored) if schema.stored is not None else None
    return StoredVectors(schema.label, metadata, settings, dimension)


def resolve_function(schema: TableSchema) -> MLXEmbeddings | None:
    """Return the function that a table stores.

    Raises:
        InvalidInputError: the stored settings cannot be used.
    """
    return MLXEmbeddings.from_stored(schema.stored) if schema.stored is not None else None


class LanceStore(Store):
    """A table to write documents to, synchronous or not.

    Attributes:
        text: its column of texts; None if it keeps none.
        vector: its column of vectors.
    """

    def __init__(
        self,
        table: Any,
        *,
        on: str = "id",
        text: str | None = None,
        vector: str | None = None,
        embedding_function: MLXEmbeddings | None = None,
    ) -> None:
        """Check that the newest version of the table fits its function; nothing is embedded.

        Args:
            table: `LanceTable` or `AsyncTable`.
            on: the key column.
            text, vector: columns of texts and vectors. Default to those of the function, or the usual names.
            embedding_function: defaults to the one that the table stores.
        Raises:
            DimensionMismatchError: the function does not fit the table.
            InvalidInputError: the handle is checked out, or the table has no such column, or unusable settings.
        """
        reject_checked_out(table)
        refresh(table)
        self._table = table
        self._schema = open_table_schema(table, on, text=text, vector=vector)
        function = embedding_function or resolve_function(self._schema)
        self.label = self._schema.label
        self.text, self.vector = self._schema.text, self._schema.vector
        self.service: EmbeddingService | None = function.service if function else None
        self.dimension = check_compatible(read_stored_vectors(table, self._schema), self.service)

    def check_document(self, document: Document) -> None:
        """Raise InvalidInputError for a document that does not fit the columns."""
        self._schema.check_document(document)

    def has_metadata(self, stored: StoredDocument, document: Document) -> bool:
        """Return whether a row equals what would be written of a document, text and vector aside."""
        return has_metadata(self._schema, stored, document)

    def is_unchanged(self, stored: StoredDocument, document: Document, vector: Vector) -> bool:
        """Return whether a document is already stored with its vector, as the columns keep it."""
        kept = as_stored(vector, self._schema.arrow.field(self._schema.vector))
        return super().is_unchanged(stored, document, kept)

    def count(self) -> int:
        """Return how many rows there are."""
        refresh(self._table)
        return int(run_sync(self._table.count_rows()))

    def read(self, ids: Sequence[str]) -> dict[str, StoredDocument]:
        """Return the stored documents with these ids, by id."""
        refresh(self._table)
        schema = self._schema
        found: dict[str, StoredDocument] = {}
        id_type = schema.arrow.field(schema.id).type
        for start in range(0, len(ids), _PAGE):
            literals = ", ".join(key_literal(id_, id_type) for id_ in ids[start : start + _PAGE])
            found |= read_rows(schema, _select(self._table, schema.arrow.names, f"`{schema.id}` IN ({literals})"))
        return found

    def check_pieces(self) -> None:
        """Raise InvalidInputError if there are no columns for where a piece is from."""
        schema = self._schema
        missing = [name for name in (PARENT, START, END) if name not in schema.arrow.names]
        if missing and not schema.has_json:
            columns = ", ".join(f"{name!r}: 'cast(null as {_PIECE_TYPES[name]})'" for name in missing)
            raise InvalidInputError(
                f"{schema.label} has no column {' or '.join(map(repr, missing))}, which pieces of documents need; add "
                f"table.add_columns({{{columns}}}), or give split=None"
            )

    def find_pieces(self, parents: Sequence[str]) -> dict[str, str]:
        """Return the stored pieces of documents: the parent of each, by its id."""
        schema = self._schema
        has_column = PARENT in schema.arrow.names
        if not has_column and not schema.has_json:
            return {}
        column = PARENT if has_column else JSON_COLUMN
        value = f"`{PARENT}`" if has_column else f"json_get_string(`{JSON_COLUMN}`, '{PARENT}')"
        refresh(self._table)
        found: dict[str, str] = {}
        for start in range(0, len(parents), _PAGE):
            literals = ", ".join(key_literal(parent, pa.string()) for parent in parents[start : start + _PAGE])
            rows = _select(self._table, [schema.id, column], f"{value} IN ({literals})")
            for row in rows.to_pylist():
                held = row[column] if has_column else json.loads(row[column])[PARENT]
                found[str(row[schema.id])] = held
        return found

    def delete(self, ids: Sequence[str]) -> None:
        """Delete the documents with these ids."""
        id_type = self._schema.arrow.field(self._schema.id).type
        with write_lock(self._table):
            refresh(self._table)
            for start in range(0, len(ids), _PAGE):
                literals = ", ".join(key_literal(id_, id_type) for id_ in ids[start : start + _PAGE])
                run_sync(self._table.delete(f"`{self._schema.id}` IN ({literals})"))

    def write(self, documents: Sequence[Document], vectors: Vector) -> None:
        """Insert documents, replacing those with the same ids, in one commit."""
        rows = make_rows(self._schema, documents, vectors)
        with write_lock(self._table):
            # A merge sees only the rows that its handle sees.
            refresh(self._table)
            merge = self._table.merge_insert(self._schema.id).when_matched_update_all().when_not_matched_insert_all()
            run_sync(merge.execute(rows, on_bad_vectors=bad_vectors(self._schema, rows)))


class LanceSource(Source):
    """A table to read documents from."""

    def __init__(self, table: Any, schema: TableSchema) -> None:
        """Store the table and its columns."""
        self.label = schema.label
        self._table = table
        self._schema = schema

    def count(self) -> int:
        """Return how many rows there are."""
        return int(self._table.count_rows())

    def check_ids(self) -> None:
        """Raise InvalidInputError for a row without an id, or two with the same id; holds only ids in memory."""
        column = self._schema.id
        ids = _select(self._table, [column], None)[column].combine_chunks()
        if ids.null_count:
            raise InvalidInputError(
                f"{ids.null_count} rows of {self.label} have no {column!r}, the key column; fill it, or name "
                "another one with on= (--on)"
            )
        counts = pc.value_counts(ids.storage if isinstance(ids, pa.ExtensionArray) else ids)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))
        if len(repeated):
            first = repeated[0].as_py()
            raise InvalidInputError(
                f"{len(repeated)} ids of {self.label} are in more than one row, {first['values']!r} in "
                f"{first['counts']} of them; delete the outdated rows, or name another key "
                f"column with on= (--on); table.add_columns({{'key': 'uuid()'}}) adds one"
            )

    def find_without_text(self) -> str | None:
        """Return the id of a row that has no text, or None if all have one."""
        schema = self._schema
        where = f"`{schema.text}` IS NULL" if schema.text else None
        rows = _select(self._table, [schema.id], where, limit=1)
        return str(rows[schema.id][0]) if rows.num_rows else None

    def read_all(self) -> Iterator[Document]:
        """Yield every row of the newest version as a document without its vector, a page at a time."""
        refresh(self._table)
        names = [name for name in self._schema.arrow.names if name != self._schema.vector]
        for page in self._table.search().select(names).to_batches(_PAGE):
            yield from read_documents(self._schema, pa.Table.from_batches([page]))


def _select(table: Any, names: Sequence[str], where: str | None, limit: int | None = None) -> pa.Table:
    query = (table.query() if isinstance(table, AsyncTable) else table.search()).select(list(names))
    if where is not None:
        query = query.where(where)
    if limit is not None:
        query = query.limit(limit)
    return run_sync(query.to_arrow())
