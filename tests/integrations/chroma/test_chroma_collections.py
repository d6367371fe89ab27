"""Collections in a real Chroma: in memory, on disk, a server, and the asynchronous client."""

from __future__ import annotations

from typing import Any

import chromadb
import numpy as np
import pytest
from akidb_mlx_chroma import (
    MLXEmbeddingFunction,
    acreate_collection,
    aget_collection,
    aupsert,
    create_collection,
    get_collection,
    upsert,
    validate_collection,
)
from chromadb import Schema
from chromadb.api import ClientAPI
from chromadb.api.types import SparseVector, VectorIndexConfig
from chromadb.errors import InvalidArgumentError, NotFoundError
from collection_helpers import EmbeddedByMock
from host_helpers import nearest

from akidb_mlx_plugin import DimensionMismatchError, Document, InvalidInputError, UpsertError

pytest_plugins = ("host_fixtures", "hub_fixtures", "collection_fixtures")

D = 8


def read_all(collection: chromadb.Collection) -> dict[str, tuple[Any, ...]]:
    """Return text, metadata, URI and vector of every record, by id."""
    found: Any = collection.get(include=["documents", "metadatas", "uris", "embeddings"])
    vectors = [tuple(np.round(vector, 5)) for vector in found["embeddings"]]
    columns = zip(found["documents"], found["metadatas"], found["uris"], vectors, strict=True)
    return dict(zip(found["ids"], columns, strict=True))


class TestCreating:
    def test_stamp_cosine_and_the_users_own(self, chroma: ClientAPI, name: str, mock: MLXEmbeddingFunction) -> None:
        create_collection(chroma, name, mock, metadata={"owner": "me"})
        plain = chroma.get_collection(name)
        assert plain.metadata == {
            "owner": "me",
            "akidb_mlx:model": "mock",
            "akidb_mlx:dimension": D,
            "akidb_mlx:fingerprint": mock.model_info().fingerprint,
        }
        assert plain.configuration_json["hnsw"]["space"] == "cosine"
        assert plain.count() == 0

    def test_a_configuration_of_ones_own(self, disk: ClientAPI, mock: MLXEmbeddingFunction) -> None:
        configuration: Any = {"hnsw": {"max_neighbors": 32}}
        made = create_collection(disk, "docs", mock, configuration=configuration)
        assert (made.configuration_json["hnsw"]["max_neighbors"], made.configuration_json["hnsw"]["space"]) == (
            32,
            "cosine",
        )
        assert configuration == {"hnsw": {"max_neighbors": 32}}
        other: Any = {"hnsw": {"space": "ip"}}
        made = create_collection(disk, "dots", mock, configuration=other)
        assert made.configuration_json["hnsw"]["space"] == "ip"

    def test_no_client_can_fix_another_dimension(self, docs: chromadb.Collection, chroma: ClientAPI) -> None:
        plain = chroma.get_collection(docs.name)
        with pytest.raises(InvalidArgumentError, match="dimension of 8, got 3"):
            plain.add(ids=["a"], embeddings=[[1.0, 2.0, 3.0]])
        assert docs.count() == 0

    def test_a_probe_that_a_dying_process_left_is_taken_out(self, disk: ClientAPI, mock: MLXEmbeddingFunction) -> None:
        create_collection(disk, "docs", mock).upsert(ids=["akidb_mlx:dimension"], embeddings=[[1.0] * D])
        assert create_collection(disk, "docs", mock, get_or_create=True).count() == 0


class TestOpening:
    def test_a_collection_without_a_stamp_is_known_by_its_vectors(self, chroma: ClientAPI, name: str) -> None:
        plain = chroma.create_collection(name, embedding_function=None)
        plain.add(ids=["a"], embeddings=[[1.0, 2.0, 3.0]])
        with pytest.raises(DimensionMismatchError, match=r"holds vectors of 3 dimensions, and mock makes 8"):
            get_collection(chroma, name, MLXEmbeddingFunction(mode="mock", dimension=8))
        opened = get_collection(chroma, name, MLXEmbeddingFunction(mode="mock", dimension=3))
        assert upsert(opened, [Document("b", "b")]).inserted == 1

    def test_a_plain_collection_of_ours_is_known_by_its_settings(
        self, disk: ClientAPI, mock: MLXEmbeddingFunction
    ) -> None:
        disk.create_collection("docs", embedding_function=mock)
        other = disk.get_collection("docs", embedding_function=MLXEmbeddingFunction(mode="mock", dimension=16))
        for refused in (lambda: upsert(other, [Document("a", "a")]), lambda: validate_collection(other)):
            with pytest.raises(DimensionMismatchError, match="mock"):
                refused()
        assert upsert(disk.get_collection("docs"), [Document("a", "a")]).inserted == 1

    def test_a_collection_that_is_gone(self, docs: chromadb.Collection, chroma: ClientAPI) -> None:
        chroma.delete_collection(docs.name)
        with pytest.raises(NotFoundError):
            upsert(docs, [Document("a", "a")])

    def test_a_dimension_that_another_client_has_fixed_meanwhile(
        self, disk: ClientAPI, mock: MLXEmbeddingFunction
    ) -> None:
        opened = disk.create_collection("docs", embedding_function=mock)
        disk.get_collection("docs").add(ids=["a"], embeddings=[[1.0, 2.0, 3.0]])
        with pytest.raises(DimensionMismatchError, match="holds vectors of 3 dimensions"):
            upsert(opened, [Document("b", "b")])


