"""Collections that stay right, in a real Chroma: in memory, on disk, a server, and the asynchronous client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
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
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, SparseVector, VectorIndexConfig
from chromadb.errors import InvalidArgumentError, NotFoundError
from chromadb.utils.embedding_functions import known_embedding_functions
from collection_helpers import LONGEST_STALL_S, EmbeddedByMock, mixed_documents, run_killed, stall_s
from host_helpers import MINILM, TINY, Embedded, nearest, run_python, vector_of
from loopback_hub import Hub

from akidb_mlx_plugin import (
    DimensionMismatchError,
    Document,
    EmbeddingService,
    InvalidInputError,
    ModelNotFoundError,
    UpsertError,
)

pytest_plugins = ("host_fixtures", "hub_fixtures", "collection_fixtures")

D = 8


@pytest.fixture
def mock() -> MLXEmbeddingFunction:
    return MLXEmbeddingFunction(mode="mock", dimension=D)


@pytest.fixture
def docs(chroma: ClientAPI, name: str, mock: MLXEmbeddingFunction) -> chromadb.Collection:
    return create_collection(chroma, name, mock)


@pytest.fixture
def disk(tmp_path: Path) -> ClientAPI:
    return chromadb.PersistentClient(tmp_path / "chroma")


def read_all(collection: chromadb.Collection) -> dict[str, tuple[Any, ...]]:
    """Return text, metadata, URI and vector of every record, by id."""
    found: Any = collection.get(include=["documents", "metadatas", "uris", "embeddings"])
    vectors = [tuple(np.round(vector, 5)) for vector in found["embeddings"]]
    columns = zip(found["documents"], found["metadatas"], found["uris"], vectors, strict=True)
    return dict(zip(found["ids"], columns, strict=True))


class TestWholeStory:
    """Texts, vectors and both, more than Chroma takes at once; a new process; search; update; refusal."""

    @pytest.fixture(params=["persistent", "server"])
    def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ClientAPI, str]:
        if request.param == "server":
            port = request.getfixturevalue("chroma_port")
            return chromadb.HttpClient("127.0.0.1", port), f"chromadb.HttpClient('127.0.0.1', {port})"
        folder = str(tmp_path / "chroma")
        return chromadb.PersistentClient(folder), f"chromadb.PersistentClient({folder!r})"

    def test_story(
        self, place: tuple[ClientAPI, str], name: str, function: MLXEmbeddingFunction, embedded: Embedded
    ) -> None:
        client, connect = place
        documents = mixed_documents(5600, 384)
        assert client.get_max_batch_size() < len(documents)
        collection = create_collection(client, name, function, metadata={"owner": "me"})
        response = upsert(collection, documents, batch_size=10_000)
        assert (response.inserted, response.embeddings_generated) == (5600, 200)
        assert response.total_tokens > 2000
        assert collection.count() == 5600

        found = run_python(
            f"""
            import chromadb, json, sys
            from akidb_mlx_chroma import get_collection
            collection = get_collection({connect}, sys.argv[1])
            hits = collection.query(query_texts=["compose music for an orchestra", "cook something"], n_results=3)
            print(json.dumps(hits["documents"]))
            """,
            name,
        )
        music, food = json.loads(found)
        assert all("symphony" in text for text in music)
        assert all("recipe" in text for text in food)

        given = documents[1].vector
        np.testing.assert_allclose(vector_of(collection, "d1"), given, atol=1e-6)
        reopened = get_collection(client, name)
        upsert(reopened, [Document(id="d0", text="the moon rises over the sea")])
        assert nearest(reopened, "night sky above the ocean") == "d0"
        embedded.clear()
        again = upsert(
            reopened, [Document(id="d0", text="the moon rises over the sea"), *documents[1:]], skip_unchanged=True
        )
        assert (again.inserted, again.skipped, embedded) == (0, 5600, [])

        good = [Document(id=f"new{i}", text=f"new {i}") for i in range(1000)]
        good.insert(700, Document(id="bad", vector=[0.5] * 768))
        with pytest.raises(DimensionMismatchError, match=r"'bad' has a vector of 768 .* holds 384"):
            upsert(reopened, good)
        assert (reopened.count(), embedded) == (5600, [])


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

    def test_another_model_under_the_name_is_refused(
        self, docs: chromadb.Collection, chroma: ClientAPI, mock: MLXEmbeddingFunction
    ) -> None:
        assert create_collection(chroma, docs.name, mock, get_or_create=True).id == docs.id
        other = MLXEmbeddingFunction(mode="mock", dimension=16)
        with pytest.raises(DimensionMismatchError, match=r"8 dimensions \(mock\), and mock makes 16.*reembed") as error:
            create_collection(chroma, docs.name, other, get_or_create=True)
        assert (error.value.expected, error.value.actual) == (8, 16)
        assert chroma.get_collection(docs.name).metadata == docs.metadata

    def test_another_model_of_the_same_length_is_refused(self, disk: ClientAPI, minilm: EmbeddingService) -> None:
        create_collection(disk, "docs", MLXEmbeddingFunction(MINILM))
        prompted = MLXEmbeddingFunction(MINILM, document_prompt="passage: ")
        for refused in (
            lambda: create_collection(disk, "docs", prompted, get_or_create=True),
            lambda: get_collection(disk, "docs", prompted),
            lambda: upsert(disk.get_collection("docs", embedding_function=prompted), [Document("a", "a")]),
        ):
            with pytest.raises(DimensionMismatchError, match="cannot be compared"):
                refused()

    def test_a_probe_that_a_dying_process_left_is_taken_out(self, disk: ClientAPI, mock: MLXEmbeddingFunction) -> None:
        create_collection(disk, "docs", mock).upsert(ids=["akidb_mlx:dimension"], embeddings=[[1.0] * D])
        assert create_collection(disk, "docs", mock, get_or_create=True).count() == 0


class TestOpening:
    def test_the_stored_function_is_used(self, docs: chromadb.Collection, chroma: ClientAPI) -> None:
        opened = get_collection(chroma, docs.name)
        assert upsert(opened, [Document("a", "a text")]).embeddings_generated == 1
        assert nearest(opened, "a text") == "a"

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

    def test_one_model_by_two_names_is_one_model(self, disk: ClientAPI, minilm_dir: Path) -> None:
        disk.create_collection("docs", embedding_function=MLXEmbeddingFunction(minilm_dir))
        validate_collection(disk.get_collection("docs", embedding_function=MLXEmbeddingFunction(MINILM)))

    def test_a_function_of_somebody_else(self, disk: ClientAPI) -> None:
        plain = disk.create_collection("docs")
        with pytest.raises(InvalidInputError, match=r"no function of this package.*embedding_function="):
            get_collection(disk, "docs")
        with pytest.raises(InvalidInputError, match="'a' has a text and no vector"):
            upsert(plain, [Document("a", "a")])
        assert upsert(plain, [Document("a", "a", vector=[1.0, 2.0])]).inserted == 1
        with pytest.raises(DimensionMismatchError, match="holds 2"):
            upsert(plain, [Document("b", vector=[1.0, 2.0, 3.0])])

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

    def test_query_vectors(self, docs: chromadb.Collection) -> None:
        validate_collection(docs, query_vector=[1.0] * D)
        with pytest.raises(DimensionMismatchError, match="holds vectors of 8 dimensions, and the query vector has 3"):
            validate_collection(docs, query_vector=[1.0] * 3)


class TestUserProvided:
    def test_any_clients_vectors_are_checked(self, chroma: ClientAPI, name: str) -> None:
        theirs = MLXEmbeddingFunction(mode="user_provided", model="theirs", dimension=3)
        made = create_collection(chroma, name, theirs)
        assert upsert(made, [Document("a", "a text", vector=[1, 2, 3])]).inserted == 1
        opened = get_collection(chroma, name)
        with pytest.raises(DimensionMismatchError, match=r"2 dimensions, and collection .* holds 3"):
            upsert(opened, [Document("b", vector=[1, 2])])
        with pytest.raises(InvalidInputError, match="'c' has a text and no vector"):
            upsert(opened, [Document("b", vector=[1, 2, 3]), Document("c", "c")])
        with pytest.raises(InvalidArgumentError, match="dimension of 3, got 2"):
            chroma.get_collection(name).add(ids=["d"], embeddings=[[1.0, 2.0]])
        assert opened.count() == 1
        with pytest.raises(DimensionMismatchError, match=r"3 dimensions \(theirs\), and mock makes 8"):
            get_collection(chroma, name, MLXEmbeddingFunction(mode="mock", dimension=8))

    def test_the_first_vector_fixes_what_nobody_has_said(self, disk: ClientAPI) -> None:
        made = create_collection(disk, "docs", MLXEmbeddingFunction(mode="user_provided"))
        upsert(made, [Document("a", vector=[1, 2, 3, 4])])
        with pytest.raises(DimensionMismatchError):
            upsert(made, [Document("b", vector=[1, 2])])


class TestUpserting:
    def test_a_document_takes_the_whole_place_of_the_old(self, docs: chromadb.Collection) -> None:
        old = [
            Document("a", "old text", metadata={"x": 1, "y": [1, 2]}),
            Document("b", "old text", metadata={"x": 1}),
            Document("c", vector=[1.0] * D),
        ]
        new = [
            Document("a", "new text", metadata={"z": 3}),
            Document("b", vector=[1.0] * D),
            Document("c", "text", metadata={"x": None}),
        ]
        upsert(docs, old)
        upsert(docs, new)
        found = docs.get(ids=["a", "b", "c"])
        assert dict(zip(found["ids"], found["documents"] or [], strict=True)) == {
            "a": "new text",
            "b": None,
            "c": "text",
        }
        assert dict(zip(found["ids"], found["metadatas"] or [], strict=True)) == {"a": {"z": 3}, "b": None, "c": None}
        assert docs.count() == 3
        # The same once more, and as if nothing had been there.
        assert upsert(docs, new, skip_unchanged=True).skipped == 3

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

    def test_unchanged_texts_are_known_after_a_write_past_us(
        self, docs: chromadb.Collection, mocked: EmbeddedByMock
    ) -> None:
        documents = [Document(f"d{i}", f"text {i}", metadata={"n": i}) for i in range(5)]
        upsert(docs, documents)
        docs.update(ids=["d1"], documents=["changed by plain Chroma"])
        docs.update(ids=["d2"], metadatas=[{"n": 9}])
        docs.delete(ids=["d3"])
        mocked.clear()
        response = upsert(docs, documents, skip_unchanged=True)
        assert (response.inserted, response.skipped) == (3, 2)
        assert sorted(mocked) == ["text 1", "text 3"]
        assert docs.get(ids=["d2"])["metadatas"] == [{"n": 2}]

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

    def test_a_stream_larger_than_the_limit(self, disk: ClientAPI, mock: MLXEmbeddingFunction) -> None:
        made = create_collection(disk, "docs", mock)

        def stream() -> Iterator[Document]:
            for i in range(12_000):
                yield Document(f"d{i}", f"text {i}")

        assert upsert(made, stream(), batch_size=6000).inserted == 12_000
        assert made.count() == 12_000


class TestKilled:
    def test_the_second_run_finishes(self, tmp_path: Path, mock: MLXEmbeddingFunction, mocked: EmbeddedByMock) -> None:
        run_killed(
            """
