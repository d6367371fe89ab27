"""What Chroma does that could surprise, and what a stored configuration must not be able to do."""

from __future__ import annotations

import sqlite3
import warnings
from pathlib import Path
from typing import Any

import chromadb
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction
from chromadb.api import ClientAPI
from chromadb.errors import InvalidArgumentError
from host_helpers import MINILM, SETTINGS, Embedded, nearest, run_python
from loopback_hub import Hub

from akidb_mlx_plugin import InvalidInputError, ModelNotFoundError, ServiceUnavailableError
from akidb_mlx_plugin.inference.embedder import Embedder

pytest_plugins = ("host_fixtures", "hub_fixtures")


def stored_function(model: str) -> MLXEmbeddingFunction:
    """A function as a database has it, which nobody has checked."""
    return MLXEmbeddingFunction.build_from_config({"model": model})


class TestTraps:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "model", ["no-such-model", " ", "~nobody-of-that-name/model", "/" + "x" * 5000, "a\0b", "org/unreachable"]
    )
    def test_no_model_name_downgrades_to_legacy(self, chroma: ClientAPI, name: str, model: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)
            made = chroma.create_collection(name, embedding_function=stored_function(model))
        assert made.configuration_json["embedding_function"]["name"] == "akidb_mlx"
        assert made.configuration_json["embedding_function"]["config"]["model"] == model

    def test_a_folder_one_may_not_enter_does_not_either(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: Path) -> bool:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "is_dir", refuse)
        assert MLXEmbeddingFunction("/a/model").get_config()["model"] == "/a/model"

    @pytest.mark.slow
    def test_no_warning_on_any_path(
        self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction, recwarn: pytest.WarningsRecorder
    ) -> None:
        collection = chroma.get_or_create_collection(name, embedding_function=function)
        collection.add(ids=["a"], documents=["a"])
        collection.query(query_texts=["a"])
        collection.modify(configuration={"embedding_function": MLXEmbeddingFunction(MINILM)})
        chroma.get_collection(name).query(query_texts=["a"])
        assert [str(w.message) for w in recwarn if "embedding function" in str(w.message).lower()] == []

    def test_typed_errors_arrive(self, chroma: ClientAPI, name: str) -> None:
        collection = chroma.create_collection(name, embedding_function=stored_function("minilm-l6-v3"))
        with pytest.raises(ModelNotFoundError, match="did you mean 'minilm-l6-v2'"):
            collection.add(ids=["a"], documents=["a"])
        with pytest.raises(ModelNotFoundError, match="did you mean 'minilm-l6-v2'"):
            collection.query(query_texts=["a"])
        assert collection.count() == 0

    def test_modify_to_another_space_is_refused_and_can_be_put_back(
        self, collection: chromadb.Collection, chroma: ClientAPI, function: MLXEmbeddingFunction
    ) -> None:
        other = MLXEmbeddingFunction(MINILM, normalize=False)
        with pytest.raises(InvalidInputError, match=r"normalize: True -> False.*modify .* again.*'normalize': True"):
            collection.modify(configuration={"embedding_function": other})
        # Chroma has written before it asked; the message says how to undo that.
        collection.modify(configuration={"embedding_function": function})
        assert chroma.get_collection(collection.name).configuration_json["embedding_function"]["config"] == SETTINGS

    @pytest.mark.slow
    def test_modify_may_change_the_rest(self, collection: chromadb.Collection, chroma: ClientAPI) -> None:
        collection.modify(configuration={"hnsw": {"ef_search": 50}})
        stored = chroma.get_collection(collection.name)
        assert stored.configuration_json["hnsw"]["ef_search"] == 50
        assert stored.configuration_json["embedding_function"]["config"] == SETTINGS
        assert nearest(stored, "spaghetti") == "pasta"

    def test_get_or_create_keeps_the_first_settings(self, collection: chromadb.Collection, chroma: ClientAPI) -> None:
        again = chroma.get_or_create_collection(
            collection.name, embedding_function=MLXEmbeddingFunction("gemma-300m-4bit")
        )
        assert again.configuration_json["embedding_function"]["config"] == SETTINGS

    def test_another_width_is_refused_by_chroma(
        self, collection: chromadb.Collection, chroma: ClientAPI, function: MLXEmbeddingFunction
    ) -> None:
        narrow = chroma.get_collection(
            collection.name, embedding_function=MLXEmbeddingFunction(mode="mock", dimension=8)
        )
        with pytest.raises(InvalidArgumentError, match="dimension of 384, got 8"):
            narrow.add(ids=["x"], documents=["x"])
        with pytest.raises(InvalidArgumentError, match="dimension of 384, got 8"):
            narrow.query(query_texts=["x"])
        assert collection.count() == 3

    def test_the_first_write_pins_the_width(self, chroma: ClientAPI, name: str, function: MLXEmbeddingFunction) -> None:
        collection = chroma.create_collection(name, embedding_function=function)
        collection.add(ids=["wrong"], embeddings=[[1.0, 2.0]])
        with pytest.raises(InvalidArgumentError, match="dimension of 2, got 384"):
            collection.add(ids=["x"], documents=["x"])

    def test_a_batch_too_large_is_refused_after_it_was_embedded(self, name: str, chroma: ClientAPI) -> None:
        collection = chroma.create_collection(name, embedding_function=MLXEmbeddingFunction(mode="mock", dimension=2))
        keys = [str(i) for i in range(chroma.get_max_batch_size() + 1)]
        with pytest.raises(Exception, match=rf"(?i)batch size.*{len(keys) - 1}"):
            collection.add(ids=keys, documents=keys)
        assert collection.count() == 0

    def test_vectors_that_are_no_numbers_write_nothing(self, collection: chromadb.Collection) -> None:
        with pytest.raises((ValueError, InvalidArgumentError)):
            collection.add(ids=["x"], embeddings=[[float("nan")] * 384])
        assert collection.count() == 3

    def test_vectors_for_some_texts_only_write_nothing(
        self, collection: chromadb.Collection, embedded: Embedded
    ) -> None:
        with pytest.raises(ValueError, match="in add"):
            collection.add(ids=["x", "y"], documents=["x", "y"], embeddings=[[0.0] * 384, None])  # type: ignore[list-item]
        assert (collection.count(), embedded) == (3, [])