class TestUserProvided:
    def test_no_client_can_add_others(self, chroma: ClientAPI, name: str) -> None:
        create_collection(chroma, name, MLXEmbeddingFunction(mode="user_provided", model="theirs", dimension=3))
        with pytest.raises(InvalidArgumentError, match="dimension of 3, got 2"):
            chroma.get_collection(name).add(ids=["d"], embeddings=[[1.0, 2.0]])

    def test_the_first_vector_fixes_what_nobody_has_said(self, disk: ClientAPI) -> None:
        made = create_collection(disk, "docs", MLXEmbeddingFunction(mode="user_provided"))
        upsert(made, [Document("a", vector=[1, 2, 3, 4])])
        with pytest.raises(DimensionMismatchError):
            upsert(made, [Document("b", vector=[1, 2])])


class TestUpserting:
    @pytest.mark.slow
    @pytest.mark.parametrize("is_written", [False, True])
    def test_a_write_that_fails_leaves_the_old_or_the_new(
        self, docs: chromadb.Collection, monkeypatch: pytest.MonkeyPatch, is_written: bool
    ) -> None:
        upsert(docs, [Document("a", "old text", metadata={"x": [1]}), Document("b", "old text"), Document("c", "c")])
        docs.update(ids=["a"], uris=["file:///a"])
        before = read_all(docs)
        write = chromadb.Collection.upsert

        def fail(self: chromadb.Collection, **values: Any) -> None:
            if is_written:
                write(self, **values)
            raise OSError("connection lost")

        monkeypatch.setattr(chromadb.Collection, "upsert", fail)
        new = [Document("a", vector=[1.0] * D, metadata={"y": 1}), Document("b", vector=[1.0] * D), Document("d", "d")]
        with pytest.raises(UpsertError, match="0 documents are in, 3 are not, from 'a' on: connection lost"):
            upsert(docs, new)
        monkeypatch.undo()
        if not is_written:
            assert read_all(docs) == before
        upsert(docs, new)
        after = read_all(docs)
        assert {id_: row[:2] for id_, row in after.items()} == {
            "a": (None, {"y": 1}),
            "b": (None, None),
            "c": ("c", None),
            "d": ("d", None),
        }

    def test_filters_see_the_metadata(self, docs: chromadb.Collection) -> None:
        metadata = {"year": np.int64(2020), "score": np.float32(0.5), "tags": ("a", "b"), "new": True}
        upsert(docs, [Document("a", "same", metadata=metadata), Document("b", "same", metadata={"year": 2021})])
        assert nearest(docs, "same", where={"year": 2021}) == "b"
        assert docs.get(ids=["a"])["metadatas"] == [{"year": 2020, "score": 0.5, "tags": ["a", "b"], "new": True}]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "value",
        [
            object(),
            {"a": 1},
            [],
            ["a", 1],
            b"bytes",
            float("nan"),
            float("-inf"),
            [0.5, float("nan")],
            np.array([float("inf")]),
            np.float32("nan"),
            SparseVector([1], [float("nan")]),
            2**63,
            -(2**63) - 1,
            [2**70],
            "\ud800",
            ["é\ud800"],
        ],
    )
    def test_metadata_that_chroma_would_refuse(
        self, docs: chromadb.Collection, mocked: EmbeddedByMock, value: object
    ) -> None:
        with pytest.raises(InvalidInputError, match="metadata of document 'b' cannot be stored"):
            upsert(docs, [Document("a", "a"), Document("b", "b", metadata={"x": value})])
        assert (docs.count(), mocked) == (0, [])

    @pytest.mark.slow
    @pytest.mark.parametrize("key", ["", "#k", "$k", "chroma:document", "chroma:x", "\ud800"])
    def test_keys_that_chroma_would_refuse_or_hide(
        self, docs: chromadb.Collection, mocked: EmbeddedByMock, key: str
    ) -> None:
        with pytest.raises(InvalidInputError, match="metadata of document 'b' cannot be stored"):
            upsert(docs, [*(Document(f"d{i}", "t") for i in range(999)), Document("b", "b", metadata={key: "v"})])
        assert (docs.count(), mocked) == (0, [])

    def test_the_largest_metadata_comes_back(self, docs: chromadb.Collection) -> None:
        metadata = {"a#$": 2**63 - 1, "b": [-(2**63)], "c": 1e308, "é": ["é"], "d": [True, False], "akidb_mlx:x": ""}
        upsert(docs, [Document("a", "a", metadata=metadata)])
        assert docs.get(ids=["a"])["metadatas"] == [metadata]
        assert upsert(docs, [Document("a", "a", metadata=metadata)], skip_unchanged=True).skipped == 1

    def test_vectors_as_they_were_are_unchanged(self, docs: chromadb.Collection) -> None:
        vectors = np.random.default_rng(1).standard_normal((200, D)) * 7
        documents = [Document(f"d{i}", vector=vector) for i, vector in enumerate(vectors)]
        upsert(docs, documents)
        assert upsert(docs, documents, skip_unchanged=True).skipped == 200

    def test_a_collection_made_with_a_schema(self, chroma: ClientAPI, name: str, mock: MLXEmbeddingFunction) -> None:
        schema = Schema().create_index(config=VectorIndexConfig(space="cosine", embedding_function=mock))
        made = chroma.create_collection(name, schema=schema)
        assert upsert(made, [Document("a", "a text"), Document("b", vector=[1.0] * D)]).embeddings_generated == 1
        assert nearest(get_collection(chroma, name), "a text") == "a"
        with pytest.raises(DimensionMismatchError):
            upsert(made, [Document("c", vector=[1.0])])


