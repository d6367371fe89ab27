"""What an upsert takes: documents, mappings and tables of many kinds, as one stream of documents."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError
from akidb_mlx_plugin.stores.blocks import CellError, Frame
from akidb_mlx_plugin.stores.columns import Columns, make_id, plain_id, read_metadata, value_or_none
from akidb_mlx_plugin.stores.frames import open_frame, open_path
from akidb_mlx_plugin.types import Document

_TAKEN = (
    "an upsert takes Documents, mappings, pandas or Polars frames, Arrow tables and readers, the path of a Parquet "
    "file or of a folder of them, and lists or generators of these"
)
# Made ids remembered to find equal contents, which takes some 150 bytes each.
_REMEMBERED = 1_000_000


class ArrowStream(Protocol):
    """A table of any library that offers Arrow's C stream."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


class LazyTable(Protocol):
    """A Polars LazyFrame."""

    def collect(self) -> Any: ...


# What an upsert takes; the tables are instances of packages that may not be installed.
Documents = Iterable[Any] | ArrowStream | LazyTable | str | os.PathLike[str]


@dataclass(frozen=True)
class RowDocument(Document):
    """A document that was read from a row.

    Attributes:
        place: what messages call its row: "row 17".
        columns: which its fields were read from.
    """

    place: str = ""
    columns: Columns = field(default_factory=Columns)


class Rows:
    """The documents of whatever an upsert was given.

    Attributes:
        in_memory: whether everything is in memory, and may be iterated several times.
        total: how many rows there are; None if unknown.
        repeated: rows that the last iteration left out because an earlier one has the same content, and so the same
            made id.
    """

    def __init__(self, given: Documents, columns: Columns) -> None:
        """Recognize what was given; reads no rows.

        Raises:
            InvalidInputError: it is not among what can be taken.
        """
        self._given = _recognize(given, "documents")
        self._columns = columns
        self.in_memory, self.total = _measure(self._given)
        self.repeated = 0
        self._made: dict[str, None] = {}

    def __iter__(self) -> Iterator[Document]:
        """Yield the documents, each converted as it is needed.

        Raises:
            InvalidInputError: a row or item that cannot be converted; it names the row and the column.
        """
        self.repeated, self._made = 0, {}
        return self._convert(self._given, "")

    def _convert(self, given: Any, place: str) -> Iterator[Document]:
        if isinstance(given, Frame):
            yield from self._convert_frame(given, place)
            return
        for position, item in enumerate(given):
            if isinstance(item, Document):
                if self._columns.no_documents:
                    raise InvalidInputError(self._columns.no_documents)
                yield item
            elif isinstance(item, Mapping):
                yield from self._without_repeated(self._document(item, f"{place}row {position}"))
            else:
                where = f"{place}item {position}"
                yield from self._convert(_recognize(item, where), f"{where}, ")

    def _convert_frame(self, frame: Frame, place: str) -> Iterator[Document]:
        try:
            for block in frame.read(self._columns.vector):
                self._columns.check_table(block.columns, frame.hint)
                prefix = place + (f"{block.source}, " if block.source else "")
                for position, row in enumerate(block.rows(), start=block.start):
                    yield from self._without_repeated(self._document(row, f"{prefix}row {position}"))
        except CellError as error:
            source = f"{error.source}, " if error.source else ""
            raise InvalidInputError(f"{place}{source}row {error.row}, column {error.column!r}: {error}") from error

    def _without_repeated(self, made: tuple[RowDocument, bool]) -> Iterator[Document]:
        document, has_made_id = made
        if has_made_id:
            if document.id in self._made:
                self.repeated += 1
                return
            self._made[document.id] = None
            if len(self._made) > _REMEMBERED:
                del self._made[next(iter(self._made))]
        yield document

    def _document(self, row: Mapping[str, Any], place: str) -> tuple[RowDocument, bool]:
        """Return a row as a document, and whether its id was made."""
        columns = self._columns
        try:
            id_, text, vector = (value_or_none(row.get(name)) for name in (columns.id, columns.text, columns.vector))
            if columns.text not in row and columns.vector not in row:
                columns.check_table(row)
            is_made = id_ is None and columns.make_ids
            key = make_id(text, vector) if is_made else plain_id(id_, columns, row)
            document = RowDocument(key, text, vector, read_metadata(row, columns), place, columns)
        except InvalidInputError as error:
            raise InvalidInputError(f"{place}: {error}") from error
        return document, is_made


def locate(error: EmbeddingError, document: object, name: str) -> None:
    """Add the row of a document that was read from one, and the column, to an error's message.

    Args:
        error: about the document.
        document: of any kind.
        name: "id", "text" or "vector"; "" for metadata, whose messages name the key.
    """
    if isinstance(document, RowDocument):
        column = f", column {getattr(document.columns, name)!r}" if name else ""
        error.args = (f"{document.place}{column}: {error}",)


def _recognize(given: Any, what: str) -> Any:
    """Return a table to read, or an iterable of what can be taken.

    Raises:
        InvalidInputError: it is neither.
    """
    if isinstance(given, str | os.PathLike):
        return _open_path(given, what)
    frame = open_frame(given)
    if frame is not None:
        return frame
    if isinstance(given, Document | Mapping):
        kind = "one document" if isinstance(given, Document) else "one row"
        raise InvalidInputError(f"{what} is {type(given).__name__}, {kind}; put it in [ ]")
    if isinstance(given, bytes | bytearray | memoryview) or not isinstance(given, Iterable):
        raise InvalidInputError(f"{what} is {type(given).__name__}, not a Document; {_TAKEN}")
    return given


def _open_path(given: str | os.PathLike[str], what: str) -> Frame:
    path = os.fspath(given)
    if isinstance(path, str) and (isinstance(given, os.PathLike) or _looks_like_path(path)):
        return open_path(path)
    raise InvalidInputError(f"{what} is {path!r:.80}, which is not the path of a Parquet file; {_TAKEN}")


def _looks_like_path(text: str) -> bool:
    """Return whether a string names something that exists, or ends as Parquet files do."""
    try:
        return text.endswith((".parquet", ".pq")) or (bool(text) and Path(text).expanduser().exists())
    except (OSError, ValueError, RuntimeError):
        # Too long for a name, a null character, or no such home folder.
        return False


def _measure(given: Any) -> tuple[bool, int | None]:
    """Return whether everything is in memory, and how many rows there are, or None."""
    if isinstance(given, Frame):
        return given.in_memory, given.rows
    if not isinstance(given, Sequence):
        return False, len(given) if isinstance(given, Sized) else None
    in_memory, total = True, 0
    for position, item in enumerate(given):
        if isinstance(item, Document | Mapping):
            total += 1
            continue
        inner = _recognize(item, f"item {position}")
        if not isinstance(inner, Frame) or inner.rows is None:
            return False, None
        in_memory, total = in_memory and inner.in_memory, total + inner.rows
    return in_memory, total
