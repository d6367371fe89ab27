"""The server's API: OpenAI's form, and an answer to everything that can go wrong."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from host_helpers import TINY
from local_server import DIMENSION, LocalServer, mock_config, send_raw, serving, wait_until
from queue_fakes import GatedEngine

from akidb_mlx_plugin import EmbeddingService
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError, ServiceUnavailableError
from akidb_mlx_plugin.metrics.specs import REQUESTS
from akidb_mlx_plugin.providers.mock import hash_texts
from akidb_mlx_plugin.serving.models import ServedModels, configs_for

MOCK: dict[str, Any] = {"model": "mock"}


def vectors_of(answer: dict[str, Any]) -> Any:
    return np.asarray([row["embedding"] for row in answer["data"]], dtype=np.float32)


class TestEmbeddings:
    def test_numbers_and_bytes_are_the_same_vectors(self, server: LocalServer) -> None:
        texts = ["a", "", "é\n"]
        status, numbers, _ = server.post(MOCK | {"input": texts})
        assert status == 200
        np.testing.assert_array_equal(vectors_of(numbers), hash_texts(texts, DIMENSION))
        _, coded, _ = server.post(MOCK | {"input": texts, "encoding_format": "base64"})
        rows = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in coded["data"]]
        np.testing.assert_array_equal(rows, hash_texts(texts, DIMENSION))
        assert [row["index"] for row in numbers["data"]] == [0, 1, 2]
        assert numbers["usage"] == {"prompt_tokens": 3, "total_tokens": 3, "truncated": 0}
        assert (numbers["object"], numbers["model"], numbers["system_fingerprint"]) == ("list", "mock", "mock:1:8")

    def test_one_text_and_all_settings(self, server: LocalServer) -> None:
        body = MOCK | {"input": "a", "dimensions": 4, "normalize": False, "input_type": "query", "user": "someone"}
        _, answer, _ = server.post(body | {"encoding_format": "float"})
        np.testing.assert_array_equal(vectors_of(answer), hash_texts(["a"], 4, normalize=False))

    @pytest.mark.slow
    def test_a_large_answer_is_encoded_elsewhere(self, server: LocalServer) -> None:
        texts = [f"text {i} {'x' * 40}" for i in range(9000)]
        _, answer, _ = server.post(MOCK | {"input": texts})
        np.testing.assert_array_equal(vectors_of(answer), hash_texts(texts, DIMENSION))

    def test_models_are_listed_and_described(self, server: LocalServer) -> None:
        _, listed, _ = server.get("/v1/models")
        assert [(model["id"], model["object"]) for model in listed["data"]] == [("mock", "model")]
        _, described, _ = server.get("/v1/models/mock?dimension=4")
        assert (described["fingerprint"], described["served_fingerprint"]) == ("mock:1:4", "mock:1:8")
        assert server.get("/v1/models/other")[0] == 404
        status, answer, _ = server.get("/v1/models/mock?pooling=cls")
        assert (status, answer["error"]["param"]) == (400, "pooling")

    def test_health_readiness_and_metrics(self, server: LocalServer) -> None:
        assert server.get("/health")[1]["status"] == "ok"
        wait_until(lambda: server.get("/ready")[0] == 200, "the model is loaded")
        assert f'{REQUESTS.name}{{kind="document",model="mock",' in server.get("/metrics")[1]


WRONG = [
    ({}, "model"),
    ({"model": "mock"}, "input"),
    ({"model": 5, "input": "a"}, "model"),
    ({"input": []}, "input"),
    ({"input": None}, "input"),
    ({"input": {"text": "a"}}, "input"),
    ({"input": ["a", None]}, "input"),
    ({"input": [True]}, "input"),
    ({"input": [15, 20]}, "input"),
    ({"input": [[15, 20]]}, "input"),
    ({"input": "a", "dimensions": 0}, "dimensions"),
    ({"input": "a", "dimensions": "8"}, "dimensions"),
    ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ({"input": "a", "input_type": "passage"}, "input_type"),
    ({"input": "a", "task": ""}, "task"),
    ({"input": "a", "truncate": True}, "truncate"),
]


class TestRefusals:
    @pytest.mark.slow
    @pytest.mark.parametrize(("body", "param"), WRONG, ids=[str(i) for i in range(len(WRONG))])
    def test_the_field_is_named(self, body: dict[str, Any], param: str, server: LocalServer) -> None:
        if "input" in body and "model" not in body:
            body = MOCK | body
        status, answer, _ = server.post(body)
        assert (status, answer["error"]["param"]) == (400, param)
        assert answer["error"]["type"] == "invalid_request_error"

    def test_token_ids_say_what_to_do(self, server: LocalServer) -> None:
        _, answer, _ = server.post(MOCK | {"input": [[15, 20]]})
        assert "token ids" in answer["error"]["message"]
        assert "send texts" in answer["error"]["message"]

    @pytest.mark.slow
    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"model": "mock", "input": "\\ud800"}', b"5"])
    def test_bad_json(self, body: bytes, server: LocalServer) -> None:
        status, answer, _ = server.post(body)
        assert (status, answer["error"]["code"]) == (400, "invalid_json")

    def test_other_models_paths_and_methods(self, server: LocalServer) -> None:
        status, answer, _ = server.post({"model": "text-embedding-3-small", "input": "a"})
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "model_not_found", "model")
        assert server.get("/v1/completions")[0] == 404
        status, answer, _ = server.get("/v1/embeddings")
        assert (status, answer["error"]["message"]) == (405, "Method Not Allowed")

    @pytest.mark.slow
    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_body_too_large(self, chunked: bool) -> None:
        body = json.dumps(MOCK | {"input": "x" * 3000}).encode()
        with serving(mock_config(), max_body_bytes=2000) as server:
            status, answer, _ = server.call("POST", "/v1/embeddings", iter([body]) if chunked else body)
            assert (status, answer["error"]["code"]) == (413, "request_too_large")
            assert server.post(MOCK | {"input": "x"})[0] == 200

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "content", [b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"POST / HTTP/9.9\r\nA\r\n\r\n"]
    )
    def test_malformed_http(self, content: bytes, server: LocalServer) -> None:
        with send_raw(server.port, content) as connection:
            assert connection.recv(1000).startswith(b"HTTP/1.1 400")
        assert server.get("/health")[0] == 200

    def test_a_token(self) -> None:
        with serving(mock_config(), token="secret") as server:
            body = MOCK | {"input": "a"}
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
                status, answer, _ = server.post(body, headers)
                assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
                assert server.get("/metrics", headers)[0] == 401
            assert server.post(body, {"Authorization": "Bearer secret"})[0] == 200
            assert server.get("/health")[0] == 200

    def test_settings_of_the_server_that_would_change_its_clients_vectors(self) -> None:
        config = EmbeddingConfig.model_validate({"mlx": {"model": str(TINY), "query_prompt": "q: "}})
        with pytest.raises(InvalidInputError, match=r"mlx\.query_prompt is for each client to choose"):
            ServedModels([config])
        with pytest.raises(InvalidInputError, match="no model to serve"):
            ServedModels([EmbeddingConfig(mode="user_provided")])
        with pytest.raises(InvalidInputError, match="is given twice"):
            ServedModels(configs_for([str(TINY), str(TINY)], None, None))

    def test_no_text_in_logs(self, engine: GatedEngine, caplog: pytest.LogCaptureFixture) -> None:
        def fail(requests: Any) -> None:
            raise RuntimeError("failed on " + "".join(text for request in requests for text in request.inputs))

        caplog.set_level(logging.DEBUG)
        with serving(mock_config()) as server:
            engine.before_each = fail
            status, answer, _ = server.post(MOCK | {"input": "confidential"})
            assert (status, answer["error"]["code"]) == (500, "internal_error")
            assert "confidential" not in json.dumps(answer)
            server.post(MOCK | {"input": ["confidential", 7]})
            server.post(b'{"confidential": "confidential')
        assert "confidential" not in caplog.text

    def test_a_failed_load_quotes_no_text(self, engine: GatedEngine, caplog: pytest.LogCaptureFixture) -> None:
        """A client's text may be in the batch that loads the model."""

        def fail(_: Any) -> None:
            raise RuntimeError("failed on confidential")

        engine.before_each = fail
        served = ServedModels([mock_config()])
        served.load()
        with pytest.raises(ServiceUnavailableError, match="could not be loaded: RuntimeError"):
            served.check_ready()
        assert "could not be loaded: RuntimeError" in caplog.text
        engine.before_each = lambda _: None
        wait_until(lambda: _is_ready(served), "a probe had it loaded again")
        served.close(1.0)
        assert "confidential" not in caplog.text

    def test_a_short_deadline_is_not_for_loading(self, engine: GatedEngine) -> None:
        engine.before_each = lambda _: time.sleep(0.1)
        served = ServedModels([mock_config(deadline_ms=20)])
        served.load()
        served.check_ready()
        served.close(1.0)