class TestTrust:
    """What a database says is data from a stranger."""

    def test_a_stored_foreign_model_is_not_fetched(
        self, chroma: ClientAPI, name: str, hub: Hub, cache_dir: Path
    ) -> None:
        chroma.create_collection(name, embedding_function=MLXEmbeddingFunction("org/foreign"))
        found = chroma.get_collection(name)
        for ask in (
            lambda: found.add(ids=["a"], documents=["a"]),
            lambda: found.upsert(ids=["a"], documents=["a"]),
            lambda: found.query(query_texts=["a"]),
        ):
            with pytest.raises(InvalidInputError, match="AKIDB_ALLOWED_MODELS=org/foreign"):
                ask()
        assert hub.requests == []

    def test_it_is_when_allowed_or_asked_for_by_the_user(
        self, name: str, hub: Hub, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = chromadb.EphemeralClient()
        client.create_collection(name, embedding_function=MLXEmbeddingFunction("org/foreign"))
        with pytest.raises(ModelNotFoundError, match="org/foreign"):
            client.get_collection(name, embedding_function=MLXEmbeddingFunction("org/foreign")).query(query_texts=["a"])
        asked = len(hub.requests)
        assert asked > 0
        monkeypatch.setenv("AKIDB_ALLOWED_MODELS", "org/*")
        with pytest.raises(ModelNotFoundError, match="org/foreign"):
            client.get_collection(name).query(query_texts=["a"])
        assert len(hub.requests) > asked

    @pytest.mark.slow
    def test_a_stored_request_for_code_is_refused(self, tmp_path: Path, hub: Hub, cache_dir: Path) -> None:
        client = chromadb.PersistentClient(tmp_path / "db")
        client.create_collection("docs", embedding_function=MLXEmbeddingFunction("org/foreign"))
        planted = _rewrite_stored_settings(tmp_path / "db", '"model":"org/foreign"', '"trust_remote_code":true')
        assert planted > 0
        printed = run_python(
            """
            import sys, chromadb, akidb_mlx_chroma
            docs = chromadb.PersistentClient(sys.argv[1]).get_collection("docs")
            print(docs.count())
            try:
                docs.query(query_texts=["a"])
            except ValueError as error:
                print(error)
            """,
            tmp_path / "db",
        )
        assert printed.startswith("0\n")
        assert "unknown embedding settings trust_remote_code" in printed
        assert hub.requests == []


def _rewrite_stored_settings(folder: Path, old: str, new: str) -> int:
    """Change the text of what Chroma stores of its collections; return how many places."""
    changed = 0
    with sqlite3.connect(folder / "chroma.sqlite3") as database:
        for column in ("config_json_str", "schema_str"):
            for key, text in database.execute(f"SELECT id, {column} FROM collections").fetchall():
                if text and old in text:
                    changed += 1
                    database.execute(f"UPDATE collections SET {column} = ? WHERE id = ?", (text.replace(old, new), key))
    return changed


def test_a_failing_model_is_told_as_it_is(
    name: str, function: MLXEmbeddingFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(self: Embedder, requests: Any) -> Any:
        calls.append(1)
        raise ServiceUnavailableError("out of order")

    monkeypatch.setattr(Embedder, "embed_requests", fail)
    collection = chromadb.EphemeralClient().create_collection(name, embedding_function=function)
    with pytest.raises(ServiceUnavailableError, match="out of order"):
        collection.add(ids=["a"], documents=["a"])
    assert len(calls) == 1
