"""The client: a server's vectors as if they were this process's own, and what happens when it is not there."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction, upsert
from host_helpers import TINY, count_loads
from local_server import PATIENCE_S, LocalServer, client, mock_config, serving, wait_until
from queue_fakes import GatedEngine

from akidb_mlx_plugin import Document, EmbeddingService, UpsertError
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError, ModelNotFoundError, ServiceUnavailableError
from akidb_mlx_plugin.providers import remote as remote_provider
from akidb_mlx_plugin.providers.connections import Connections
from akidb_mlx_plugin.providers.mock import hash_texts
from akidb_mlx_plugin.types import BatchEmbeddingRequest

OTHER = TINY.parents[1] / "bert_all_pooling" / "model"
TEXTS = ["one text", "another, longer text", ""]


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_provider, "_RECONNECT_S", 0.3)
    monkeypatch.setattr(remote_provider, "_RECONNECT_WITH_FALLBACK_S", 0.1)


def tiny_config(folder: Path = TINY) -> EmbeddingConfig:
    return EmbeddingConfig.model_validate({"mlx": {"model": str(folder)}})


SETTINGS: list[dict[str, Any]] = [
    {},
    {"query_prompt": "query: ", "document_prompt": "passage: "},
    {"normalize": False},
]


@pytest.mark.slow
@pytest.mark.parametrize("mlx", SETTINGS, ids=["plain", "prompts", "lengths"])
def test_the_same_vectors_and_description_as_here(
    mlx: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_config = EmbeddingConfig.model_validate({"mlx": {"model": str(TINY)} | mlx})
    with EmbeddingService(local_config) as local, serving(tiny_config(), uds=tmp_path / "socket") as server:
        wait_until(lambda: server.is_ready, "the model is loaded")
        with client(server.url, TINY, mlx=mlx) as far:
            loads = count_loads(monkeypatch)
            for kind in ("document", "query"):
                here, there = (service.embed_batch(TEXTS, kind=kind) for service in (local, far))
                np.testing.assert_array_equal(here.embeddings, there.embeddings)
                assert here.usage.total_tokens == there.usage.total_tokens
                assert there.embeddings.flags.writeable
            info, wanted = far.model_info(), local.model_info()
            assert (info.fingerprint, info.dimension, info.prompts) == (
                wanted.fingerprint,
                wanted.dimension,
                wanted.prompts,
            )
            assert info.model == str(TINY)
            assert len(loads) <= 1, "the client loaded a model"
            assert server.requests.count(f"/v1/models/{TINY}") == 1


def test_requests_of_several_threads_keep_their_own_settings_and_usage(server: LocalServer) -> None:
    with client(server.url) as far:
        requests = [BatchEmbeddingRequest([f"text {i}"] * (i + 1), dimension=i + 1) for i in range(5)]
        responses = far._provider.embed_requests(requests)
    for i, response in enumerate(responses):
        np.testing.assert_array_equal(response.embeddings, hash_texts([f"text {i}"] * (i + 1), i + 1))
        assert response.usage.total_tokens == 2 * (i + 1)


DESCRIBED = {"model": "mock", "dimension": 2, "max_tokens": 9, "dimensions": [2], "served_fingerprint": "f"}
VECTOR = {"data": [{"index": 0, "embedding": "AAAAAAAAgD8="}], "usage": {"total_tokens": 1}, "system_fingerprint": "f"}


@contextmanager
def answers(*prepared: tuple[int, Any]) -> Iterator[tuple[str, list[str]]]:
    """Run a server that gives prepared answers in turn; yield its address, and the paths that were asked for.

    Status 0 breaks the connection within the answer.
    """
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, content = prepared[len(seen)]
            seen.append(self.path)
            body = json.dumps(content).encode()
            self.send_response(status or 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if status else body[:5])
            self.close_connection = not status

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


class TestRefusals:
    def test_a_wrong_request_is_sent_once(self, server: LocalServer) -> None:
        with client(server.url) as far:
            far.embed_batch(["a"])
            server.requests.clear()
            with pytest.raises(InvalidInputError, match="refused the request: unknown field"):
                far._provider._client._call("POST", "/v1/embeddings", b'{"model": "mock", "input": "a", "wrong": 1}')
            assert len(server.requests) == 1

    def test_a_wrong_token(self) -> None:
        with serving(mock_config(), token="right") as server:
            for token in ("wrong", None):
                far = client(server.url, token=token, fallback="local")
                with far, pytest.raises(InvalidInputError, match="refused the token"):
                    far.embed_batch(["a"])
            with client(server.url, token="right") as far:
                assert far.embed_batch(["a"]).embeddings.shape == (1, 8)

    def test_a_model_that_is_not_there(self, server: LocalServer) -> None:
        with (
            client(server.url, "minilm-l6-v2") as far,
            pytest.raises(ModelNotFoundError, match="this server has 'mock'"),
        ):
            far.embed_batch(["a"])

    def test_another_pooling(self) -> None:
        refused = pytest.raises(InvalidInputError, match=r"mlx\.pooling = 'cls', and the server .* pools by 'mean'")
        with serving(tiny_config()) as server, client(server.url, TINY, mlx={"pooling": "cls"}) as far, refused:
            far.embed_batch(["a"])

    @pytest.mark.slow
    def test_other_weights_after_a_restart(self, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(TINY, folder)
        socket = tmp_path / "socket"
        with client(f"unix://{socket}", folder) as far:
            with serving(tiny_config(folder), uds=socket):
                far.embed_batch(["a"])
            shutil.rmtree(folder)
            shutil.copytree(OTHER, folder)
            refused = pytest.raises(ModelNotFoundError, match="has other weights")
            with serving(tiny_config(folder), uds=socket), refused:
                far.embed_batch(["a"])

    def test_a_server_of_another_kind(self) -> None:
        refused = pytest.raises(ModelNotFoundError, match="was not started by akidb-mlx serve")
        with answers((200, {"id": "mock", "object": "model"})) as (url, _), client(url) as far, refused:
            far.embed_batch(["a"])

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "vectors", [["AAAA"], ["AAAAAA=="], [], ["AAAAAAAAgD8=", "AAAAAAAAgD8="], ["AADAfwAAwH8="]]
    )
    def test_wrong_vectors(self, vectors: list[str]) -> None:
        data = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
        answer = {"data": data, "usage": {"total_tokens": 1}, "system_fingerprint": "f"}
        refused = pytest.raises(EmbeddingError, match=r"without vectors|not finite")
        with answers((200, DESCRIBED), (200, answer)) as (url, _), client(url) as far, refused:
            far.embed_batch(["a"])


class TestRetries:
    def test_what_passes_by_itself(self) -> None:
        busy = (429, {"error": {"message": "full"}})
        with answers((503, {}), (200, DESCRIBED), busy, (502, {}), (200, VECTOR)) as (url, seen), client(url) as far:
            assert far.embed_batch(["a"]).embeddings.tolist() == [[0.0, 1.0]]
            assert len(seen) == 5

    def test_a_connection_that_breaks_within_an_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remote_provider, "_RECONNECT_S", 10.0)
        with answers((200, DESCRIBED), (0, VECTOR), (0, VECTOR), (200, VECTOR)) as (url, seen), client(url) as far:
            assert far.embed_batch(["a"]).embeddings.tolist() == [[0.0, 1.0]]
            assert len(seen) == 4

    @pytest.mark.slow
    def test_only_until_the_deadline(self) -> None:
        busy = (429, {"error": {"message": "the queue is full"}})
        with answers((200, DESCRIBED), *[busy] * 50) as (url, seen), client(url, timeout_ms=300) as far:
            with pytest.raises(ServiceUnavailableError, match="not available: the queue is full"):
                far.embed_batch(["a"])
            assert 3 <= len(seen) < 20
            with pytest.raises(ServiceUnavailableError, match="is not ready: the queue is full"):
                far.health_check()

    @pytest.mark.slow
    def test_a_deadline_is_not_longer_than_the_callers(self, tmp_path: Path) -> None:
        section = {"mlx": {"model": "mock"}, "remote": {"url": f"unix://{tmp_path}/socket"}}
        config = EmbeddingConfig.model_validate(section | {"service": {"deadline_ms": 400}})
        with EmbeddingService(config) as far, pytest.raises(ServiceUnavailableError, match="No such file"):
            far.embed_batch(["a"])

    @pytest.mark.slow
    def test_a_slow_server(self, engine: GatedEngine) -> None:
        with serving(mock_config()) as server, client(server.url, timeout_ms=200) as far:
            far.embed_batch(["a"])
            engine.hold()
            with pytest.raises(ServiceUnavailableError, match="no answer in time"):
                far.embed_batch(["b"])
            engine.release()

    @pytest.mark.slow
    def test_a_server_that_restarts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(remote_provider, "_RECONNECT_S", 20.0)
        socket = tmp_path / "socket"
        with client(f"unix://{socket}") as far:
            with serving(mock_config(), uds=socket):
                far.embed_batch(["a"])
            waiting = far.submit("b")
            with serving(mock_config(), uds=socket):
                np.testing.assert_array_equal(waiting.result(20).embeddings, hash_texts(["b"], 8))

    @pytest.mark.slow
    def test_nobody_there(self, tmp_path: Path) -> None:
        with client(f"unix://{tmp_path}/socket") as far:
            with pytest.raises(ServiceUnavailableError, match="No such file"):
                far.embed_batch(["a"])
            with pytest.raises(ServiceUnavailableError, match="No such file"):
                far.model_info()


def test_idle_connections_are_closed(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    connections = Connections(server.url, None)
    first, second = connections._open(), connections._open()
    for connection in (first, second):
        connections._exchange(connection, "GET", "/health", None, time.monotonic() + PATIENCE_S, {})
    assert first.sock is not None
    monkeypatch.setattr("akidb_mlx_plugin.providers.connections._LONGEST_IDLE_S", 0.0)
    assert connections.call("GET", "/health", None, PATIENCE_S).status == 200
    assert (first.sock, second.sock, connections._idle) == (None, None, [])


class TestFallback:
    @pytest.mark.slow
    def test_the_model_is_loaded_here(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        socket = tmp_path / "socket"
        with EmbeddingService(str(TINY)) as local, client(f"unix://{socket}", TINY, fallback="local") as far:
            with serving(tiny_config(), uds=socket):
                there = far.embed_batch(TEXTS).embeddings
            np.testing.assert_array_equal(far.embed_batch(TEXTS).embeddings, there)
            np.testing.assert_array_equal(local.embed_batch(TEXTS).embeddings, there)
            assert caplog.text.count("embedding in this process") == 1
            far.health_check()

    @pytest.mark.slow
    def test_never_with_other_weights(self, tmp_path: Path) -> None:
        folder, socket = tmp_path / "model", tmp_path / "socket"
        shutil.copytree(TINY, folder)
        with client(f"unix://{socket}", folder, fallback="local") as far:
            with serving(tiny_config(folder), uds=socket):
                far.embed_batch(["a"])
            shutil.rmtree(folder)
            shutil.copytree(OTHER, folder)
            # The second is cut into slices, and comes while the server is not asked.
            for texts in (["a"], ["a"] * 40):
                with pytest.raises(ServiceUnavailableError, match="is not the same model"):
                    far.embed_batch(texts)

    @pytest.mark.slow
    def test_a_server_found_later_must_have_the_weights_used_here(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote_provider, "_HOLD_OFF_S", 0.0)
        folder, socket = tmp_path / "model", tmp_path / "socket"
        shutil.copytree(TINY, folder)
        with client(f"unix://{socket}", folder, fallback="local") as far:
            far.embed_batch(["a"])
            shutil.rmtree(folder)
            shutil.copytree(OTHER, folder)
            refused = pytest.raises(ModelNotFoundError, match="has other weights")
            with serving(tiny_config(folder), uds=socket), refused:
                far.embed_batch(["a"])


class TestUpsert:
    @pytest.fixture
    def documents(self) -> list[Document]:
        return [Document(id=str(i), text=f"text {i}") for i in range(60)]

    @pytest.mark.slow
    @pytest.mark.parametrize("fallback", ["error", "local"])
    def test_the_server_dies_within_it(self, fallback: str, documents: list[Document], tmp_path: Path) -> None:
        socket = tmp_path / "socket"
        function = MLXEmbeddingFunction.from_config(
            EmbeddingConfig.model_validate(
                {"mlx": {"model": str(TINY)}, "remote": {"url": f"unix://{socket}", "fallback": fallback}}
            )
        )
        collection = chromadb.EphemeralClient().create_collection(f"dies-{fallback}", embedding_function=function)
        with serving(tiny_config(), uds=socket) as server:

            def stream() -> Iterator[Document]:
                for document in documents:
                    if collection.count() and server.thread.is_alive():
                        server.stop()
                        server.thread.join()
                    yield document

            if fallback == "local":
                assert upsert(collection, stream(), batch_size=10).inserted == len(documents)
                return
            with pytest.raises(UpsertError) as caught:
                upsert(collection, stream(), batch_size=10)
        stored = set(collection.get()["ids"])
        assert 0 < len(stored) < len(documents)
        assert set(caught.value.written) == stored


def test_number_format_is_for_the_server() -> None:
    with pytest.raises(InvalidInputError, match=r"mlx\.dtype"):
        client("http://localhost:1", mlx={"dtype": "float16"})
