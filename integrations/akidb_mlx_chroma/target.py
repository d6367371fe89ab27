"""A Chroma collection as documents are written to it and read from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import numpy as np
from chromadb.api.models.AsyncCollection import AsyncCollection
from chromadb.api.models.Collection import Collection

from akidb_mlx_chroma.function import MLXEmbeddingFunction
from akidb_mlx_chroma.metadata import check_metadata, plain_metadata
from akidb_mlx_plugin.collections import Source, StoredDocument, Target
from akidb_mlx_plugin.spaces import StoredSpace, check_space
from akidb_mlx_plugin.types import Document, Vector

AnyCollection: TypeAlias = "Collection | AsyncCollection"
# Gives the result of a host's call: the thing itself, or what its coroutine returns on the caller's event loop.
Wait: TypeAlias = "Callable[[Any], Any]"

_PAGE = 1000
# The asynchronous client packs and unpacks requests on the event loop: 1024 rows took it 50 ms, these take 7.
_ASYNC_ROWS = 128


def take(result: Any) -> Any:
    """Return what a synchronous call gave: it is there already."""
    return result


def read_space(collection: AnyCollection, wait: Wait = take) -> StoredSpace:
    """Ask the database what it says of a collection now; the object at hand may be older."""
    # A collection object does not show the dimension that its first write has fixed; what it was made from does.
    server = collection._client
    model = wait(
        server.get_collection_by_id(collection_id=collection.id, tenant=collection.tenant, database=collection.database)
    )
    stored = (model.configuration_json or {}).get("embedding_function") or {}
    is_ours = stored.get("name") == MLXEmbeddingFunction.name()
    return StoredSpace(
        label=f"collection {model.name!r}",
        metadata=model.metadata or {},
        settings=stored.get("config") or {} if is_ours else None,
        dimension=model.dimension or 0,
    )


def function_at_hand(collection: AnyCollection, stored: StoredSpace) -> MLXEmbeddingFunction | None:
    """Return the function that a collection embeds with: its opener's, else the one it stores.

    Raises:
        InvalidInputError: the stored settings cannot be used.
    """
    own = collection._embedding_function
    if isinstance(own, MLXEmbeddingFunction):
        return own
    if stored.settings is None:
        return None
    return MLXEmbeddingFunction.build_from_config(dict(stored.settings))


class ChromaTarget(Target):
    """A collection that documents are written to, by the synchronous client or the asynchronous one."""

    def __init__(self, collection: AnyCollection, wait: Wait = take) -> None:
        """Hold the collection against its function; nothing is embedded.

        Raises:
            DimensionMismatchError: the function does not fit the collection.
            InvalidInputError: the stored settings cannot be used.
        """
        stored = read_space(collection, wait)
        function = function_at_hand(collection, stored)
        self._collection = collection
        self._wait = wait
        self.label = stored.label
        self.service = function.service if function else None
        self.dimension = check_space(stored, self.service)
        limit = int(wait(collection._client.get_max_batch_size()))
        self.max_rows = limit if limit > 0 else _PAGE
        if isinstance(collection, AsyncCollection):
            self.max_rows = min(self.max_rows, _ASYNC_ROWS)

    def check_document(self, document: Document) -> None:
        """Raise InvalidInputError for metadata that Chroma would refuse, lose or change."""
        check_metadata(document)

    def count(self) -> int:
        """Return how many documents are in it."""
        return int(self._wait(self._collection.count()))

    def read(self, ids: Sequence[str]) -> dict[str, StoredDocument]:
        """Return what is stored of these documents, by id."""
        size = min(_PAGE, self.max_rows or _PAGE)
        return {
            id_: StoredDocument(text, np.asarray(vector, dtype=np.float32), metadata or {})
            for start in range(0, len(ids), size)
            for id_, text, metadata, vector in self._read(ids[start : start + size])
        }

    def write(self, documents: Sequence[Document], vectors: Vector) -> None:
        """Put documents in the place of what their ids have there now, or beside it.

        Chroma's upsert merges: metadata keys that are not given stay, and so does a text. A key goes by being None; a
        text goes with its record alone, which is taken out right before, and put back if the write fails.
        """
        ids = [document.id for document in documents]
        texts = [document.text for document in documents]
        found = self._wait(self._collection.get(ids=ids, include=["metadatas", "documents"]))
        old_texts = dict(zip(found["ids"], found["documents"], strict=True))
        old_metadata = dict(zip(found["ids"], found["metadatas"], strict=True))
        metadatas = [_replacing(document, old_metadata.get(document.id)) for document in documents]
        with self._taken_out([d.id for d in documents if d.text is None and old_texts.get(d.id) is not None]):
            self._wait(
                self._collection.upsert(
                    ids=ids,
                    embeddings=list(vectors),
                    documents=cast("list[str]", texts) if any(text is not None for text in texts) else None,
                    metadatas=cast(Any, metadatas) if any(metadatas) else None,
                )
            )

    @contextmanager
    def _taken_out(self, ids: list[str]) -> Iterator[None]:
        """Delete records for what comes in their place; if that fails, they are what they were.

        Raises:
            RuntimeError: it failed, and they could not be put back.
        """
        if not ids:
            yield
            return
        kept = self._wait(self._collection.get(ids=ids, include=["documents", "metadatas", "embeddings", "uris"]))
        try:
            self._wait(self._collection.delete(ids=ids))
            yield
        except Exception as error:
            try:
                self._put_back(kept)
            except Exception as again:
                raise RuntimeError(
                    f"{error}; {len(ids)} documents that were to lose their text had been taken out for that, "
                    f"{ids[0]!r} for one, and could not be put back ({again}); they are missing until this upsert is "
                    "run again"
                ) from error
            raise

    def _put_back(self, found: Any) -> None:
        """Add records as they were read; those that are there, the old or the new ones, stay."""
        # What has only keys that Chroma hides is read as {}, which it does not take.
        metadatas: list[Any] = [metadata or None for metadata in found["metadatas"]]
        self._wait(
            self._collection.add(
                ids=found["ids"],
                embeddings=found["embeddings"],
                documents=found["documents"],
                metadatas=metadatas if any(metadatas) else None,
                uris=found["uris"] if any(found["uris"]) else None,
            )
        )

    def _read(self, ids: Sequence[str]) -> Iterator[tuple[str, str | None, Any, Any]]:
        found = self._wait(self._collection.get(ids=list(ids), include=["documents", "metadatas", "embeddings"]))
        return zip(found["ids"], found["documents"], found["metadatas"], found["embeddings"], strict=True)


class ChromaSource(Source):
    """A collection that documents are read from."""

    def __init__(self, collection: Collection) -> None:
        """Note the collection."""
        self.label = f"collection {collection.name!r}"
        self._collection = collection

    def count(self) -> int:
        """Return how many documents there are."""
        return self._collection.count()

    def find_without_text(self) -> str | None:
        """Return the id of a document that has no text; None: all have one."""
        return next((document.id for document in self.read_all() if document.text is None), None)

    def read_all(self) -> Iterator[Document]:
        """Yield every document with text and metadata and without its vector, a page at a time."""
        offset = 0
        while True:
            page = self._collection.get(limit=_PAGE, offset=offset, include=["documents", "metadatas"])
            if not page["ids"]:
                return
            offset += len(page["ids"])
            for id_, text, metadata in zip(page["ids"], page["documents"] or (), page["metadatas"] or (), strict=True):
                yield Document(id_, text=text, metadata=metadata)


def _replacing(document: Document, old: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return metadata under which nothing of the old shines through; None: there is none, old or new."""
    return {**dict.fromkeys(old or ()), **(plain_metadata(document) or {})} or None
