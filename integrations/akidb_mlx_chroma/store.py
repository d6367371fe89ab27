"""A Chroma collection to write documents to and read them from."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast
from uuid import UUID

import numpy as np
from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.errors import NotFoundError

from akidb_mlx_chroma.clients import AnyCollection, Wait, get_records, run_sync
from akidb_mlx_chroma.folder_locks import is_local, warn_of_other_writers
from akidb_mlx_chroma.function import MLXEmbeddingFunction
from akidb_mlx_chroma.metadata import has_sparse_vector, is_same_metadata, plain_metadata
from akidb_mlx_chroma.recovery import is_kept, read_pages, recover, taken_out
from akidb_mlx_chroma.stray_lists import clear_strays
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.stores.base import Source, Store, StoredDocument
from akidb_mlx_plugin.stores.compatibility import StoredVectors, check_compatible
from akidb_mlx_plugin.stores.split import PARENT
from akidb_mlx_plugin.types import Document, Vector

_PAGE = 1000
# The asynchronous client packs and unpacks requests on the event loop: 1024 rows took it 50 ms, these take 7.
_ASYNC_ROWS = 128
# How many times another process may write a text back while it is being removed.
_TRIES = 3
# A record's URI, which Chroma keeps among the metadata but shows elsewhere.
_URI_KEY = "chroma:uri"

# A write reads and writes. Asynchronous ones meanwhile wait for their event loop, which a synchronous one may be
# blocking: each kind has its own lock.
_write_locks: dict[tuple[UUID, bool], threading.Lock] = {}
os.register_at_fork(after_in_child=_write_locks.clear)


@dataclass(frozen=True)
class RecordDocument(Document):
    """A document with its URI, which only Chroma keeps.

    Attributes:
        uri: None if it has none.
    """

    uri: str | None = None


@dataclass(frozen=True)
class StoredRecord(StoredDocument):
    """A document as Chroma has it."""

    uri: str | None = None


def read_model(collection: AnyCollection, wait: Wait = run_sync) -> Any:
    """Read a collection's description from the database; the object may be out of date.

    Raises:
        NotFoundError: it is gone.
    """
    server = collection._client
    place = {"tenant": collection.tenant, "database": collection.database}
    # By name first: servers and clients before 1.5.7 support nothing else.
    try:
        model = wait(server.get_collection(name=collection.name, **place))
        if model.id == collection.id:
            return model
    except NotFoundError:
        pass
    # It was renamed since it was opened, or is gone.
    cause: Exception | None = None
    if hasattr(server, "get_collection_by_id"):
        try:
            return wait(server.get_collection_by_id(collection_id=collection.id, **place))
        except Exception as error:
            # An older server's error has neither a message nor its own type.
            if type(error) is not Exception:
                raise
            cause = error
    raise NotFoundError(
        f"collection {collection.name!r} no longer exists, or was renamed: get it again by its name "
        "(following a renamed collection needs Chroma 1.5.7 or later, client and server)"
    ) from cause


def read_stored_vectors(collection: AnyCollection, wait: Wait = run_sync) -> StoredVectors:
    """Return what the database now says about a collection's vectors.

    Raises:
        InvalidInputError: the stored settings cannot be read.
    """
    model = read_model(collection, wait)
    # A collection object does not show the dimension that its first write fixed; what it was made from does.
    stored = (model.configuration_json or {}).get("embedding_function") or {}
    is_ours = stored.get("name") == MLXEmbeddingFunction.name()
    settings = stored.get("config")
    if is_ours and not isinstance(settings, Mapping | None):
        raise InvalidInputError(f"collection {model.name!r} stores settings that are not a mapping: {settings!r:.80}")
    return StoredVectors(
        label=f"collection {model.name!r}",
        metadata=model.metadata or {},
        settings=settings or {} if is_ours else None,
        dimension=model.dimension or 0,
    )


def resolve_function(collection: AnyCollection, stored: StoredVectors) -> MLXEmbeddingFunction | None:
    """Return the function that a collection embeds with: its opener's, else the one it stores.

    Raises:
        InvalidInputError: the stored settings cannot be used.
    """
    own = collection._embedding_function
    if isinstance(own, MLXEmbeddingFunction):
        return own
    if stored.settings is None:
        return None
    return MLXEmbeddingFunction.build_from_config(cast("dict[str, Any]", stored.settings))


class ChromaStore(Store):
    """A collection to write documents to, with the synchronous or the asynchronous client."""

    def __init__(self, collection: AnyCollection, wait: Wait = run_sync) -> None:
        """Check that a collection fits its function, and restore what a dead process had removed.

        Nothing is embedded.

        Raises:
            DimensionMismatchError: the function does not fit the collection.
            InvalidInputError: the stored settings cannot be used.
        """
        stored = read_stored_vectors(collection, wait)
        function = resolve_function(collection, stored)
        self._collection = collection
        self._wait = wait
        self.label = stored.label
        self.service = function.service if function else None
        self.dimension = check_compatible(stored, self.service)
        limit = int(wait(collection._client.get_max_batch_size()))
        self.max_rows = limit if limit > 0 else _PAGE
        is_async = isinstance(collection, AsyncCollection)
        if is_async:
            self.max_rows = min(self.max_rows, _ASYNC_ROWS)
        self._lock = _write_locks.setdefault((collection.id, is_async), threading.Lock())
        warn_of_other_writers(collection)
        recover(collection, wait)

    def check_document(self, document: Document) -> None:
        """Raise InvalidInputError for what Chroma would reject, lose or change."""
        if is_kept(document.id):
            raise InvalidInputError(
                f"the id {document.id!r} is reserved by this package; give the document another one"
            )
        if has_sparse_vector(plain_metadata(document)) and is_local(self._collection):
            raise InvalidInputError(
                f"the metadata of document {document.id!r} cannot be stored: sparse vectors need Chroma Cloud; leave "
                "them out"
            )

    def has_metadata(self, stored: StoredDocument, document: Document) -> bool:
        """Return whether a document's metadata and URI equal what is stored; a null counts as absent."""
        has_uri = not isinstance(document, RecordDocument) or document.uri == getattr(stored, "uri", None)
        return has_uri and is_same_metadata(plain_metadata(document) or {}, stored.metadata)

    def count(self) -> int:
        """Return how many documents are in it."""
        return int(self._wait(self._collection.count()))

    def read(self, ids: Sequence[str]) -> dict[str, StoredDocument]:
        """Return the stored documents with these ids, by id."""
        size = min(_PAGE, self.max_rows or _PAGE)
        include: Any = ["documents", "metadatas", "embeddings", "uris"]
        pages = (
            get_records(self._collection, self._wait, ids=list(ids[start : start + size]), include=include)
            for start in range(0, len(ids), size)
        )
        return {
            id_: StoredRecord(text, np.asarray(vector, dtype=np.float32), metadata or {}, uri)
            for page in pages
            for id_, text, vector, metadata, uri in zip(
                page["ids"], page["documents"], page["embeddings"], page["metadatas"], page["uris"], strict=True
            )
        }

    def find_pieces(self, parents: Sequence[str]) -> dict[str, str]:
        """Return the stored pieces of documents: the parent of each, by its id."""
        where: Any = {PARENT: {"$in": list(parents)}}
        found = self._wait(self._collection.get(where=where, include=["metadatas"]))
        return {id_: metadata[PARENT] for id_, metadata in zip(found["ids"], found["metadatas"], strict=True)}

    def delete(self, ids: Sequence[str]) -> None:
        """Delete the documents with these ids."""
        size = self.max_rows or _PAGE
        with self._lock:
            for start in range(0, len(ids), size):
                self._wait(self._collection.delete(ids=list(ids[start : start + size])))

    def write(self, documents: Sequence[Document], vectors: Vector) -> None:
        """Insert documents, replacing those with the same ids; a URI is kept if none is given.

        Chroma's upsert merges: metadata keys that are not given stay, and so does a text. Setting a key to None removes
        it; a text is removed only with its record, which is then replaced.
        """
        documents = [replace(document, metadata=plain_metadata(document)) for document in documents]
        with self._lock:
            ids = [document.id for document in documents]
            found = self._wait(self._collection.get(ids=ids, include=["metadatas", "documents"]))
            with_text = {id_ for id_, text in zip(found["ids"], found["documents"], strict=True) if text is not None}
            metadata = dict(zip(found["ids"], found["metadatas"], strict=True))
            losing = [index for index, d in enumerate(documents) if d.text is None and d.id in with_text]
            others = sorted({*range(len(documents))} - {*losing})
            if others:
                self._upsert([documents[index] for index in others], vectors[others], metadata)
            if losing:
                self._add_without_text([documents[index] for index in losing], vectors[losing])
            new = [d for index, d in enumerate(documents) if d.id not in metadata or index in losing]
            if new:
                columns = ([d.id for d in new], [d.text for d in new], [d.metadata for d in new])
                clear_strays(self._collection, self._wait, *columns)

    def _upsert(self, documents: Sequence[Document], vectors: Vector, old: Mapping[str, Any]) -> None:
        columns: dict[str, list[Any]] = {
            "documents": [document.text for document in documents],
            "metadatas": [_replacing(document, old) for document in documents],
            "uris": [document.uri if isinstance(document, RecordDocument) else None for document in documents],
        }
        given = {key: column for key, column in columns.items() if any(value is not None for value in column)}
        self._wait(self._collection.upsert(ids=[d.id for d in documents], embeddings=list(vectors), **given))

    def _add_without_text(self, documents: Sequence[Document], vectors: Vector) -> None:
        """Replace records that have a text with others that have none.

        Raises:
            RuntimeError: another process keeps writing the text back.
        """
        ids = [document.id for document in documents]
        metadatas: list[Any] = [_without_nulls(document.metadata) for document in documents]
        for _ in range(_TRIES):
            with taken_out(self._collection, self._wait, ids) as uris:
                self._wait(
                    self._collection.add(
                        ids=ids,
                        embeddings=list(vectors),
                        metadatas=metadatas if any(metadatas) else None,
                        uris=cast("list[str]", uris) if any(uris) else None,
                    )
                )
            # Nothing was added if another process had restored the old one, or has written the id meanwhile.
            texts = self._wait(self._collection.get(ids=ids, include=["documents"]))["documents"]
            if all(text is None for text in texts):
                return
        raise RuntimeError(
            f"another process is writing a text to {ids[0]!r} or one of {len(ids) - 1} others of {self.label} at the "
            "same time; run this upsert again when it is done"
        )


