"""What the tests of both hosts do: other processes, and a record of what was embedded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from processes import run_python as run_python

from akidb_mlx_plugin.checkpoints.options import LoadOptions
from akidb_mlx_plugin.inference.embedder import Embedder
from akidb_mlx_plugin.stores import settings as stored
from akidb_mlx_plugin.types import BatchEmbeddingRequest

PATIENCE_S = 60.0
MINILM = "minilm-l6-v2"
TINY = Path(__file__).parent / "golden" / "bert" / "model"
SETTINGS = {**dict.fromkeys(stored.SETTINGS), "model": MINILM, "mode": "mlx", "dimension": 384, "normalize": True}
DOCUMENTS = {
    "date": "parse a date from a string",
    "file": "open a file and read its lines",
    "pasta": "boil the pasta in salted water",
}


class Embedded(list[BatchEmbeddingRequest]):
    """The requests that reached a model, in order."""

    @property
    def texts(self) -> list[str]:
        """Their texts, one after the other."""
        return [text for request in self for text in request.inputs]


def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Return a list that gets an entry whenever a model is loaded."""
    loaded: list[object] = []
    load = Embedder.open

    def record(model: str, options: LoadOptions) -> Embedder:
        loaded.append(model)
        return load(model, options)

    monkeypatch.setattr(Embedder, "open", record)
    return loaded


def nearest(collection: chromadb.Collection, text: str, **arguments: Any) -> str:
    """Return the id of the document closest to a text."""
    return collection.query(query_texts=[text], n_results=1, **arguments)["ids"][0][0]


def vector_of(collection: chromadb.Collection, key: str) -> Any:
    """Return the vector that Chroma keeps of a document."""
    found = collection.get(ids=[key], include=["embeddings"])["embeddings"]
    assert found is not None
    return np.asarray(found[0], dtype=np.float32)
