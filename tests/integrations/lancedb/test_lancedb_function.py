"""The LanceDB function inside real LanceDB, through its synchronous and asynchronous faces."""

# No postponed annotations here: LanceDB reads the vector column's width from the class as it is written.

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from akidb_mlx_lancedb import MLXEmbeddings
from host_helpers import DOCUMENTS, MINILM, Embedded, run_python
from lancedb.embeddings import get_registry
from lancedb.index import FTS
from lancedb.pydantic import LanceModel, Vector
from lancedb_notes import FIELDS, ROWS, make, nearest, note_of

from akidb_mlx_plugin import EmbeddingConfig, EmbeddingService

pytest_plugins = ("host_fixtures",)


def vectors_of(table: lancedb.table.Table) -> dict[str, Any]:
    """Return the vectors of a table by key."""
    return {
        row["key"]: None if row["vector"] is None else np.asarray(row["vector"], np.float32)
        for row in table.to_arrow().to_pylist()
    }


class TestTables:
    @pytest.mark.slow
    def test_text_in_neighbours_out(self, notes: lancedb.table.Table) -> None:
        assert nearest(notes, "read a timestamp") == "date"
        assert nearest(notes, "cook spaghetti") == "pasta"
        assert nearest(notes, "text document on disk") == "file"

    def test_the_vectors_are_the_models(self, notes: lancedb.table.Table, minilm: EmbeddingService) -> None:
        expected = minilm.embed_batch(list(DOCUMENTS.values())).embeddings
        stored = vectors_of(notes)
        np.testing.assert_allclose([stored[key] for key in DOCUMENTS], expected, atol=1e-5)

    @pytest.mark.slow
    def test_merge_insert_embeds_what_it_brings(self, notes: lancedb.table.Table, embedded: Embedded) -> None:
        rows = [{"key": "file", "text": "fry an egg"}, {"key": "dog", "text": "a dog barks at night"}]
        notes.merge_insert("key").when_matched_update_all().when_not_matched_insert_all().execute(rows)
        assert embedded.texts == ["fry an egg", "a dog barks at night"]
        assert notes.count_rows() == 4
        assert nearest(notes, "a puppy makes noise") == "dog"
        assert nearest(notes, "an omelette") == "file"

    def test_data_at_creation(self, tmp_path: Path, function: MLXEmbeddings) -> None:
        table = lancedb.connect(tmp_path).create_table("made", schema=note_of(function), data=ROWS)
        assert nearest(table, "spaghetti") == "pasta"

    def test_a_width_that_lancedb_asks_the_function_for(self, tmp_path: Path, function: MLXEmbeddings) -> None:
        class Plain(LanceModel):
            text: str = function.SourceField()
            vector: list[float] = function.VectorField()

        table = lancedb.connect(tmp_path).create_table("plain", schema=Plain)
        assert table.schema.field("vector").type == pa.list_(pa.float32(), 384)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "of",
        [
            pd.DataFrame,
            pl.DataFrame,
            pa.Table.from_pylist,
            lambda rows: pa.Table.from_pylist(rows).to_batches()[0],
            lambda rows: pa.Table.from_pylist(rows).to_reader(),
            lambda rows: iter(pa.Table.from_pylist(rows).to_batches()),
        ],
        ids=["pandas", "polars", "arrow", "batch", "reader", "iterator"],
    )
    def test_any_kind_of_data(
        self, tmp_path: Path, function: MLXEmbeddings, of: Callable[[list[dict[str, str]]], Any]
    ) -> None:
        table = lancedb.connect(tmp_path).create_table("any", schema=note_of(function))
        table.add(of(ROWS))
        assert nearest(table, "spaghetti") == "pasta"

    def test_models_of_the_schema(self, notes: lancedb.table.Table, function: MLXEmbeddings) -> None:
        note = note_of(function)
        notes.add([note(key="cat", text="a cat sleeps in the sun")])
        assert notes.search("kitten").limit(1).to_pydantic(note)[0].key == "cat"

    def test_two_functions_on_one_table(self, tmp_path: Path, minilm: EmbeddingService) -> None:
        titles, bodies = make(name=MINILM, document_prompt="title: "), make(name=MINILM, normalize=False)

        class Page(LanceModel):
            title: str = titles.SourceField()
            body: str = bodies.SourceField()
            by_title: Vector(384) = titles.VectorField()  # type: ignore[valid-type]
            by_body: Vector(384) = bodies.VectorField()  # type: ignore[valid-type]

        table = lancedb.connect(tmp_path).create_table("pages", schema=Page)
        table.add([{"title": "Pasta", "body": "dates and times"}, {"title": "Calendar", "body": "boil some noodles"}])
        found = {
            column: table.search("spaghetti", vector_column_name=column).limit(1).to_list()[0]
            for column in ("by_title", "by_body")
        }
        assert (found["by_title"]["title"], found["by_body"]["title"]) == ("Pasta", "Calendar")
        expected = minilm.embed_batch(["title: Pasta"]).embeddings[0]
        np.testing.assert_allclose(found["by_title"]["by_title"], expected, atol=1e-5)

    def test_hybrid_and_full_text_search(self, notes: lancedb.table.Table) -> None:
        notes.create_index("text", config=FTS())
        assert nearest(notes, "salted", query_type="fts") == "pasta"
        found = notes.search("salted noodles", query_type="hybrid").limit(3).to_list()
        assert found[0]["key"] == "pasta"
        assert {row["key"] for row in found} == set(DOCUMENTS)

    @pytest.mark.slow
    def test_threads_share_a_table(self, notes: lancedb.table.Table) -> None:
        together = threading.Barrier(4)

        def work(number: int) -> list[str]:
            texts = {f"{number}-{i}": f"note {i} by worker {number}" for i in range(4)}
            together.wait()
            notes.add([{"key": key, "text": text} for key, text in texts.items()])
            return [key for key, text in texts.items() if nearest(notes, text) == key]

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(work, range(4)))
        assert found == [[f"{number}-{i}" for i in range(4)] for number in range(4)]

    async def test_the_async_face(self, notes: lancedb.table.Table, tmp_path: Path) -> None:
        table = await (await lancedb.connect_async(tmp_path)).open_table("notes")
        await table.add([{"key": "dog", "text": "a dog barks at night"}])
        merge = table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
        await merge.execute([{"key": "file", "text": "fry an egg"}])
        for text, key in (("a puppy", "dog"), ("an omelette", "file"), ("spaghetti", "pasta")):
            assert (await (await table.search(text)).limit(1).to_list())[0]["key"] == key

    @pytest.mark.slow
    async def test_async_search_becomes_hybrid_with_a_full_text_index(
        self, notes: lancedb.table.Table, tmp_path: Path, embedded: Embedded
    ) -> None:
        notes.create_index("text", config=FTS())
        table = await (await lancedb.connect_async(tmp_path)).open_table("notes")
        found = await (await table.search("salted noodles")).limit(3).to_list()
        assert (found[0]["key"], "_relevance_score" in found[0]) == ("pasta", True)
        assert [(request.kind, request.inputs) for request in embedded] == [("query", ["salted noodles"])]

    @pytest.mark.slow
    async def test_async_searches_at_the_same_time(self, notes: lancedb.table.Table, tmp_path: Path) -> None:
        table = await (await lancedb.connect_async(tmp_path)).open_table("notes")

        async def ask(text: str) -> str:
            return str((await (await table.search(text)).limit(1).to_list())[0]["key"])

        answers = await asyncio.gather(*(ask(text) for text in list(DOCUMENTS.values()) * 8))
        assert answers == list(DOCUMENTS) * 8


