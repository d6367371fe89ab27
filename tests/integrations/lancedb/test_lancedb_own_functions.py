"""What LanceDB's own tests hold its embedding functions to, held against ours.

After python/python/tests/test_embeddings.py and test_embeddings_slow.py. Without a counterpart: images, rate limits of
services, `with_embeddings`, which LanceDB has dropped, and retries, which our function does without
(tests/test_lancedb_function.py).
"""

# No postponed annotations here: LanceDB reads the vector column's width from the class as it is written.

from pathlib import Path

import lancedb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from akidb_mlx_lancedb import MLXEmbeddings
from host_helpers import MINILM
from lancedb.embeddings import EmbeddingFunctionConfig, EmbeddingFunctionRegistry, get_registry
from lancedb.pydantic import LanceModel, Vector

from akidb_mlx_plugin import EmbeddingService

pytest_plugins = ("host_fixtures",)


@pytest.fixture
def function(minilm: EmbeddingService) -> MLXEmbeddings:
    """The function on the real MiniLM, by the registry."""
    return get_registry().get("akidb-mlx").create(name=MINILM)


class TestOutsideTables:
    def test_through_metadata_and_back(self, function: MLXEmbeddings) -> None:
        registry = EmbeddingFunctionRegistry.get_instance()
        config = EmbeddingFunctionConfig(source_column="text", vector_column="vector", function=function)
        schema = pa.schema([pa.field("text", pa.string())], metadata=registry.get_table_metadata([config]))
        found = registry.parse_functions(schema.metadata)["vector"]
        assert (found.source_column, found.vector_column, found.function) == ("text", "vector", function)
        np.testing.assert_array_equal(
            found.function.compute_query_embeddings("hello world"), function.compute_query_embeddings("hello world")
        )

    def test_registered_under_its_alias_alone(self) -> None:
        assert get_registry().get("akidb-mlx") is MLXEmbeddings
        with pytest.raises(KeyError):
            get_registry().get("MLXEmbeddings")

    def test_model_dump(self, function: MLXEmbeddings) -> None:
        dumped = function.safe_model_dump()
        assert not [key for key in dumped if key.startswith("_")]
        # LanceDB's number of retries is no part of a vector space.
        assert set(dumped) == set(MLXEmbeddings.model_fields) - {"max_retries"}

    def test_secrets(self, function: MLXEmbeddings) -> None:
        assert function.sensitive_keys() == []


class TestTables:
    def test_rows_without_a_result_are_dropped(self, tmp_path: Path, function: MLXEmbeddings) -> None:
        class Row(LanceModel):
            text: str | None = function.SourceField(default=None)
            vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

        table = lancedb.connect(tmp_path).create_table("test", schema=Row, mode="overwrite")
        table.add([{"text": None}, {"text": "bar"}], on_bad_vectors="drop")
        assert table.to_pandas()["text"].tolist() == ["bar"]

    def test_frames(self, tmp_path: Path, function: MLXEmbeddings) -> None:
        class Row(LanceModel):
            text: str = function.SourceField()
            val: int
            vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

        first = pd.DataFrame({"text": ["hello world", "goodbye world"], "val": [1, 2]})
        table = lancedb.connect(tmp_path).create_table("test", schema=Row, mode="overwrite", data=first)
        assert table.schema.field("text").type == pa.string()
        assert table.schema.field("val").type == pa.int64()
        assert table.schema.field("vector").type == pa.list_(pa.float32(), 384)
        table.add(pd.DataFrame({"text": ["extra", "more"], "val": [4, 5]}))
        assert table.count_rows() == 4
        assert table.to_arrow()["vector"].null_count == 0

    def test_a_vector_that_need_not_be_given(self, tmp_path: Path, function: MLXEmbeddings) -> None:
        class Row(LanceModel):
            id: str
            vector: Vector(function.ndims()) = function.VectorField(default=None)  # type: ignore[valid-type]
            text: str = function.SourceField()

        table = lancedb.connect(tmp_path).create_table("optional_vector", schema=Row)
        table.add([Row(id="id", text="text")])
        assert np.linalg.norm(table.to_pandas()["vector"][0]) == pytest.approx(1, abs=1e-5)

    def test_basic_text_embeddings(self, tmp_path: Path, function: MLXEmbeddings) -> None:
        other = get_registry().get("akidb-mlx").create(name=MINILM, max_retries=0)

        class Words(LanceModel):
            text: str = function.SourceField()
            text2: str = other.SourceField()
            vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]
            vector2: Vector(other.ndims()) = other.VectorField()  # type: ignore[valid-type]

        table = lancedb.connect(tmp_path).create_table("words", schema=Words)
        table.add(
            pd.DataFrame(
                {
                    "text": ["hello world", "goodbye world", "fizz", "buzz", "foo", "bar", "baz"],
                    "text2": [
                        "to be or not to be",
                        "that is the question",
                        "for whether tis nobler",
                        "in the mind to suffer",
                        "the slings and arrows",
                        "of outrageous fortune",
                        "or to take arms",
                    ],
                }
            )
        )

        def first(query: object, column: str) -> Words:
            return table.search(query, vector_column_name=column).limit(1).to_pydantic(Words)[0]

        by_text = first("greeting", "vector")
        by_vector = first(function.compute_query_embeddings("greeting")[0], "vector")
        assert by_text.text == by_vector.text == "hello world"
        assert not np.allclose(by_text.vector, by_text.vector2)
        by_other = first("greeting", "vector2")
        assert by_other.text != "hello world"
        assert not np.allclose(by_other.vector, by_other.vector2)
