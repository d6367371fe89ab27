"""A server in a thread of the test's own process, and raw calls to it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import ServiceUnavailableError
from akidb_mlx_plugin.providers import make_provider
from akidb_mlx_plugin.service import EmbeddingService
from akidb_mlx_plugin.serving.app import make_app
from akidb_mlx_plugin.serving.models import ServedModels
from akidb_mlx_plugin.serving.sockets import address_of, listen_on_path, listen_on_port

PATIENCE_S = 30.0
DIMENSION = 8


def mock_config(**service: float | None) -> EmbeddingConfig:
    """Return a configuration of mock vectors."""
    return EmbeddingConfig.model_validate({"mode": "mock", "mock": {"dimension": DIMENSION}, "service": service})


@dataclass
class LocalServer:
    """A server that runs in a thread."""

    url: str
    models: ServedModels
    server: uvicorn.Server
    thread: threading.Thread
    requests: list[str]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def is_ready(self) -> bool:
        try:
            self.models.check_ready()
        except ServiceUnavailableError:
            return False
        return True

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def post(self, body: Any, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any], Any]:
        """Return status, body and headers of POST /v1/embeddings."""
        return self.call("POST", "/v1/embeddings", body if isinstance(body, bytes) else json.dumps(body), headers)

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
        return self.call("GET", path, None, headers)

    def call(self, method: str, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any, Any]:
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            content = response.read().decode()
            is_json = response.headers.get("Content-Type") == "application/json"
            return response.status, json.loads(content) if is_json else content, response.headers
        finally:
            connection.close()

    def stop(self) -> None:
        self.server.should_exit = True


@contextmanager
def serving(
    *configs: EmbeddingConfig,
    rerankers: Sequence[EmbeddingConfig] = (),
    uds: Path | None = None,
    port: int = 0,
    token: str | None = None,
    max_body_bytes: int = 1 << 20,
) -> Iterator[LocalServer]:
    """Serve models until the block ends."""
    models = ServedModels(configs, rerankers)
    inner = make_app(models, token=token, max_body_bytes=max_body_bytes, drain_s=10.0)
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.append(scope["path"])
        await inner(scope, receive, send)

    listener = listen_on_port("127.0.0.1", port) if uds is None else listen_on_path(uds)
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=10)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    url = address_of(listener)
    thread.start()
    try:
        yield LocalServer(url, models, server, thread, seen)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        listener.close()
        if uds is not None:
            uds.unlink(missing_ok=True)
        assert not thread.is_alive(), "the server did not end"


def wait_until(condition: Any, what: str) -> None:
    """Return once a condition holds."""
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, f"not in time: {what}"
        time.sleep(0.005)


def send_raw(port: int, content: bytes) -> socket.socket:
    """Send bytes, and return the open connection."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    connection.sendall(content)
    return connection


def client(url: str, model: object = "mock", *, mlx: dict[str, Any] | None = None, **remote: Any) -> EmbeddingService:
    """Return a service whose vectors come from a server."""
    section = {"model": str(model)} | (mlx or {})
    config = EmbeddingConfig.model_validate({"mlx": section, "remote": {"url": url} | remote})
    return EmbeddingService(config, provider=make_provider(config))
