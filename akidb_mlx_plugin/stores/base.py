"""The interface of a database that documents are written to or read from.

The adapters implement it; `upsert` and `reembed` use only this interface.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from akidb_mlx_plugin.service import EmbeddingService
from akidb_mlx_plugin.types import Document, Vector


@dataclass(frozen=True)
class StoredDocument:
    """A document as a database has it.

    Attributes:
        text: None if it was written without one.
        vector: (D,) float32, or None if it has none yet.
        metadata: without null entries.
    """

    text: str | None
    vector: Vector | None
    metadata: Mapping[str, Any]


class Store(ABC):
    """A collection or table to write documents to. One thread writes at a time; others may read meanwhile.

    Attributes:
        label: what messages call it: "collection 'docs'".
        dimension: length of its vectors; 0 while it is unknown.
        service: embeds the texts; None if every document must have its vector.
        max_rows: most rows per write; None for any number.
    """

    label: str
    dimension: int
    service: EmbeddingService | None
    max_rows: int | None = None

    @property
    def can_embed(self) -> bool:
        """Whether there is a model to embed texts with."""
        return self.service is not None and self.service.config.mode != "user_provided"

    def check_document(self, document: Document) -> None:  # noqa: B027 - a database may have nothing to add
        """Raise InvalidInputError for what the database would reject in a document's text or metadata."""

    def has_metadata(self, stored: StoredDocument, document: Document) -> bool:
        """Return whether a document's metadata equals what is stored; a null counts as absent."""
        wanted = {key: plain_value(value) for key, value in (document.metadata or {}).items() if value is not None}
        return is_same_value(wanted, dict(stored.metadata))

    def is_unchanged(self, stored: StoredDocument, document: Document, vector: Vector) -> bool:
        """Return whether a document is already stored with this vector, unchanged."""
        return (
            document.text == stored.text
            and stored.vector is not None
            and _is_same_vector(vector, stored.vector)
            and self.has_metadata(stored, document)
        )

    @abstractmethod
    def count(self) -> int:
        """Return how many documents are in it."""

    @abstractmethod
    def read(self, ids: Sequence[str]) -> dict[str, StoredDocument]:
        """Return the stored documents with these ids, by id."""

    def check_pieces(self) -> None:  # noqa: B027 - a database may keep any metadata
        """Raise InvalidInputError if the pieces of long documents cannot be kept here."""

    @abstractmethod
    def find_pieces(self, parents: Sequence[str]) -> dict[str, str]:
        """Return the stored pieces of documents: the parent of each, by its id."""

    @abstractmethod
    def delete(self, ids: Sequence[str]) -> None:
        """Delete the documents with these ids."""

    @abstractmethod
    def write(self, documents: Sequence[Document], vectors: Vector) -> None:
        """Insert documents, replacing those with the same ids.

        Args:
            documents: up to `max_rows`, with distinct ids.
            vectors: (N, D) float32, one row per document.
        """


class Source(ABC):
    """A collection or table that documents are read from.

    Attributes:
        label: what messages call it.
    """

    label: str

    @abstractmethod
    def count(self) -> int:
        """Return how many documents there are."""

    def check_ids(self) -> None:  # noqa: B027 - a database may allow no other
        """Raise InvalidInputError for a document without an id, or two with the same id."""

    @abstractmethod
    def find_without_text(self) -> str | None:
        """Return the id of a document that has no text, or None if all have one."""

    @abstractmethod
    def read_all(self) -> Iterator[Document]:
        """Yield every document with text and metadata and without its vector, a page at a time."""


def plain_value(value: Any) -> Any:
    """Convert NumPy's numbers and arrays, and tuples, to what a database returns.

    NumPy's dates are left alone: converted to Python they may be bare numbers, without their unit.
    """
    if isinstance(value, np.datetime64 | np.timedelta64):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "mM":
        return list(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def is_same_value(one: Any, other: Any) -> bool:
    """Return whether two metadata values are equal, at any depth; NaN equals NaN, and 1 is not True."""
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same_value(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same_value, one, other))
    # Nothing else differs from itself.
    return bool(one == other or (one != one and other != other))


def known_vector(document: Document, stored: StoredDocument | None) -> Vector | None:
    """Return the vector of a checked document, else the one stored for its text, else None."""
    if document.vector is not None:
        return np.asarray(document.vector, dtype=np.float32)
    if stored is not None and stored.text == document.text:
        return stored.vector
    return None


def _is_same_vector(vector: Vector, stored: Vector) -> bool:
    """Return whether a vector is the stored one; Chroma scales those of a cosine collection down and up again."""
    if vector is stored:
        return True
    return vector.shape == stored.shape and bool(np.abs(vector - stored).max() <= 1e-6 * np.linalg.norm(vector))
