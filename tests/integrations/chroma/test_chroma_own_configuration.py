"""What Chroma's own tests hold collection configurations to, held against our function.

After chromadb/test/configurations/test_collection_configuration.py. No case here embeds more than a word or two.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction
from chromadb.api import ClientAPI
from chromadb.api.collection_configuration import (
    collection_configuration_to_json,
    create_collection_configuration_to_json,
    load_collection_configuration_from_json,
    load_create_collection_configuration_from_json,
    load_update_collection_configuration_from_json,
    update_collection_configuration_to_json,
)
from chromadb.api.types import EmbeddingFunction
from chromadb.types import Collection as CollectionModel
from chromadb.utils.embedding_functions import known_embedding_functions
from host_helpers import MINILM, SETTINGS

pytest_plugins = ("host_fixtures",)


class Legacy(EmbeddingFunction[Any]):
    """A function of the old kind, without a name."""

    def __init__(self) -> None:
        pass

    def __call__(self, input: Any) -> Any:
        return [np.ones(384, dtype=np.float32)] * len(input)


class Foreign(Legacy):
    """A function of another name."""

    @staticmethod
    def name() -> str:
        return "foreign"

    def get_config(self) -> dict[str, Any]:
        return {}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> Foreign:
        return Foreign()


@pytest.fixture(autouse=True)
def _keep_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chroma registers the functions that collections are made with; forget them after the test."""
    monkeypatch.setitem(known_embedding_functions, "foreign", Foreign)


def broken_model(collection: chromadb.Collection, configuration: dict[str, Any]) -> None:
    """Let a collection read a configuration that its database does not hold."""
    collection._model = CollectionModel(
        id=collection.id,
        name=collection.name,
        configuration_json=configuration,
        serialized_schema=None,
        metadata=None,
        dimension=None,
        tenant=collection.tenant,
        database=collection.database,
    )


def stored(client: ClientAPI, name: str) -> dict[str, Any]:
    """Return a collection's configuration as its database has it."""
    return client.get_collection(name, embedding_function=None).configuration_json


class TestCreating:
    def test_function_as_an_argument(self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction) -> None:
        for made in (
            chroma.create_collection(name, embedding_function=function),
            chroma.get_or_create_collection(name, embedding_function=function),
            chroma.get_collection(name),
        ):
            found = made.configuration["embedding_function"]
            assert isinstance(found, MLXEmbeddingFunction)
            assert found.get_config() == SETTINGS

    def test_function_in_the_configuration(self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction) -> None:
        hnsw = {"space": "cosine", "ef_construction": 90, "max_neighbors": 10, "ef_search": 20}
        configuration: Any = {"hnsw": hnsw, "embedding_function": function}
        made = chroma.create_collection(name, configuration=configuration)
        made.add(ids=["a"], documents=["soup"])
        loaded = load_collection_configuration_from_json(stored(chroma, name))
        assert loaded["hnsw"] is not None
        assert hnsw.items() <= loaded["hnsw"].items()
        assert isinstance(loaded["embedding_function"], MLXEmbeddingFunction)

    def test_function_as_an_argument_and_the_rest_in_the_configuration(
        self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction
    ) -> None:
        arguments: dict[str, Any] = {"embedding_function": function, "configuration": {"hnsw": {"ef_search": 7}}}
        for made in (
            chroma.create_collection(name, **arguments),
            chroma.get_or_create_collection(name, **arguments),
            chroma.get_collection(name),
        ):
            assert made.configuration_json["embedding_function"]["config"] == SETTINGS
            assert made.configuration_json["hnsw"]["ef_search"] == 7
            assert made.configuration_json["hnsw"]["space"] == "cosine"

    def test_the_same_function_twice(self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction) -> None:
        made = chroma.create_collection(
            name, embedding_function=function, configuration={"embedding_function": MLXEmbeddingFunction(MINILM)}
        )
        assert made.configuration_json["embedding_function"]["config"] == SETTINGS

    @pytest.mark.parametrize("method", ["create_collection", "get_or_create_collection"])
    def test_another_function_in_the_configuration(
        self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction, method: str
    ) -> None:
        with pytest.raises(ValueError, match=r"akidb_mlx vs foreign"):
            getattr(chroma, method)(name, embedding_function=function, configuration={"embedding_function": Foreign()})

    def test_two_indexes(self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction) -> None:
        both: Any = {"hnsw": {"space": "cosine"}, "spann": {"space": "cosine"}, "embedding_function": function}
        with pytest.raises(ValueError, match="hnsw and spann"):
            chroma.create_collection(name, configuration=both)


