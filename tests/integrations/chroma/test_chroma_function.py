"""The Chroma function inside real Chroma: in memory, on disk, and a server over HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction
from chromadb import K, Knn, Schema, Search
from chromadb.api import ClientAPI
from chromadb.api.types import VectorIndexConfig
from chromadb.errors import InvalidArgumentError
from host_helpers import DOCUMENTS, MINILM, SETTINGS, Embedded, count_loads, nearest, run_python, vector_of

from akidb_mlx_plugin import EmbeddingConfig, EmbeddingService, InvalidInputError, ModelNotFoundError

pytest_plugins = ("host_fixtures", "hub_fixtures")


class TestEveryClient:
    @pytest.mark.slow
    def test_text_in_neighbours_out(self, collection: chromadb.Collection) -> None:
        assert nearest(collection, "read a timestamp") == "date"
        assert nearest(collection, "cook spaghetti") == "pasta"
        assert nearest(collection, "text document on disk") == "file"

    @pytest.mark.slow
    def test_the_vectors_are_the_models(self, collection: chromadb.Collection, minilm: EmbeddingService) -> None:
        expected = minilm.embed_batch(list(DOCUMENTS.values())).embeddings
        stored = np.stack([vector_of(collection, key) for key in DOCUMENTS])
        np.testing.assert_allclose(stored, expected, atol=1e-5)

    @pytest.mark.slow
    def test_distances_are_those_of_the_cosine(self, collection: chromadb.Collection, minilm: EmbeddingService) -> None:
        found = collection.query(query_texts=["noodles"], n_results=3)
        assert found["distances"] is not None
        query = minilm.embed_batch(["noodles"], kind="query").embeddings[0]
        expected = [1 - float(query @ vector_of(collection, key)) for key in found["ids"][0]]
        np.testing.assert_allclose(found["distances"][0], expected, atol=1e-5)

    @pytest.mark.slow
    def test_several_queries_at_once(self, collection: chromadb.Collection) -> None:
        found = collection.query(query_texts=["spaghetti", "calendar", "directory"], n_results=1)
        assert [ids[0] for ids in found["ids"]] == ["pasta", "date", "file"]

    @pytest.mark.slow
    def test_upsert_replaces_and_adds(self, collection: chromadb.Collection) -> None:
        collection.upsert(ids=["file", "dog"], documents=["fry an egg", "a dog barks at night"])
        assert collection.count() == 4
        assert nearest(collection, "a puppy makes noise") == "dog"
        assert nearest(collection, "an omelette") == "file"

    @pytest.mark.slow
    def test_update_of_a_text_embeds_again(self, collection: chromadb.Collection, embedded: Embedded) -> None:
        before = vector_of(collection, "date")
        collection.update(ids=["date"], documents=["the moon rises over the sea"])
        assert embedded.texts == ["the moon rises over the sea"]
        assert not np.array_equal(before, vector_of(collection, "date"))
        assert nearest(collection, "night sky above the ocean") == "date"

    @pytest.mark.slow
    def test_update_of_metadata_embeds_nothing(self, collection: chromadb.Collection, embedded: Embedded) -> None:
        collection.update(ids=["date"], metadatas=[{"topic": "time"}])
        assert embedded == []
        assert nearest(collection, "cook spaghetti", where={"topic": "time"}) == "date"

    @pytest.mark.slow
    def test_where_filters(self, collection: chromadb.Collection) -> None:
        assert nearest(collection, "cook spaghetti", where={"topic": {"$in": ["date", "file"]}}) != "pasta"
        assert nearest(collection, "cook spaghetti", where_document={"$contains": "file"}) == "file"

    def test_vectors_given_are_kept_and_nothing_is_embedded(
        self, collection: chromadb.Collection, embedded: Embedded
    ) -> None:
        given = np.eye(384, dtype=np.float32)[7]
        collection.add(ids=["given"], documents=["whatever"], embeddings=[given])
        assert collection.query(query_embeddings=[given], n_results=1)["ids"] == [["given"]]
        np.testing.assert_array_equal(vector_of(collection, "given"), given)
        assert embedded == []

    def test_stores_its_settings_and_the_cosine(self, collection: chromadb.Collection, chroma: ClientAPI) -> None:
        stored = chroma.get_collection(collection.name).configuration_json
        assert stored["embedding_function"] == {"type": "known", "name": "akidb_mlx", "config": SETTINGS}
        assert stored["hnsw"]["space"] == "cosine"

    @pytest.mark.slow
    def test_another_client_object_needs_no_function(self, collection: chromadb.Collection, chroma: ClientAPI) -> None:
        found = chroma.get_collection(collection.name)
        found.add(ids=["cat"], documents=["a cat sleeps in the sun"])
        assert nearest(found, "kitten") == "cat"

    @pytest.mark.slow
    def test_the_schema_api(self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction) -> None:
        schema = Schema().create_index(VectorIndexConfig(embedding_function=function))
        chroma.create_collection(name, schema=schema)
        found = chroma.get_collection(name)
        found.add(ids=list(DOCUMENTS), documents=list(DOCUMENTS.values()))
        assert nearest(found, "spaghetti") == "pasta"
        assert found.configuration_json["hnsw"]["space"] == "cosine"
        assert found.configuration_json["embedding_function"]["config"] == SETTINGS

    def test_schema_and_function_together_are_chromas_error(
        self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction
    ) -> None:
        schema = Schema().create_index(VectorIndexConfig(embedding_function=function))
        with pytest.raises(InvalidArgumentError, match="simultaneously"):
            chroma.create_collection(name, schema=schema, embedding_function=function)

    @pytest.mark.slow
    def test_threads_share_a_collection(self, collection: chromadb.Collection) -> None:
        together = threading.Barrier(8)

        def work(number: int) -> list[str]:
            keys = [f"{number}-{i}" for i in range(4)]
            texts = [f"note {i} by worker {number}" for i in range(4)]
            together.wait()
            collection.add(ids=keys, documents=texts)
            return [nearest(collection, text) for text in texts]

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(work, range(8)))
        assert found == [[f"{number}-{i}" for i in range(4)] for number in range(8)]
        assert collection.count() == 3 + 32


class TestQueries:
    @pytest.fixture
    def prompted(self, minilm: EmbeddingService) -> MLXEmbeddingFunction:
        return MLXEmbeddingFunction(model=MINILM, query_prompt="recipe: ", document_prompt="calendar: ")

    def test_queries_and_documents_have_prompts_of_their_own(
        self, prompted: MLXEmbeddingFunction, minilm: EmbeddingService
    ) -> None:
        expected = minilm.embed_batch(["calendar: soup", "recipe: soup"]).embeddings
        np.testing.assert_allclose(prompted(["soup"])[0], expected[0], atol=1e-5)
        np.testing.assert_allclose(prompted.embed_query(["soup"])[0], expected[1], atol=1e-5)

    def test_chroma_asks_for_the_right_ones(
        self, chroma: ClientAPI, name: str, prompted: MLXEmbeddingFunction, embedded: Embedded
    ) -> None:
        chroma.create_collection(name, embedding_function=prompted)
        collection = chroma.get_collection(name)
        collection.add(ids=["a"], documents=["soup"])
        collection.query(query_texts=["soup"], n_results=1)
        assert [(r.kind, r.prompt) for r in embedded] == [("document", "calendar: "), ("query", "recipe: ")]

    def test_a_text_in_a_search_is_a_query(self, name: str, prompted: MLXEmbeddingFunction, embedded: Embedded) -> None:
        collection = chromadb.EphemeralClient().create_collection(name, embedding_function=prompted)
        # Chroma Cloud alone executes searches; the text is embedded on this side, before that.
        with pytest.raises(NotImplementedError, match="Local Chroma"):
            collection.search(Search().rank(Knn(query="soup")).select(K.DOCUMENT))
        assert [(r.kind, r.prompt, r.inputs) for r in embedded] == [("query", "recipe: ", ["soup"])]

    def test_returns_what_chroma_asks_for(self, function: MLXEmbeddingFunction) -> None:
        for vectors in (function(["a", "b"]), function.embed_query(["a", "b"])):
            assert isinstance(vectors, list)
            assert [(v.shape, v.dtype) for v in vectors] == [((384,), np.float32)] * 2

    def test_returns_what_langchain_asks_for(self, prompted: MLXEmbeddingFunction) -> None:
        query, documents = prompted.embed_query("soup"), prompted.embed_documents(["soup", "tea"])
        assert [type(value) for value in (query, query[0], documents, documents[0])] == [list, float, list, list]
        np.testing.assert_array_equal(query, prompted.embed_query(["soup"])[0])
        np.testing.assert_allclose(documents, prompted(["soup", "tea"]), atol=1e-6)
        assert prompted.embed_documents([]) == []

        async def ask() -> tuple[list[float], list[list[float]], list[list[float]]]:
            found = prompted.aembed_query("soup"), prompted.aembed_documents(["soup", "tea"])
            return *[await one for one in found], await prompted.aembed_documents([])  # type: ignore[return-value]

        assert asyncio.run(ask()) == (query, documents, [])

    def test_settings_of_the_vectors(self, minilm: EmbeddingService) -> None:
        raw = np.asarray(MLXEmbeddingFunction(MINILM, normalize=False)(["a text"])[0])
        unit = np.asarray(MLXEmbeddingFunction(MINILM)(["a text"])[0])
        np.testing.assert_allclose(raw / np.linalg.norm(raw), unit, atol=1e-5)
        assert np.linalg.norm(raw) > 1.5


class TestFreshProcess:
    @pytest.fixture
    def stored(self, tmp_path: Path, function: MLXEmbeddingFunction) -> Any:
        collection = chromadb.PersistentClient(tmp_path).create_collection("docs", embedding_function=function)
        collection.add(ids=list(DOCUMENTS), documents=list(DOCUMENTS.values()))
        return vector_of(collection, "pasta")

    @pytest.mark.slow
    def test_reopens_with_the_function_and_without(self, stored: Any, tmp_path: Path) -> None:
        printed = run_python(
            """
            import json, sys, chromadb
            from akidb_mlx_chroma import MLXEmbeddingFunction
            client = chromadb.PersistentClient(sys.argv[1])
            passed = client.get_collection("docs", embedding_function=MLXEmbeddingFunction(model="minilm-l6-v2"))
            kept = client.get_collection("docs")
            found = [c.query(query_texts=["spaghetti"], n_results=1)["ids"][0][0] for c in (passed, kept)]
            kept.add(ids=["again"], documents=["boil the pasta in salted water"])
            vector = kept.get(ids=["again"], include=["embeddings"])["embeddings"][0]
            print(json.dumps([found, vector.tolist()]))
            """,
            tmp_path,
        )
        found, vector = json.loads(printed)
        assert found == ["pasta", "pasta"]
        assert float(np.dot(vector, stored)) >= 0.99999

    @pytest.mark.slow
    @pytest.mark.usefixtures("stored")
    def test_without_the_package_reads_work_and_text_does_not(self, tmp_path: Path) -> None:
        printed = run_python(
            """
            import sys, chromadb
            docs = chromadb.PersistentClient(sys.argv[1]).get_collection("docs")
            vector = docs.get(ids=["pasta"], include=["embeddings"])["embeddings"][0]
            print(docs.count(), docs.query(query_embeddings=[vector], n_results=1)["ids"][0][0])
            docs.add(ids=["given"], embeddings=[vector])
            for ask in (lambda: docs.query(query_texts=["x"]), lambda: docs.add(ids=["x"], documents=["x"])):
                try:
                    ask()
                except ValueError as error:
                    print(error)
            print("akidb_mlx_chroma" in sys.modules, docs.count())
            """,
            tmp_path,
        )
        counted, query, add, after = printed.splitlines()
        assert (counted, after) == ("3 pasta", "False 4")
        assert "Embedding function akidb_mlx not found" in query
        assert "Embedding function akidb_mlx not found" in add


class TestSettings:
    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"model": "org/some-model", "dimension": 12, "normalize": False, "query_prompt": "q: "},
            {"model": Path("/a/folder"), "document_prompt": ""},
            {"mode": "mock", "dimension": 7},
            {"mode": "user_provided", "model": "theirs", "dimension": 9},
            {"mode": "user_provided"},
        ],
    )
    def test_round_trip_as_json(self, arguments: dict[str, Any]) -> None:
        function = MLXEmbeddingFunction(**arguments)
        settings = json.loads(json.dumps(function.get_config()))
        MLXEmbeddingFunction.validate_config(settings)
        assert MLXEmbeddingFunction.build_from_config(settings).get_config() == function.get_config() == settings

    def test_a_misspelt_name_is_refused_before_a_collection_stores_it(self) -> None:
        with pytest.raises(ModelNotFoundError, match="did you mean 'minilm-l6-v2'"):
            MLXEmbeddingFunction("minlm-l6-v2")
        assert MLXEmbeddingFunction("theirs", mode="user_provided").get_config()["model"] == "theirs"

    def test_what_belongs_to_the_machine_is_not_stored(self, tmp_path: Path) -> None:
        function = MLXEmbeddingFunction(MINILM, device="cpu", cache_dir=tmp_path)
        assert function.get_config() == SETTINGS

    def test_this_machines_environment_does_not_change_a_stored_space(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AKIDB_EMBEDDING__MLX__NORMALIZE", "false")
        monkeypatch.setenv("AKIDB_EMBEDDING__MLX__QUERY_PROMPT", "mine: ")
        monkeypatch.setenv("AKIDB_EMBEDDING__MLX__MODEL", "gemma-300m-4bit")
        assert MLXEmbeddingFunction.build_from_config(SETTINGS).get_config() == SETTINGS

    def test_from_a_file_or_what_was_read_from_it(self, tmp_path: Path) -> None:
        file = tmp_path / "config.yaml"
        file.write_text("embedding: {mlx: {model: minilm-l6-v2, query_prompt: 'q: '}}")
        for config in (file, EmbeddingConfig.load(file)):
            assert MLXEmbeddingFunction.from_config(config).get_config() == {**SETTINGS, "query_prompt": "q: "}

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({**SETTINGS, "trust_remote_code": True}, "trust_remote_code"),
            ({**SETTINGS, "dimension": "384"}, "dimension"),
            ({**SETTINGS, "mode": "pickle"}, "mode"),
            ({**SETTINGS, "model": ["a"]}, "model"),
        ],
    )
    def test_unusable_settings_are_typed_errors(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            MLXEmbeddingFunction.build_from_config(settings)

    def test_user_provided_mode_takes_vectors_and_refuses_texts(self, chroma: ClientAPI, name: str) -> None:
        function = MLXEmbeddingFunction(mode="user_provided", model="theirs", dimension=2)
        collection = chroma.create_collection(name, embedding_function=function)
        collection.add(ids=["a"], documents=["a text"], embeddings=[[1.0, 0.0]])
        assert collection.query(query_embeddings=[[1.0, 0.1]], n_results=1)["ids"] == [["a"]]
        with pytest.raises(InvalidInputError, match="provide a vector"):
            collection.add(ids=["b"], documents=["b"])


class TestCost:
    @pytest.mark.slow
    def test_a_thousand_functions_load_nothing(
        self, name: str, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded = count_loads(monkeypatch)
        for i in range(1000):
            function = MLXEmbeddingFunction(tiny_dir, query_prompt=f"{i}: ")
        collection = chromadb.EphemeralClient().create_collection(name, embedding_function=function)
        collection.add(ids=["a"], embeddings=[[0.5] * 32])
        assert loaded == []
        collection.add(ids=["b"], documents=["b"])
        assert len(loaded) == 1

    @pytest.mark.slow
    def test_chroma_rebuilds_it_and_one_model_serves(
        self, collection: chromadb.Collection, chroma: ClientAPI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        built: list[int] = []
        loaded = count_loads(monkeypatch)
        build = MLXEmbeddingFunction.build_from_config
        monkeypatch.setattr(
            MLXEmbeddingFunction, "build_from_config", staticmethod(lambda config: built.append(1) or build(config))
        )
        found = chroma.get_collection(collection.name)
        for i in range(3):
            found.add(ids=[str(i)], documents=[f"text {i}"])
        assert len(built) >= 6
        assert loaded == []

    @pytest.mark.slow
    def test_a_closed_service_is_replaced(
        self, collection: chromadb.Collection, function: MLXEmbeddingFunction
    ) -> None:
        function.service.close()
        assert nearest(collection, "spaghetti") == "pasta"


@pytest.mark.slow
async def test_the_async_client(chroma_port: int, name: str, function: MLXEmbeddingFunction) -> None:
    client = await chromadb.AsyncHttpClient("127.0.0.1", chroma_port)
    made = await client.create_collection(name, embedding_function=function)
    await made.add(ids=list(DOCUMENTS), documents=list(DOCUMENTS.values()))
    found = await client.get_collection(name)
    await found.update(ids=["file"], documents=["a cat sleeps"])
    result = await found.query(query_texts=["spaghetti", "kitten"], n_results=1)
    assert result["ids"] == [["pasta"], ["file"]]
    assert found.configuration_json["embedding_function"]["config"] == SETTINGS
