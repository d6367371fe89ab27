"""A LanceDB table as documents are written to it and read from it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from lancedb.background_loop import LOOP
from lancedb.table import AsyncTable

from akidb_mlx_lancedb.function import MLXEmbeddings, settings_of_fields
from akidb_mlx_lancedb.layout import TableLayout, read_layout
from akidb_mlx_plugin.collections import Source, StoredDocument, Target
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.service import EmbeddingService
from akidb_mlx_plugin.spaces import StoredSpace, check_space
from akidb_mlx_plugin.types import Document, Vector

_PAGE = 1000


def take(result: Any) -> Any:
    """Return what a table's method gave: an asynchronous one is run on LanceDB's own loop, never on the caller's."""
    return LOOP.run(result) if inspect.iscoroutine(result) else result  # type: ignore[no-untyped-call]


def open_layout(table: Any, on: str | None) -> TableLayout:
    """Ask a table, synchronous or not, for its columns."""
    schema = take(table.schema()) if isinstance(table, AsyncTable) else table.schema
    return read_layout(table.name, schema, on)


def read_space(table: Any, layout: TableLayout) -> StoredSpace:
    """Return what a table says of its vectors; a column without a width is known by its first vector."""
    metadata = {key.decode("utf-8", "replace"): value for key, value in (layout.schema.metadata or {}).items()}
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

    def __init__(self, table: Any, *, on: str = "id", embedding_function: MLXEmbeddings | None = None) -> None:
        """Hold the table against its function; nothing is embedded.

        Args:
            table: `LanceTable` or `AsyncTable`.
            on: the column that tells documents apart.
            embedding_function: None: the one that the table stores.
        Raises:
            DimensionMismatchError: the function does not fit the table.
            InvalidInputError: the table has no such column, or settings that cannot be used.
        """
        self._table = table
        self._layout = open_layout(table, on)
        function = embedding_function or function_at_hand(self._layout)
        self.label = self._layout.label
        self.service: EmbeddingService | None = function.service if function else None
        self.dimension = check_space(read_space(table, self._layout), self.service)

    def check_document(self, document: Document) -> None:
        """Raise InvalidInputError for a document that does not fit the columns."""
        self._layout.check_document(document)

    def count(self) -> int:
        """Return how many rows there are."""
        return int(take(self._table.count_rows()))

    def read(self, ids: Sequence[str]) -> dict[str, StoredDocument]:
        """Return what is stored of these documents, by id."""
        found: dict[str, StoredDocument] = {}
        for start in range(0, len(ids), _PAGE):
            quoted = ", ".join("'" + id_.replace("'", "''") + "'" for id_ in ids[start : start + _PAGE])
            rows = _select(self._table, self._layout.schema.names, f"`{self._layout.id}` IN ({quoted})")
            found |= self._layout.read_rows(rows)
        return found

    def write(self, documents: Sequence[Document], vectors: Vector) -> None:
        """Put documents in the place of what their ids have there now, or beside it, in one commit."""
        rows = self._layout.make_rows(documents, vectors)
        merge = self._table.merge_insert(self._layout.id).when_matched_update_all().when_not_matched_insert_all()
        take(merge.execute(rows))


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
        ids = _select(self._table, [column], None)[column]
        if ids.null_count:
            raise InvalidInputError(
                f"{ids.null_count} rows of {self.label} have no {column!r}, which tells rows apart; fill it, or name "
                "another column with on= (--on)"
            )
        counts = pc.value_counts(ids)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))
        if len(repeated):
            first = repeated[0].as_py()
            raise InvalidInputError(
                f"{len(repeated)} ids of {self.label} are in more than one row, {first['values']!r} in "
                f"{first['counts']} of them; delete the rows that are outdated, or name a column that tells rows apart "
                f"with on= (--on); table.add_columns({{'key': 'uuid()'}}) adds one"
            )

    def find_without_text(self) -> str | None:
        """Return the id of a row that has no text; None: all have one."""
        layout = self._layout
        where = f"`{layout.text}` IS NULL" if layout.text else None
        rows = _select(self._table, [layout.id], where, limit=1)
        return str(rows[layout.id][0]) if rows.num_rows else None

    def read_all(self) -> Iterator[Document]:
        """Yield every row as a document without its vector, a page at a time."""
        names = [name for name in self._layout.schema.names if name != self._layout.vector]
        for page in self._table.search().select(names).to_batches(_PAGE):
            yield from self._layout.read_documents(page)


def _select(table: Any, names: Sequence[str], where: str | None, limit: int | None = None) -> pa.Table:
    query = (table.query() if isinstance(table, AsyncTable) else table.search()).select(list(names))
    if where is not None:
        query = query.where(where)
    if limit is not None:
        query = query.limit(limit)
    return take(query.to_arrow())
