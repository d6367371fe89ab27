"""The ASGI application: routes, the token, and when the models were last used."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from akidb_mlx_plugin.errors import EmbeddingError
from akidb_mlx_plugin.metrics.exporter import exposition
from akidb_mlx_plugin.serving.embeddings import ClientGoneError, answer_embeddings
from akidb_mlx_plugin.serving.models import ServedModel, ServedModels
from akidb_mlx_plugin.serving.problems import ProblemError, to_problem
from akidb_mlx_plugin.serving.rerank import answer_rerank
from akidb_mlx_plugin.types import ModelInfo

Answer = Callable[[Request], Awaitable[Response]]
Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]

DEFAULT_MAX_BODY_BYTES = 32 << 20
# For a supervisor's probes, which have no token; they tell nothing about models or texts.
_OPEN_PATHS = ("/health", "/ready")
# Settings of a client that change its vectors; everything else is the server's.
_SETTINGS: dict[str, Callable[[str], Any]] = {
    "dimension": int,
    "normalize": {"true": True, "false": False}.__getitem__,
    "query_prompt": str,
    "document_prompt": str,
    "query_task": str,
    "document_task": str,
}
# What servers and proxies log where a client hung up.
_CLIENT_CLOSED = 499

logger = logging.getLogger(__name__)


class Activity:
    """How long the models have not been asked for anything."""

    def __init__(self) -> None:
        """Count from now."""
        self._running = 0
        self._last = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since the last request ended; 0 while one runs."""
        return 0.0 if self._running else time.monotonic() - self._last

    def begin(self) -> None:
        """Note the beginning of a request."""
        self._running += 1

    def end(self) -> None:
        """Note its end."""
        self._running -= 1
        self._last = time.monotonic()


def make_app(
    models: ServedModels,
    *,
    token: str | None = None,
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    activity: Activity | None = None,
    drain_s: float = 30.0,
) -> ASGIApp:
    """Return the application; its lifespan loads the models, and closes them at the end.

    Args:
        models: what it serves.
        token: what clients must send as `Authorization: Bearer TOKEN`; None for no check.
        max_body_bytes: largest body of a request.
        activity: told about every request to a model.
        drain_s: how long waiting requests may take once it shuts down.
    """

    async def embeddings(request: Request) -> Response:
        return await answer_embeddings(request, models, max_body_bytes)

    async def rerank(request: Request) -> Response:
        return await answer_rerank(request, models, max_body_bytes)

    async def list_models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_to_entry(info) for info in models.infos]})

    async def describe(request: Request) -> Response:
        model = models.find(request.path_params["name"])
        return JSONResponse(_to_entry(await _describe(model, request)) | {"served_fingerprint": model.info.fingerprint})

    async def ready(_: Request) -> Response:
        models.check_ready()
        return JSONResponse({"status": "ready"})

    routes = [
        Route("/v1/embeddings", _answering(embeddings), methods=["POST"]),
        Route("/v1/rerank", _answering(rerank), methods=["POST"]),
        Route("/v2/rerank", _answering(rerank), methods=["POST"]),
        Route("/v1/models", _answering(list_models)),
        Route("/v1/models/{name:path}", _answering(describe)),
        Route("/health", _health),
        Route("/ready", _answering(ready)),
        Route("/metrics", _metrics),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _explain}, lifespan=_lifespan(models, drain_s))
    return _Gate(app, token, activity or Activity())


class _Gate:
    """Checks the token, and notes requests to the models."""

    def __init__(self, app: ASGIApp, token: str | None, activity: Activity) -> None:
        self._app = app
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._activity = activity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not self._is_allowed(scope):
            problem = ProblemError(
                401, "a valid token is required: Authorization: Bearer TOKEN", code="invalid_api_key"
            )
            await problem.to_response()(scope, receive, send)
            return
        is_use = scope["path"].startswith(("/v1/", "/v2/"))
        if is_use:
            self._activity.begin()
        try:
            await self._app(scope, receive, send)
        finally:
            if is_use:
                self._activity.end()

    def _is_allowed(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] in _OPEN_PATHS:
            return True
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, self._expected)


def _answering(answer: Answer) -> Answer:
    """Return an endpoint that answers errors in OpenAI's form, and logs none of a request's content."""

    async def endpoint(request: Request) -> Response:
        try:
            return await answer(request)
        except ClientGoneError:
            return Response(status_code=_CLIENT_CLOSED)
        except ProblemError as problem:
            return problem.to_response()
        except EmbeddingError as error:
            return to_problem(error).to_response()
        except Exception as error:
            logger.error("a request to %s failed with %s", request.url.path, type(error).__name__)
            return to_problem(error).to_response()

    return endpoint


async def _health(_: Request) -> Response:
    return JSONResponse({"status": "ok", "pid": os.getpid()})


async def _metrics(_: Request) -> Response:
    text = await asyncio.to_thread(exposition)
    return Response(text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def _explain(_: Request, error: Exception) -> Response:
    """Answer a wrong path or method."""
    assert isinstance(error, HTTPException)
    return ProblemError(error.status_code, error.detail, code="invalid_request").to_response()


async def _describe(model: ServedModel, request: Request) -> ModelInfo:
    settings = {}
    for name, text in request.query_params.items():
        try:
            settings[name] = _SETTINGS[name](text)
        except (KeyError, ValueError):
            known = ", ".join(_SETTINGS)
            raise ProblemError(
                400, f"not a setting or not a value of it; known are {known}", code="invalid_value", param=name[:60]
            ) from None
    try:
        return await asyncio.to_thread(model.describe, settings)
    except EmbeddingError as error:
        raise to_problem(error) from error


def _to_entry(info: ModelInfo) -> dict[str, Any]:
    """Return OpenAI's fields and all of ours."""
    return {"id": info.model, "object": "model", "created": 0, "owned_by": "akidb-mlx", **dataclasses.asdict(info)}


def _lifespan(models: ServedModels, drain_s: float) -> Lifespan:
    @asynccontextmanager
    async def run(_: Any) -> AsyncIterator[None]:
        loading = asyncio.create_task(asyncio.to_thread(models.load))
        try:
            yield
        finally:
            await asyncio.to_thread(models.close, drain_s)
            await loading

    return run
