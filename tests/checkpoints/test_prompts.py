"""A checkpoint whose default prompt is its query's: documents have none, in both databases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import akidb_mlx_chroma
import akidb_mlx_lancedb
import chromadb
import lancedb
import numpy as np
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction
from akidb_mlx_lancedb import MLXEmbeddings
from host_helpers import vector_of

from akidb_mlx_plugin import Document
from akidb_mlx_plugin.inference.embedder import Embedder

pytest_plugins = ("host_fixtures",)

TEXT = "the river of the city"
PROMPT = "the question of time: "


@pytest.fixture
def model(tiny_dir: Path) -> Path:
    """The tiny BERT with one prompt, as sentence-transformers 6.2 reads it."""
    settings = {"prompts": {"query": PROMPT}, "default_prompt_name": "query"}
    (tiny_dir / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return tiny_dir


@pytest.fixture
def expected(model: Path) -> dict[str, Any]:
    """Return the text's vector as a document and as a query."""
    with Embedder.load(model) as embedder:
        made = {
            "document": embedder.embed([TEXT], prompt="").embeddings[0],
            "query": embedder.embed([PROMPT + TEXT], prompt="").embeddings[0],
        }
    assert not np.allclose(made["document"], made["query"], atol=0.01)
    return made


def test_in_chroma(model: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    client = chromadb.PersistentClient(tmp_path / "chroma")
    docs = akidb_mlx_chroma.create_collection(client, "docs", MLXEmbeddingFunction(model))
    docs.add(ids=["a"], documents=[TEXT])
    np.testing.assert_allclose(vector_of(docs, "a"), expected["document"], atol=1e-5)
    found = docs.query(query_texts=[TEXT])["distances"]
    assert found == [[pytest.approx(1 - expected["document"] @ expected["query"], abs=1e-5)]]


def test_in_lancedb(model: Path, expected: dict[str, Any], tmp_path: Path) -> None:
    db = lancedb.connect(tmp_path / "lancedb")
    notes = akidb_mlx_lancedb.create_table(db, "notes", MLXEmbeddings.create(name=model))
    akidb_mlx_lancedb.upsert(notes, [Document("a", text=TEXT)])
    (found,) = notes.search(TEXT).distance_type("cosine").to_list()
    np.testing.assert_allclose(found["vector"], expected["document"], atol=1e-5)
    assert found["_distance"] == pytest.approx(1 - expected["document"] @ expected["query"], abs=1e-5)
