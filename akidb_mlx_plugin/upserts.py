"""Upserts: one chunk is embedded while the one before is written and the next is read and checked."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from akidb_mlx_plugin.batching import QueueFullError
from akidb_mlx_plugin.collections import StoredDocument, Target
from akidb_mlx_plugin.documents import DocumentCheck, split_documents
from akidb_mlx_plugin.errors import DimensionMismatchError, EmbeddingError, InvalidInputError, UpsertError
from akidb_mlx_plugin.spaces import as_vector
from akidb_mlx_plugin.types import BatchEmbeddingResponse, Document, UpsertResponse, Vector

# Chunks of about this long: the bar moves, and a process that is killed loses little. Up to so many documents, which is
# enough that texts of one length meet and a write is worth its commit; the first chunk tells how fast the model is.
_CHUNK_S = 10.0
_FIRST_CHUNK, _SMALLEST_CHUNK, LARGEST_CHUNK = 256, 32, 1024
# Written ids that are remembered of a stream, which cannot be asked for them again.
_REMEMBERED = 10_000
_FULL_QUEUE_WAIT_S = 0.1


@dataclass(frozen=True)
class _Batch:
    """What of a chunk is to be written.

    Attributes:
        documents: in order.
        known: vectors that need no embedding, by position.
        missing: positions of the others.
        embedding: their vectors, under way; None: none is missing.
    """

    documents: list[Document]
    known: dict[int, Vector]
    missing: list[int]
    embedding: Future[BatchEmbeddingResponse] | None = None


class Upsert:
    """One upsert: made, run once, and meanwhile cancelled by another thread if need be.

    Documents in a sequence are all checked before the first one is embedded. A stream, which may be longer than memory,
    is checked chunk by chunk, each before any of it is embedded; the chunks before it are in the collection then. An id
    that occurs twice is refused, in a stream within one chunk; otherwise the later document takes the earlier's place.
    """

    def __init__(
        self,
        target: Target,
        documents: Iterable[Document],
        *,
        show_progress: bool = False,
        batch_size: int | None = None,
        skip_unchanged: bool = False,
        total: int | None = None,
    ) -> None:
        """Note what is to be done; nothing is read yet.

        Args:
            target: where the documents go.
            documents: a sequence, or a stream of any length.
            show_progress: draw a bar.
            batch_size: documents embedded and written together; None: what the model embeds in ten seconds.
            skip_unchanged: embed no text that is stored already, and write no document that is stored as it is.
            total: how many documents a stream will have, for the bar.
        Raises:
            InvalidInputError: an argument that cannot be used.
        """
        if isinstance(documents, Document | str | bytes) or not isinstance(documents, Iterable):
            raise InvalidInputError(f"documents must be a list or stream of Document, got {type(documents).__name__}")
        if batch_size is not None and (
            not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1
        ):
            raise InvalidInputError(f"batch_size must be a positive whole number, got {batch_size!r}")
        self._target = target
        self._documents = documents
        self._is_stream = not isinstance(documents, Sequence)
        self._show_progress = show_progress
        self._total = len(documents) if isinstance(documents, Sized) else total
        self._size = batch_size or _FIRST_CHUNK
        self._is_size_given = batch_size is not None
        self._skip_unchanged = skip_unchanged
        self._check = DocumentCheck(
            target.label, target.dimension, can_embed=target.can_embed, check_host=target.check_document
        )
        self._cancelled = threading.Event()
        self._advance: Callable[[int], None] = _advance_nothing
        # Taken and neither written nor skipped, the embedding under way, and the write under way.
        self._open: deque[list[Document]] = deque()
        self._batch: _Batch | None = None
        self._writing: Future[None] | None = None
        self._done: deque[str] = deque(maxlen=_REMEMBERED if self._is_stream else None)
        self._inserted = self._skipped = self._embedded = self._tokens = self._truncated = 0

    def run(self) -> UpsertResponse:
        """Do it.

        Raises:
            InvalidInputError, DimensionMismatchError: a document cannot be used; nothing was written.
            UpsertError: it ended midway; it says what is written.
        """
        begun = time.perf_counter()
        if isinstance(self._documents, Sequence):
            self._check.check(self._documents)
        with ExitStack() as stack:
            if self._show_progress:
                from akidb_mlx_plugin.progress import progress_bar

                self._advance = stack.enter_context(progress_bar(self._target.label, self._total))
            writer = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="akidb-mlx-writer"))
            try:
                self._run_chunks(writer)
            except Exception as error:
                self._withdraw()
                if isinstance(error, EmbeddingError) and not self._done:
                    raise
                raise self._explain(error) from error
            except BaseException:
                self._withdraw()
                raise
        duration_ms = (time.perf_counter() - begun) * 1e3
        return UpsertResponse(
            self._inserted, self._embedded, self._tokens, duration_ms, skipped=self._skipped, truncated=self._truncated
        )

    def cancel(self) -> None:
        """Make `run` end with an error after the write that is under way; any thread may call."""
        self._cancelled.set()
        batch = self._batch
        if batch is not None and batch.embedding is not None:
            batch.embedding.cancel()

    def _run_chunks(self, writer: ThreadPoolExecutor) -> None:
        for chunk in split_documents(self._documents, lambda: self._size):
            self._open.append(chunk)
            self._refuse_cancelled()
            # Read and checked while the batch before is embedded.
            batch = self._prepare(chunk)
            self._finish(writer)
            self._batch = self._start(batch)
        self._finish(writer)
        self._wait_for_write()

    def _prepare(self, chunk: list[Document]) -> _Batch:
        """Check a chunk, leave out what need not be written, and find out which vectors are missing."""
        if self._is_stream:
            self._check.check(chunk)
        stored = self._read(chunk) if self._skip_unchanged else {}
        documents: list[Document] = []
        known: dict[int, Vector] = {}
        for document in chunk:
            old = stored.get(document.id)
            vector = _known_vector(document, old)
            if old is not None and vector is not None and self._is_unchanged(document, vector, old):
                self._leave(document)
                continue
            if vector is not None:
                known[len(documents)] = vector
            documents.append(document)
        return _Batch(documents, known, [index for index in range(len(documents)) if index not in known])

    def _read(self, chunk: list[Document]) -> dict[str, StoredDocument]:
        """Return what is stored, less what a chunk before this one is about to replace."""
        coming = {document.id for part in self._open if part is not chunk for document in part}
        return self._target.read([document.id for document in chunk if document.id not in coming])

    def _is_unchanged(self, document: Document, vector: Vector, old: StoredDocument) -> bool:
        return (
            document.text == old.text
            and old.vector is not None
            and _is_same(vector, old.vector)
            and self._target.has_metadata(old, document)
        )

    def _leave(self, document: Document) -> None:
        self._skipped += 1
        self._done.append(document.id)
        self._advance(1)

    def _start(self, batch: _Batch) -> _Batch:
        """Send the texts that lack a vector to the model."""
        if not batch.missing:
            return batch
        texts = [batch.documents[index].text or "" for index in batch.missing]
        return _Batch(batch.documents, batch.known, batch.missing, self._submit(texts))

    def _submit(self, texts: list[str]) -> Future[BatchEmbeddingResponse]:
        service = self._target.service
        assert service is not None
        while True:
            self._refuse_cancelled()
            try:
                return service.submit(texts)
            except QueueFullError:
                # Other callers' texts; a bulk load can wait where a search could not.
                time.sleep(_FULL_QUEUE_WAIT_S)

    def _finish(self, writer: ThreadPoolExecutor) -> None:
        """Wait for the batch that is being embedded and hand it to the writer."""
        batch, vectors = self._batch, None
        if batch is None:
            return
        if batch.embedding is not None:
            response = batch.embedding.result()
            vectors = response.embeddings
            self._embedded += len(batch.missing)
            self._tokens += response.usage.total_tokens
            self._truncated += response.usage.truncated
            self._adapt_size(len(batch.missing), response.usage.duration_ms / 1e3)
        rows = self._fill(batch, vectors)
        self._batch = None
        self._wait_for_write()
        self._writing = writer.submit(self._write, batch.documents, rows)

    def _adapt_size(self, texts: int, seconds: float) -> None:
        if not self._is_size_given:
            size = LARGEST_CHUNK if seconds <= 0 else round(texts / seconds * _CHUNK_S)
            self._size = max(_SMALLEST_CHUNK, min(size, LARGEST_CHUNK))

    def _fill(self, batch: _Batch, embedded: Vector | None) -> Vector:
        """Return (N, D) float32: vectors given and vectors made, in the order of the documents."""
        dimension = self._check.dimension
        if embedded is not None:
            dimension = dimension or embedded.shape[1]
            if embedded.shape[1] != dimension:
                raise DimensionMismatchError(expected=dimension, actual=embedded.shape[1])
        rows = np.empty((len(batch.documents), dimension), dtype=np.float32)
        for index, vector in batch.known.items():
            rows[index] = vector
        if embedded is not None:
            rows[batch.missing] = embedded
        return rows

    def _write(self, documents: list[Document], rows: Vector) -> None:
        """Runs on the writer's thread."""
        size = self._target.max_rows or max(1, len(documents))
        for start in range(0, len(documents), size):
            part = documents[start : start + size]
            self._target.write(part, rows[start : start + size])
            self._inserted += len(part)
            self._done.extend(document.id for document in part)
            self._advance(len(part))

    def _wait_for_write(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None
            self._open.popleft()

    def _refuse_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise EmbeddingError("the upsert was cancelled")

    def _withdraw(self) -> None:
        """Drop what waits for the model, and let the write that is under way end."""
        if self._batch is not None and self._batch.embedding is not None:
            self._batch.embedding.cancel()
        if self._writing is not None:
            wait([self._writing])

    def _explain(self, error: Exception) -> UpsertError:
        done = set(self._done)
        taken = self._documents if isinstance(self._documents, Sequence) else [d for part in self._open for d in part]
        left = [document.id for document in taken if document.id not in done]
        count = self._inserted + self._skipped
        return UpsertError(
            f"the upsert into {self._target.label} ended midway: {count} documents are in, "
            f"{f'{len(left)} are not' if not self._is_stream else 'those after them are not'}"
            f"{f', from {left[0]!r} on' if left else ''}: {error}. "
            "Run it again; skip_unchanged=True embeds only what is missing",
            written=list(self._done),
            not_written=left,
            written_count=count,
        )


def _known_vector(document: Document, old: StoredDocument | None) -> Vector | None:
    """Return the vector that a document brings, or the one that is stored for its text."""
    if document.vector is not None:
        return as_vector(document.vector, f"the vector of document {document.id!r}")
    if old is not None and old.text == document.text:
        return old.vector
    return None


def _advance_nothing(count: int) -> None:
    """No bar is drawn."""


def _is_same(vector: Vector, stored: Vector) -> bool:
    """Tell whether a vector is the stored one; Chroma scales those of a cosine collection down and up again."""
    if vector is stored:
        return True
    return vector.shape == stored.shape and bool(np.abs(vector - stored).max() <= 1e-6 * np.linalg.norm(vector))