class TestAsync:
    @pytest.fixture
    async def remote(
        self, chroma_port: int, name: str, mock: MLXEmbeddingFunction
    ) -> chromadb.api.models.AsyncCollection.AsyncCollection:
        client = await chromadb.AsyncHttpClient("127.0.0.1", chroma_port)
        function: Any = mock
        return await client.create_collection(name, embedding_function=function)

    @pytest.mark.slow
    async def test_a_function_that_does_not_fit(self, remote: Any) -> None:
        await aupsert(remote, [Document("a", "a")])
        remote._embedding_function = MLXEmbeddingFunction(mode="mock", dimension=16)
        with pytest.raises(DimensionMismatchError, match="mock makes 16"):
            await aupsert(remote, [Document("b", "b")])

    async def test_made_and_opened(self, chroma_port: int, name: str, mock: MLXEmbeddingFunction) -> None:
        client = await chromadb.AsyncHttpClient("127.0.0.1", chroma_port)
        made = await acreate_collection(client, name, mock, metadata={"owner": "me"})
        assert made.metadata["owner"] == "me"
        assert made.metadata["akidb_mlx:dimension"] == D
        with pytest.raises(InvalidArgumentError, match="dimension of 8, got 3"):
            await made.add(ids=["a"], embeddings=[[1.0, 2.0, 3.0]])
        assert (await acreate_collection(client, name, mock, get_or_create=True)).id == made.id
        opened = await aget_collection(client, name)
        await aupsert(opened, [Document("a", "a")])
        assert (await opened.query(query_texts=["a"], n_results=1))["ids"] == [["a"]]
        other = MLXEmbeddingFunction(mode="mock", dimension=16)
        for refused in (
            aget_collection(client, name, other),
            acreate_collection(client, name, other, get_or_create=True),
        ):
            with pytest.raises(DimensionMismatchError, match="mock makes 16"):
                await refused
        await client.create_collection(f"{name}-plain")
        with pytest.raises(InvalidInputError, match="no function of this package"):
            await aget_collection(client, f"{name}-plain")

    async def test_what_needs_the_synchronous_client_says_so(self, remote: Any, chroma_port: int) -> None:
        client: Any = await chromadb.AsyncHttpClient("127.0.0.1", chroma_port)
        for refused in (
            lambda: create_collection(client, "docs", MLXEmbeddingFunction(mode="mock")),
            lambda: get_collection(client, "docs"),
            lambda: validate_collection(remote),
            lambda: upsert(remote, [Document("a", "a")]),
        ):
            with pytest.raises(InvalidInputError, match="synchronous client"):
                refused()
