"""`POST /v1/embeddings`: OpenAI's form, with the model's prompts."""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError
from akidb_mlx_plugin.serving.bodies import EmbeddingsBody, parse_body
from akidb_mlx_plugin.serving.models import ServedModel, ServedModels
from akidb_mlx_plugin.serving.problems import ProblemError, to_problem
from akidb_mlx_plugin.types import BatchEmbeddingResponse, Vector

_Answer = TypeVar("_Answer")
_Body = TypeVar("_Body", bound=BaseModel)
# Beyond these, work that would hold up the other clients on the event loop goes to a thread.
_LARGE_BODY_BYTES = 1 << 18
_LARGE_ANSWER_VALUES = 1 << 16
# In the header Priority (RFC 9218); 0 is the most urgent.
_URGENCY, _USUAL_URGENCY = re.compile(r"(?:^|,)\s*u=([0-7])\s*(?:$|[,;])"), 3
# For this long nobody looks whether the client is still there: most queries are answered sooner, and the thread that
# computes one would have to wait for the event loop.
_UNWATCHED_S = 0.05
# A body that is too large is read to its end, or its sender would see a broken connection in place of the answer; but
# not for ever.
_MOST_DISCARDED = 10


class ClientGoneError(Exception):
    """The client closed its connection before the answer."""


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body of a request.

    Raises:
        ProblemError: 413, it has more than `limit` bytes.
        ClientGoneError: the connection closed before its end.
    """
    content = bytearray()
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= limit:
                content += chunk
            elif size > _MOST_DISCARDED * limit:
                break
    except ClientDisconnect:
        raise ClientGoneError from None
    if size > limit:
        raise ProblemError(
            413, f"the body has more than {limit:,} bytes; send fewer texts at a time", code="request_too_large"
        )
    return bytes(content)


async def read_checked_body(request: Request, schema: type[_Body], limit: int) -> _Body:
    """Return the body of a request as its schema; errors as for `read_body` and `parse_body`."""
    content = await read_body(request, limit)
    if len(content) > _LARGE_BODY_BYTES:
        return await asyncio.to_thread(parse_body, schema, content)
    return parse_body(schema, content)


async def answer_embeddings(request: Request, models: ServedModels, limit: int) -> Response:
    """Answer `POST /v1/embeddings`.

    Raises:
        ProblemError: the request cannot be answered.
        ClientGoneError: nobody waits for the answer any more.
    """
    body = await read_checked_body(request, EmbeddingsBody, limit)
    model = models.find(body.model)
    await _check_settings(model, body)
    try:
        future = model.service.submit(
            body.input,
            kind=body.input_type,
            normalize=body.normalize,
            dimension=body.dimensions,
            prompt=body.prompt,
            task=body.task,
            overflow=body.overflow,
            bulk=_is_bulk(request),
        )
        response = await wait_or_withdraw(request, asyncio.wrap_future(future))
    except EmbeddingError as error:
        raise to_problem(error, "input") from error
    encode = _encode_base64 if body.encoding_format == "base64" else _encode_numbers
    if response.embeddings.size > _LARGE_ANSWER_VALUES:
        content = await asyncio.to_thread(_write_answer, response, model, encode)
    else:
        content = _write_answer(response, model, encode)
    return Response(content, media_type="application/json")


def _is_bulk(request: Request) -> bool:
    """Return whether a request's priority, as RFC 9218 defines it, is lower than usual."""
    urgency = _URGENCY.search(request.headers.get("priority", ""))
    return urgency is not None and int(urgency[1]) > _USUAL_URGENCY


async def wait_or_withdraw(request: Request, answer: asyncio.Future[_Answer]) -> _Answer:
    """Wait for an answer; cancel it, which withdraws it from the queue, if its client hangs up first.

    Raises:
        ClientGoneError: it did.
    """
    try:
        await asyncio.wait({answer}, timeout=_UNWATCHED_S)
        if not answer.done():
            await _wait_unless_gone(request, answer)
        return answer.result()
    finally:
        answer.cancel()


async def _wait_unless_gone(request: Request, answer: asyncio.Future[_Answer]) -> None:
    gone = asyncio.ensure_future(_wait_until_gone(request))
    try:
        waiting: set[asyncio.Future[Any]] = {answer, gone}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientGoneError
    finally:
        gone.cancel()


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _check_settings(model: ServedModel, body: EmbeddingsBody) -> None:
    """Refuse what the model cannot do, by the name of the field."""
    allowed = model.info.dimensions
    if body.dimensions is not None and allowed and body.dimensions not in allowed:
        few = f"{allowed[0]} to {allowed[-1]}" if len(allowed) > 8 else " or ".join(map(str, allowed))
        raise ProblemError(
            400,
            f"dimensions: {model.info.model} gives {few}, not {body.dimensions}",
            code="invalid_value",
            param="dimensions",
        )
    if body.task is not None:
        try:
            await asyncio.to_thread(model.describe, {"query_task": body.task})
        except InvalidInputError as error:
            raise to_problem(error, "task") from error


def _write_answer(response: BatchEmbeddingResponse, model: ServedModel, encode: Any) -> bytes:
    usage = response.usage
    content = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": row}
            for index, row in enumerate(encode(response.embeddings))
        ],
        "model": model.info.model,
        "system_fingerprint": model.info.fingerprint,
        "usage": {
            "prompt_tokens": usage.total_tokens,
            "total_tokens": usage.total_tokens,
            "truncated": usage.truncated,
        },
    }
    # Ten times as fast as the standard library's for numbers.
    return to_json(content)


def _encode_base64(vectors: Vector) -> list[str]:
    return [base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode("ascii") for row in vectors]


def _encode_numbers(vectors: Vector) -> Any:
    return vectors.tolist()
