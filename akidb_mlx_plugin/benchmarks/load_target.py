"""What a load is sent to: this process's service, or a server, where every query is a call of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

from akidb_mlx_plugin.benchmarks.process import peak_bytes
from akidb_mlx_plugin.benchmarks.subject import open_subject
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.providers.client import ServerClient
from akidb_mlx_plugin.providers.connections import ConnectionFailedError, Connections
from akidb_mlx_plugin.runtime.memory import resident_bytes
from akidb_mlx_plugin.service import EmbeddingService
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse

_CLIENTS = 64
_TIMEOUT_S = 30.0
_MEMORY = re.compile(rb"^process_resident_memory_bytes (\S+)$", re.MULTILINE)
# What the server itself reads.
TOKEN_VARIABLE = "AKIDB_SERVE_TOKEN"


class LoadTarget(Protocol):
    """Something that answers queries."""

    def submit(self, query: str) -> Future[Any]:
        """Send a query and return at once."""

    def resident_bytes(self) -> int:
        """Return the memory it uses; 0 if unknown."""

    def peak_bytes(self) -> int:
        """Return the most memory it has used; 0 if unknown."""


class _ThisProcess:
    def __init__(self, service: EmbeddingService) -> None:
        self._service = service

    def submit(self, query: str) -> Future[BatchEmbeddingResponse]:
        return self._service.submit(query, kind="query")

    def resident_bytes(self) -> int:
        return resident_bytes()

    def peak_bytes(self) -> int:
        return peak_bytes()


class _Server:
    """Sends queries to a server from a pool of threads."""

    def __init__(self, url: str, model: str, threads: ThreadPoolExecutor) -> None:
        token = os.environ.get(TOKEN_VARIABLE) or None
        self._model = model
        self._threads = threads
        self._client = ServerClient(url, token, timeout_s=_TIMEOUT_S, reconnect_s=0.0)
        self._connections = Connections(url, token)

    def submit(self, query: str) -> Future[BatchEmbeddingResponse]:
        return self._threads.submit(self._embed, query)

    def resident_bytes(self) -> int:
        try:
            found = _MEMORY.search(self._connections.call("GET", "/metrics", None, _TIMEOUT_S).content)
        except ConnectionFailedError:
            return 0
        return round(float(found[1])) if found else 0

    def peak_bytes(self) -> int:
        return 0

    def close(self) -> None:
        self._client.close()
        self._connections.close()

    def _embed(self, query: str) -> BatchEmbeddingResponse:
        return self._client.embed(self._model, BatchEmbeddingRequest([query], "query"))[0]


@contextmanager
def open_target(config: EmbeddingConfig, url: str | None, warm_up: list[str]) -> Iterator[LoadTarget]:
    """Open a target and embed a few queries.

    Args:
        config: the model.
        url: a server's address; None for this process.
        warm_up: the queries.
    Raises:
        ServiceUnavailableError, ModelNotFoundError, InvalidInputError: the server does not answer them.
    """
    if url is None:
        with open_subject(config, warm_up) as subject:
            yield _ThisProcess(subject.service)
        return
    with ThreadPoolExecutor(_CLIENTS, thread_name_prefix="akidb-mlx-load") as threads:
        server = _Server(url, config.mlx.model, threads)
        try:
            for future in [server.submit(query) for query in warm_up]:
                future.result()
            yield server
        finally:
            server.close()
