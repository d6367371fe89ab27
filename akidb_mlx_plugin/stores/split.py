"""Long documents as pieces: a document "id" becomes "id#0", "id#1", …, each with its place in the whole text.

Pieces are written first, and what is left of an earlier version is deleted once the last of them is in. So a document
is never missing, and an upsert that ended midway is healed by running it again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.stores.base import Store
from akidb_mlx_plugin.stores.documents import DocumentCheck
from akidb_mlx_plugin.types import Document, TextPiece

PARENT, START, END = "parent_id", "start", "end"
# True: with the model's tokenizer; a function from a text to strings or objects with `text`: with it; False: not at
# all, and the pieces of an earlier split go; None: not at all, and other documents are left alone.
Split: TypeAlias = "bool | Callable[[str], Iterable[Any]] | None"

_OFFSETS = (("start", "end"), ("start_index", "end_index"))
_NUMBER = re.compile("[0-9]+")


@dataclass(frozen=True)
class WrittenDocument(Document):
    """What is written of a document: a piece, or the whole.

    Attributes:
        parent: id of the document.
        pieces: into how many it was split; 0 if it is whole.
        is_last: whether nothing else of the document follows.
    """

    parent: str = ""
    pieces: int = 0
    is_last: bool = True


class Splitting:
    """How the documents of one upsert are split."""

    def __init__(self, store: Store, split: bool | Callable[[str], Iterable[Any]]) -> None:
        """Prepare to split; loads and reads nothing.

        Raises:
            InvalidInputError: this cannot split, or the store cannot keep pieces.
        """
        if not isinstance(split, bool) and not callable(split):
            raise InvalidInputError(
                f"split must be True, False or a function from a text to its pieces, got {type(split).__name__}"
            )
        if split is True and not store.can_embed:
            raise InvalidInputError(
                f"{store.label} has no model with a tokenizer to split by; give split= a function that splits"
            )
        if split:
            store.check_pieces()
        self._store = store
        self._split = split

    def split(self, documents: Iterable[Document], check: DocumentCheck) -> Iterator[WrittenDocument]:
        """Yield what is to be written of each document.

        A document with its own vector stays whole: the vector is that of its whole text.

        Args:
            documents: in order.
            check: for each document as a whole.
        Raises:
            InvalidInputError: a document cannot be used, or its pieces are not parts of its text.
        """
        for position, document in enumerate(documents):
            check.check_one(position, document)
            if document.text is None or document.vector is not None or not self._split:
                yield WrittenDocument(document.id, document.text, document.vector, document.metadata, document.id)
                continue
            metadata = dict(document.metadata or {})
            if taken := [key for key in (PARENT, START, END) if key in metadata]:
                raise InvalidInputError(
                    f"the metadata of document {document.id!r} has the key {taken[0]!r}, which its pieces need for "
                    "themselves; rename it"
                )
            pieces = self._cut(document.id, document.text)
            for number, piece in enumerate(pieces):
                place = {PARENT: document.id, START: piece.start, END: piece.end}
                yield WrittenDocument(
                    f"{document.id}#{number}",
                    piece.text,
                    None,
                    metadata | place,
                    document.id,
                    len(pieces),
                    number == len(pieces) - 1,
                )

    def remove_left_over(self, written: Sequence[Document]) -> None:
        """Delete what an earlier version of documents has left, after the last piece of each was written.

        Args:
            written: what has just been written, or was found unchanged.
        """
        pieces = {d.parent: d.pieces for d in written if isinstance(d, WrittenDocument) and d.is_last}
        if not pieces:
            return
        stored = self._store.find_pieces(list(pieces))
        extra = [id_ for id_, parent in stored.items() if _number(id_, parent) >= pieces[parent]]
        whole = self._store.read([parent for parent, count in pieces.items() if count])
        if ids := [*extra, *whole]:
            self._store.delete(ids)

    def _cut(self, id_: str, text: str) -> list[TextPiece]:
        if callable(self._split):
            found = list(_locate(id_, text, self._split(text)))
            if not found and text.strip():
                raise InvalidInputError(f"split gave no piece of the text of document {id_!r}, which is not empty")
        else:
            assert self._store.service is not None, "checked when this was made"
            found = self._store.service.split(text)
        # A document without text is still a document.
        return found or [TextPiece(text, 0, len(text))]


def _locate(id_: str, text: str, pieces: Any) -> Iterator[TextPiece]:
    """Yield the pieces that a splitter gave, with their places in the text; blank ones are left out.

    Raises:
        InvalidInputError: they are not pieces, or one is not in the text.
    """
    if isinstance(pieces, str | bytes) or not isinstance(pieces, Iterable):
        raise InvalidInputError(
            f"split gave {type(pieces).__name__} for document {id_!r}; it must give a list of pieces"
        )
    start = end = 0
    for number, piece in enumerate(pieces):
        part = piece if isinstance(piece, str) else getattr(piece, "text", None)
        if not isinstance(part, str):
            raise InvalidInputError(
                f"piece {number} of document {id_!r} is {type(piece).__name__}; split must give strings, or objects "
                "with text"
            )
        if not part.strip():
            continue
        place = _given_place(piece, len(text))
        if place is None:
            place = _find(text, part, start, end)
            if place is None:
                raise InvalidInputError(
                    f"piece {number} of document {id_!r} is not a part of its text, so that its place is unknown; "
                    "let split give objects with text, start and end"
                )
        start, end = place
        yield TextPiece(part, start, end)


def _given_place(piece: object, length: int) -> tuple[int, int] | None:
    """Return the place that a piece names itself, if it is one in a text of this length."""
    for names in _OFFSETS:
        start, end = (getattr(piece, name, None) for name in names)
        if isinstance(start, int) and isinstance(end, int) and 0 <= start <= end <= length:
            return start, end
    return None


def _find(text: str, part: str, start: int, end: int) -> tuple[int, int] | None:
    """Return where a piece is: right after the one before, or else overlapping it, or else further on."""
    after = end
    while after < len(text) and text[after].isspace() and not text.startswith(part, after):
        after += 1
    if not text.startswith(part, after):
        after = text.find(part, start + (end > 0))
    return None if after < 0 else (after, after + len(part))


def _number(id_: str, parent: str) -> int:
    """Return which piece of a document an id stands for; -1 if it is not one of this package's."""
    number = id_.removeprefix(f"{parent}#")
    return int(number) if number != id_ and _NUMBER.fullmatch(number) else -1
