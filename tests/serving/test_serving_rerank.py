"""`POST /v1/rerank` in Cohere's form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from golden_rerankers import reranker_dir
from local_server import LocalServer, serving

from akidb_mlx_plugin import CrossEncoder
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.serving.models import ServedModels

QUERY = "where is the water"
TEXTS = ["stone and paper", "water under the bridge", "light in the morning", "the river"]
MODEL = str(reranker_dir())


def config(folder: object) -> EmbeddingConfig:
    return EmbeddingConfig.model_validate({"mlx": {"model": str(folder), "device": "cpu"}})


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with serving(rerankers=[config(MODEL)]) as running:
        yield running


def rerank(server: LocalServer, path: str = "/v1/rerank", **body: Any) -> tuple[int, Any]:
    status, answer, _ = server.call("POST", path, json.dumps({"model": MODEL, "query": QUERY} | body))
    return status, answer


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_the_order_and_scores_of_rank(server: LocalServer, path: str) -> None:
    with CrossEncoder(MODEL, device="cpu") as encoder:
        expected = [(each["corpus_id"], pytest.approx(each["score"], abs=1e-5)) for each in encoder.rank(QUERY, TEXTS)]
    status, answer = rerank(server, path, documents=TEXTS)
    assert status == 200
    assert [(each["index"], each["relevance_score"]) for each in answer["results"]] == expected
    assert set(answer) == {"id", "results", "meta"}


def test_the_best_with_their_texts(server: LocalServer) -> None:
    documents = [TEXTS[0], {"text": TEXTS[1]}, *TEXTS[2:]]
    _, answer = rerank(server, documents=documents, top_n=2, return_documents=True)
    assert [each["document"]["text"] for each in answer["results"]] == [
        TEXTS[each["index"]] for each in answer["results"]
    ]
    assert len(answer["results"]) == 2


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"documents": []}, "documents"),
    ({"documents": "a"}, "documents"),
    ({"documents": ["a", 5]}, "documents"),
    ({"documents": ["a", ""]}, "documents"),
    ({"documents": [{"title": "a"}]}, "documents"),
    ({"documents": ["a"], "query": ""}, "query"),
    ({"documents": ["a"], "top_n": 0}, "top_n"),
    ({"documents": ["a"], "max_chunks_per_doc": 3}, "max_chunks_per_doc"),
    ({}, "documents"),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_the_field_is_named(server: LocalServer, body: dict[str, Any], param: str) -> None:
    status, answer = rerank(server, **body)
    assert (status, answer["error"]["param"]) == (400, param)


def test_models_of_the_two_kinds(server: LocalServer) -> None:
    assert [each["id"] for each in server.get("/v1/models")[1]["data"]] == [MODEL]
    status, answer, _ = server.post({"model": MODEL, "input": "a"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    status, answer = rerank(server, model="other", documents=["a"])
    assert (status, answer["error"]["param"]) == (404, "model")
    with pytest.raises(InvalidInputError, match="3 scores per pair"):
        ServedModels([], [config(reranker_dir("bert_labels"))])