def _is_ready(served: ServedModels) -> bool:
    try:
        served.check_ready()
    except ServiceUnavailableError:
        return False
    return True


class TestQueue:
    @pytest.fixture
    def held(self, engine: GatedEngine) -> Iterator[LocalServer]:
        """A server whose model is busy with a text, with room for two more."""
        with serving(mock_config(queue_size=2)) as server, ThreadPoolExecutor(5) as threads:
            wait_until(lambda: server.get("/ready")[0] == 200, "the model is loaded")
            engine.wait_for_batch()
            engine.hold()
            self.first = threads.submit(server.post, MOCK | {"input": "first"})
            engine.wait_for_batch()
            self.threads = threads
            yield server
            engine.release()

    def waiting(self, server: LocalServer) -> int:
        (model,) = server.models.embedders
        return model.service._queue.waiting_texts

    def test_a_full_queue(self, held: LocalServer, engine: GatedEngine) -> None:
        second = self.threads.submit(held.post, MOCK | {"input": ["b", "c"]})
        wait_until(lambda: self.waiting(held) == 2, "two texts wait")
        status, answer, headers = held.post(MOCK | {"input": "d"})
        assert (status, answer["error"]["type"], headers["Retry-After"]) == (429, "rate_limit_error", "1")
        engine.release()
        assert (self.first.result()[0], second.result()[0]) == (200, 200)

    def test_less_urgent_requests_share_no_batch_with_the_others(self, held: LocalServer, engine: GatedEngine) -> None:
        priorities = {"a": "u=5", "b": "u=8", "c": "i, u=4;x", "d": ""}
        answers = []
        for waiting, (text, priority) in enumerate(priorities.items(), 1):
            headers = {"Priority": priority} if priority else {}
            answers.append(self.threads.submit(held.post, MOCK | {"input": text}, headers))
            wait_until(lambda wanted=waiting: self.waiting(held) == wanted, "it waits")
        engine.release()
        assert [answer.result()[0] for answer in answers] == [200] * 4
        assert sorted(engine.texts[2:]) == [["a", "c"], ["b", "d"]]

    def test_a_client_that_hangs_up_withdraws_its_request(self, held: LocalServer, engine: GatedEngine) -> None:
        body = json.dumps(MOCK | {"input": ["b", "c"]}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        connection = send_raw(held.port, head + body)
        wait_until(lambda: self.waiting(held) == 2, "two texts wait")
        connection.close()
        wait_until(lambda: self.waiting(held) == 0, "they are withdrawn")
        engine.release()
        assert self.first.result()[0] == 200
        assert engine.texts == [["ready"], ["first"]]

    def test_a_client_that_hangs_up_within_its_body(self, server: LocalServer) -> None:
        send_raw(server.port, b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{").close()
        assert server.post(MOCK | {"input": "a"})[0] == 200

    def test_shutdown_answers_what_waits(self, held: LocalServer, engine: GatedEngine) -> None:
        second = self.threads.submit(held.post, MOCK | {"input": "b"})
        wait_until(lambda: self.waiting(held) == 1, "a text waits")
        held.stop()
        wait_until(lambda: not _accepts(held), "no more connections")
        engine.release()
        assert (self.first.result()[0], second.result()[0]) == (200, 200)
        held.thread.join(30)
        assert not held.thread.is_alive()

    def test_a_deadline(self, engine: GatedEngine) -> None:
        with serving(mock_config(deadline_ms=50)) as server:
            engine.hold()
            status, answer, headers = server.post(MOCK | {"input": "a"})
            assert (status, answer["error"]["code"], headers["Retry-After"]) == (503, "deadline_exceeded", "1")
            engine.release()


def _accepts(server: LocalServer) -> bool:
    try:
        send_raw(server.port, b"").close()
    except OSError:
        return False
    return True


def test_prompts_and_tasks_are_those_of_the_model() -> None:
    config = EmbeddingConfig.model_validate({"mlx": {"model": str(TINY)}})
    texts = ["a b", "c"]
    with serving(config) as server, EmbeddingService(str(TINY)) as local:
        body = {"model": str(TINY), "input": texts}
        for given, named in (({"input_type": "query"}, {"kind": "query"}), ({"prompt": "x: "}, {"prompt": "x: "})):
            _, answer, _ = server.post(body | given)
            np.testing.assert_allclose(vectors_of(answer), local.embed_batch(texts, **named).embeddings, atol=1e-6)
        status, answer, _ = server.post(body | {"task": "clustering"})
        assert (status, answer["error"]["param"]) == (400, "task")
        status, answer, _ = server.post(body | {"dimensions": 7})
        assert (status, answer["error"]["param"]) == (400, "dimensions")
