"""The configuration's part in a request."""

from __future__ import annotations

from dataclasses import replace

from akidb_mlx_plugin.config import MLXConfig
from akidb_mlx_plugin.types import BatchEmbeddingRequest, ResolvedRequest


def with_defaults(request: BatchEmbeddingRequest, config: MLXConfig) -> BatchEmbeddingRequest:
    """Return a request with the configuration's values where the caller gave none."""
    if isinstance(request, ResolvedRequest):
        return request
    query = request.kind == "query"
    prompt = config.query_prompt if query else config.document_prompt
    task = config.query_task if query else config.document_task
    return replace(
        request,
        normalize=config.normalize if request.normalize is None else request.normalize,
        dimension=config.dimension if request.dimension is None else request.dimension,
        prompt=prompt if request.prompt is None else request.prompt,
        task=task if request.task is None else request.task,
        overflow=config.overflow if request.overflow is None else request.overflow,
    )