class TestQueries:
    def test_queries_and_documents_have_prompts_of_their_own(self, tmp_path: Path, embedded: Embedded) -> None:
        function = make(name=MINILM, query_prompt="recipe: ", document_prompt="calendar: ")
        table = lancedb.connect(tmp_path).create_table("prompted", schema=note_of(function))
        table.add(ROWS[:1])
        table.search("soup").limit(1).to_list()
        assert [(r.kind, r.prompt) for r in embedded] == [("document", "calendar: "), ("query", "recipe: ")]

    @pytest.mark.slow
    @pytest.mark.parametrize("query", ["soup", ["soup"], np.array(["soup"]), pa.array(["soup"])])
    def test_one_query_in_any_form(self, function: MLXEmbeddings, minilm: EmbeddingService, query: Any) -> None:
        expected = minilm.embed_batch(["soup"], kind="query").embeddings[0]
        vector = function.compute_query_embeddings(query)[0]
        assert vector is not None
        np.testing.assert_allclose(vector, expected, atol=1e-5)

    @pytest.mark.parametrize("texts", [["a", "b"], ("a", "b"), np.array(["a", "b"]), pa.chunked_array([["a"], ["b"]])])
    def test_a_column_in_any_form(self, function: MLXEmbeddings, texts: Any) -> None:
        vectors = function.compute_source_embeddings(texts)
        assert [(v.shape, v.dtype) for v in vectors if v is not None] == [((384,), np.float32)] * 2


