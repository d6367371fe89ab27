"""OpenAI's own client and Chroma's function for it, unchanged, against our server."""

from __future__ import annotations

import time
from collections.abc import Iterator

import chromadb
import numpy as np
import openai
import pytest
from chromadb.utils.embedding_functions.openai_embedding_function import OpenAIEmbeddingFunction
from local_server import DIMENSION, LocalServer, mock_config, serving
from queue_fakes import GatedEngine

from akidb_mlx_plugin.providers.mock import hash_texts

TEXTS = ["parse a date", "boil the pasta"]


@pytest.fixture
def secured() -> Iterator[LocalServer]:
    with serving(mock_config(), token="secret") as running:
        yield running


def client(server: LocalServer, key: str = "secret", **arguments: int) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, **arguments)


def test_embeddings(secured: LocalServer) -> None:
    with client(secured) as ask:
        # Without a format it asks for base64, and decodes that.
        for answer in (
            ask.embeddings.create(model="mock", input=TEXTS),
            ask.embeddings.create(model="mock", input=TEXTS, encoding_format="float"),
        ):
            rows = [row.embedding for row in answer.data]
            np.testing.assert_array_equal(np.asarray(rows, np.float32), hash_texts(TEXTS, DIMENSION))
            assert (answer.model, answer.usage.total_tokens) == ("mock", 6)
        short = ask.embeddings.create(model="mock", input=TEXTS[0], dimensions=4, extra_body={"input_type": "query"})
        np.testing.assert_array_equal(np.asarray([short.data[0].embedding], np.float32), hash_texts(TEXTS[:1], 4))


def test_models(secured: LocalServer) -> None:
    with client(secured) as ask:
        assert [model.id for model in ask.models.list()] == ["mock"]
        assert ask.models.retrieve("mock").owned_by == "akidb-mlx"


@pytest.mark.slow
def test_errors_have_its_types(secured: LocalServer) -> None:
    with client(secured) as ask:
        with pytest.raises(openai.BadRequestError) as caught:
            ask.embeddings.create(model="mock", input=[[1, 2, 3]])
        assert (caught.value.param, caught.value.type) == ("input", "invalid_request_error")
        with pytest.raises(openai.NotFoundError, match="this server has 'mock'"):
            ask.embeddings.create(model="text-embedding-3-small", input="a")
    with client(secured, "wrong") as ask, pytest.raises(openai.AuthenticationError):
        ask.embeddings.create(model="mock", input="a")


def test_a_full_queue_is_its_rate_limit(engine: GatedEngine) -> None:
    with serving(mock_config(queue_size=1)) as server, client(server, max_retries=0, timeout=20) as ask:
        engine.wait_for_batch()
        engine.hold()
        submit = server.models.find("mock").service.submit
        waiting = [submit("a")]
        engine.wait_for_batch()
        waiting.append(submit("b"))
        with pytest.raises(openai.RateLimitError, match="the queue is full"):
            ask.embeddings.create(model="mock", input="c")
        engine.release()
        assert all(future.result(20) for future in waiting)


@pytest.mark.slow
def test_chromas_function(secured: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMA_OPENAI_API_KEY", "secret")
    function = OpenAIEmbeddingFunction(model_name="mock", api_base=f"{secured.url}/v1")
    collection = chromadb.EphemeralClient().create_collection(f"openai-{time.time_ns()}", embedding_function=function)
    collection.add(ids=["date", "pasta"], documents=TEXTS)
    assert collection.query(query_texts=["boil the pasta"], n_results=1)["ids"] == [["pasta"]]
