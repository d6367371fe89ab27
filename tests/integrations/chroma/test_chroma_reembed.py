"""What a re-embedding takes over from a Chroma collection, and what it notices, in a real Chroma of each kind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import chromadb
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction, acreate_collection, areembed, aupsert, reembed
from akidb_mlx_chroma.reembedding import valid_name
from akidb_mlx_chroma.store import ChromaStore
from chromadb import Schema
from chromadb.api import ClientAPI
from chromadb.api.types import (
    Documents,
    EmbeddingFunction,
    Embeddings,
    HnswIndexConfig,
    IntInvertedIndexConfig,
    VectorIndexConfig,
)
from chromadb.utils.embedding_functions import known_embedding_functions, register_embedding_function
from hypothesis import given, settings
from hypothesis import strategies as st

from akidb_mlx_plugin import Document, InvalidInputError, UpsertError

pytest_plugins = ("host_fixtures",)

METADATA: list[Any] = [
    {"n": 2**63 - 1, "x": 0.1, "t": "é\x00", "b": True, "l": [1, 2], "f": [0.5], "s": ["a", ""], "o": [False]},
    None,
    {"x": -1.739269179332728e61, "akidb_mlx:mine": "kept"},
    {"only": [1.7976931348623157e308]},
]
URIS: list[Any] = [None, "file:///b", None, "s3://bucket/d"]


@pytest.fixture
def source(chroma: ClientAPI, name: str) -> chromadb.Collection:
    """A collection as plain Chroma makes it: ids, texts, metadata of every kind, URIs."""
    made = chroma.create_collection(name, embedding_function=None, metadata={"owner": "me", "n": 1, "x": 0.5})
    made.add(
        ids=["a", "b", "c", "d\u2028"],
        documents=["one", "", "three", "four"],
        embeddings=[[1.0, 2.0]] * 4,
        metadatas=METADATA,
    )
    for id_, uri in zip(["a", "b", "c", "d\u2028"], URIS, strict=True):
        if uri:
            made.update(ids=[id_], uris=[uri])
    return made


@pytest.fixture
def new() -> MLXEmbeddingFunction:
    return MLXEmbeddingFunction(mode="mock", dimension=8)


def read(collection: chromadb.Collection) -> dict[str, Any]:
    found: Any = collection.get(include=["documents", "metadatas", "uris"])
    columns = zip(found["documents"], [m or None for m in found["metadatas"]], found["uris"], strict=True)
    return dict(zip(found["ids"], columns, strict=True))


def typed(row: Any) -> Any:
    """Return a record so that 1, 1.0 and True differ."""
    text, metadata, uri = row
    return text, {key: repr(value) for key, value in metadata.items()}, uri


@pytest.mark.slow
def test_everything_goes_over(chroma: ClientAPI, source: chromadb.Collection, new: MLXEmbeddingFunction) -> None:
    before = read(source)
    for _ in range(2):
        made = reembed(source, new)
        there = read(made)
        # Chroma gives this number back off by one in the last place once more.
        assert there.pop("c")[1]["x"] == pytest.approx(METADATA[2]["x"], rel=1e-15)
        assert there == {id_: row for id_, row in before.items() if id_ != "c"}
    assert {key: made.metadata[key] for key in ("owner", "n", "x")} == {"owner": "me", "n": 1, "x": 0.5}
    assert read(source) == before


@pytest.mark.slow
def test_a_change_of_anything_is_noticed_by_the_next_run(
    source: chromadb.Collection, new: MLXEmbeddingFunction
) -> None:
    made = reembed(source, new)
    for change in (
        {"uris": ["file:///other"]},
        {"documents": ["other"], "embeddings": [[1.0, 2.0]]},
        {"metadatas": [{"b": False}]},
        {"metadatas": [{"n": None}]},
        {"metadatas": [{"l": [2, 1]}]},
        {"metadatas": [{"more": 1.0}]},
        {"metadatas": [{"more": 1}]},
    ):
        source.update(ids=["a"], **change)  # type: ignore[arg-type]
        assert typed(read(made)["a"]) != typed(read(source)["a"])
        reembed(source, new)
        assert typed(read(made)["a"]) == typed(read(source)["a"])


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["metadata", "uri", "type"])
def test_the_closing_comparison_sees_what_a_write_has_lost(
    source: chromadb.Collection, new: MLXEmbeddingFunction, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    changes: dict[str, dict[str, Any]] = {
        "metadata": {"ids": ["a"], "metadatas": [{"b": None}]},
        "type": {"ids": ["a"], "metadatas": [{"b": 1}]},
        "uri": {"ids": ["b"], "uris": ["file:///other"]},
    }
    write = ChromaStore.write

    def lose(self: ChromaStore, documents: Any, vectors: Any) -> None:
        write(self, documents, vectors)
        self._collection.update(**changes[lost])

    monkeypatch.setattr(ChromaStore, "write", lose)
    with pytest.raises(UpsertError, match="1 of 4 documents") as raised:
        reembed(source, new)
    assert raised.value.not_written == changes[lost]["ids"]


@pytest.mark.slow
def test_a_document_without_a_text_is_named(source: chromadb.Collection, new: MLXEmbeddingFunction) -> None:
    source.add(ids=["e"], embeddings=[[1.0, 2.0]], uris=["file:///e"])
    with pytest.raises(InvalidInputError, match=r"'e' of .* has a vector and no text"):
        reembed(source, new)


class TestSettings:
    @pytest.mark.slow
    def test_of_a_schema(self, chroma: ClientAPI, name: str, new: MLXEmbeddingFunction) -> None:
        index = VectorIndexConfig(space="ip", hnsw=HnswIndexConfig(max_neighbors=33, ef_construction=150))
        schema = Schema().create_index(config=index).delete_index(config=IntInvertedIndexConfig())
        plain = chroma.create_collection(name, schema=schema)
        plain.add(ids=["a"], documents=["a"], embeddings=[[1.0, 2.0]], metadatas=[{"n": 1}])
        made = chroma.get_collection(reembed(plain, new).name)
        hnsw = made.configuration_json["hnsw"]
        assert (hnsw["space"], hnsw["max_neighbors"], hnsw["ef_construction"]) == ("cosine", 33, 150)
        assert made.configuration_json["embedding_function"]["name"] == "akidb_mlx"
        assert made.schema is not None
        assert made.schema.serialize_to_json()["defaults"]["int"]["int_inverted_index"]["enabled"] is False

    @pytest.mark.slow
    def test_as_they_are_now(self, chroma: ClientAPI, source: chromadb.Collection, new: MLXEmbeddingFunction) -> None:
        other = chroma.get_collection(source.name)
        other.modify(configuration={"hnsw": {"ef_search": 321}})
        other.modify(metadata={"owner": "somebody else"})
        made = chroma.get_collection(reembed(source, new).name)
        assert made.configuration_json["hnsw"]["ef_search"] == 321
        assert made.metadata["owner"] == "somebody else"

    @pytest.mark.slow
    @pytest.mark.filterwarnings("error")
    def test_of_a_function_that_this_process_does_not_know(
        self, chroma: ClientAPI, name: str, new: MLXEmbeddingFunction, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("chromadb.utils.embedding_functions.known_embedding_functions", known_embedding_functions)

        class Theirs(EmbeddingFunction[Documents]):
            def __init__(self) -> None:
                pass

            def __call__(self, input: Documents) -> Embeddings:
                raise AssertionError("it is not asked")

            @staticmethod
            def name() -> str:
                return f"theirs-{name}"

            def get_config(self) -> dict[str, Any]:
                return {"key": 1}

            @staticmethod
            def build_from_config(config: dict[str, Any]) -> Theirs:
                return Theirs()

        register_embedding_function(Theirs)
        theirs: Any = Theirs()
        plain = chroma.create_collection(name, embedding_function=theirs)
        plain.add(ids=["a"], documents=["a"], embeddings=[[1.0, 2.0]])
        known_embedding_functions.pop(Theirs.name())
        assert reembed(chroma.get_collection(name), new).count() == 1


class TestNames:
    @pytest.mark.slow
    @given(st.text(max_size=30) | st.from_regex(r"[0-9.]{1,12}") | st.text("ab._-/", min_size=500, max_size=600))
    @settings(max_examples=60, deadline=None)
    def test_any_is_made_one_that_chroma_takes(self, name: str) -> None:
        chromadb.EphemeralClient().get_or_create_collection(valid_name(name), embedding_function=None)

    @pytest.mark.parametrize("name", ["abc", "a.b-c_d", "x" * 512, "docs-minilm-l6-v2"])
    def test_a_valid_one_stays(self, name: str) -> None:
        assert valid_name(name) == name

    def test_long_ones_stay_apart(self) -> None:
        one, other = valid_name("x" * 600 + "1"), valid_name("x" * 600 + "2")
        assert one != other
        assert len(one) == len(other) == 512

    @pytest.mark.slow
    def test_of_any_model(self, chroma: ClientAPI, name: str, tiny_dir: Path) -> None:
        source = chroma.create_collection(name, embedding_function=None)
        source.add(ids=["a"], documents=["a"], embeddings=[[1.0, 2.0]])
        odd = tiny_dir.rename(tiny_dir.with_name("my model (v1.0)…"))
        made = reembed(source, MLXEmbeddingFunction(odd))
        assert made.name == f"{name}-my-model-v1.0"
        long = chroma.create_collection("l" * 512, embedding_function=None)
        try:
            assert len(reembed(long, MLXEmbeddingFunction(mode="mock")).name) == 512
        finally:
            chroma.delete_collection(long.name)


@pytest.mark.slow
async def test_cancelling(chroma_port: int, name: str, new: MLXEmbeddingFunction) -> None:
    client = await chromadb.AsyncHttpClient("127.0.0.1", chroma_port)
    source = await acreate_collection(client, name, MLXEmbeddingFunction(mode="mock", dimension=4))
    await aupsert(source, [Document(f"d{i}", f"{i}") for i in range(2000)])
    task = asyncio.create_task(areembed(source, new, name=f"{name}-new", batch_size=50))
    while True:
        await asyncio.sleep(0.01)
        try:
            made = await client.get_collection(f"{name}-new")
        except Exception:  # not there yet
            continue
        # The first batch is written as a whole by then, with the request that follows its records.
        if await made.count() > 50:
            break
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as raised:
        await task
    assert isinstance(raised.value.__cause__, UpsertError)
    assert "cancelled" in str(raised.value.__cause__)
    written = await made.count()
    await asyncio.sleep(0.2)
    assert await made.count() == written < 2000
    await areembed(source, new, name=f"{name}-new")
    assert await made.count() == 2000
