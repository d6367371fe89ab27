"""Both databases behind one interface, as far as the tests of the contract need it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import akidb_mlx_chroma
import akidb_mlx_lancedb
import chromadb
import lancedb
import numpy as np
import pyarrow as pa
from akidb_mlx_chroma.store import ChromaStore
from akidb_mlx_lancedb.store import LanceStore
from chromadb.api import ClientAPI
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings
from chromadb.config import Settings
from chromadb.utils.embedding_functions import known_embedding_functions

from akidb_mlx_plugin.stores.base import Store

# Text, metadata and vector of each document, by id.
Stored = dict[str, tuple[str | None, dict[str, Any], Any]]
D = 8


class Host(ABC):
    """A database; `make`, `create` and `get` are this package's functions, and `open` is the host's own."""

    module: ModuleType
    store: type[Store]
    # Of the command line: how a collection is named.
    option: str
    # For another process: opens the collection `name`, and defines `ask`, which returns the texts nearest to a text.
    script: str
    location: str

    @abstractmethod
    def make(self, model: str | Path | None = None, **settings: Any) -> Any: ...

    @abstractmethod
    def create(self, name: str, function: Any, *, exist_ok: bool = False) -> Any: ...

    @abstractmethod
    def create_plain(self, name: str) -> Any: ...

    @abstractmethod
    def get(self, name: str, function: Any = None) -> Any: ...

    @abstractmethod
    def open(self, name: str, function: Any = None) -> Any: ...

    @abstractmethod
    def store_settings(self, name: str, settings: Mapping[str, Any], metadata: Mapping[str, Any] = {}) -> Any: ...

    @abstractmethod
    def validate(self, collection: Any, function: Any = None, **options: Any) -> None: ...

    @abstractmethod
    def upsert(self, collection: Any, documents: Any, function: Any = None, **options: Any) -> Any: ...

    @abstractmethod
    def names(self) -> Sequence[str]: ...

    @abstractmethod
    def read(self, collection: Any) -> Stored: ...

    @abstractmethod
    def search(self, collection: Any, text: str) -> str: ...

    @abstractmethod
    def change_text(self, collection: Any, id_: str, text: str) -> None: ...

    @abstractmethod
    def delete(self, collection: Any, id_: str) -> None: ...

    @abstractmethod
    async def connect(self, name: str, function: Any) -> Any: ...

    @abstractmethod
    async def count_async(self, collection: Any) -> int: ...

    @abstractmethod
    async def search_async(self, collection: Any, text: str) -> str: ...

    def reembed(self, collection: Any, function: Any, **options: Any) -> Any:
        return self.module.reembed(collection, function, **options)


class ChromaHost(Host):
    """Chroma in a folder, or behind a server."""

    module = akidb_mlx_chroma
    store = ChromaStore
    option = "--collection"

    def __init__(self, folder: Path, port: int) -> None:
        self.location = str(folder)
        self.port = port
        # As the command opens it: Chroma allows one folder one way of opening it in a process.
        self.client: ClientAPI = chromadb.PersistentClient(folder, settings=Settings(anonymized_telemetry=False))
        self.script = self._script(f"chromadb.PersistentClient({str(folder)!r})")

    @staticmethod
    def _script(client: str) -> str:
        return f"""
import chromadb
from akidb_mlx_chroma import MLXEmbeddingFunction as make, create_collection, get_collection, reembed, upsert
from akidb_mlx_chroma.store import ChromaStore as store
client = {client}
create = lambda name, dimension: create_collection(client, name, make(mode="mock", dimension=dimension))
get = lambda name: get_collection(client, name)
new_function = lambda dimension: make(mode="mock", dimension=dimension)
ask = lambda collection, text: collection.query(query_texts=[text], n_results=3)["documents"][0]
"""

    def make(self, model: str | Path | None = None, **settings: Any) -> Any:
        return akidb_mlx_chroma.MLXEmbeddingFunction(model, **settings)

    def create(self, name: str, function: Any, *, exist_ok: bool = False) -> Any:
        return akidb_mlx_chroma.create_collection(self.client, name, function, get_or_create=exist_ok)

    def create_plain(self, name: str) -> Any:
        return self.client.create_collection(name)

    def get(self, name: str, function: Any = None) -> Any:
        return akidb_mlx_chroma.get_collection(self.client, name, function)

    def open(self, name: str, function: Any = None) -> Any:
        given = {} if function is None else {"embedding_function": function}
        return self.client.get_collection(name, **given)

    def store_settings(self, name: str, settings: Mapping[str, Any], metadata: Mapping[str, Any] = {}) -> Any:
        stranger: Any = _Stranger(dict(settings))
        own = known_embedding_functions["akidb_mlx"]
        known_embedding_functions["akidb_mlx"] = _Stranger
        try:
            self.client.create_collection(name, embedding_function=stranger, metadata=dict(metadata) or None)
        finally:
            known_embedding_functions["akidb_mlx"] = own
        return self.client.get_collection(name)

    def validate(self, collection: Any, function: Any = None, **options: Any) -> None:
        akidb_mlx_chroma.validate_collection(collection, function, **options)

    def upsert(self, collection: Any, documents: Any, function: Any = None, **options: Any) -> Any:
        if function is not None:
            collection = self.open(collection.name, function)
        return akidb_mlx_chroma.upsert(collection, documents, **options)

    def names(self) -> Sequence[str]:
        return [collection.name for collection in self.client.list_collections()]

    def read(self, collection: Any) -> Stored:
        found = collection.get(include=["documents", "metadatas", "embeddings"])
        columns = [found["documents"], found["metadatas"], found["embeddings"]]
        rows = zip(found["ids"], *(column if column is not None else [] for column in columns), strict=True)
        return {id_: (text, dict(metadata or {}), vector) for id_, text, metadata, vector in rows}

    def search(self, collection: Any, text: str) -> str:
        # Chroma's index is approximate; with few results among thousands of random vectors it may miss the nearest.
        return str(collection.query(query_texts=[text], n_results=500)["ids"][0][0])

    def change_text(self, collection: Any, id_: str, text: str) -> None:
        collection.update(ids=[id_], documents=[text])

    def delete(self, collection: Any, id_: str) -> None:
        collection.delete(ids=[id_])

    async def connect(self, name: str, function: Any) -> Any:
        client = await chromadb.AsyncHttpClient("127.0.0.1", self.port)
        return await client.create_collection(name, embedding_function=function)

    async def count_async(self, collection: Any) -> int:
        return int(await collection.count())

    async def search_async(self, collection: Any, text: str) -> str:
        return str((await collection.query(query_texts=[text], n_results=1))["ids"][0][0])


class ChromaServerHost(ChromaHost):
    """Chroma behind a server, which all tests share."""

    def __init__(self, folder: Path, port: int) -> None:
        self.location = f"chroma://127.0.0.1:{port}"
        self.port = port
        self.client = chromadb.HttpClient("127.0.0.1", port)
        self.script = self._script(f"chromadb.HttpClient('127.0.0.1', {port})")


class LanceHost(Host):
    """LanceDB in a folder."""

    module = akidb_mlx_lancedb
    store = LanceStore
    option = "--table"

    def __init__(self, folder: Path, port: int) -> None:
        self.location = str(folder)
        self.db: Any = lancedb.connect(folder)
        self.script = f"""
