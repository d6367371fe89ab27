"""Each test runs on Chroma, in a folder and behind a server, and on LanceDB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.api import ClientAPI
from chromadb.config import Settings
from dot_products import QUESTION, TEXTS, lengths, make_raw
from hosts import HOSTS, D, Host

from akidb_mlx_plugin.inference.embedder import Embedder


@pytest.fixture(params=list(HOSTS))
def host(request: pytest.FixtureRequest, tmp_path: Path, chroma_port: int) -> Host:
    """A database of each kind."""
    return HOSTS[request.param](tmp_path / "db", chroma_port)


@pytest.fixture(params=["chroma", "lancedb"])
def folder_host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    """A database of each kind in a folder of the test's own."""
    return HOSTS[request.param](tmp_path / "db", 0)


@pytest.fixture
def mock(host: Host) -> Any:
    """The function of the stand-in model."""
    return host.make(mode="mock", dimension=D)


@pytest.fixture
def docs(host: Host, name: str, mock: Any) -> Any:
    """A new collection of the stand-in model."""
    return host.create(name, mock)


@pytest.fixture
def dot_dir(tiny_dir: Path) -> Path:
    """A tiny BERT for dot products, whose vectors have lengths of their own."""
    make_raw(tiny_dir, "dot")
    return tiny_dir


@pytest.fixture
def raw(dot_dir: Path) -> dict[str, Any]:
    """What it makes of each text, and of the question."""
    with Embedder.load(dot_dir) as embedder:
        made = embedder.embed([*TEXTS.values(), QUESTION]).embeddings
    assert (abs(lengths(made) - 1) > 0.1).all()
    return dict(zip([*TEXTS, "question"], made, strict=True))


@pytest.fixture
def by_product(raw: dict[str, Any]) -> list[str]:
    """The texts in the order of their dot products with the question, which is neither the cosine's nor l2's."""
    question = raw["question"]
    ranked = sorted(TEXTS, key=lambda key: -float(question @ raw[key]))
    assert ranked != sorted(TEXTS, key=lambda key: -float(question @ raw[key] / np.linalg.norm(raw[key])))
    assert ranked != sorted(TEXTS, key=lambda key: float(np.linalg.norm(question - raw[key])))
    return ranked


@pytest.fixture
def client(tmp_path: Path) -> ClientAPI:
    # The settings of the command line: Chroma allows a process one client of each folder.
    return chromadb.PersistentClient(tmp_path / "chroma", settings=Settings(anonymized_telemetry=False))
