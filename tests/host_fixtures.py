"""What the tests of both hosts share: a record of what was embedded, Chroma clients of each kind."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import chromadb
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction
from chromadb.api import ClientAPI
from host_helpers import DOCUMENTS, MINILM, PATIENCE_S, TINY, Embedded

from akidb_mlx_plugin import EmbeddingService
from akidb_mlx_plugin.inference.embedder import Embedder
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, StartedBatch


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> Embedded:
    """Record what any model embeds during the test; it is embedded as ever."""
    seen = Embedded()
    embed_requests = Embedder.embed_requests

    def record(self: Embedder, requests: Sequence[BatchEmbeddingRequest]) -> list[BatchEmbeddingResponse]:
        seen.extend(requests)
        return embed_requests(self, requests)

    begin = Embedder.begin

    def record_begun(self: Embedder, requests: Sequence[BatchEmbeddingRequest]) -> StartedBatch:
        started = begin(self, requests)
        counts = zip(requests, started.texts, strict=True)
        seen.extend([replace(request, inputs=request.inputs[:texts]) for request, texts in counts])
        return started

    monkeypatch.setattr(Embedder, "embed_requests", record)
    monkeypatch.setattr(Embedder, "begin", record_begun)
    return seen


def find_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def free_port() -> int:
    """A loopback port that nobody listens on."""
    return find_port()


@pytest.fixture(scope="session")
def chroma_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a `chroma run` server of the tests' own."""
    port = find_port()
    folder = tmp_path_factory.mktemp("chroma-server")
    beside = Path(sys.executable).with_name("chroma")
    program = str(beside) if beside.exists() else shutil.which("chroma")
    assert program, "the chroma package brings its command"
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [program, "run", "--path", folder / "data", "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    try:
        _wait_until_it_answers(port, server, folder / "log")
        yield port
    finally:
        server.terminate()
        try:
            server.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_until_it_answers(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            chromadb.HttpClient("127.0.0.1", port).heartbeat()
        except Exception:  # Chroma raises a bare one while nobody listens
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"the Chroma server does not answer: {log.read_text()}")


# Each process of the tests starts a server of its own.
@pytest.fixture(params=["ephemeral", "persistent", pytest.param("server", marks=pytest.mark.slow)])
def chroma(request: pytest.FixtureRequest, tmp_path: Path) -> ClientAPI:
    """A Chroma client, one of each kind."""
    if request.param == "ephemeral":
        return chromadb.EphemeralClient()
    if request.param == "persistent":
        return chromadb.PersistentClient(tmp_path / "chroma")
    return chromadb.HttpClient("127.0.0.1", request.getfixturevalue("chroma_port"))


@pytest.fixture
def tiny_dir(tmp_path: Path) -> Path:
    """A tiny BERT's checkpoint in a folder of the test's own, so that no other test has loaded it."""
    return shutil.copytree(TINY, tmp_path / "tiny-bert")


@pytest.fixture
def name() -> str:
    """A collection's name that no other test uses: in-memory clients and the server share their data."""
    return f"c-{uuid.uuid4().hex}"


@pytest.fixture
def function(minilm: EmbeddingService) -> MLXEmbeddingFunction:
    """The function on the real MiniLM."""
    return MLXEmbeddingFunction(model=MINILM)


@pytest.fixture
def collection(chroma: ClientAPI, name: str, function: MLXEmbeddingFunction) -> chromadb.Collection:
    """Three documents, embedded by Chroma itself, in a client of each kind."""
    made = chroma.create_collection(name, embedding_function=function)
    made.add(
        ids=list(DOCUMENTS), documents=list(DOCUMENTS.values()), metadatas=[{"topic": topic} for topic in DOCUMENTS]
    )
    return made