import sys
import chromadb
from akidb_mlx_chroma import MLXEmbeddingFunction, create_collection, upsert
from akidb_mlx_chroma.store import ChromaStore
from akidb_mlx_plugin import Document

die_in_write(ChromaStore, 6)
function = MLXEmbeddingFunction(mode="mock", dimension=8)
collection = create_collection(chromadb.PersistentClient(sys.argv[1]), "docs", function)
upsert(collection, [Document(f"d{i}", f"text {i}", metadata={"n": i}) for i in range(5000)], batch_size=500)
            """,
            tmp_path / "chroma",
        )
        collection = get_collection(chromadb.PersistentClient(tmp_path / "chroma"), "docs")
        there = set(collection.get(include=[])["ids"])
        assert 2500 <= len(there) < 5000
        documents = [Document(f"d{i}", f"text {i}", metadata={"n": i}) for i in range(5000)]
        response = upsert(collection, documents, skip_unchanged=True)
        assert sorted(mocked) == sorted(d.text or "" for d in documents if d.id not in there)
        assert response.skipped == len(there)
        found = collection.get()
        assert sorted(found["ids"]) == sorted(d.id for d in documents)
        assert dict(zip(found["documents"] or [], found["metadatas"] or [], strict=True)) == {
            d.text: d.metadata for d in documents
        }
        assert nearest(collection, "text 4321") == "d4321"


class TestAsync:
    @pytest.fixture
    async def remote(
        self, chroma_port: int, name: str, mock: MLXEmbeddingFunction
    ) -> chromadb.api.models.AsyncCollection.AsyncCollection:
        client = await chromadb.AsyncHttpClient("127.0.0.1", chroma_port)
        function: Any = mock
        return await client.create_collection(name, embedding_function=function)

    async def test_texts_vectors_and_both(self, remote: Any) -> None:
        documents = [
            Document("a", "a text", metadata={"x": 1}),
            Document("b", vector=[1.0] * D),
            Document("c", "a text", vector=[2.0] * D),
        ]
        response = await aupsert(remote, documents)
        assert (response.inserted, response.embeddings_generated) == (3, 1)
        assert (await aupsert(remote, documents, skip_unchanged=True)).skipped == 3
        assert (await aupsert(remote, [Document("a", "a text")], skip_unchanged=True)).embeddings_generated == 0
        assert (await remote.get(ids=["a"]))["metadatas"] == [None]
        found = await remote.query(query_texts=["a text"], n_results=1)
        assert found["ids"] == [["a"]]

    async def test_the_same_refusals(self, remote: Any) -> None:
        await aupsert(remote, [Document("a", "a")])
        with pytest.raises(DimensionMismatchError, match="holds 8"):
            await aupsert(remote, [Document("b", "b"), Document("c", vector=[1.0])])
        assert await remote.count() == 1
        remote._embedding_function = MLXEmbeddingFunction(mode="mock", dimension=16)
        with pytest.raises(DimensionMismatchError, match="mock makes 16"):
            await aupsert(remote, [Document("b", "b")])

    async def test_many_at_once(self, remote: Any) -> None:
        jobs = [aupsert(remote, [Document(f"{job}-{i}", f"{job} {i}") for i in range(300)]) for job in range(6)]
        assert sum(response.inserted for response in await asyncio.gather(*jobs)) == 1800
        assert await remote.count() == 1800

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

    async def test_a_synchronous_collection(self, disk: ClientAPI, mock: MLXEmbeddingFunction) -> None:
        made = create_collection(disk, "docs", mock)
        assert (await aupsert(made, (Document(f"d{i}", f"{i}") for i in range(10)))).inserted == 10

    async def test_cancelling(self, remote: Any) -> None:
        task = asyncio.create_task(aupsert(remote, [Document(f"d{i}", f"{i}") for i in range(20_000)], batch_size=100))
        while not await remote.count():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        written = await remote.count()
        await asyncio.sleep(0.2)
        assert await remote.count() == written < 20_000

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

    async def test_the_event_loop_never_stalls(self, chroma_port: int, name: str, minilm: EmbeddingService) -> None:
        client = await chromadb.AsyncHttpClient("127.0.0.1", chroma_port)
        function: Any = MLXEmbeddingFunction(MINILM)
        collection = await client.create_collection(name, embedding_function=function)
        await aupsert(collection, [Document("first", "loads the model")])
        stalls = []
        # What the code does shows in every attempt; what else the machine does, only now and then.
        for attempt in range(5):
            documents = [Document(f"{attempt}-{i}", f"note {i} on how to parse dates") for i in range(1000)]
            stalls.append(await stall_s(aupsert(collection, documents)))
            if stalls[-1] < LONGEST_STALL_S:
                break
        assert min(stalls) < LONGEST_STALL_S, stalls
        assert await collection.count() == 1 + 1000 * len(stalls)


class _Stranger(EmbeddingFunction[Documents]):
    """Has settings stored under our name that we would never store."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings

    def __call__(self, input: Documents) -> Embeddings:
        return [np.ones(D, dtype=np.float32) for _ in input]

    @staticmethod
    def name() -> str:
        return "akidb_mlx"

    def get_config(self) -> dict[str, Any]:
        return self._settings

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> _Stranger:
        return _Stranger(config)


