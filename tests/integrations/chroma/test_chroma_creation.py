"""Collections that exist already, schemas, other tenants and older servers, in a real Chroma of each kind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from akidb_mlx_chroma import (
    MLXEmbeddingFunction,
    acreate_collection,
    aget_collection,
    areembed,
    aupsert,
    avalidate_collection,
    create_collection,
    get_collection,
    reembed,
    upsert,
    validate_collection,
)
from chromadb import Schema
from chromadb.api import ClientAPI
from chromadb.api.fastapi import FastAPI
from chromadb.api.types import (
    Documents,
    EmbeddingFunction,
    Embeddings,
    FloatInvertedIndexConfig,
    HnswIndexConfig,
    VectorIndexConfig,
)
from chromadb.errors import NotFoundError
from chromadb.utils.embedding_functions import DefaultEmbeddingFunction
from chromadb.utils.embedding_functions.onnx_mini_lm_l6_v2 import ONNXMiniLM_L6_V2
from host_helpers import nearest

from akidb_mlx_plugin import DimensionMismatchError, Document, InvalidInputError

pytest_plugins = ("host_fixtures", "collection_fixtures")

D = 8


class Unstorable(EmbeddingFunction[Documents]):
    """Of the kind that Chroma stores as "legacy"."""

    def __init__(self) -> None:
        pass

    def __call__(self, input: Documents) -> Embeddings:
        return [np.ones(D, dtype=np.float32) for _ in input]


class Loader:
    def __call__(self, uris: Any) -> Any:
        return [f"content of {uri}" for uri in uris]


class TestWhatStoresNoFunction:
    @pytest.mark.slow
    @pytest.mark.parametrize("is_filled", [False, True])
    def test_it_is_stored(self, chroma: ClientAPI, name: str, mock: MLXEmbeddingFunction, is_filled: bool) -> None:
        plain = chroma.create_collection(name, embedding_function=None, metadata={"owner": "me"})
        if is_filled:
            plain.add(ids=["old"], embeddings=[[1.0] * D], documents=["old"])
        made = create_collection(chroma, name, mock, get_or_create=True)
        made.add(ids=["a"], documents=["cats sleep"])
        others = chroma.get_collection(name)
        assert others.configuration_json["embedding_function"]["name"] == "akidb_mlx"
        assert others.metadata == {"owner": "me"}
        others.add(ids=["b"], documents=["dogs bark"])
        assert nearest(get_collection(chroma, name), "dogs bark") == "b"
        assert nearest(others, "cats sleep") == "a"
        with pytest.raises(DimensionMismatchError, match="mock makes 16"):
            create_collection(chroma, name, MLXEmbeddingFunction(mode="mock", dimension=16), get_or_create=True)

    async def test_by_the_asynchronous_client(self, chroma_port: int, name: str, mock: MLXEmbeddingFunction) -> None:
        client = await chromadb.AsyncHttpClient("127.0.0.1", chroma_port)
        await client.create_collection(name, embedding_function=None)
        await acreate_collection(client, name, mock, get_or_create=True)
        stored = (await client.get_collection(name)).configuration_json["embedding_function"]
        assert (stored["name"], stored["config"]["dimension"]) == ("akidb_mlx", D)

    def test_vectors_of_another_length_are_refused_and_nothing_is_stored(
        self, chroma: ClientAPI, name: str, mock: MLXEmbeddingFunction
    ) -> None:
        chroma.create_collection(name, embedding_function=None).add(ids=["a"], embeddings=[[1.0, 2.0]])
        with pytest.raises(DimensionMismatchError, match="holds vectors of 2 dimensions"):
            create_collection(chroma, name, mock, get_or_create=True)
        assert chroma.get_collection(name).configuration_json["embedding_function"] is None

    def test_a_function_that_could_not_be_stored(
        self, chroma: ClientAPI, name: str, mock: MLXEmbeddingFunction
    ) -> None:
        theirs: Any = Unstorable()
        plain = chroma.create_collection(name, embedding_function=theirs)
        assert plain.configuration_json["embedding_function"] == {"type": "legacy"}
        create_collection(chroma, name, mock, get_or_create=True)
        assert chroma.get_collection(name).configuration_json["embedding_function"]["name"] == "akidb_mlx"
        filled = chroma.create_collection(f"{name}-2", embedding_function=theirs)
        filled.add(ids=["a"], documents=["a"])
        with pytest.raises(InvalidInputError, match="nothing says which model its vectors come from"):
            create_collection(chroma, filled.name, mock, get_or_create=True)
        assert upsert(get_collection(chroma, filled.name, mock), [Document("b", "b")]).inserted == 1

    def test_the_function_of_another_package(self, chroma: ClientAPI, name: str, mock: MLXEmbeddingFunction) -> None:
        chroma.create_collection(name)
        remedy = r"another package.*default.*copy them to a new collection"
        with pytest.raises(InvalidInputError, match=remedy):
            create_collection(chroma, name, mock, get_or_create=True)
        chroma.create_collection(f"{name}-2", embedding_function=ONNXMiniLM_L6_V2())
        with pytest.raises(InvalidInputError, match=r"another package.*copy them to a new collection"):
            get_collection(chroma, f"{name}-2", mock)
        assert chroma.get_collection(name).configuration_json["embedding_function"]["name"] == "default"


class TestSchemas:
    @pytest.mark.slow
    def test_the_function_goes_into_it(self, chroma: ClientAPI, name: str, mock: MLXEmbeddingFunction) -> None:
        index = VectorIndexConfig(space="ip", hnsw=HnswIndexConfig(max_neighbors=33))
        schema = Schema().create_index(config=index).delete_index(config=FloatInvertedIndexConfig())
        before = schema.serialize_to_json()
        for plain, space, neighbors in ((schema, "ip", 33), (Schema(), "cosine", 16)):
            made = create_collection(chroma, f"{name}-{space}", mock, schema=plain, metadata={"owner": "me"})
            assert made.metadata["owner"] == "me"
            stored = chroma.get_collection(made.name)
            assert stored.configuration_json["embedding_function"]["name"] == "akidb_mlx"
            hnsw = stored.configuration_json["hnsw"]
            assert (hnsw["space"], hnsw["max_neighbors"]) == (space, neighbors)
            made.add(ids=["plain"], documents=["cats sleep"])
            upsert(made, [Document("a", "dogs bark")])
            assert nearest(stored, "dogs bark") == "a"
        assert schema.serialize_to_json() == before

    def test_not_beside_a_configuration_or_another_function(self, chroma: ClientAPI, name: str) -> None:
        mock = MLXEmbeddingFunction(mode="mock", dimension=D)
        configuration: Any = {"hnsw": {"space": "ip"}}
        with pytest.raises(InvalidInputError, match="either schema or configuration"):
            create_collection(chroma, name, mock, schema=Schema(), configuration=configuration)
        for theirs in (MLXEmbeddingFunction(mode="mock", dimension=16), Unstorable()):
            schema = Schema().create_index(config=VectorIndexConfig(embedding_function=theirs))
            with pytest.raises(InvalidInputError, match="leave out the one in the schema"):
                create_collection(chroma, name, mock, schema=schema)
        with pytest.raises(NotFoundError):
            chroma.get_collection(name)
        same = Schema().create_index(config=VectorIndexConfig(embedding_function=mock, space="l2"))
        assert create_collection(chroma, name, mock, schema=same).configuration_json["hnsw"]["space"] == "l2"

    def test_without_an_index_of_numbers_what_was_taken_out_is_found(self, chroma: ClientAPI, name: str) -> None:
        schema = Schema().delete_index(config=chromadb.IntInvertedIndexConfig())
        made = create_collection(chroma, name, MLXEmbeddingFunction(mode="mock", dimension=D), schema=schema)
        kept = {"akidb_mlx:kept": 1, "akidb_mlx:kept_id": "a", "akidb_mlx:kept_by": "", "x": 1}
        made.add(ids=["akidb_mlx:kept:1"], documents=["the only copy"], embeddings=[[1.0] * D], metadatas=[kept])
        assert get_collection(chroma, name).get()["documents"] == ["the only copy"]
        assert made.get()["ids"] == ["a"]
        assert made.get()["metadatas"] == [{"x": 1}]

    def test_data_loaders(self, chroma: ClientAPI, name: str, mock: MLXEmbeddingFunction) -> None:
        loader: Any = Loader()
        made = create_collection(chroma, name, mock, data_loader=loader)
        made.add(ids=["a"], uris=["file:///a"])
        assert made.get(ids=["a"], include=["data", "uris"])["data"] == ["content of file:///a"]
        opened = get_collection(chroma, name, data_loader=loader)
        assert opened.get(include=["data"])["data"] == ["content of file:///a"]


@pytest.fixture
def elsewhere(chroma_port: int, name: str) -> ClientAPI:
    """A client of another tenant and another database, with a header of its own."""
    admin = chromadb.AdminClient(
        chromadb.Settings(
            chroma_api_impl="chromadb.api.fastapi.FastAPI",
            chroma_server_host="127.0.0.1",
            chroma_server_http_port=chroma_port,
        )
    )
    admin.create_tenant(name)
    admin.create_database(name, tenant=name)
    return chromadb.HttpClient("127.0.0.1", chroma_port, tenant=name, database=name, headers={"x-theirs": "1"})


class TestOtherPlaces:
    @pytest.mark.slow
    def test_every_helper(self, elsewhere: ClientAPI, name: str, mock: MLXEmbeddingFunction) -> None:
        made = create_collection(elsewhere, "docs", mock)
        upsert(made, [Document("a", "a"), Document("b", vector=[1.0] * D)])
        upsert(made, [Document("a", vector=[2.0] * D)])
        opened = get_collection(elsewhere, "docs")
        validate_collection(opened, query_vector=[1.0] * D)
        assert upsert(opened, [Document("a", "a"), Document("b", "b")], skip_unchanged=True).inserted == 2
        again = reembed(opened, MLXEmbeddingFunction(mode="mock", dimension=16))
        assert sorted(collection.name for collection in elsewhere.list_collections()) == ["docs", again.name]
        assert elsewhere.get_collection(again.name).count() == 2

    @pytest.mark.slow
    def test_in_a_folder(self, tmp_path: Path, mock: MLXEmbeddingFunction) -> None:
        settings = chromadb.Settings(is_persistent=True, persist_directory=str(tmp_path))
        admin = chromadb.AdminClient(settings)
        admin.create_tenant("theirs")
        admin.create_database("other", tenant="theirs")
        client = chromadb.PersistentClient(tmp_path, settings=settings, tenant="theirs", database="other")
        made = create_collection(client, "docs", mock)
        upsert(made, [Document("a", "a")])
        assert reembed(made, MLXEmbeddingFunction(mode="mock", dimension=16)).count() == 1
        assert get_collection(client, "docs").count() == 1

    @pytest.mark.slow
    async def test_by_the_asynchronous_client(
        self, elsewhere: ClientAPI, chroma_port: int, name: str, mock: MLXEmbeddingFunction
    ) -> None:
        client = await chromadb.AsyncHttpClient("127.0.0.1", chroma_port, tenant=name, database=name)
        made = await acreate_collection(client, "docs", mock)
        await aupsert(made, [Document("a", "a", metadata={"x": [1]}), Document("b", "b")])
        opened = await aget_collection(client, "docs")
        await avalidate_collection(opened, query_vector=[1.0] * D)
        with pytest.raises(DimensionMismatchError):
            await avalidate_collection(opened, query_vector=[1.0])
        with pytest.raises(DimensionMismatchError):
            await avalidate_collection(opened, MLXEmbeddingFunction(mode="mock", dimension=16))
        again = await areembed(opened, MLXEmbeddingFunction(mode="mock", dimension=16))
        found: Any = await again.get(include=["documents", "metadatas"])
        assert dict(zip(found["ids"], found["metadatas"], strict=True)) == {"a": {"x": [1]}, "b": None}
        with pytest.raises(InvalidInputError, match="areembed"):
            reembed(opened, mock)  # type: ignore[arg-type]


class TestOlderVersions:
    """Servers and clients before 1.5.7 find no collection by its id; the test run on the lowest versions has both."""

    @pytest.fixture(params=["server", "client"])
    def client(self, request: pytest.FixtureRequest, chroma_port: int, monkeypatch: pytest.MonkeyPatch) -> ClientAPI:
        def fail(self: FastAPI, **arguments: Any) -> Any:
            raise Exception(" (trace ID: 00000000000000000000000000000000)")

        if request.param == "server":
            monkeypatch.setattr(FastAPI, "get_collection_by_id", fail, raising=False)
        elif hasattr(FastAPI, "get_collection_by_id"):
            monkeypatch.delattr(FastAPI, "get_collection_by_id")
            monkeypatch.delattr(chromadb.api.ServerAPI, "get_collection_by_id")
        return chromadb.HttpClient("127.0.0.1", chroma_port)

    @pytest.mark.slow
    def test_every_helper(self, client: ClientAPI, name: str, mock: MLXEmbeddingFunction) -> None:
        made = create_collection(client, name, mock)
        upsert(made, [Document("a", "a")])
        validate_collection(get_collection(client, name))
        assert reembed(made, MLXEmbeddingFunction(mode="mock", dimension=16)).count() == 1

    @pytest.mark.slow
    def test_a_collection_that_is_gone_or_renamed_is_told(
        self, client: ClientAPI, name: str, mock: MLXEmbeddingFunction
    ) -> None:
        made, other = create_collection(client, name, mock), client.get_collection(name)
        other.modify(name=f"{name}-new")
        with pytest.raises(NotFoundError, match=r"or was renamed.*1\.5\.7"):
            upsert(made, [Document("a", "a")])
        # Another one has its name by now.
        create_collection(client, name, MLXEmbeddingFunction(mode="mock", dimension=16))
        with pytest.raises(NotFoundError, match="was renamed"):
            upsert(made, [Document("a", "a")])
        assert upsert(other, [Document("a", "a", vector=[1.0] * D)]).inserted == 1

    @pytest.mark.slow
    def test_before_schemas_a_function_is_stored_all_the_same(
        self, client: ClientAPI, name: str, mock: MLXEmbeddingFunction, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*arguments: Any) -> None:
            raise ValueError("Schema is missing defaults.float_list.vector_index")

        client.create_collection(name, embedding_function=None)
        monkeypatch.setattr(chromadb.Collection, "_update_model_after_modify_success", fail)
        create_collection(client, name, mock, get_or_create=True)
        assert client.get_collection(name).configuration_json["embedding_function"]["name"] == "akidb_mlx"

    @pytest.mark.slow
    def test_before_schemas_one_is_refused_and_nothing_stays(
        self, client: ClientAPI, name: str, mock: MLXEmbeddingFunction, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create = FastAPI.create_collection

        def create_without(self: FastAPI, **arguments: Any) -> Any:
            model = create(self, **{**arguments, "schema": None})
            model.serialized_schema = None
            return model

        monkeypatch.setattr(FastAPI, "create_collection", create_without)
        with pytest.raises(InvalidInputError, match=r"version 1\.5 or later; give configuration="):
            create_collection(client, name, mock, schema=Schema())
        with pytest.raises(NotFoundError):
            client.get_collection(name)


def test_a_collection_is_followed_to_its_new_name(chroma: ClientAPI, name: str, mock: MLXEmbeddingFunction) -> None:
    if not hasattr(chromadb.api.ServerAPI, "get_collection_by_id"):
        pytest.skip("takes Chroma 1.5.7")
    made = create_collection(chroma, name, mock)
    chroma.get_collection(name).modify(name=f"{name}-new")
    upsert(made, [Document("a", "a")])
    assert chroma.get_collection(f"{name}-new").count() == 1


@pytest.mark.slow
def test_a_moved_model_folder_is_the_same_space(chroma: ClientAPI, name: str, tiny_dir: Path) -> None:
    made = create_collection(chroma, name, MLXEmbeddingFunction(tiny_dir))
    upsert(made, [Document("a", "cats sleep")])
    moved = shutil.move(tiny_dir, tiny_dir.with_name("moved"))
    function = MLXEmbeddingFunction(moved)
    opened = get_collection(chroma, name, function)
    assert upsert(opened, [Document("b", "dogs bark")]).inserted == 1
    assert create_collection(chroma, name, function, get_or_create=True).count() == 2


def test_the_default_function_is_what_a_schema_has_of_itself() -> None:
    assert isinstance(VectorIndexConfig().embedding_function, DefaultEmbeddingFunction)
