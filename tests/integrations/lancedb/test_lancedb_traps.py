"""What LanceDB does that could surprise, and what a stored table must not be able to do."""

# No postponed annotations here: LanceDB reads the vector column's width from the class as it is written.

from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from akidb_mlx_lancedb import MLXEmbeddings
from host_helpers import MINILM, Embedded
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector

from akidb_mlx_plugin import DimensionMismatchError, EmbeddingService, InvalidInputError

pytest_plugins = ("host_fixtures", "hub_fixtures")

WIDTH = 384
ROWS = [{"key": "none", "text": None}, {"key": "some", "text": "a text"}]
VECTORS = pa.list_(pa.float32(), WIDTH)
GIVEN = np.eye(WIDTH, dtype=np.float32)[7]


@pytest.fixture
def notes(tmp_path: Path, minilm: EmbeddingService) -> lancedb.table.Table:
    """An empty table whose texts are embedded and may be null."""
    function = MLXEmbeddings.create(name=MINILM)

    class Note(LanceModel):
        key: str
        text: str | None = function.SourceField(default=None)
        vector: Vector(WIDTH) | None = function.VectorField(default=None)  # type: ignore[valid-type]

    return lancedb.connect(tmp_path).create_table("notes", schema=Note)


def stored(table: lancedb.table.Table) -> dict[str, Any]:
    """Return what a table holds: vectors by key."""
    return {row["key"]: row["vector"] for row in table.to_arrow().to_pylist()}


def batch(rows: dict[str, tuple[str | None, Any]]) -> pa.RecordBatch:
    """Return rows of text and vector by key as one typed Arrow batch."""
    texts, vectors = zip(*rows.values(), strict=True)
    return pa.record_batch(
        [pa.array(rows), pa.array(texts, pa.string()), pa.array(vectors, VECTORS)], names=["key", "text", "vector"]
    )


class TestNullTexts:
    """A row without a text gets no vector from the function, and never one of zeros."""

    @pytest.mark.slow
    def test_by_default_nothing_is_written(self, notes: lancedb.table.Table) -> None:
        with pytest.raises(RuntimeError, match="on_bad_vectors"):
            notes.add(ROWS)
        assert stored(notes) == {}

    def test_dropped(self, notes: lancedb.table.Table) -> None:
        notes.add(ROWS, on_bad_vectors="drop")
        assert list(stored(notes)) == ["some"]

    def test_kept_without_a_vector(self, notes: lancedb.table.Table) -> None:
        notes.add(ROWS, on_bad_vectors="null")
        vectors = stored(notes)
        assert vectors["none"] is None
        assert np.linalg.norm(vectors["some"]) == pytest.approx(1, abs=1e-5)
        assert {row["key"] for row in notes.search("a text").limit(5).to_list()} == {"some"}

    def test_filled_as_the_user_asks(self, notes: lancedb.table.Table) -> None:
        notes.add(ROWS, on_bad_vectors="fill", fill_value=0.25)
        assert stored(notes)["none"] == [0.25] * WIDTH

    def test_the_function_skips_them(self, minilm: EmbeddingService, embedded: Embedded) -> None:
        function = MLXEmbeddings.create(name=MINILM)
        vectors = function.compute_source_embeddings(pa.array([None, "a", None, "b"]))
        assert [vector is None for vector in vectors] == [True, False, True, False]
        assert embedded.texts == ["a", "b"]
        assert function.compute_source_embeddings(pa.array([None, None], pa.string())) == [None, None]

    def test_an_empty_text_is_a_text(self, notes: lancedb.table.Table) -> None:
        notes.add([{"key": "empty", "text": ""}])
        assert np.linalg.norm(stored(notes)["empty"]) == pytest.approx(1, abs=1e-5)
        assert notes.search("").limit(1).to_list()[0]["_distance"] == pytest.approx(0, abs=1e-6)


