"""Upserts: documents flow through generators in chunks, which are prepared, embedded and written.

One chunk is embedded while the previous one is written and the next is read and checked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence, Sized
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain

import numpy as np

from akidb_mlx_plugin.errors import DimensionMismatchError, EmbeddingError, InvalidInputError
from akidb_mlx_plugin.stores.base import Store, StoredDocument, known_vector
from akidb_mlx_plugin.stores.documents import ChunkSize, DocumentCheck, split_documents
from akidb_mlx_plugin.stores.outcome import Chunk, Outcome
from akidb_mlx_plugin.stores.rows import Rows
from akidb_mlx_plugin.stores.split import Split, Splitting
from akidb_mlx_plugin.types import BatchEmbeddingResponse, Document, UpsertResponse, Vector


@dataclass(frozen=True)
class _Batch:
    """The part of a chunk to write.

    Attributes:
        chunk: the chunk it was taken from.
        documents: in order.
        vectors: each document's vector; None if it is to be embedded.
    """

    chunk: Chunk
    documents: list[Document]
    vectors: list[Vector | None]

    @property
    def missing(self) -> list[int]:
        """Positions of the documents to embed."""
        return [index for index, vector in enumerate(self.vectors) if vector is None]

    def fill(self, embedded: Vector | None, dimension: int) -> Vector:
        """Return (N, D) float32: given and embedded vectors, in document order."""
        if embedded is not None:
            dimension = dimension or embedded.shape[1]
            if embedded.shape[1] != dimension:
                raise DimensionMismatchError(expected=dimension, actual=embedded.shape[1])
        rows = np.empty((len(self.documents), dimension), dtype=np.float32)
        for index, vector in enumerate(self.vectors):
            if vector is not None:
                rows[index] = vector
        if embedded is not None:
            rows[self.missing] = embedded
        return rows


class Upsert:
    """One upsert: made and run once; another thread may cancel it.

    Documents in a sequence are all checked before the first one is embedded. A stream, which may be larger than memory,
    is checked chunk by chunk, each before any of it is embedded; earlier chunks are then in the collection. A repeated
    id is rejected, in a stream only within one chunk; otherwise the later document replaces the earlier one.
    """

    def __init__(
        self,
        store: Store,
        documents: Iterable[Document],
        *,
        show_progress: bool = False,
        batch_size: int | None = None,
        skip_unchanged: bool = False,
        split: Split = None,
        total: int | None = None,
    ) -> None:
        """Prepare an upsert; nothing is read yet.

        Args:
            store: where the documents go.
            documents: a sequence, or a stream of any length, or the rows of whatever the caller has.
            show_progress: draw a bar.
            batch_size: documents embedded and written together. Defaults to what the model embeds in ten seconds.
            skip_unchanged: do not embed stored texts again, nor write documents that are stored unchanged.
            split: whether and how to write documents as pieces, and remove what an earlier version has left.
            total: how many documents a stream will have, for the bar.
        Raises:
            InvalidInputError: an unusable argument.
        """
        if isinstance(documents, Document | str | bytes) or not isinstance(documents, Iterable):
            raise InvalidInputError(f"documents must be a list or stream of Document, got {type(documents).__name__}")
        if batch_size is not None and (
            not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1
        ):
            raise InvalidInputError(f"batch_size must be a positive integer, got {batch_size!r}")
        self._store = store
        self._documents = documents
        self._splitting = None if split is None else Splitting(store, split)
        self._is_in_memory = documents.in_memory if isinstance(documents, Rows) else isinstance(documents, Sequence)
        self._show_progress = show_progress
        self._total = len(documents) if isinstance(documents, Sized) else total
        if isinstance(documents, Rows):
            self._total = documents.total
        if split:
            # Known once everything is split.
            self._total = None
        self._size = ChunkSize(batch_size)
        self._skip_unchanged = skip_unchanged
        self._check = DocumentCheck(
            store.label, store.dimension, can_embed=store.can_embed, check_host=store.check_document
        )
        self._outcome = Outcome(store.label, documents if self._is_in_memory else None)
        self._cancelled = threading.Event()
        self._embedding: Future[BatchEmbeddingResponse] | None = None

    def run(self) -> UpsertResponse:
        """Run the upsert.

        Raises:
            InvalidInputError, DimensionMismatchError: a document cannot be used; nothing was written.
            UpsertError: it ended midway; it says what was written.
        """
        begun = time.perf_counter()
        given = self._documents
        if self._splitting is not None:
            self._documents = self._splitting.split(given, self._check)
        if self._is_in_memory:
            if self._splitting is not None:
                self._documents = list(self._documents)
                self._total = len(self._documents)
                self._outcome = Outcome(self._store.label, self._documents)
            self._check.check(self._documents)
            self._check_lengths(self._documents)
        try:
            with ExitStack() as stack:
                if self._show_progress:
                    from akidb_mlx_plugin.progress import progress_bar

                    self._outcome.advance = stack.enter_context(progress_bar(self._store.label, self._total))
                # Exits after the current write, whatever happens.
                writer = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="akidb-mlx-writer"))
                batches = stack.enter_context(closing(self._embed(self._prepare(self._take_chunks()))))
                self._write(batches, writer)
                if isinstance(given, Rows):
                    self._outcome.add_repeated(given.repeated)
        except Exception as error:
            is_plain = isinstance(error, EmbeddingError) and not isinstance(error, _CancelledUpsertError)
            if is_plain and self._outcome.is_empty:
                raise
            raise self._outcome.to_error(error) from error
        return self._outcome.to_response((time.perf_counter() - begun) * 1e3)

    def cancel(self) -> None:
        """Make `run` end with an UpsertError after the current write; any thread may call.

        If that was the last write, everything is in, and `run` returns as usual.
        """
        self._cancelled.set()
        embedding = self._embedding
        if embedding is not None:
            embedding.cancel()

    def _take_chunks(self) -> Iterator[Chunk]:
        for documents in split_documents(self._documents, self._size):
            chunk = self._outcome.open(documents)
            self._raise_if_cancelled()
            yield chunk

    def _prepare(self, chunks: Iterable[Chunk]) -> Iterator[_Batch]:
        """Check each chunk, drop documents that need no write, and determine which vectors are missing."""
        for chunk in chunks:
            if not self._is_in_memory:
                self._check.check(chunk.documents)
                self._check_lengths(chunk.documents)
            stored = self._read_stored(chunk) if self._skip_unchanged else {}
            batch = _Batch(chunk, [], [])
            for document in chunk.documents:
                old = stored.get(document.id)
                vector = known_vector(document, old)
                if old is not None and vector is not None and self._store.is_unchanged(old, document, vector):
                    self._outcome.add_skipped(chunk, document)
                else:
                    batch.documents.append(document)
                    batch.vectors.append(vector)
            yield batch

    def _check_lengths(self, documents: Iterable[Document]) -> None:
        """Raise InvalidInputError for a text that the model would cut, if the configuration refuses those."""
        if self._store.service is None:
            return
        texts = {d.id: d.text for d in documents if d.text is not None and d.vector is None}
        self._store.service.check_lengths(list(texts.values()), [f"the text of document {id_!r}" for id_ in texts])

    def _read_stored(self, chunk: Chunk) -> dict[str, StoredDocument]:
        """Return what is stored, except what an earlier chunk is about to replace."""
        coming = self._outcome.list_before(chunk)
        return self._store.read([document.id for document in chunk.documents if document.id not in coming])

    def _embed(self, batches: Iterable[_Batch]) -> Generator[tuple[_Batch, Vector]]:
        """Yield each batch with all its vectors; the next one is prepared while the model works on it."""
        at_model: _Batch | None = None
        try:
            for batch in chain(batches, [None]):
                ready = None if at_model is None else (at_model, self._collect(at_model))
                at_model = batch
                self._embedding = None if batch is None else self._submit(batch)
                # `cancel` may have looked for it a moment too early.
                self._raise_if_cancelled()
                if ready is not None:
                    yield ready
        finally:
            if self._embedding is not None:
                self._embedding.cancel()

    def _submit(self, batch: _Batch) -> Future[BatchEmbeddingResponse] | None:
        """Send the texts that lack a vector to the model; None if there are none."""
        texts = [batch.documents[index].text or "" for index in batch.missing]
        service = self._store.service
        # A bulk load can wait for room in the queue; a search could not.
        return service.submit_when_room(texts, bulk=True) if texts and service is not None else None

    def _collect(self, batch: _Batch) -> Vector:
        """Wait for the vectors of the batch being embedded; return them with those that were given."""
        if self._embedding is None:
            return batch.fill(None, self._check.dimension)
        try:
            response = self._embedding.result()
        except CancelledError:
            self._raise_if_cancelled()
            raise
        self._outcome.add_embedded(len(response.embeddings), response.usage)
        self._size.adapt(len(response.embeddings), response.usage.duration_ms / 1e3)
        return batch.fill(response.embeddings, self._check.dimension)

    def _write(self, batches: Iterable[tuple[_Batch, Vector]], writer: ThreadPoolExecutor) -> None:
        """Write batches one by one, each while the next is embedded."""
        writing: Future[None] | None = None
        for batch, rows in batches:
            if writing is not None:
                writing.result()
                self._outcome.close()
            # Checked last: a write takes long, and `cancel` may have been called meanwhile.
            self._raise_if_cancelled()
            writing = writer.submit(self._write_batch, batch, rows)
        if writing is not None:
            writing.result()

    def _write_batch(self, batch: _Batch, rows: Vector) -> None:
        """Write one batch, on the writer's thread."""
        size = self._store.max_rows or max(1, len(rows))
        for start in range(0, len(rows), size):
            part = batch.documents[start : start + size]
            self._store.write(part, rows[start : start + size])
            self._outcome.add_written(batch.chunk, part)
        if self._splitting is not None:
            self._splitting.remove_left_over(batch.chunk.documents)

    def _raise_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise _CancelledUpsertError("the upsert was cancelled")


class _CancelledUpsertError(EmbeddingError):
    """`cancel` was called."""
