"""A LanceDB table as documents are written to it and read from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from lancedb.table import AsyncTable

from akidb_mlx_lancedb.function import MLXEmbeddings, settings_of_fields
from akidb_mlx_lancedb.handles import read_schema, refresh, refuse_checked_out, run_sync, write_lock
from akidb_mlx_lancedb.keys import key_literal
from akidb_mlx_lancedb.layout import ALIAS, TableLayout, read_layout
from akidb_mlx_lancedb.records import bad_vectors, has_metadata, make_rows, read_documents, read_rows
from akidb_mlx_lancedb.vectors import as_stored
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.service import EmbeddingService
from akidb_mlx_plugin.stores.base import Source, StoredDocument, Target
from akidb_mlx_plugin.stores.compatibility import StoredSpace, check_space, without_stamp
from akidb_mlx_plugin.types import Document, Vector

_PAGE = 1000


def open_layout(table: Any, on: str | None, *, text: str | None = None, vector: str | None = None) -> TableLayout:
    """Ask a table, synchronous or not, for its columns; arguments as `read_layout`."""
    return read_layout(table.name, read_schema(table), on, text=text, vector=vector)


def read_space(table: Any, layout: TableLayout) -> StoredSpace:
    """Return what a table says of its vectors; a column without a width is known by its first vector."""
    metadata = {key.decode("utf-8", "replace"): value for key, value in (layout.schema.metadata or {}).items()}
    if sum(entry.get("name") == ALIAS for entry in layout.functions) > 1:
        # The stamp speaks of one column, and does not say which.
        metadata = without_stamp(metadata)
    dimension = layout.dimension
    if not dimension:
        rows = _select(table, [layout.vector], f"`{layout.vector}` IS NOT NULL", limit=1)
        dimension = len(rows[layout.vector][0]) if rows.num_rows else 0
    settings = settings_of_fields(layout.stored) if layout.stored is not None else None
    return StoredSpace(layout.label, metadata, settings, dimension)


def function_at_hand(layout: TableLayout) -> MLXEmbeddings | None:
    """Return the function that a table stores.

    Raises:
        InvalidInputError: the stored settings cannot be used.
    """
    return MLXEmbeddings.from_stored(layout.stored) if layout.stored is not None else None


class LanceTarget(Target):
    """A table that documents are written to, synchronous or not."""

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
            on: the column that distinguishes documents.
            text, vector: columns of texts and vectors; None: those of the function, or the usual names.
            embedding_function: None: the one that the table stores.
        Raises:
            DimensionMismatchError: the function does not fit the table.
            InvalidInputError: the handle is checked out, or the table has no such column, or settings that cannot be
                used.
        """
        refuse_checked_out(table)
        refresh(table)
        self._table = table
        self._layout = open_layout(table, on, text=text, vector=vector)
        function = embedding_function or function_at_hand(self._layout)
        self.label = self._layout.label
        self.service: EmbeddingService | None = function.service if function else None
        self.dimension = check_space(read_space(table, self._layout), self.service)

    def check_document(self, document: Document) -> None:
        """Raise InvalidInputError for a document that does not fit the columns."""
        self._layout.check_document(document)

    def has_metadata(self, stored: StoredDocument, document: Document) -> bool:
        """Return whether a row has what would be written of a document beside its text and vector."""
        return has_metadata(self._layout, stored, document)

    def is_unchanged(self, stored: StoredDocument, document: Document, vector: Vector) -> bool:
        """Return whether a document with its vector is stored already, as the columns keep it."""
        kept = as_stored(vector, self._layout.schema.field(self._layout.vector))
        return super().is_unchanged(stored, document, kept)

    def count(self) -> int:
        """Return how many rows there are."""
        refresh(self._table)
        return int(run_sync(self._table.count_rows()))

    def read(self, ids: Sequence[str]) -> dict[str, StoredDocument]:
        """Return what is stored of these documents, by id."""
        refresh(self._table)
        layout = self._layout
        found: dict[str, StoredDocument] = {}
        id_type = layout.schema.field(layout.id).type
        for start in range(0, len(ids), _PAGE):
            literals = ", ".join(key_literal(id_, id_type) for id_ in ids[start : start + _PAGE])
            found |= read_rows(layout, _select(self._table, layout.schema.names, f"`{layout.id}` IN ({literals})"))
        return found

    def write(self, documents: Sequence[Document], vectors: Vector) -> None:
        """Insert documents, replacing those with the same ids, in one commit."""
        rows = make_rows(self._layout, documents, vectors)
        with write_lock(self._table):
            # A merge sees the rows that its handle sees.
            refresh(self._table)
            merge = self._table.merge_insert(self._layout.id).when_matched_update_all().when_not_matched_insert_all()
            run_sync(merge.execute(rows, on_bad_vectors=bad_vectors(self._layout, rows)))


class LanceSource(Source):
    """A table that documents are read from."""

    def __init__(self, table: Any, layout: TableLayout) -> None:
        """Note the table and its columns."""
        self.label = layout.label
        self._table = table
        self._layout = layout

    def count(self) -> int:
        """Return how many rows there are."""
        return int(self._table.count_rows())

    def check_ids(self) -> None:
        """Raise InvalidInputError for a row without an id, and for two of one id; only ids are in memory meanwhile."""
        column = self._layout.id
        ids = _select(self._table, [column], None)[column].combine_chunks()
        if ids.null_count:
            raise InvalidInputError(
                f"{ids.null_count} rows of {self.label} have no {column!r}, which distinguishes rows; fill it, or name "
                "another column with on= (--on)"
            )
        counts = pc.value_counts(ids.storage if isinstance(ids, pa.ExtensionArray) else ids)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))
        if len(repeated):
            first = repeated[0].as_py()
            raise InvalidInputError(
                f"{len(repeated)} ids of {self.label} are in more than one row, {first['values']!r} in "
                f"{first['counts']} of them; delete the rows that are outdated, or name a column that distinguishes "
                f"rows with on= (--on); table.add_columns({{'key': 'uuid()'}}) adds one"
            )

    def find_without_text(self) -> str | None:
        """Return the id of a row that has no text; None: all have one."""
        layout = self._layout
        where = f"`{layout.text}` IS NULL" if layout.text else None
        rows = _select(self._table, [layout.id], where, limit=1)
        return str(rows[layout.id][0]) if rows.num_rows else None

    def read_all(self) -> Iterator[Document]:
        """Yield every row of the newest version as a document without its vector, a page at a time."""
        refresh(self._table)
        names = [name for name in self._layout.schema.names if name != self._layout.vector]
        for page in self._table.search().select(names).to_batches(_PAGE):
            yield from read_documents(self._layout, pa.Table.from_batches([page]))


def _select(table: Any, names: Sequence[str], where: str | None, limit: int | None = None) -> pa.Table:
    query = (table.query() if isinstance(table, AsyncTable) else table.search()).select(list(names))
    if where is not None:
        query = query.where(where)
    if limit is not None:
        query = query.limit(limit)
    return run_sync(query.to_arrow())