class TestSafety:
    """A database is data from a stranger."""

    @pytest.fixture
    def store(self, disk: ClientAPI, monkeypatch: pytest.MonkeyPatch) -> Any:
        def store(settings: dict[str, Any], metadata: dict[str, Any] | None = None) -> ClientAPI:
            monkeypatch.setitem(known_embedding_functions, "akidb_mlx", known_embedding_functions["akidb_mlx"])
            stranger: Any = _Stranger(settings)
            made = disk.create_collection("docs", embedding_function=stranger, metadata=metadata)
            made.add(ids=["a"], embeddings=[[1.0] * D])
            monkeypatch.undo()
            return disk

        return store

    @pytest.mark.parametrize(
        ("settings", "kind", "message"),
        [
            ({"model": "evil/backdoored-model", "mode": "mlx"}, InvalidInputError, "AKIDB_ALLOWED_MODELS"),
            ({"model": "/nowhere/at/all", "mode": "mlx"}, ModelNotFoundError, "/nowhere/at/all"),
            ({"model": "../../etc", "mode": "mlx"}, ModelNotFoundError, "etc"),
            ({"model": MINILM, "mode": "mlx", "trust_remote_code": True}, InvalidInputError, "trust_remote_code"),
            ({"model": MINILM, "mode": "mlx", "cache_dir": "/tmp/evil"}, InvalidInputError, "cache_dir"),
            ({"model": {"$ref": "x"}, "mode": "mlx"}, InvalidInputError, "model"),
            ({"model": MINILM, "mode": "exec"}, InvalidInputError, "mode"),
            ({"model": "~nobody-of-that-name/m", "mode": "mlx"}, ModelNotFoundError, "~nobody-of-that-name"),
            ({"model": 5, "mode": "mlx"}, InvalidInputError, "stored setting model = 5"),
            ({"model": [[[[[[[[[["x"]]]]]]]]]], "mode": "mlx"}, InvalidInputError, "stored setting model"),
            ({"mode": "mock", "dimension": 10**15}, InvalidInputError, "no vectors have more than"),
            ({"model": MINILM, "normalize": "yes"}, InvalidInputError, "stored setting normalize = 'yes'"),
        ],
    )
    def test_stored_settings_fetch_and_run_nothing(
        self, store: Any, hub: Hub, settings: dict[str, Any], kind: type[Exception], message: str
    ) -> None:
        client = store(settings)
        for refused in (
            lambda: get_collection(client, "docs"),
            lambda: validate_collection(client.get_collection("docs")),
            lambda: upsert(client.get_collection("docs"), [Document("b", "b")]),
            lambda: asyncio.run(aupsert(client.get_collection("docs"), [Document("b", "b")])),
        ):
            with pytest.raises(kind, match=message):
                refused()
        with pytest.raises(Exception, match=message):
            client.get_collection("docs").query(query_texts=["b"])
        assert hub.requests == []
        assert client.get_collection("docs").count() == 1

    def test_a_stamp_is_compared_and_not_obeyed(self, store: Any, hub: Hub, minilm: EmbeddingService) -> None:
        client = store(
            MLXEmbeddingFunction(mode="mock", dimension=D).get_config(),
            {"akidb_mlx:model": "evil/backdoored-model", "akidb_mlx:dimension": D, "akidb_mlx:fingerprint": "f"},
        )
        with pytest.raises(DimensionMismatchError, match="evil/backdoored-model"):
            get_collection(client, "docs")
        assert hub.requests == []

    def test_what_the_user_asks_for_himself_may_be_anything(self, disk: ClientAPI) -> None:
        create_collection(disk, "docs", MLXEmbeddingFunction(TINY))
        assert upsert(get_collection(disk, "docs", MLXEmbeddingFunction(TINY)), [Document("a", "a")]).inserted == 1