class TestStored:
    def test_every_field_is_written_down(self, notes: lancedb.table.Table) -> None:
        stored = json.loads(notes.schema.metadata[b"embedding_functions"])
        assert stored == [
            {"name": "akidb-mlx", "model": FIELDS, "source_column": "text", "vector_column": "vector"},
        ]

    def test_so_that_other_defaults_change_no_table(
        self, notes: lancedb.table.Table, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AKIDB_EMBEDDING__MLX__NORMALIZE", "false")
        monkeypatch.setenv("AKIDB_EMBEDDING__MLX__QUERY_PROMPT", "mine: ")
        monkeypatch.setenv("AKIDB_EMBEDDING__MLX__MODEL", "gemma-300m-4bit")
        rebuilt = get_registry().parse_functions(notes.schema.metadata)["vector"].function
        assert rebuilt.safe_model_dump() == FIELDS
        assert rebuilt.model_dump(exclude={"max_retries"}) == FIELDS

    @pytest.mark.slow
    def test_reopened_in_a_fresh_process(self, notes: lancedb.table.Table, tmp_path: Path) -> None:
        printed = run_python(
            """
            import json, sys, lancedb, akidb_mlx_lancedb
            table = lancedb.connect(sys.argv[1]).open_table("notes")
            found = table.search("spaghetti").limit(1).to_list()[0]["key"]
            table.add([{"key": "again", "text": "boil the pasta in salted water"}])
            vector = table.search().where("key = 'again'").to_list()[0]["vector"]
            print(json.dumps([found, vector]))
            """,
            tmp_path,
        )
        found, vector = json.loads(printed)
        assert found == "pasta"
        assert float(np.dot(vector, vectors_of(notes)["pasta"])) >= 0.99999

    @pytest.mark.slow
    def test_reopened_without_the_package(self, notes: lancedb.table.Table, tmp_path: Path) -> None:
        printed = run_python(
            """
            import sys, lancedb
            table = lancedb.connect(sys.argv[1]).open_table("notes")
            vector = table.search().where("key = 'pasta'").to_list()[0]["vector"]
            print(table.count_rows(), table.search(vector).limit(1).to_list()[0]["key"])
            for ask in (lambda: table.search("spaghetti"), lambda: table.add([{"key": "x", "vector": vector}])):
                try:
                    ask()
                except KeyError as error:
                    print(error)
            """,
            tmp_path,
        )
        assert printed.splitlines() == ["3 pasta", "'akidb-mlx'", "'akidb-mlx'"]

    def test_from_a_file_or_what_was_read_from_it(self, tmp_path: Path) -> None:
        file = tmp_path / "config.yaml"
        file.write_text("embedding: {mlx: {model: minilm-l6-v2, query_prompt: 'q: '}}")
        for config in (file, EmbeddingConfig.load(file)):
            assert MLXEmbeddings.from_config(config).safe_model_dump() == {**FIELDS, "query_prompt": "q: "}
