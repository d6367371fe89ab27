"""`POST /v1/rerank`: Cohere's form."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from akidb_mlx_plugin.errors import EmbeddingError
from akidb_mlx_plugin.serving.bodies import RerankBody
from akidb_mlx_plugin.serving.embeddings import read_checked_body, wait_or_withdraw
from akidb_mlx_plugin.serving.models import ServedModels
from akidb_mlx_plugin.serving.problems import to_problem


async def answer_rerank(request: Request, models: ServedModels, limit: int) -> Response:
    """Answer `POST /v1/rerank`: the documents' positions by descending score.

    Raises:
        ProblemError: the request cannot be answered.
        ClientGoneError: nobody waits for the answer any more.
    """
    body = await read_checked_body(request, RerankBody, limit)
    encoder = models.find_reranker(body.model).encoder
    ranking = asyncio.ensure_future(encoder.arank(body.query, body.documents, body.top_n))
    try:
        ranked = await wait_or_withdraw(request, ranking)
    except EmbeddingError as error:
        raise to_problem(error, "documents") from error
    results: list[dict[str, Any]] = [
        {"index": each["corpus_id"], "relevance_score": each["score"]}
        | ({"document": {"text": each["text"]}} if body.return_documents else {})
        for each in ranked
    ]
    return JSONResponse({"id": str(uuid.uuid4()), "results": results, "meta": {"api_version": {"version": "2"}}})