class TestGivenVectors:
    def test_are_kept_and_nothing_is_embedded(self, notes: lancedb.table.Table, embedded: Embedded) -> None:
        notes.add([{"key": "a", "text": "whatever", "vector": GIVEN}])
        assert stored(notes)["a"] == GIVEN.tolist()
        assert notes.search(GIVEN).limit(1).to_list()[0]["key"] == "a"
        assert embedded == []

    @pytest.mark.parametrize("way", ["add", "merge_insert"])
    def test_mixed_rows_go_in_runs_of_arrow_batches(
        self, notes: lancedb.table.Table, embedded: Embedded, way: str
    ) -> None:
        table = pa.Table.from_batches(
            [
                batch({"a": ("first", None), "b": ("second", None)}),
                batch({"c": ("ignored", GIVEN)}),
                batch({"d": ("third", None)}),
            ]
        )
        if way == "add":
            notes.add(table)
        else:
            notes.merge_insert("key").when_matched_update_all().when_not_matched_insert_all().execute(table)
        vectors = stored(notes)
        assert embedded.texts == ["first", "second", "third"]
        assert vectors["c"] == GIVEN.tolist()
        for key, text in (("a", "first"), ("b", "second"), ("d", "third")):
            assert notes.search(text).limit(1).to_list()[0]["key"] == key
            assert np.linalg.norm(vectors[key]) == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize("other", [{}, {"vector": None}])
    def test_mixed_rows_of_python_dicts_write_nothing(
        self, notes: lancedb.table.Table, embedded: Embedded, other: dict[str, Any]
    ) -> None:
        with pytest.raises(RuntimeError, match="variable length vectors"):
            notes.add([{"key": "a", "text": "a", "vector": GIVEN}, {"key": "b", "text": "b", **other}])
        assert (stored(notes), embedded) == ({}, [])

    def test_of_another_width_write_nothing(self, notes: lancedb.table.Table, embedded: Embedded) -> None:
        with pytest.raises(RuntimeError, match="variable length vectors"):
            notes.add([{"key": "a", "text": "a", "vector": [1.0, 2.0]}])
        assert (stored(notes), embedded) == ({}, [])

    def test_a_query_of_another_width_is_refused(self, notes: lancedb.table.Table) -> None:
        with pytest.raises(ValueError, match="no vector column"):
            notes.search(np.zeros(12)).limit(1).to_list()


class TestTables:
    def test_a_column_of_another_width_is_refused_as_it_is_written(self) -> None:
        function = MLXEmbeddings.create(name=MINILM)
        with pytest.raises(DimensionMismatchError, match=r"Vector\(100\).*384") as caught:

            class Note(LanceModel):
                text: str = function.SourceField()
                vector: Vector(100) = function.VectorField()  # type: ignore[valid-type]

        assert (caught.value.expected, caught.value.actual) == (100, WIDTH)

    def test_direct_construction_stores_every_field_too(self, tmp_path: Path, minilm: EmbeddingService) -> None:
        function = MLXEmbeddings(name=MINILM)

        class Note(LanceModel):
            text: str = function.SourceField()
            vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

        table = lancedb.connect(tmp_path).create_table("direct", schema=Note)
        table.add([{"text": "soup"}])
        found = get_registry().parse_functions(table.schema.metadata)["vector"].function
        assert found.safe_model_dump() == MLXEmbeddings.create(name=MINILM).safe_model_dump()

    def test_update_does_not_embed_again(self, notes: lancedb.table.Table, embedded: Embedded) -> None:
        notes.add([{"key": "a", "text": "soup"}])
        before = stored(notes)["a"]
        notes.update(where="key = 'a'", values={"text": "a calendar"})
        assert embedded.texts == ["soup"]
        assert stored(notes)["a"] == before

    def test_merge_insert_is_how_to_embed_again(self, notes: lancedb.table.Table) -> None:
        notes.add([{"key": "a", "text": "soup"}, {"key": "b", "text": "a shoe"}])
        notes.merge_insert("key").when_matched_update_all().execute([{"key": "a", "text": "a calendar"}])
        assert notes.search("today's date").limit(1).to_list()[0]["key"] == "a"

    def test_overwriting_drops_the_vectors(self, notes: lancedb.table.Table) -> None:
        notes.add([{"key": "a", "text": "soup"}])
        notes.add([{"key": "b", "text": "bread"}], mode="overwrite")
        assert notes.schema.names == ["key", "text"]

    def test_lancedb_rebuilds_it_and_one_service_serves(
        self, notes: lancedb.table.Table, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        built: list[MLXEmbeddings] = []
        make = MLXEmbeddings.create.__func__  # type: ignore[attr-defined]

        def lancedb_create(cls: type[MLXEmbeddings], **settings: Any) -> MLXEmbeddings:
            built.append(make(cls, **settings))
            return built[-1]

        monkeypatch.setattr(MLXEmbeddings, "create", classmethod(lancedb_create))
        for i in range(3):
            notes.add([{"key": str(i), "text": f"text {i}"}])
        assert len(built) >= 6
        assert len({id(function.service) for function in built}) == 1


class TestQueries:
    @pytest.mark.parametrize(
        ("query", "message"), [(b"soup", "got bytes"), (5, "got int"), ("a\ud800", "lone surrogate")]
    )
    def test_unusable_ones_are_typed_errors(self, notes: lancedb.table.Table, query: Any, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            notes.search(query)
