"""Documents on their way into a collection: checked before anything is embedded, and split into chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from akidb_mlx_plugin.errors import DimensionMismatchError, EmbeddingError, InvalidInputError
from akidb_mlx_plugin.stores.compatibility import as_vector
from akidb_mlx_plugin.stores.rows import locate
from akidb_mlx_plugin.types import Document
from akidb_mlx_plugin.validation import check_unicode

# A chunk is full at this many characters, however few documents it has, to bound memory.
CHUNK_CHARACTERS = 1_000_000
# Chunks take about this long: the bar moves, and a killed process loses little. The largest is enough for texts of one
# length to meet and for a write to be worth its commit; the first chunk shows how fast the model is.
_CHUNK_S = 10.0
_FIRST_CHUNK, _SMALLEST_CHUNK, LARGEST_CHUNK = 256, 32, 1024


class ChunkSize:
    """Most documents of a chunk: a given number, or what the model embeds in ten seconds."""

    def __init__(self, given: int | None = None) -> None:
        """Start with the given number, or with a guess."""
        self.documents = given or _FIRST_CHUNK
        self._is_fixed = given is not None

    def adapt(self, texts: int, seconds: float) -> None:
        """Learn how long the model took."""
        if not self._is_fixed:
            size = LARGEST_CHUNK if seconds <= 0 else round(texts / seconds * _CHUNK_S)
            self.documents = max(_SMALLEST_CHUNK, min(size, LARGEST_CHUNK))


class DocumentCheck:
    """Checks that documents fit a collection; takes an unknown vector length from the first vector.

    Attributes:
        dimension: what every vector must have; 0 while it is unknown.
    """

    def __init__(
        self, label: str, dimension: int, *, can_embed: bool, check_host: Callable[[Document], None] | None = None
    ) -> None:
        """Store the collection's requirements.

        Args:
            label: the collection, as messages call it: "collection 'docs'".
            dimension: length of its vectors; 0 if unknown.
            can_embed: whether a text without a vector can be embedded.
            check_host: raises InvalidInputError for what the database would reject in a document's text or metadata.
        """
        self.dimension = dimension
        self._label = label
        self._can_embed = can_embed
        self._check_host = check_host or (lambda document: None)

    def check(self, documents: Iterable[Document]) -> None:
        """Check documents in order.

        Raises:
            InvalidInputError: not a Document; an unusable id, text, vector or metadata; or a repeated id.
            DimensionMismatchError: a vector of another length.
        """
        ids: set[str] = set()
        for index, document in enumerate(documents):
            self.check_one(index, document, ids)

    def check_one(self, index: int, document: Document, ids: set[str] | None = None) -> None:
        """Check a document.

        Args:
            index: its position, for messages.
            document: to check.
            ids: of those before it, which it must not repeat; its own is added.
        Raises:
            InvalidInputError, DimensionMismatchError: as for `check`.
        """
        field = "id"
        try:
            _check_id(index, document)
            if ids is not None:
                _check_repeated(index, document, ids)
            field = "text"
            self._check_text(document)
            field = "vector"
            self._check_vector(document)
            field = ""
            _check_metadata(document)
            self._check_host(document)
        except EmbeddingError as error:
            locate(error, document, field)
            raise

    def _check_text(self, document: Document) -> None:
        text = document.text
        if text is None:
            if document.vector is None:
                raise InvalidInputError(f"document {document.id!r} has neither text nor vector; give one of them")
            return
        if not isinstance(text, str):
            raise InvalidInputError(f"the text of document {document.id!r} is {type(text).__name__}, not a string")
        check_unicode(text, f"the text of document {document.id!r}")
        if document.vector is None and not self._can_embed:
            raise InvalidInputError(
                f"document {document.id!r} has a text and no vector, and {self._label} has no function of "
                "this package to embed it with; give the vector, or open the collection with an embedding function "
                "that has a model"
            )

    def _check_vector(self, document: Document) -> None:
        if document.vector is None:
            return
        length = len(as_vector(document.vector, f"the vector of document {document.id!r}"))
        if not self.dimension:
            self.dimension = length
        if length != self.dimension:
            raise DimensionMismatchError(
                f"document {document.id!r} has a vector of {length} dimensions, and {self._label} holds "
                f"{self.dimension}; make it with the collection's model, or leave it out and give the text",
                expected=self.dimension,
                actual=length,
            )


def split_documents(documents: Iterable[Document], size: ChunkSize) -> Iterator[list[Document]]:
    """Yield chunks of documents in order, each of about `CHUNK_CHARACTERS` characters at most.

    Args:
        documents: a sequence, or a stream of any length.
        size: may change meanwhile.
    Raises:
        InvalidInputError: an item is not a Document.
    """
    chunk: list[Document] = []
    characters = 0
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise InvalidInputError(f"document {index} is {type(document).__name__}, not a Document")
        chunk.append(document)
        characters += len(document.text) if isinstance(document.text, str) else 0
        if len(chunk) >= size.documents or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _check_id(index: int, document: object) -> None:
    if not isinstance(document, Document):
        raise InvalidInputError(f"document {index} is {type(document).__name__}, not a Document")
    if not isinstance(document.id, str) or not document.id:
        raise InvalidInputError(f"document {index} has the id {document.id!r}; an id must be a non-empty string")
    check_unicode(document.id, f"the id of document {index}")


def _check_repeated(index: int, document: Document, ids: set[str]) -> None:
    if document.id in ids:
        raise InvalidInputError(
            f"document {document.id!r} occurs twice in one upsert, the second time at "
            f"position {index}; keep only one of them"
        )
    ids.add(document.id)


def _check_metadata(document: Document) -> None:
    metadata = document.metadata
    if metadata is None:
        return
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
        raise InvalidInputError(f"the metadata of document {document.id!r} is not a mapping of strings to values")