class TestReopening:
    def test_by_another_client(self, tmp_path: Path, function: MLXEmbeddingFunction) -> None:
        first = chromadb.PersistentClient(tmp_path)
        first.create_collection("docs", embedding_function=function, configuration={"hnsw": {"max_neighbors": 10}})
        found = chromadb.PersistentClient(tmp_path).get_collection("docs")
        assert found.configuration["embedding_function"].name() == "akidb_mlx"  # type: ignore[union-attr]
        assert found.configuration_json["hnsw"]["max_neighbors"] == 10

    @pytest.mark.parametrize("method", ["get_collection", "get_or_create_collection"])
    def test_with_a_function_of_another_name(
        self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction, method: str
    ) -> None:
        chroma.create_collection(name, embedding_function=function)
        with pytest.raises(ValueError, match="new: foreign vs persisted: akidb_mlx"):
            getattr(chroma, method)(name, embedding_function=Foreign())

    def test_ours_on_a_collection_of_another_name(
        self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction
    ) -> None:
        chroma.create_collection(name, embedding_function=Foreign())
        with pytest.raises(ValueError, match="new: akidb_mlx vs persisted: foreign"):
            chroma.get_collection(name, embedding_function=function)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_ours_on_a_collection_of_the_old_kind(
        self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction
    ) -> None:
        chroma.create_collection(name, embedding_function=Legacy())
        found = chroma.get_collection(name, embedding_function=function)
        found.add(ids=["a", "b"], documents=["soup", "a calendar"])
        assert found.query(query_texts=["broth"], n_results=1)["ids"] == [["a"]]
        assert stored(chroma, name)["embedding_function"] == {"type": "legacy"}

    def test_json_and_objects_agree(self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction) -> None:
        made = chroma.create_collection(name, embedding_function=function)
        as_json, as_object = made.configuration_json["embedding_function"], made.configuration["embedding_function"]
        assert as_object is not None
        assert as_json == {"type": "known", "name": as_object.name(), "config": as_object.get_config()}


class TestSpaces:
    @pytest.mark.slow
    @pytest.mark.parametrize("argument", ["configuration", "metadata"])
    @pytest.mark.parametrize("space", ["cosine", "l2", "ip"])
    def test_any_may_be_chosen_without_a_warning(
        self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction, argument: str, space: str
    ) -> None:
        chosen = {"configuration": {"hnsw": {"space": space}}, "metadata": {"hnsw:space": space}}[argument]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made = chroma.create_collection(name, embedding_function=function, **{argument: chosen})
        assert made.configuration_json["hnsw"]["space"] == space
        assert made.configuration_json["embedding_function"]["config"] == SETTINGS

    def test_the_configuration_wins_over_metadata(
        self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction
    ) -> None:
        made = chroma.create_collection(
            name,
            embedding_function=function,
            configuration={"hnsw": {"space": "ip"}},
            metadata={"hnsw:space": "l2"},
        )
        assert made.configuration_json["hnsw"]["space"] == "ip"

    @pytest.mark.parametrize("index", ["hnsw", "spann"])
    def test_either_index_gets_the_cosine(self, function: MLXEmbeddingFunction, index: str) -> None:
        as_json = create_collection_configuration_to_json({index: {}, "embedding_function": function})  # type: ignore[misc]
        assert as_json[index]["space"] == "cosine"
        assert as_json["embedding_function"] == {"type": "known", "name": "akidb_mlx", "config": SETTINGS}

    def test_the_old_names_in_metadata(self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction) -> None:
        made = chroma.create_collection(
            name,
            embedding_function=function,
            metadata={"hnsw:space": "cosine", "hnsw:construction_ef": 200, "hnsw:M": 10},
        )
        hnsw = made.configuration_json["hnsw"]
        assert (hnsw["space"], hnsw["ef_construction"], hnsw["max_neighbors"]) == ("cosine", 200, 10)


