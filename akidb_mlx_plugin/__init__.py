"""Text embeddings computed locally with Apple's MLX, made for Chroma and LanceDB.

from akidb_mlx_plugin import EmbeddingService

with EmbeddingService("minilm-l6-v2") as service:
    vectors = service.embed_batch(["hello", "world"]).embeddings  # (2, 384) float32
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from akidb_mlx_plugin._lazy import import_when_asked
from akidb_mlx_plugin._version import __version__
from akidb_mlx_plugin.errors import (
    DeadlineExceededError,
    DimensionMismatchError,
    DownloadError,
    EmbeddingError,
    InvalidInputError,
    ModelNotFoundError,
    QueueFullError,
    ServiceUnavailableError,
    UpsertError,
)

if TYPE_CHECKING:
    from akidb_mlx_plugin.checkpoints.lookup import download_model
    from akidb_mlx_plugin.config import EmbeddingConfig
    from akidb_mlx_plugin.cross_encoder import CrossEncoder
    from akidb_mlx_plugin.hub.cache import cache_size_gb, list_cached_models
    from akidb_mlx_plugin.hub.eviction import cleanup_cache
    from akidb_mlx_plugin.hub.registry import list_models
    from akidb_mlx_plugin.inference.embedder import Embedder
    from akidb_mlx_plugin.providers.base import EmbeddingProvider
    from akidb_mlx_plugin.service import EmbeddingService
    from akidb_mlx_plugin.types import (
        BatchEmbeddingRequest,
        BatchEmbeddingResponse,
        Document,
        ModelInfo,
        UpsertResponse,
        Usage,
    )


# Imported on first use: importing MLX and the hub client takes longer than building an adapter.
_LAZY = {
    "BatchEmbeddingRequest": "types",
    "BatchEmbeddingResponse": "types",
    "CrossEncoder": "cross_encoder",
    "Document": "types",
    "Embedder": "inference.embedder",
    "EmbeddingConfig": "config",
    "EmbeddingProvider": "providers",
    "EmbeddingService": "service",
    "ModelInfo": "types",
    "UpsertResponse": "types",
    "Usage": "types",
    "cache_size_gb": "hub.cache",
    "cleanup_cache": "hub.eviction",
    "download_model": "checkpoints.lookup",
    "list_cached_models": "hub.cache",
    "list_models": "hub.registry",
}

__all__ = [
    "BatchEmbeddingRequest",
    "BatchEmbeddingResponse",
    "CrossEncoder",
    "DeadlineExceededError",
    "DimensionMismatchError",
    "Document",
    "DownloadError",
    "Embedder",
    "EmbeddingConfig",
    "EmbeddingError",
    "EmbeddingProvider",
    "EmbeddingService",
    "InvalidInputError",
    "ModelInfo",
    "ModelNotFoundError",
    "QueueFullError",
    "ServiceUnavailableError",
    "UpsertError",
    "UpsertResponse",
    "Usage",
    "__version__",
    "cache_size_gb",
    "cleanup_cache",
    "download_model",
    "list_cached_models",
    "list_models",
]


__getattr__ = import_when_asked(__name__, _LAZY)


def __dir__() -> list[str]:
    return sorted(__all__)
