"""Write a dataset to a Chroma server's collection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import UUID

import chromadb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from akidb_mlx_chroma import MLXEmbeddingFunction, create_collection, get_collection
from akidb_mlx_chroma.metadata import check_key
from akidb_mlx_chroma.store import read_stored_vectors, resolve_function
from chromadb.api import ClientAPI
from chromadb.config import Settings
from chromadb.errors import NotFoundError
from ray.data import Dataset, TaskPoolStrategy

from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError
from akidb_mlx_ray.dataset import Workers, iterate
from akidb_mlx_ray.pipeline import BulkStore, Options, check_service, run
from akidb_mlx_ray.results import BulkResult

_PORT = 8000
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")
_WRITE_ROWS = 1000
_WRITER_CPUS = 0.1


@dataclass(frozen=True)
class Server:
    """How to reach a Chroma server; hashable, so that each worker keeps one client for it."""

    host: str
    port: int
    ssl: bool = False
    headers: tuple[tuple[str, str], ...] = ()
    tenant: str = "default_tenant"
    database: str = "default_database"

    def __repr__(self) -> str:
        # Headers may contain a token.
        return f"{self.host}:{self.port}"


def write_chroma(
    ds: Dataset,
    host: str = "localhost",
    port: int = _PORT,
    collection: str = "",
    on: str = "id",
    *,
    embedding_function: MLXEmbeddingFunction | None = None,
    text_column: str = "text",
    vector_column: str = "vector",
    concurrency: int = 1,
    num_cpus: float | None = None,
    num_gpus: float = 0.0,
    batch_size: int = 1024,
    writers: int = 2,
    strict: bool = False,
    rejects: str | Path | None = None,
    ssl: bool = False,
    headers: Mapping[str, str] | None = None,
    tenant: str = "default_tenant",
    database: str = "default_database",
) -> BulkResult:
    """Embed a dataset's rows whose ids a collection lacks, and write them there with their vectors.

    The collection is created if it does not exist, with its embedding function and stamp. Restarting an interrupted run
    embeds only what is missing. A server is needed: several processes cannot share Chroma's files.

    Args:
        ds: rows with an id and a text each; other columns, of strings, numbers or booleans, become metadata. A row's
            own vector is used unchanged.
        host, port: of the server, as every worker sees it.
        collection: its name.
        on: the key column; strings, or integers, which become strings.
        embedding_function: defaults to the one that the collection stores, or to the default model for a new one.
        text_column, vector_column, concurrency, num_cpus, num_gpus, batch_size: as for `write_lancedb`.
        writers: concurrent requests to the server.
        strict, rejects: as for `write_lancedb`.
        ssl, headers, tenant, database: as for `chromadb.HttpClient`.
    Returns:
        What was done.
    Raises:
        As `write_lancedb`; also EmbeddingError if no server answers.
    """
    server = Server(host, port, ssl, tuple((headers or {}).items()), tenant, database)
    store = BulkCollection(server, collection, on, embedding_function, text_column, vector_column, writers)
    path = Path(rejects) if rejects else Path(f"{collection}.rejected.jsonl")
    return run(ds, store, Workers(concurrency, num_cpus, num_gpus, batch_size), Options(strict, path))


class BulkCollection(BulkStore):
    """A collection that may not exist yet."""

    def __init__(
        self,
        server: Server,
        name: str,
        on: str = "id",
        function: MLXEmbeddingFunction | None = None,
        text_column: str = "text",
        vector_column: str = "vector",
        writers: int = 2,
    ) -> None:
        """Check that the function fits an existing collection; creates nothing. Arguments as for `write_chroma`."""
        if writers < 1:
            raise InvalidInputError(f"writers must be at least 1, got {writers}")
        if not _NAME.fullmatch(name):
            raise InvalidInputError(
                f"{name!r} is not a collection's name: 3 to 512 letters, digits, '.', '_' and '-', with a letter or "
                "digit at both ends"
            )
        self.label = f"collection {name!r}"
        self._server, self._name, self._writers = server, name, writers
        self._client = connect(server)
        self.trusted = function is not None
        self._collection: chromadb.Collection | None = None
        try:
            self._collection = get_collection(self._client, name, function)
            function = function or resolve_function(self._collection, read_stored_vectors(self._collection))
        except NotFoundError:
            self.trusted = True
        self._function = function or MLXEmbeddingFunction()
        self.service = self._function.service
        self.columns = replace(check_service(self.service), id=on, text=text_column, vector=vector_column)

    def check_columns(self, given: Mapping[str, Any]) -> None:
        """Reject columns that Chroma cannot keep as metadata."""
        own = (self.columns.id, self.columns.text, self.columns.vector)
        for name, column_type in given.items():
            if name in own:
                continue
            if not _is_metadata(column_type):
                raise InvalidInputError(
                    f"column {name!r} holds {column_type}, and Chroma's metadata are strings, numbers and booleans; "
                    f"convert it, or leave it out: ds.drop_columns([{name!r}]), or --columns with the others"
                )
            check_key(name)

    def make(self, given: Mapping[str, Any]) -> None:
        """Create the collection if it does not exist."""
        if self._collection is None:
            self._collection = create_collection(self._client, self._name, self._function)

    def drop_present(self, ds: Dataset) -> Dataset:
        """Look ids up in the collection, a batch at a time."""
        if self._collection is None or not self._collection.count():
            return ds
        arguments = {
            "server": self._server,
            "name": self._name,
            "collection_id": self._collection.id,
            "on": self.columns.id,
        }
        return ds.map_batches(_drop_present, fn_kwargs=arguments, batch_format="pyarrow", batch_size=_WRITE_ROWS)

    def write(self, ds: Dataset, rows: int) -> int:
        """Upsert, with several concurrent tasks."""
        assert self._collection is not None, "it is made before it is written to"
        arguments = {
            "server": self._server,
            "name": self._name,
            "collection_id": self._collection.id,
            "columns": self.columns,
        }
        limit = int(self._client.get_max_batch_size())
        counts = ds.map_batches(
            _upsert,
            fn_kwargs=arguments,
            batch_format="pyarrow",
            batch_size=min(_WRITE_ROWS, limit) if limit > 0 else _WRITE_ROWS,
            compute=TaskPoolStrategy(size=self._writers),
            num_cpus=_WRITER_CPUS,
        )
        # Summed here: a Ray aggregation would add two stages.
        return sum(pc.sum(batch["written"]).as_py() or 0 for batch in iterate(counts))


def connect(server: Server) -> ClientAPI:
    """Return a client.

    Raises:
        EmbeddingError: no server answers, or it returns an error.
    """
    try:
        return chromadb.HttpClient(
            server.host,
            server.port,
            ssl=server.ssl,
            headers=dict(server.headers) or None,
            settings=Settings(anonymized_telemetry=False),
            tenant=server.tenant,
            database=server.database,
        )
    except ValueError as error:
        raise EmbeddingError(f"{server}: {error}; start one with: chroma run --path FOLDER") from error


@lru_cache(maxsize=4)
def _open(server: Server, name: str, collection_id: UUID) -> Any:
    """Open a collection once in each worker; a recreated one has another id."""
    return connect(server).get_collection(name)


def _drop_present(rows: pa.Table, server: Server, name: str, collection_id: UUID, on: str) -> pa.Table:
    ids = rows[on].to_pylist()
    if not ids:
        return rows
    present = set(_open(server, name, collection_id).get(ids=ids, include=[])["ids"])
    return rows.filter(pa.array(np.array([id_ not in present for id_ in ids], dtype=bool)))


def _upsert(rows: pa.Table, server: Server, name: str, collection_id: UUID, columns: Any) -> pa.Table:
    if rows.num_rows:
        vectors = rows[columns.vector].combine_chunks()
        texts = rows[columns.text].to_pylist() if columns.text in rows.column_names else [None] * rows.num_rows
        others = rows.select([c for c in rows.column_names if c not in (columns.id, columns.text, columns.vector)])
        metadatas = [
            {key: value for key, value in row.items() if value is not None} or None for row in others.to_pylist()
        ] or [None] * rows.num_rows
        _open(server, name, collection_id).upsert(
            ids=rows[columns.id].to_pylist(),
            embeddings=list(vectors.flatten().to_numpy().reshape(rows.num_rows, columns.dimension)),
            documents=texts if any(text is not None for text in texts) else None,
            metadatas=metadatas if any(metadatas) else None,
        )
    return pa.table({"written": pa.array([rows.num_rows], pa.int64())})


def _is_metadata(column_type: Any) -> bool:
    return isinstance(column_type, pa.DataType) and any(
        check(column_type)
        for check in (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_integer,
            pa.types.is_floating,
            pa.types.is_boolean,
            pa.types.is_null,
        )
    )
