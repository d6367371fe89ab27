"""A store that is a dictionary, and a model that counts what it embeds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.providers.mock import MockProvider
from akidb_mlx_plugin.service import EmbeddingService
from akidb_mlx_plugin.stores.base import Store, StoredDocument
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, Document, Vector

DIMENSION = 8
PATIENCE_S = 30


def texts(count: int, start: int = 0) -> list[Document]:
    """Return documents with a text each."""
    return [Document(id=f"d{i}", text=f"text {i}") for i in range(start, start + count)]


class CountingProvider(MockProvider):
    """Remembers the texts of every batch; `before` runs at the start of each."""

    def __init__(self) -> None:
        super().__init__(DIMENSION)
        self.batches: list[list[str]] = []
        self.before: Callable[[int], None] = lambda batch: None

    @property
    def texts(self) -> list[str]:
        return [text for batch in self.batches for text in batch]

    def embed_batch(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResponse:
        self.before(len(self.batches))
        self.batches.append(list(request.inputs))
        return super().embed_batch(request)


def counting_service(provider: CountingProvider, queue_size: int = 10_000) -> EmbeddingService:
    config = EmbeddingConfig.load(overrides={"mode": "mock", "service": {"queue_size": queue_size}})
    return EmbeddingService(config, provider=provider)


@dataclass
class Write:
    """One call of `write`."""

    ids: list[str]
    thread: str


class MemoryStore(Store):
    """Keeps documents in a dictionary; `before_write` runs at the start of each write."""

    def __init__(self, service: EmbeddingService | None, *, max_rows: int | None = None, dimension: int = DIMENSION):
        self.label = "collection 'memory'"
        self.dimension = dimension
        self.service = service
        self.max_rows = max_rows
        self.rows: dict[str, StoredDocument] = {}
        self.writes: list[Write] = []
        self.before_write: Callable[[int], None] = lambda number: None
        self.before_delete: Callable[[], None] = lambda: None

    def count(self) -> int:
        return len(self.rows)

    def read(self, ids: Sequence[str]) -> dict[str, StoredDocument]:
        return {id_: self.rows[id_] for id_ in ids if id_ in self.rows}

    def find_pieces(self, parents: Sequence[str]) -> dict[str, str]:
        found = {id_: row.metadata.get("parent_id") for id_, row in self.rows.items()}
        return {id_: parent for id_, parent in found.items() if parent in parents}

    def delete(self, ids: Sequence[str]) -> None:
        self.before_delete()
        for id_ in ids:
            self.rows.pop(id_, None)

    def write(self, documents: Sequence[Document], vectors: Vector) -> None:
        self.before_write(len(self.writes))
        assert len(documents) == len(vectors) <= (self.max_rows or len(documents))
        self.writes.append(Write([d.id for d in documents], threading.current_thread().name))
        for document, vector in zip(documents, np.array(vectors), strict=True):
            self.rows[document.id] = StoredDocument(document.text, vector, dict(document.metadata or {}))
