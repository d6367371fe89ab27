"""What an upsert takes: documents, mappings and tables of many kinds, as one stream of documents."""

from __future__ import annotations

import datetime as dt
import difflib
import hashlib
import os
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError
from akidb_mlx_plugin.stores.compatibility import as_vector
from akidb_mlx_plugin.stores.frames import CellError, Frame, open_frame, open_path
from akidb_mlx_plugin.types import Document
from akidb_mlx_plugin.validation import check_unicode

_TAKEN = (
    "an upsert takes Documents, mappings, pandas or Polars frames, Arrow tables and readers, the path of a Parquet "
    "file or of a folder of them, and lists or generators of these"
)
# A column of this name that holds mappings is the metadata itself, as in a Document.
_METADATA = "metadata"
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
class Columns:
    """Which columns of a row hold what; every other column is metadata.

    Attributes:
        id: the ids: strings, integers or UUIDs.
        text: the texts.
        vector: the vectors.
        make_ids: make the id of a row without one from its content.
        chosen: names that the caller gave, which every table must have.
        no_documents: why Documents cannot be taken with these columns; empty if they can.
    """

    id: str = "id"
    text: str = "text"
    vector: str = "vector"
    make_ids: bool = False
    chosen: frozenset[str] = frozenset()
    no_documents: str = ""

    @classmethod
    def choose(cls, id: str, text: str, vector: str, *, make_ids: bool = False) -> Columns:
        """Return the columns that a caller chose, who left the usual names alone where they fit."""
        chosen = {id, text, vector} - {cls.id, cls.text, cls.vector}
        return cls(id, text, vector, make_ids, frozenset(chosen))

    def check_table(self, names: Collection[str], hint: str = "") -> None:
        """Check that a table has the columns, before any of its rows is converted.

        Args:
            names: its columns.
            hint: what else may help if there are no ids.
        Raises:
            InvalidInputError: a column is missing; it names those there are, and a similar one.
        """
        for what, name in (("id", self.id), ("text", self.text), ("vector", self.vector)):
            is_required = name in self.chosen or (what == "id" and not self.make_ids)
            # A column "Text" would become metadata.
            is_misspelled = any(str(other).casefold() == name.casefold() for other in names)
            if name not in names and (is_required or is_misspelled):
                raise InvalidInputError(self.describe_missing(what, names) + (hint if what == "id" else ""))
        if self.text not in names and self.vector not in names:
            raise InvalidInputError(self.describe_missing("text", names))

    def describe_missing(self, what: str, names: Iterable[object]) -> str:
        """Return a message about a missing column.

        Args:
            what: "id", "text" or "vector".
            names: of the columns there are.
        """
        wanted: str = getattr(self, what)
        known = [str(name) for name in names]
        message = f"there is no column {wanted!r} for the {what}"
        if what == "text":
            message += f", nor a column {self.vector!r} for the vector" * (self.vector not in known)
        close = difflib.get_close_matches(wanted.casefold(), [name.casefold() for name in known], 1)
        like = next((name for name in known if close and name.casefold() == close[0]), None)
        remedy = f"name it by {what}=" if like is None else f"did you mean {like!r}? Name it by {what}={like!r}"
        if what == "id":
            remedy += ", or have ids made from the contents by make_ids=True"
        return f"{message}; the columns are {', '.join(map(repr, known)) or 'none'}; {remedy}"


@dataclass(frozen=True)
class RowDocument(Document):
    """A document that was read from a row.

    Attributes:
        place: what messages call its row: "row 17".
        columns: which its fields were read from.
    """

    place: str = ""
    columns: Columns = Columns()


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
        id_, text, vector = (_or_none(row.get(name)) for name in (columns.id, columns.text, columns.vector))
        if text is None and vector is None and columns.text not in row and columns.vector not in row:
            try:
                columns.check_table(row)
            except InvalidInputError as error:
                raise InvalidInputError(f"{place}: {error}") from None
        is_made = id_ is None and columns.make_ids
        try:
            if is_made:
                id_ = make_id(text, vector)
            key = _plain_id(id_, columns, row)
        except InvalidInputError as error:
            raise InvalidInputError(f"{place}: {error}") from error
        return RowDocument(key, text, vector, _metadata(row, columns, place), place, columns), is_made


def locate(error: EmbeddingError, document: object, field: str) -> None:
    """Add the row of a document that was read from one, and the column, to an error's message.

    Args:
        error: about the document.
        document: of any kind.
        field: "id", "text" or "vector"; "" for metadata, whose messages name the key.
    """
    if isinstance(document, RowDocument):
        column = f", column {getattr(document.columns, field)!r}" if field else ""
        error.args = (f"{document.place}{column}: {error}",)


def make_id(text: object, vector: object) -> str:
    """Return an id made from content, the same in every process: half a SHA-256, in the form of a UUID.

    Args:
        text: what is hashed, unless it is None.
        vector: numbers, hashed as float32 if there is no text.
    Raises:
        InvalidInputError: neither, or not a text or a vector.
    """
    if text is None and vector is None:
        raise InvalidInputError("it has neither text nor vector to make an id of; give one of them")
    if text is None:
        content = b"vector:" + as_vector(vector, "the vector").astype("<f4").tobytes()
    elif isinstance(text, str):
        check_unicode(text, "the text")
        content = b"text:" + text.encode()
    else:
        raise InvalidInputError(f"the text is {type(text).__name__}, not a string")
    return str(uuid.UUID(bytes=hashlib.sha256(content).digest()[:16]))


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


def _plain_id(value: Any, columns: Columns, row: Mapping[str, Any]) -> str:
    """Return an id as the string that databases keep: integers in decimal, UUIDs in lower case."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64):
        return str(int(value))
    if isinstance(value, uuid.UUID):
        return str(value)
    if value is None and columns.id not in row:
        raise InvalidInputError(columns.describe_missing("id", row))
    if value is None:
        raise InvalidInputError(
            f"column {columns.id!r} is empty; give an id, or have ids made from the contents by make_ids=True"
        )
    raise InvalidInputError(
        f"column {columns.id!r} is {value!r:.80}, {type(value).__name__}; ids are strings, integers or UUIDs (where "
        "some integers are missing pandas makes them floats: frame[name].astype('Int64'))"
    )


def _metadata(row: Mapping[str, Any], columns: Columns, place: str) -> dict[str, Any] | None:
    """Return a row's other values, without missing ones."""
    own = (columns.id, columns.text, columns.vector)
    found: dict[str, Any] = {name: value for name, value in row.items() if name not in own}
    whole = found.get(_METADATA)
    if isinstance(whole, Mapping):
        del found[_METADATA]
        if both := [name for name in whole if name in found]:
            raise InvalidInputError(f"{place} has {both[0]!r} as a column and in {_METADATA!r}; rename one of them")
        found |= whole
    return {name: value for name, value in found.items() if not is_missing(value)} or None


def is_missing(value: Any) -> bool:
    """Return whether a value stands for none: None, NaN, and the NaT and NA of NumPy and pandas."""
    if value is None:
        return True
    if isinstance(value, float | np.floating | np.datetime64 | np.timedelta64 | dt.date | dt.timedelta):
        # Nothing else of these types differs from itself.
        return bool(value != value)
    return type(value).__name__ in ("NAType", "NaTType")


def _or_none(value: Any) -> Any:
    return None if is_missing(value) else value