class ChromaSource(Source):
    """A collection to read documents from."""

    def __init__(self, collection: AnyCollection, wait: Wait = run_sync) -> None:
        """Store the collection, and restore what a dead process had removed."""
        self.label = f"collection {collection.name!r}"
        self._collection = collection
        self._wait = wait
        recover(collection, wait)

    def count(self) -> int:
        """Return how many documents there are."""
        return int(self._wait(self._collection.count()))

    def find_without_text(self) -> str | None:
        """Return the id of a document that has no text, or None if all have one."""
        return next((document.id for document in self.read_all() if document.text is None), None)

    def read_all(self) -> Iterator[Document]:
        """Yield every document with text, metadata and URI, and without its vector, a page at a time."""
        for page in read_pages(self._collection, self._wait, ["documents", "metadatas", "uris"]):
            for id_, text, metadata, uri in zip(
                page["ids"], page["documents"], page["metadatas"], page["uris"], strict=True
            ):
                if not is_kept(id_):
                    yield RecordDocument(id_, text=text, metadata=metadata, uri=uri)


def _replacing(document: Document, old: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return metadata that removes every old key it does not set, or None if there is neither old nor new.

    Args:
        document: to be written, with plain metadata.
        old: metadata of the existing records, by id.
    """
    is_without_uri = isinstance(document, RecordDocument) and document.uri is None and document.id in old
    nulls = {**dict.fromkeys(old.get(document.id) or ()), **({_URI_KEY: None} if is_without_uri else {})}
    return {**nulls, **(document.metadata or {})} or None


def _without_nulls(metadata: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {key: value for key, value in (metadata or {}).items() if value is not None} or None