import lancedb
from akidb_mlx_lancedb import MLXEmbeddings, create_table, open_table, reembed, upsert
from akidb_mlx_lancedb.store import LanceStore as store
db = lancedb.connect({str(folder)!r})
new_function = lambda dimension: MLXEmbeddings.create(mode="mock", dimension=dimension)
create = lambda name, dimension: create_table(db, name, new_function(dimension))
get = lambda name: open_table(db, name)
ask = lambda table, text: [hit["text"] for hit in table.search(text).limit(3).to_list()]
"""

    def make(self, model: str | Path | None = None, **settings: Any) -> Any:
        return akidb_mlx_lancedb.MLXEmbeddings.create(name=model, **settings)

    def create(self, name: str, function: Any, *, exist_ok: bool = False) -> Any:
        return akidb_mlx_lancedb.create_table(self.db, name, function, exist_ok=exist_ok)

    def create_plain(self, name: str) -> Any:
        schema = pa.schema({"id": pa.string(), "text": pa.string(), "vector": pa.list_(pa.float32())})
        return self.db.create_table(name, schema=schema)

    def get(self, name: str, function: Any = None) -> Any:
        return akidb_mlx_lancedb.open_table(self.db, name, function)

    def open(self, name: str, function: Any = None) -> Any:
        return self.db.open_table(name)

    def store_settings(self, name: str, settings: Mapping[str, Any], metadata: Mapping[str, Any] = {}) -> Any:
        fields = {("name" if key == "model" else key): value for key, value in settings.items()}
        entry = {"name": "akidb-mlx", "model": fields, "source_column": "text", "vector_column": "vector"}
        columns = {"id": pa.string(), "text": pa.string(), "vector": pa.list_(pa.float32(), D)}
        stamp = {key: str(value) for key, value in metadata.items()}
        schema = pa.schema(columns, metadata={"embedding_functions": json.dumps([entry]), **stamp})
        return self.db.create_table(name, schema=schema)

    def validate(self, collection: Any, function: Any = None, **options: Any) -> None:
        akidb_mlx_lancedb.validate_table(collection, function, **options)

    def upsert(self, collection: Any, documents: Any, function: Any = None, **options: Any) -> Any:
        return akidb_mlx_lancedb.upsert(collection, documents, embedding_function=function, **options)

    def names(self) -> Sequence[str]:
        names: Sequence[str] = self.db.list_tables().tables
        return names

    def read(self, collection: Any) -> Stored:
        rows = collection.to_arrow().to_pylist()
        assert len({row["id"] for row in rows}) == len(rows)
        return {row["id"]: (row["text"], json.loads(row.get("metadata") or "{}"), row["vector"]) for row in rows}

    def search(self, collection: Any, text: str) -> str:
        return str(collection.search(text).limit(1).to_list()[0]["id"])

    def change_text(self, collection: Any, id_: str, text: str) -> None:
        collection.update(where=f"id = '{id_}'", values={"text": text})

    def delete(self, collection: Any, id_: str) -> None:
        collection.delete(f"id = '{id_}'")

    async def connect(self, name: str, function: Any) -> Any:
        connection = await lancedb.connect_async(self.db.uri)
        return await connection.create_table(name, schema=akidb_mlx_lancedb.table_schema(function))

    async def count_async(self, collection: Any) -> int:
        return int(await collection.count_rows())

    async def search_async(self, collection: Any, text: str) -> str:
        found = await (await collection.search(text, query_type="vector")).limit(1).to_list()
        return str(found[0]["id"])


HOSTS: dict[str, type[ChromaHost | LanceHost]] = {
    "chroma": ChromaHost,
    "chroma-server": ChromaServerHost,
    "lancedb": LanceHost,
}


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
