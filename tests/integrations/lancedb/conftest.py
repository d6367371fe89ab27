"""LanceDB tables of the stand-in model, and of the real MiniLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lancedb
import pytest
from akidb_mlx_lancedb import MLXEmbeddings, create_table
from host_helpers import MINILM
from lancedb_notes import ROWS, make, note_of

from akidb_mlx_plugin import EmbeddingService


@pytest.fixture
def mock() -> MLXEmbeddings:
    """The function of the stand-in model."""
    return MLXEmbeddings.create(mode="mock", dimension=8)


@pytest.fixture
def db(tmp_path: Path) -> Any:
    """A database in a folder."""
    return lancedb.connect(tmp_path / "lance")


@pytest.fixture
def docs(db: Any, mock: MLXEmbeddings) -> Any:
    """A new table of the stand-in model."""
    return create_table(db, "docs", mock)


@pytest.fixture
def function(minilm: EmbeddingService) -> MLXEmbeddings:
    """The function on the real MiniLM."""
    return make(name=MINILM)


@pytest.fixture
def notes(tmp_path: Path, function: MLXEmbeddings) -> lancedb.table.Table:
    """A table of three notes, embedded by LanceDB itself."""
    table = lancedb.connect(tmp_path).create_table("notes", schema=note_of(function))
    table.add(ROWS)
    return table
