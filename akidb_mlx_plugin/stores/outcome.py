"""What an upsert has done so far: counts for its response, ids for its error."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from akidb_mlx_plugin.errors import UpsertError
from akidb_mlx_plugin.types import Document, UpsertResponse, Usage

# Most written ids remembered of a stream, which cannot be read again.
_REMEMBERED = 10_000


@dataclass(frozen=True)
class Chunk:
    """Documents taken together, and the ids of those that are in the database by now."""

    documents: list[Document]
    done: set[str] = field(default_factory=set)


class Outcome:
    """Counts and ids of one upsert. One thread reads and embeds, another writes; each changes its own fields.

    Attributes:
        advance: moves the progress bar by a number of documents.
        inserted: documents written.
        skipped: documents already stored unchanged.
    """

    def __init__(self, label: str, documents: Iterable[Document] | None) -> None:
        """Start empty.

        Args:
            label: the collection, as messages call it: "collection 'docs'".
            documents: what to write; None for a stream, of which only what was taken from it is known.
        """
        self.advance: Callable[[int], None] = lambda count: None
        self.inserted = self.skipped = self._repeated = 0
        self._label = label
        self._given = documents
        self._embedded = self._tokens = self._truncated = 0
        # Taken, and not yet entirely written or skipped.
        self._open: deque[Chunk] = deque()
        self._done: deque[str] = deque(maxlen=_REMEMBERED if self._given is None else None)

    @property
    def is_empty(self) -> bool:
        """Whether no document is in the database yet."""
        return not self._done

    def open(self, documents: list[Document]) -> Chunk:
        """Record documents that were taken."""
        chunk = Chunk(documents)
        self._open.append(chunk)
        return chunk

    def close(self) -> None:
        """Forget the oldest chunk: it was written."""
        self._open.popleft()

    def list_before(self, chunk: Chunk) -> set[str]:
        """Return the ids of documents that will be written before a chunk."""
        return {document.id for other in self._open if other is not chunk for document in other.documents}

    def add_embedded(self, texts: int, usage: Usage) -> None:
        """Count texts that the model embedded."""
        self._embedded += texts
        self._tokens += usage.total_tokens
        self._truncated += usage.truncated

    def add_skipped(self, chunk: Chunk, document: Document) -> None:
        """Record a document that is stored already."""
        self.skipped += 1
        self._note(chunk, [document])

    def add_written(self, chunk: Chunk, documents: Sequence[Document]) -> None:
        """Record documents that were written."""
        self.inserted += len(documents)
        self._note(chunk, documents)

    def add_repeated(self, rows: int) -> None:
        """Count rows whose content an earlier row has, and which are the same document."""
        self._repeated += rows
        self.advance(rows)

    def to_response(self, duration_ms: float) -> UpsertResponse:
        """Return the counts."""
        return UpsertResponse(
            self.inserted,
            self._embedded,
            self._tokens,
            duration_ms,
            skipped=self.skipped,
            truncated=self._truncated,
            repeated=self._repeated,
        )

    def to_error(self, cause: Exception) -> UpsertError:
        """Return an error that says which documents are in, which are not, and why."""
        left = self._list_left()
        late = set(left)
        count = self.inserted + self.skipped
        missing = f"{len(left)} are not" if self._given is not None else "those after them are not"
        return UpsertError(
            f"the upsert into {self._label} ended midway: {count} documents are in, {missing}"
            f"{f', from {left[0]!r} on' if left else ''}: {cause}. "
            "Running it again is safe; skip_unchanged=True embeds only what is missing",
            written=[id_ for id_ in self._done if id_ not in late],
            not_written=left,
            written_count=count,
        )

    def _note(self, chunk: Chunk, documents: Sequence[Document]) -> None:
        ids = [document.id for document in documents]
        self._done.extend(ids)
        chunk.done.update(ids)
        self.advance(len(ids))

    def _list_left(self) -> list[str]:
        """Return the ids of documents that are not in; of a stream, only of those taken from it."""
        if self._given is not None:
            done = set(self._done)
            return [document.id for document in self._given if document.id not in done]
        return [document.id for chunk in self._open for document in chunk.documents if document.id not in chunk.done]
