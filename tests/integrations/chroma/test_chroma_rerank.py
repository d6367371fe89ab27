"""Reranking what Chroma's `query` and `search` return."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction, arerank, rerank
from chromadb.api.types import SearchResult
from golden_rerankers import reranker_dir

from akidb_mlx_plugin import CrossEncoder, InvalidInputError, ModelNotFoundError

DOCUMENTS = {
    "a": "water under the bridge",
    "b": "stone and paper",
    "c": "light in the morning",
    "d": "music of the river",
    "e": None,
    "f": "a letter from the island",
}
QUERIES = ["where is the water", "which light is there"]


@pytest.fixture
def encoder() -> CrossEncoder:
    return CrossEncoder(reranker_dir("roberta"), device="cpu")


@pytest.fixture
def collection(tmp_path: Path) -> chromadb.Collection:
    function = MLXEmbeddingFunction(mode="mock", dimension=8)
    made = chromadb.PersistentClient(tmp_path / "chroma").create_collection(
        "texts",
        embedding_function=function,  # type: ignore[arg-type]
    )
    vectors = function([text or "nothing" for text in DOCUMENTS.values()])
    for (key, text), vector in zip(DOCUMENTS.items(), vectors, strict=True):
        made.add(ids=key, embeddings=vector, documents=text, metadatas={"key": key})
    return made


def query(collection: chromadb.Collection, *include: Any) -> Any:
    return collection.query(query_texts=QUERIES, n_results=6, include=["documents", *include])


@pytest.mark.slow
def test_every_included_field_keeps_its_record(collection: chromadb.Collection, encoder: CrossEncoder) -> None:
    found = query(collection, "metadatas", "embeddings", "distances")
    before = {key: [list(column) for column in found[key]] for key in ("ids", "distances")}
    best = rerank(found, QUERIES, encoder)
    for q, text in enumerate(QUERIES):
        ids = best["ids"][q]
        assert sorted(ids) == sorted(DOCUMENTS)
        assert [metadata["key"] for metadata in best["metadatas"][q]] == ids
        assert best["documents"][q] == [DOCUMENTS[key] for key in ids]
        was = {key: i for i, key in enumerate(before["ids"][q])}
        assert best["distances"][q] == [before["distances"][q][was[key]] for key in ids]
        for key, vector in zip(ids, best["embeddings"][q], strict=True):
            assert np.array_equal(vector, found["embeddings"][q][was[key]])
        scores = best["rerank_scores"][q]
        expected = encoder.predict([(text, str(DOCUMENTS[key])) for key in ids[:-1]])
        assert np.allclose(scores[:-1], expected, atol=1e-6)
        assert scores[:-1] == sorted(scores[:-1], reverse=True)
        # A record without a document.
        assert (ids[-1], scores[-1]) == ("e", None)
    assert best["included"] == found["included"]
    assert {key: found[key] for key in before} == before


@pytest.mark.slow
def test_only_the_best(collection: chromadb.Collection, encoder: CrossEncoder) -> None:
    found = collection.query(query_texts=QUERIES[:1], n_results=6)
    best = rerank(found, QUERIES[0], encoder, n_results=2)
    assert best["ids"] == [rerank(found, QUERIES[0], encoder)["ids"][0][:2]]
    assert [len(best[key][0]) for key in ("documents", "metadatas", "distances", "rerank_scores")] == [2] * 4  # type: ignore[literal-required]
    assert best["embeddings"] is None


def test_nothing_found(collection: chromadb.Collection, encoder: CrossEncoder) -> None:
    found = collection.query(query_texts=QUERIES, n_results=3, where={"key": "z"})
    best: Any = rerank(found, QUERIES, encoder)
    assert (best["ids"], best["documents"], best["rerank_scores"]) == ([[], []],) * 3


def test_a_search_result_stays_one(encoder: CrossEncoder) -> None:
    """A list of one query may lack a field that was not selected for it."""
    found = SearchResult(
        ids=[["a", "b"], ["c"]],
        documents=[[DOCUMENTS["a"], DOCUMENTS["b"]], [DOCUMENTS["c"]]],
        embeddings=[None, None],
        metadatas=[[{"key": "a"}, {"key": "b"}], None],
        scores=[[0.25, 0.5], [0.75]],
        select=[["document"], ["document"]],
    )
    best = rerank(found, QUERIES, encoder)
    assert isinstance(best, SearchResult)
    rows = best.rows()
    order = encoder.rank(QUERIES[0], [str(DOCUMENTS["a"]), str(DOCUMENTS["b"])])
    assert [row["id"] for row in rows[0]] == ["ab"[ranked["corpus_id"]] for ranked in order]
    assert {row["id"]: row["score"] for row in rows[0]} == {"a": 0.25, "b": 0.5}
    assert rows[1] == [{"id": "c", "document": DOCUMENTS["c"], "score": 0.75}]
    assert best["select"] == found["select"]


@pytest.mark.slow
def test_a_reranker_by_its_folder(collection: chromadb.Collection, encoder: CrossEncoder) -> None:
    found = query(collection)
    assert rerank(found, QUERIES, reranker_dir("roberta"))["ids"] == rerank(found, QUERIES, encoder)["ids"]


@pytest.mark.slow
def test_from_an_event_loop(collection: chromadb.Collection, encoder: CrossEncoder) -> None:
    found = query(collection)
    assert asyncio.run(arerank(found, QUERIES, encoder, 2)) == rerank(found, QUERIES, encoder, 2)


class TestRefusals:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("queries", "message"),
        [
            (QUERIES[0], "results of 2 queries, but 1 query texts"),
            ([QUERIES[0], ""], "query 1 must be a text"),
            ([QUERIES[0], None], "query 1 must be a text"),
            (None, "must be a list of strings"),
        ],
    )
    def test_queries(self, collection: chromadb.Collection, encoder: CrossEncoder, queries: Any, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            rerank(query(collection), queries, encoder)

    @pytest.mark.slow
    @pytest.mark.parametrize("count", [0, -1, True, 2.0])
    def test_numbers(self, collection: chromadb.Collection, encoder: CrossEncoder, count: Any) -> None:
        with pytest.raises(InvalidInputError, match="n_results must be a positive integer"):
            rerank(query(collection), QUERIES, encoder, n_results=count)

    def test_results_without_documents(self, collection: chromadb.Collection, encoder: CrossEncoder) -> None:
        found = collection.query(query_texts=QUERIES, include=["distances"])
        with pytest.raises(InvalidInputError, match=r"hold no documents.*include="):
            rerank(found, QUERIES, encoder)

    def test_no_results(self, encoder: CrossEncoder) -> None:
        with pytest.raises(InvalidInputError, match="got list"):
            rerank([], QUERIES, encoder)  # type: ignore[type-var]

    def test_an_embedding_model(self, collection: chromadb.Collection) -> None:
        with pytest.raises(ModelNotFoundError, match="of the kind embedding, not reranker"):
            rerank(query(collection), QUERIES, "minilm-l6-v2")