class TestJSON:
    def test_every_way_there_and_back(self, function: MLXEmbeddingFunction) -> None:
        known = {"type": "known", "name": "akidb_mlx", "config": SETTINGS}
        settings: Any = {"hnsw": None, "spann": None, "embedding_function": function}
        for there, back in (
            (create_collection_configuration_to_json, load_create_collection_configuration_from_json),
            (update_collection_configuration_to_json, load_update_collection_configuration_from_json),
            (collection_configuration_to_json, load_collection_configuration_from_json),
        ):
            as_json = there(settings)
            assert as_json["embedding_function"] == known
            rebuilt: Any = back(as_json)["embedding_function"]
            assert rebuilt.get_config() == SETTINGS

    def test_a_database_of_before_a_setting_was_known(self) -> None:
        old = {"type": "known", "name": "akidb_mlx", "config": {"model": MINILM}}
        found = load_collection_configuration_from_json({"embedding_function": old})["embedding_function"]
        assert found is not None
        assert found.get_config() == SETTINGS

    @pytest.mark.slow
    def test_queries_keep_their_own_settings(
        self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction
    ) -> None:
        chroma.create_collection(name, embedding_function=MLXEmbeddingFunction(MINILM, query_prompt="query: "))
        found: Any = chroma.get_collection(name).configuration["embedding_function"]
        assert found.get_config() == {**SETTINGS, "query_prompt": "query: "}
        np.testing.assert_allclose(found.embed_query(["soup"])[0], function(["query: soup"])[0], atol=1e-5)
        np.testing.assert_allclose(found(["soup"])[0], function(["soup"])[0], atol=1e-5)


class TestBroken:
    """A configuration that cannot be used: what reads works, what embeds raises."""

    UNUSABLE = (
        {"embedding_function": {"type": "known", "name": "akidb_mlx", "config": {"mode": "unheard of"}}},
        {"embedding_function": {"type": "known", "name": "akidb_mlx", "config": {"from": "a later version"}}},
        {"embedding_function": {"type": "known", "name": "akidb_mlx", "config": []}},
        {"embedding_function": {"type": "known", "name": "nonexistent", "config": SETTINGS}},
        {"embedding_function": {"type": "known", "config": SETTINGS}},
    )

    @pytest.mark.slow
    @pytest.mark.parametrize("configuration", UNUSABLE)
    def test_raises_when_text_comes(self, chroma: ClientAPI, name: str, configuration: dict[str, Any]) -> None:
        made = chroma.create_collection(name)
        broken_model(made, configuration)
        assert made.count() == 0
        assert made.configuration_json == configuration
        for ask in (
            lambda: made.configuration,
            lambda: made.add(ids=["1"], documents=["test"]),
            lambda: made.upsert(ids=["1"], documents=["test"]),
            lambda: made.query(query_texts=["test"], n_results=1),
        ):
            with pytest.raises(ValueError, match="mbedding function"):
                ask()

    def test_the_message_names_what_is_wrong(self) -> None:
        with pytest.raises(ValueError, match="unknown embedding settings from; this version knows model, mode"):
            load_collection_configuration_from_json(self.UNUSABLE[1])
