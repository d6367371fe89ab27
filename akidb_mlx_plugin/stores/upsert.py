"""Upserts: one chunk is embedded while the one before is written and the next is read and checked."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence, Sized
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from akidb_mlx_plugin.batching.queue import QueueFullError
from akidb_mlx_plugin.errors import DimensionMismatchError, EmbeddingError, InvalidInputError, UpsertError
from akidb_mlx_plugin.stores.base import StoredDocument, Target, known_vector
from akidb_mlx_plugin.stores.documents import DocumentCheck, split_documents
from akidb_mlx_plugin.types import BatchEmbeddingResponse, Document, UpsertResponse, Vector

# Chunks of about this long: the bar moves, and a process that is killed loses little. Up to so many documents, which is
# enough that texts of one length meet and a write is worth its commit; the first chunk tells how fast the model is.
_CHUNK_S = 10.0
_FIRST_CHUNK, _SMALLEST_CHUNK, LARGEST_CHUNK = 256, 32, 1024
# Written ids that are remembered of a stream, which cannot be asked for them again.
_REMEMBERED = 10_000
_FULL_QUEUE_WAIT_S = 0.1


@dataclass(frozen=True)
class _Chunk:
    """Documents that were taken together, and the ids of those that are in by now."""

    documents: list[Document]
    done: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Batch:
    """What of a chunk is to be written.

    Attributes:
        chunk: it.
        documents: in order.
        known: vectors that need no embedding, by position.
        missing: positions of the others.
        embedding: their vectors, under way; None: none is missing.
    """

    chunk: _Chunk
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
        self._open: deque[_Chunk] = deque()
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
                is_plain = isinstance(error, EmbeddingError) and not isinstance(error, _CancelledUpsertError)
                if is_plain and not self._done:
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
        """Make `run` end with an UpsertError after the write that is under way; any thread may call.

        If that was the last write, everything is in, and `run` ends as ever.
        """
        self._cancelled.set()
        batch = self._batch
        if batch is not None and batch.embedding is not None:
            batch.embedding.cancel()

    def _run_chunks(self, writer: ThreadPoolExecutor) -> None:
        for documents in split_documents(self._documents, lambda: self._size):
            chunk = _Chunk(documents)
            self._open.append(chunk)
            self._refuse_cancelled()
            # Read and checked while the batch before is embedded.
            batch = self._prepare(chunk)
            self._finish(writer)
            self._batch = self._start(batch)
            # `cancel` may have looked for it a moment too early.
            self._refuse_cancelled()
        self._finish(writer)
        self._wait_for_write()

    def _prepare(self, chunk: _Chunk) -> _Batch:
        """Check a chunk, leave out what need not be written, and find out which vectors are missing."""
        if self._is_stream:
            self._check.check(chunk.documents)
        stored = self._read(chunk) if self._skip_unchanged else {}
        documents: list[Document] = []
        known: dict[int, Vector] = {}
        for document in chunk.documents:
            old = stored.get(document.id)
            vector = known_vector(document, old)
            if old is not None and vector is not None and self._target.is_unchanged(old, document, vector):
                self._leave(chunk, document)
                continue
            if vector is not None:
                known[len(documents)] = vector
            documents.append(document)
        return _Batch(chunk, documents, known, [index for index in range(len(documents)) if index not in known])

    def _read(self, chunk: _Chunk) -> dict[str, StoredDocument]:
        """Return what is stored, less what a chunk before this one is about to replace."""
        coming = {document.id for part in self._open if part is not chunk for document in part.documents}
        return self._target.read([document.id for document in chunk.documents if document.id not in coming])

    def _leave(self, chunk: _Chunk, document: Document) -> None:
        self._skipped += 1
        self._done.append(document.id)
        chunk.done.add(document.id)
        self._advance(1)

    def _start(self, batch: _Batch) -> _Batch:
        """Send the texts that lack a vector to the model."""
        if not batch.missing:
            return batch
        texts = [batch.documents[index].text or "" for index in batch.missing]
        return replace(batch, embedding=self._submit(texts))

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
            response = self._wait_for(batch.embedding)
            vectors = response.embeddings
            self._embedded += len(batch.missing)
            self._tokens += response.usage.total_tokens
            self._truncated += response.usage.truncated
            self._adapt_size(len(batch.missing), response.usage.duration_ms / 1e3)
        rows = self._fill(batch, vectors)
        self._wait_for_write()
        # Asked last: a write takes long, and a cancel may have come meanwhile.
        self._refuse_cancelled()
        self._batch = None
        # Without the batch, which holds the answer of the model too: that is copied into the rows by now.
        self._writing = writer.submit(self._write, batch.chunk, batch.documents, rows)

    def _wait_for(self, embedding: Future[BatchEmbeddingResponse]) -> BatchEmbeddingResponse:
        try:
            return embedding.result()
        except CancelledError:
            self._refuse_cancelled()
            raise

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

    def _write(self, chunk: _Chunk, documents: list[Document], rows: Vector) -> None:
        """Runs on the writer's thread."""
        size = self._target.max_rows or max(1, len(documents))
        for start in range(0, len(documents), size):
            part = documents[start : start + size]
            self._target.write(part, rows[start : start + size])
            self._inserted += len(part)
            ids = [document.id for document in part]
            self._done.extend(ids)
            chunk.done.update(ids)
            self._advance(len(part))

    def _wait_for_write(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None
            self._open.popleft()

    def _refuse_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise _CancelledUpsertError("the upsert was cancelled")

    def _withdraw(self) -> None:
        """Drop what waits for the model, and let the write that is under way end."""
        if self._batch is not None and self._batch.embedding is not None:
            self._batch.embedding.cancel()
        if self._writing is not None:
            wait([self._writing])

    def _list_left(self) -> list[str]:
        """Return the ids of the documents that are not in; of a stream, of those that were taken from it."""
        if isinstance(self._documents, Sequence):
            done = set(self._done)
            return [document.id for document in self._documents if document.id not in done]
        return [document.id for chunk in self._open for document in chunk.documents if document.id not in chunk.done]

    def _explain(self, error: Exception) -> UpsertError:
        left = self._list_left()
        late = set(left)
        count = self._inserted + self._skipped
        return UpsertError(
            f"the upsert into {self._target.label} ended midway: {count} documents are in, "
            f"{f'{len(left)} are not' if not self._is_stream else 'those after them are not'}"
            f"{f', from {left[0]!r} on' if left else ''}: {error}. "
            "Running it again is safe; skip_unchanged=True embeds only what is missing",
            written=[id_ for id_ in self._done if id_ not in late],
            not_written=left,
            written_count=count,
        )


class _CancelledUpsertError(EmbeddingError):
    """Somebody has called `cancel`."""


def _advance_nothing(count: int) -> None:
    """No bar is drawn."""
