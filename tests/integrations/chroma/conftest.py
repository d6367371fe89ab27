"""Chroma collections of the stand-in model."""

from __future__ import annotations

from pathlib import Path

import chromadb
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction, create_collection
from chromadb.api import ClientAPI


@pytest.fixture
def mock() -> MLXEmbeddingFunction:
    """The function of the stand-in model."""
    return MLXEmbeddingFunction(mode="mock", dimension=8)


@pytest.fixture
def docs(chroma: ClientAPI, name: str, mock: MLXEmbeddingFunction) -> chromadb.Collection:
    """A new collection in a client of each kind."""
    return create_collection(chroma, name, mock)


@pytest.fixture
def disk(tmp_path: Path) -> ClientAPI:
    """A client of a folder."""
    return chromadb.PersistentClient(tmp_path / "chroma")
