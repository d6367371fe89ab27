"""What a client says to a server started by `akidb-mlx serve`, and what its answers mean."""

from __future__ import annotations

import base64
import dataclasses
import json
import random
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np

from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError, ModelNotFoundError, ServiceUnavailableError
from akidb_mlx_plugin.providers.connections import Answer, ConnectionFailedError, Connections
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, ModelInfo, Usage, Vector

# Statuses of a server that is busy or restarting, or of a proxy in front of it.
_TRANSIENT = (429, 502, 503, 504)
# RFC 9218: less urgent than usual, which is 3.
_BULK = {"Priority": "u=5"}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
# Time limit of a probe.
_PROBE_S = 2.0


class ServerClient:
    """Calls a server; retries what passes by itself until the time is up."""

    def __init__(self, url: str, token: str | None, *, timeout_s: float, reconnect_s: float) -> None:
        """Store the address; connects to nothing.

        Args:
            url, token: as for `Connections`.
            timeout_s: time limit of a call, retries included.
            reconnect_s: how much of it to spend on a server that does not answer at all.
        """
        self._url = url
        self._connections = Connections(url, token)
        self._timeout_s = timeout_s
        self._reconnect_s = min(reconnect_s, timeout_s)

    def close(self) -> None:
        """Close idle connections."""
        self._connections.close()

    def check_ready(self) -> None:
        """Ask the server whether it is ready, once and for a short time, as a probe does.

        Raises:
            ServiceUnavailableError: it is not, or it does not answer.
        """
        try:
            answer = self._connections.call("GET", "/ready", None, min(self._timeout_s, _PROBE_S))
        except ConnectionFailedError as error:
            raise ServiceUnavailableError(f"the embedding server {self._url} is not available: {error}") from error
        if answer.status != 200:
            raise ServiceUnavailableError(f"the embedding server {self._url} is not ready: {_message(answer)}")

    def describe(self, model: str, settings: Mapping[str, Any]) -> tuple[ModelInfo, str]:
        """Return what the server's model gives with some settings, and the fingerprint of its own defaults.

        Raises:
            ModelNotFoundError: it has no such model, or is another kind of server.
            As `embed`.
        """
        query = urlencode({key: _spell(value) for key, value in settings.items() if value is not None})
        content = self._call("GET", f"/v1/models/{quote(model, safe='')}?{query}", None)
        names = {field.name for field in dataclasses.fields(ModelInfo)}
        try:
            facts = {name: value for name, value in content.items() if name in names}
            info = ModelInfo(**facts | {"model": model, "dimensions": tuple(facts["dimensions"])})
            return info, str(content["served_fingerprint"])
        except (KeyError, TypeError) as error:
            raise ModelNotFoundError(
                f"{self._url} was not started by akidb-mlx serve: it does not describe its models' vectors"
            ) from error

    def embed(
        self, model: str, request: BatchEmbeddingRequest, *, bulk: bool = False
    ) -> tuple[BatchEmbeddingResponse, str]:
        """Embed a request, and return the fingerprint of the server's model, too.

        Args:
            model: a name that the server knows.
            request: what to embed.
            bulk: whether it may come after other clients' small requests.
        Raises:
            InvalidInputError: the server refused the request or the token.
            ModelNotFoundError: it has no such model.
            ServiceUnavailableError: it did not answer in time.
            EmbeddingError: it failed.
        """
        begun = time.perf_counter()
        body: dict[str, Any] = {"model": model, "input": list(request.inputs), "encoding_format": "base64"}
        body |= {"input_type": request.kind, "task": request.task, "prompt": request.prompt}
        body |= {"dimensions": request.dimension, "normalize": request.normalize}
        if request.overflow == "error":
            # A server that does not know it yet refuses it; the other value is what such a server does.
            body["overflow"] = "error"
        try:
            content = self._call("POST", "/v1/embeddings", json.dumps(body).encode(), _BULK if bulk else None)
        except InvalidInputError as error:
            # The server counts from the first text that it was sent.
            own = re.sub(r"\btext (\d+) has", lambda found: f"text {request.position(int(found[1]))} has", str(error))
            raise InvalidInputError(own) from error
        try:
            vectors = _decode(content["data"], len(request.inputs))
            tokens, truncated = content["usage"]["total_tokens"], content["usage"].get("truncated", 0)
            fingerprint = str(content.get("system_fingerprint"))
        except (KeyError, TypeError, ValueError) as error:
            raise EmbeddingError(f"{self._url} gave an answer without vectors: {type(error).__name__}") from error
        usage = Usage(tokens, (time.perf_counter() - begun) * 1e3, truncated)
        return BatchEmbeddingResponse(vectors, model, usage), fingerprint

    def _call(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Return the JSON of a successful answer, after as many tries as time allows."""
        begun = time.monotonic()
        pause_s = _FIRST_PAUSE_S
        while True:
            left_s = self._timeout_s - (time.monotonic() - begun)
            try:
                answer = self._connections.call(method, path, body, left_s, headers)
            except ConnectionFailedError as error:
                failure, limit_s, asked_s = str(error), self._reconnect_s, None
            else:
                if answer.status not in _TRANSIENT:
                    return self._read(answer)
                failure, limit_s, asked_s = _message(answer), self._timeout_s, answer.retry_after_s
            # Clients that were refused together must not come back together.
            wait_s = max(asked_s or 0.0, pause_s) * random.uniform(0.75, 1.25)
            if time.monotonic() - begun + wait_s >= limit_s:
                raise ServiceUnavailableError(f"the embedding server {self._url} is not available: {failure}")
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _read(self, answer: Answer) -> dict[str, Any]:
        if answer.status == 401:
            raise InvalidInputError(
                f"{self._url} refused the token; set remote.token (AKIDB_EMBEDDING__REMOTE__TOKEN) to the server's "
                "AKIDB_SERVE_TOKEN"
            )
        if answer.status == 404:
            raise ModelNotFoundError(f"{self._url}: {_message(answer)}")
        if 400 <= answer.status < 500:
            raise InvalidInputError(f"{self._url} refused the request: {_message(answer)}")
        if answer.status != 200:
            raise EmbeddingError(f"{self._url} failed with status {answer.status}: {_message(answer)}")
        try:
            content = json.loads(answer.content)
        except ValueError as error:
            raise EmbeddingError(f"{self._url} gave an answer that is not JSON") from error
        return content if isinstance(content, dict) else {}


def _message(answer: Answer) -> str:
    try:
        return str(json.loads(answer.content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status}"


def _spell(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _decode(data: Any, texts: int) -> Vector:
    """Return (N, D) float32 from the base64 rows.

    Raises:
        ValueError: not one row for each text, or rows of different lengths.
    """
    rows = [base64.b64decode(row["embedding"], validate=True) for row in sorted(data, key=lambda row: row["index"])]
    if len(rows) != texts or len({len(row) for row in rows}) != 1:
        raise ValueError(f"{len(rows)} vectors for {texts} texts")
    return np.frombuffer(b"".join(rows), dtype="<f4").astype(np.float32).reshape(texts, -1)
