"""The reranker in LanceDB's searches; the first cases follow those of LanceDB's own rerankers."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from akidb_mlx_lancedb import MLXEmbeddings, MLXReranker
from golden_rerankers import reranker_dir
from lancedb.pydantic import LanceModel, Vector

from akidb_mlx_plugin import CrossEncoder, InvalidInputError, ModelNotFoundError

QUERY = "water and light"
_WORDS = ["water", "light", "stone", "river", "paper", "garden", "morning", "window", "music", "letter", "bridge"]
TEXTS = [f"{first} {second} over the {first}" for first in _WORDS for second in _WORDS[:4] if first != second]


@pytest.fixture
def encoder() -> CrossEncoder:
    return CrossEncoder(reranker_dir("roberta"), device="cpu")


@pytest.fixture
def reranker(encoder: CrossEncoder) -> MLXReranker:
    return MLXReranker(encoder)


@pytest.fixture
def schema(mock: MLXEmbeddings) -> type[LanceModel]:
    class Phrase(LanceModel):
        text: str = mock.SourceField()
        vector: Vector(mock.ndims()) = mock.VectorField()  # type: ignore[valid-type]
        meta: str
        meta_vector: Vector(mock.ndims())  # type: ignore[valid-type]

    return Phrase


@pytest.fixture
def table(tmp_path: Path, mock: MLXEmbeddings, schema: type[LanceModel]) -> Any:
    table = lancedb.connect(tmp_path / "lance").create_table("phrases", schema=schema)
    metas = TEXTS[::-1]
    vectors = mock.compute_source_embeddings(metas)
    table.add([{"text": t, "meta": m, "meta_vector": v} for t, m, v in zip(TEXTS, metas, vectors, strict=True)])
    table.create_fts_index("text")
    return table


def scores_of(result: pa.Table) -> Any:
    scores = result["_relevance_score"].to_numpy()
    assert np.all(np.diff(scores) <= 0)
    return scores


class TestLikeTheirs:
    def test_hybrid_however_the_searches_scores_are_normalized(
        self, table: Any, reranker: MLXReranker, schema: type[LanceModel]
    ) -> None:
        search = table.search(QUERY, query_type="hybrid", vector_column_name="vector")
        by_score = search.rerank(normalize="score", reranker=reranker).to_pydantic(schema)
        search = table.search(QUERY, query_type="hybrid", vector_column_name="vector")
        assert by_score == search.rerank(reranker=reranker).to_pydantic(schema)
        assert by_score

    def test_hybrid_of_a_vector_and_a_text(self, table: Any, reranker: MLXReranker, encoder: CrossEncoder) -> None:
        vector = table.to_arrow()["vector"][0].as_py()
        search = table.search(query_type="hybrid", vector_column_name="vector").vector(vector).text(QUERY).limit(30)
        result = search.rerank(reranker=reranker).to_arrow()
        assert len(result) == 30
        assert set(result.column_names) == {"text", "vector", "meta", "meta_vector", "_relevance_score"}
        expected = encoder.predict([(QUERY, text) for text in result["text"].to_pylist()])
        assert np.allclose(scores_of(result), expected, atol=1e-6)

    def test_vector(self, table: Any, reranker: MLXReranker) -> None:
        result = table.search(QUERY, vector_column_name="vector").rerank(reranker=reranker).limit(30).to_arrow()
        assert len(scores_of(result)) == 30
        assert "_distance" not in result.column_names

    def test_a_vector_needs_the_query_as_text(self, table: Any, reranker: MLXReranker) -> None:
        vector = table.to_arrow()["vector"][0].as_py()
        search = table.search(vector, vector_column_name="vector").limit(30)
        assert len(scores_of(search.rerank(reranker=reranker, query_string=QUERY).to_arrow())) == 30
        with pytest.raises(ValueError, match="not a string"):
            table.search(vector, vector_column_name="vector").rerank(reranker=reranker)

    def test_full_text(self, table: Any, reranker: MLXReranker) -> None:
        result = table.search(QUERY, query_type="fts").rerank(reranker=reranker).limit(30).to_arrow()
        assert len(scores_of(result)) > 0
        assert "_score" not in result.column_names

    def test_several_vector_searches(self, table: Any, reranker: MLXReranker, mock: MLXEmbeddings) -> None:
        vector = mock.compute_query_embeddings(QUERY)[0]
        searches = [
            table.search(vector, vector_column_name=column).with_row_id(True).limit(10)
            for column in ("vector", "meta_vector")
        ]
        result = reranker.rerank_multivector(searches, QUERY)
        assert len(scores_of(result)) == 20
        assert result == reranker.rerank_multivector([search.to_arrow() for search in searches], QUERY)
        once = reranker.rerank_multivector([*searches, searches[0]], QUERY, deduplicate=True)
        rows = once["_rowid"].to_pylist()
        assert len(rows) == len(set(rows)) < 30
        scores_of(once)

    def test_several_searches_must_be_of_one_kind_and_have_row_ids(self, table: Any, reranker: MLXReranker) -> None:
        search = table.search(QUERY, vector_column_name="vector").limit(3)
        with pytest.raises(ValueError, match="same type"):
            reranker.rerank_multivector([search, search.to_arrow()], QUERY)
        with pytest.raises(ValueError, match="_rowid"):
            reranker.rerank_multivector([search], QUERY, deduplicate=True)
        with pytest.raises(InvalidInputError, match="needs the question as text, got None"):
            reranker.rerank_multivector([search], None)

    def test_all_scores(self, table: Any, encoder: CrossEncoder) -> None:
        reranker = MLXReranker(encoder, return_score="all")
        search = table.search(QUERY, query_type="hybrid", vector_column_name="vector").limit(20)
        result = search.rerank(reranker=reranker).to_arrow()
        scores_of(result)
        assert {"_distance", "_score", "_relevance_score", "_rowid"} <= set(result.column_names)
        assert result.schema.field("vector").type == table.schema.field("vector").type
        fts = table.search(QUERY, query_type="fts").with_row_id(True).limit(20).to_arrow()
        by_text = dict(zip(fts["_rowid"].to_pylist(), fts["_score"].to_pylist(), strict=True))
        assert by_text
        for row in result.to_pylist():
            assert row["_score"] == by_text.get(row["_rowid"])
            assert row["_score"] is not None or row["_distance"] is not None
        alone = table.search(QUERY, vector_column_name="vector").rerank(reranker=reranker).limit(3).to_arrow()
        assert {"_distance", "_relevance_score"} <= set(alone.column_names)


class TestNothingFound:
    @pytest.mark.parametrize("score", ["relevance", "all"])
    def test_in_any_search(self, table: Any, encoder: CrossEncoder, score: Any) -> None:
        reranker = MLXReranker(encoder, return_score=score)
        nobody = "text = 'nobody wrote this'"
        searches = [
            table.search(QUERY, vector_column_name="vector").where(nobody, prefilter=True),
            table.search("zebra", query_type="fts"),
            table.search("zebra", query_type="hybrid", vector_column_name="vector").where(nobody, prefilter=True),
        ]
        for search in searches:
            result = search.rerank(reranker=reranker).to_arrow()
            assert len(result) == 0
            assert "_relevance_score" in result.column_names

    @pytest.mark.parametrize("score", ["relevance", "all"])
    def test_by_one_half_of_a_hybrid_search(self, table: Any, encoder: CrossEncoder, score: Any) -> None:
        reranker = MLXReranker(encoder, return_score=score)
        search = table.search("zebra", query_type="hybrid", vector_column_name="vector").limit(5)
        assert len(scores_of(search.rerank(reranker=reranker).to_arrow())) == 5
        found = table.search(QUERY, query_type="fts").with_row_id(True).to_arrow()
        empty = pa.table({"text": pa.array([], pa.string())})
        assert len(scores_of(reranker.rerank_hybrid(QUERY, empty, found))) == len(found)


def test_rows_without_text_come_last(reranker: MLXReranker) -> None:
    texts = [None, "water", "", "light and stone", "  "]
    found = pa.table({"text": pa.array(texts, pa.string()), "id": range(5)})
    result = reranker.rerank_fts(QUERY, found)
    assert sorted(result["id"].to_pylist()[:2]) == [1, 3]
    assert result["id"].to_pylist()[2:] == [0, 2, 4]
    assert result["_relevance_score"].to_pylist()[2:] == [None] * 3


def test_rows_of_equal_scores_keep_their_order(reranker: MLXReranker) -> None:
    found = pa.table({"text": ["water"] * 20, "id": range(20)})
    assert reranker.rerank_fts(QUERY, found)["id"].to_pylist() == list(range(20))


def test_async_tables(tmp_path: Path, table: Any, reranker: MLXReranker, mock: MLXEmbeddings) -> None:
    async def search() -> list[pa.Table]:
        db = await lancedb.connect_async(tmp_path / "lance")
        opened = await db.open_table("phrases")
        vector = mock.compute_query_embeddings(QUERY)[0]
        query = opened.query()
        return [
            await query.nearest_to(vector).column("vector").limit(9).rerank(reranker, query_string=QUERY).to_arrow(),
            await opened.query().nearest_to_text(QUERY).limit(9).rerank(reranker).to_arrow(),
            await opened.query()
            .nearest_to(vector)
            .column("vector")
            .nearest_to_text(QUERY)
            .limit(9)
            .rerank(reranker)
            .to_arrow(),
        ]

    for result in asyncio.run(search()):
        assert len(scores_of(result)) == 9


class TestRefusals:
    def test_a_column_that_is_not_there(self, table: Any, encoder: CrossEncoder) -> None:
        search = table.search(QUERY, query_type="fts").rerank(reranker=MLXReranker(encoder, column="body"))
        with pytest.raises(InvalidInputError, match=r"no column 'body'.*they have text, vector, meta"):
            search.to_arrow()

    def test_a_column_that_is_not_text(self, table: Any, encoder: CrossEncoder) -> None:
        search = table.search(QUERY, query_type="fts").rerank(reranker=MLXReranker(encoder, column="vector"))
        with pytest.raises(InvalidInputError, match="'vector' holds fixed_size_list"):
            search.to_arrow()

    def test_settings(self) -> None:
        with pytest.raises(InvalidInputError, match="return_score must be 'relevance' or 'all', got 'some'"):
            MLXReranker(return_score="some")  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="column must be the name"):
            MLXReranker(column="")
        with pytest.raises(InvalidInputError, match="batch_size"):
            MLXReranker(batch_size=0)

    def test_an_embedding_model(self, table: Any) -> None:
        search = table.search(QUERY, query_type="fts").rerank(reranker=MLXReranker("minilm-l6-v2"))
        with pytest.raises(ModelNotFoundError, match="of the kind embedding, not reranker"):
            search.to_arrow()

    def test_a_model_of_several_scores(self) -> None:
        found = pa.table({"text": ["water"]})
        with pytest.raises(InvalidInputError, match="3 scores per pair"):
            MLXReranker(reranker_dir("bert_labels")).rerank_fts(QUERY, found)


def test_making_one_is_free_and_the_model_is_shared() -> None:
    before = threading.active_count()
    rerankers = [MLXReranker() for _ in range(100)]
    assert threading.active_count() == before
    assert len({id(each._encoder) for each in rerankers}) == 1
    assert str(rerankers[0]) == "MLXReranker(CrossEncoder('ms-marco-minilm-l6', open))"
