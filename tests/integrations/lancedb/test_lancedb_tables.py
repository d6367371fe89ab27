"""Tables in a real LanceDB, synchronous and asynchronous."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from akidb_mlx_lancedb import (
    MLXEmbeddings,
    aupsert,
    create_table,
    open_table,
    table_schema,
    upsert,
    validate_table,
)
from collection_helpers import EmbeddedByMock
from lancedb.index import FTS, BTree, IvfFlat
from lancedb.pydantic import LanceModel, Vector
from loopback_hub import Hub

from akidb_mlx_plugin import DimensionMismatchError, Document, InvalidInputError
from akidb_mlx_plugin.providers.mock import hash_texts

pytest_plugins = ("host_fixtures", "hub_fixtures", "collection_fixtures")

D = 8


def rows(table: Any) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in table.to_arrow().to_pylist()}


def vector_table(ids: list[str], vectors: Any, texts: list[str | None]) -> pa.Table:
    column = pa.array([None if vector is None else list(vector) for vector in vectors], pa.list_(pa.float32(), D))
    return pa.table({"id": ids, "text": pa.array(texts, pa.string()), "vector": column})


class TestCreating:
    def test_stamp_and_columns(self, docs: Any, db: Any, mock: MLXEmbeddings) -> None:
        schema = db.open_table("docs").schema
        assert schema.names == ["id", "text", "vector", "metadata"]
        assert schema.field("vector").type == pa.list_(pa.float32(), D)
        stamp = {key: schema.metadata[key] for key in schema.metadata if key.startswith(b"akidb_mlx:")}
        assert stamp == {
            b"akidb_mlx:model": b"mock",
            b"akidb_mlx:dimension": b"8",
            b"akidb_mlx:fingerprint": mock.model_info().fingerprint.encode(),
        }
        # And plain LanceDB finds the function.
        docs.add([{"id": "a", "text": "a text"}])
        assert docs.search("a text").limit(1).to_list()[0]["id"] == "a"

    def test_a_model_class(self, db: Any, mock: MLXEmbeddings) -> None:
        class Note(LanceModel):
            key: str
            body: str | None = mock.SourceField(default=None)
            meaning: Vector(D) = mock.VectorField()  # type: ignore[valid-type]
            year: int | None = None
            tags: list[str] | None = None
            at: datetime | None = None

        table = create_table(db, "notes", mock, schema=Note, on="key")
        moment = datetime(2026, 1, 2, 3, 4, 5)
        documents = [
            Document("a", "a text", metadata={"year": np.int64(2020), "tags": ("x", "y"), "at": moment}),
            Document("b", vector=[1.0] * D),
        ]
        assert upsert(table, documents, on="key").inserted == 2
        assert upsert(table, documents, on="key", skip_unchanged=True).skipped == 2
        first = table.search().where("year = 2020").to_list()[0]
        assert (first["key"], first["tags"], first["at"]) == ("a", ["x", "y"], moment)

    def test_an_arrow_schema_gets_what_it_lacks(self, db: Any, mock: MLXEmbeddings) -> None:
        table = create_table(db, "docs", mock, schema=pa.schema([pa.field("year", pa.int16(), nullable=False)]))
        assert table.schema.names == ["id", "text", "vector", "year"]
        upsert(table, [Document("a", "a", metadata={"year": 7})])
        for metadata, message in [
            ({}, "has no 'year'"),
            ({"year": "x"}, "year = 'x'"),
            ({"year": 2**40}, "column of int16"),
            ({"year": 7, "other": 1}, "no such column"),
            ({"year": 7, "text": "x"}, "a column that is not metadata"),
        ]:
            with pytest.raises(InvalidInputError, match=message):
                upsert(table, [Document("b", "b"), Document("c", "c", metadata=metadata)][1:])
        assert table.count_rows() == 1

    def test_a_column_of_another_width_is_refused(self, db: Any, mock: MLXEmbeddings) -> None:
        schema = pa.schema([pa.field("vector", pa.list_(pa.float32(), 16))])
        with pytest.raises(DimensionMismatchError, match=r"holds vectors of 16 dimensions.*mock makes 8"):
            create_table(db, "docs", mock, schema=schema)
        assert "docs" not in db

    def test_a_function_of_another_model_in_the_class_is_refused(self, db: Any, mock: MLXEmbeddings) -> None:
        class Note(LanceModel):
            id: str
            text: str = mock.SourceField()
            vector: Vector(D) = mock.VectorField()  # type: ignore[valid-type]

        with pytest.raises(DimensionMismatchError, match="makes 16"):
            create_table(db, "docs", MLXEmbeddings.create(mode="mock", dimension=16), schema=Note)

    def test_another_model_under_the_name_is_refused(self, docs: Any, db: Any, mock: MLXEmbeddings) -> None:
        assert create_table(db, "docs", mock, exist_ok=True).version == docs.version
        other = MLXEmbeddings.create(mode="mock", dimension=16)
        with pytest.raises(DimensionMismatchError, match=r"8 dimensions \(mock\), and mock makes 16.*reembed") as error:
            create_table(db, "docs", other, exist_ok=True)
        assert (error.value.expected, error.value.actual) == (8, 16)
        with pytest.raises(ValueError, match="exists"):
            create_table(db, "docs", mock)
        assert create_table(db, "docs", other, mode="overwrite").schema.field("vector").type.list_size == 16

    def test_a_schema_that_the_table_does_not_have_is_refused(self, docs: Any, db: Any, mock: MLXEmbeddings) -> None:
        wanted = pa.schema([pa.field("id", pa.string()), pa.field("topic", pa.string())])
        with pytest.raises(InvalidInputError, match=r"exists and has no column 'topic'.*add_columns"):
            create_table(db, "docs", mock, schema=wanted, exist_ok=True)
        docs.add_columns(pa.schema([pa.field("topic", pa.int64())]))
        with pytest.raises(InvalidInputError, match="has int64 in column 'topic', and the schema string"):
            create_table(db, "docs", mock, schema=wanted, exist_ok=True)
        docs.drop_columns(["topic"])
        docs.add_columns(wanted.remove(0))
        assert create_table(db, "docs", mock, schema=wanted, exist_ok=True).name == "docs"


class TestPlainHost:
    def test_a_class_with_another_width_is_refused_where_it_is_written(self, mock: MLXEmbeddings) -> None:
        with pytest.raises(DimensionMismatchError, match=r"column is a Vector\(16\), and its function .* 8") as error:

            class Wide(LanceModel):
                text: str = mock.SourceField()
                vector: Vector(16) = mock.VectorField()  # type: ignore[valid-type]

        assert (error.value.expected, error.value.actual) == (16, 8)
        with pytest.raises(DimensionMismatchError):

            class Perhaps(LanceModel):
                text: str = mock.SourceField()
                vector: Vector(16) | None = mock.VectorField(default=None)  # type: ignore[valid-type]

    def test_a_class_may_leave_the_width_to_the_function(self, db: Any, mock: MLXEmbeddings) -> None:
        class Note(LanceModel):
            text: str = mock.SourceField()
            vector: list[float] = mock.VectorField()

        table = db.create_table("notes", schema=Note)
        table.add([{"text": "a"}])
        assert len(table.to_arrow()["vector"][0]) == D

    def test_a_function_made_without_create_is_stored_all_the_same(self, db: Any) -> None:
        function = MLXEmbeddings(mode="mock", dimension=D)

        class Note(LanceModel):
            text: str = function.SourceField()
            vector: Vector(D) = function.VectorField()  # type: ignore[valid-type]

        db.create_table("notes", schema=Note).add([{"text": "a"}])
        stored = db.open_table("notes").embedding_functions["vector"].function
        assert (stored.mode, stored.dimension) == ("mock", D)

    def test_rows_with_and_without_vectors_in_one_arrow_table(self, docs: Any, mocked: EmbeddedByMock) -> None:
        mixed = vector_table(["a", "b", "c"], [[1.0] * D, [2.0] * D, None], ["a", "b", "c"])
        # One batch of rows with vectors and one of rows without: LanceDB fills the second.
        batches = [*mixed.slice(0, 2).to_batches(), *mixed.slice(2).to_batches()]
        docs.add(pa.Table.from_batches(batches))
        assert mocked == ["c"]
        merge = docs.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(pa.Table.from_batches(batches[1:]))
        assert docs.count_rows() == 3
        np.testing.assert_array_equal(rows(docs)["c"]["vector"], hash_texts(["c"], D)[0])
        np.testing.assert_array_equal(rows(docs)["a"]["vector"], [1.0] * D)


class TestOpening:
    def test_a_table_without_a_stamp_is_known_by_its_column(self, db: Any, mock: MLXEmbeddings) -> None:
        db.create_table("docs", vector_table(["a"], [[1.0] * D], ["a"]))
        opened = db.open_table("docs")
        with pytest.raises(DimensionMismatchError, match=r"holds vectors of 8 dimensions, and mock makes 16"):
            validate_table(opened, MLXEmbeddings.create(mode="mock", dimension=16))
        validate_table(opened, mock)
        with pytest.raises(InvalidInputError, match="'b' has a text and no vector"):
            upsert(opened, [Document("b", "b")])
        assert upsert(opened, [Document("b", "b")], embedding_function=mock).embeddings_generated == 1

    def test_a_column_of_any_width_is_known_by_its_first_vector(self, db: Any) -> None:
        schema = pa.schema({"id": pa.string(), "vector": pa.list_(pa.float32())})
        table = db.create_table("docs", schema=schema)
        upsert(table, [Document("a", vector=[1, 2, 3])])
        with pytest.raises(DimensionMismatchError, match="holds 3"):
            upsert(table, [Document("b", vector=[1, 2])])
        assert rows(table)["a"]["vector"] == [1, 2, 3]

    def test_a_plain_table_of_ours_is_known_by_its_settings(self, db: Any, mock: MLXEmbeddings) -> None:
        class Note(LanceModel):
            text: str = mock.SourceField()
            vector: Vector(D) = mock.VectorField()  # type: ignore[valid-type]

        table = db.create_table("notes", schema=Note)
        validate_table(open_table(db, "notes"))
        with pytest.raises(DimensionMismatchError, match="mock makes 16"):
            validate_table(table, MLXEmbeddings.create(mode="mock", dimension=16))
        with pytest.raises(InvalidInputError, match=r"no key column 'id'.*add_columns"):
            upsert(table, [Document("a", "a")])
        table.add([{"text": "a"}])
        table.add_columns({"id": "uuid()"})
        assert upsert(table, [Document("a", "a")]).inserted == 1
        assert table.count_rows() == 2

    def test_ids_of_another_type(self, db: Any) -> None:
        table = db.create_table("docs", schema=pa.schema({"id": pa.float64(), "vector": pa.list_(pa.float32(), D)}))
        with pytest.raises(InvalidInputError, match="holds double; ids are strings, integers or UUIDs"):
            upsert(table, [Document("1", vector=[1.0] * D)])


class TestUpserting:
    def test_filters_see_the_metadata(self, docs: Any) -> None:
        upsert(docs, [Document(str(i), "same", metadata={"year": 2000 + i, "who": "O'Neil"}) for i in range(9)])
        found = docs.search("same").where("json_get_int(metadata, 'year') > 2006").limit(9).to_list()
        assert sorted(row["id"] for row in found) == ["7", "8"]

    def test_any_id(self, docs: Any) -> None:
        ids = ["it's", 'a"b', "back\\slash", "%_", "ключ", "--;", " ", "x" * 1000, "`tick`"]
        upsert(docs, [Document(id_, id_) for id_ in ids])
        assert upsert(docs, [Document(id_, id_) for id_ in ids], skip_unchanged=True).skipped == len(ids)
        assert set(rows(docs)) == set(ids)

    def test_large_integers_in_json_come_back(self, docs: Any) -> None:
        metadata = {"a": 2**64 - 1, "b": [-(2**63)], "c": {"d": 2**53 + 1}}
        upsert(docs, [Document("a", "a", metadata=metadata)])
        assert json.loads(rows(docs)["a"]["metadata"]) == metadata
        assert upsert(docs, [Document("a", "a", metadata=metadata)], skip_unchanged=True).skipped == 1

    @pytest.mark.parametrize(
        "value",
        [object(), float("nan"), {1: object()}, b"bytes", 2**64, {"a": [-(2**63) - 1]}, "\ud800", {"\ud800": 1}],
    )
    def test_metadata_that_is_no_json(self, docs: Any, mocked: EmbeddedByMock, value: object) -> None:
        with pytest.raises(InvalidInputError, match="metadata of document 'b' cannot be kept as JSON"):
            upsert(docs, [Document("a", "a"), Document("b", "b", metadata={"x": value})])
        assert (docs.count_rows(), mocked) == (0, [])

    def test_a_null_where_the_table_takes_none(self, db: Any, mock: MLXEmbeddings, mocked: EmbeddedByMock) -> None:
        class Note(LanceModel):
            id: str
            text: str = mock.SourceField()
            vector: Vector(D) = mock.VectorField()  # type: ignore[valid-type]

        table = create_table(db, "notes", mock, schema=Note)
        with pytest.raises(InvalidInputError, match=r"'b' has no text, and column 'text' .* takes no null"):
            upsert(table, [Document("a", "a"), Document("b", vector=[1.0] * D)])
        assert mocked == []

    @pytest.mark.slow
    def test_hybrid_search_with_a_full_text_index(self, docs: Any) -> None:
        upsert(docs, [Document(f"d{i}", f"note number{i} about things") for i in range(300)])
        docs.create_index("text", config=FTS())
        upsert(docs, [Document("late", "note numberlate about things")])
        docs.optimize()
        for wanted in ("number42", "numberlate"):
            hits = docs.search(f"note {wanted} about things", query_type="hybrid").limit(3).to_list()
            assert hits[0]["text"] == f"note {wanted} about things"

    @pytest.mark.slow
    def test_a_hundred_thousand_rows_with_an_index(self, db: Any) -> None:
        function = MLXEmbeddings.create(mode="mock", dimension=32)
        table = create_table(db, "big", function)
        texts = [f"text {i}" for i in range(100_000)]
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(hash_texts(texts, 32).ravel()), 32)
        table.add(pa.table({"id": [f"d{i}" for i in range(100_000)], "text": texts, "vector": vectors}))
        table.create_index("vector", config=IvfFlat(distance_type="cosine", num_partitions=16))
        table.create_index("id", config=BTree())
        changed = [Document(f"d{i}", f"changed {i}") for i in range(0, 100_000, 100)]
        added = [Document(f"new{i}", f"new {i}") for i in range(1000)]
        assert upsert(table, [*changed, *added]).inserted == 2000
        assert upsert(table, (Document(f"d{i}", f"text {i}") for i in range(1, 100)), skip_unchanged=True).skipped == 99
        assert table.count_rows() == 101_000
        for text, id_ in [("text 4321", "d4321"), ("changed 4300", "d4300"), ("new 77", "new77")]:
            found = table.search(text).distance_type("cosine").nprobes(16).limit(1).to_list()
            assert found[0]["id"] == id_


class TestAsync:
    @pytest.fixture
    async def remote(self, db: Any, mock: MLXEmbeddings) -> Any:
        connection = await lancedb.connect_async(db.uri)
        return await connection.create_table("docs", schema=table_schema(mock))

    async def test_a_function_that_does_not_fit(self, remote: Any) -> None:
        other = MLXEmbeddings.create(mode="mock", dimension=16)
        with pytest.raises(DimensionMismatchError, match="mock makes 16"):
            await aupsert(remote, [Document("b", "b")], embedding_function=other)
        assert await remote.count_rows() == 0

    async def test_what_needs_the_synchronous_connection_says_so(self, remote: Any, db: Any) -> None:
        connection = await lancedb.connect_async(db.uri)
        for refused in (
            lambda: create_table(connection, "other", MLXEmbeddings.create(mode="mock")),
            lambda: open_table(connection, "docs"),
            lambda: upsert(remote, [Document("a", "a")]),
        ):
            with pytest.raises(InvalidInputError, match="synchronous connection"):
                refused()


class TestSafety:
    """What a table stores is untrusted data."""

    @pytest.mark.parametrize(
        ("fields", "message"), [({"model": "evil/backdoored-model"}, "model"), ({"name": "$var:evil"}, "var:evil")]
    )
    def test_fields_that_only_lancedb_has(self, db: Any, hub: Hub, fields: dict[str, Any], message: str) -> None:
        entry = {"name": "akidb-mlx", "model": fields, "source_column": "text", "vector_column": "vector"}
        schema = vector_table([], [], []).schema.with_metadata({"embedding_functions": json.dumps([entry])})
        table = db.create_table("docs", schema=schema)
        for refused in (lambda: open_table(db, "docs"), lambda: table.search("b").to_list()):
            with pytest.raises(InvalidInputError, match=message):
                refused()
        assert hub.requests == []

    @pytest.mark.parametrize("stored", ["{", "5", "[5]", '[{"name": "akidb-mlx", "vector_column": "nowhere"}]'])
    def test_functions_that_cannot_be_read(self, db: Any, stored: str) -> None:
        schema = vector_table([], [], []).schema.with_metadata({"embedding_functions": stored})
        table = db.create_table("docs", schema=schema)
        with pytest.raises(InvalidInputError):
            upsert(table, [Document("b", "b")])
