"""A model on MLX, shared across the process and loaded on first use."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from akidb_mlx_plugin.config import MLXConfig
from akidb_mlx_plugin.errors import ServiceUnavailableError
from akidb_mlx_plugin.providers.base import EmbeddingProvider
from akidb_mlx_plugin.providers.defaults import with_defaults
from akidb_mlx_plugin.providers.idle import IdleRelease
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, ModelInfo
from akidb_mlx_plugin.validation import check_request

if TYPE_CHECKING:
    from akidb_mlx_plugin.checkpoints.options import LoadOptions
    from akidb_mlx_plugin.inference.embedder import Embedder

logger = logging.getLogger(__name__)


class MLXProvider(EmbeddingProvider):
    """A model on MLX, shared across the process and loaded on first use."""

    def __init__(self, config: MLXConfig, *, trusted: bool = True) -> None:
        """Store the settings; loads nothing.

        Args:
            config: the model, and default settings for requests.
            trusted: False if the model's name comes from a stored collection: then only models that are known,
                allowed or already on disk are loaded.
        """
        self._config = config
        self._trusted = trusted
        self._loading = threading.Lock()
        self._embedder: Embedder | None = None
        self._described: ModelInfo | None = None
        self._failure: Exception | None = None
        self._closed = False
        self._idle = IdleRelease(config.keep_alive, self._detach)

    def embed_batch(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResponse:
        """Embed one request; loads the model if needed."""
        return self.embed_requests([request])[0]

    def embed_requests(self, requests: Sequence[BatchEmbeddingRequest]) -> list[BatchEmbeddingResponse]:
        """Embed several requests as one batch; loads the model if needed.

        Raises:
            ModelNotFoundError, DownloadError: it could not be loaded; the next call tries again.
        """
        with self._idle.use():
            return self._load().embed_requests([with_defaults(request, self._config) for request in requests])

    def prepare(self, request: BatchEmbeddingRequest) -> BatchEmbeddingRequest:
        """Complete a request and check it against the model, or before it is loaded, against what every model needs."""
        completed = with_defaults(request, self._config)
        embedder = self._embedder
        if embedder is None:
            check_request(completed)
            return completed
        return embedder.resolve(completed)

    def model_info(self) -> ModelInfo:
        """Describe the model from its checkpoint, downloaded if needed, without loading the weights."""
        if self._described is None:
            from akidb_mlx_plugin.checkpoints.lookup import describe_model

            prompts = {"query": self._config.query_prompt, "document": self._config.document_prompt}
            tasks = {"query": self._config.query_task, "document": self._config.document_task}
            self._described = describe_model(
                self._config.model,
                self._options(),
                dimension=self._config.dimension,
                normalize=self._config.normalize,
                prompts={kind: prompt for kind, prompt in prompts.items() if prompt is not None},
                tasks={kind: task for kind, task in tasks.items() if task is not None},
            )
        embedder = self._embedder
        if embedder is None:
            return self._described
        loaded = embedder.info()
        return replace(self._described, device=loaded.device, dtype=loaded.dtype, parameters=loaded.parameters)

    def health_check(self) -> None:
        """Raise ServiceUnavailableError if the last attempt to load the model failed."""
        if self._failure is not None:
            raise ServiceUnavailableError(
                f"the model could not be loaded: {self._failure}; the next text tries again"
            ) from self._failure

    def close(self) -> None:
        """Release the model. A load in progress releases it itself when done."""
        self._closed = True
        self._idle.stop()
        if self._loading.acquire(blocking=False):
            self._release_and_unlock()

    def _load(self) -> Embedder:
        with self._loading:
            if self._closed:
                raise ServiceUnavailableError("the embedding provider is closed")
            if self._embedder is None:
                self._embedder = self._acquire()
                self.load_seconds = self._embedder.load_seconds
            embedder = self._embedder
        # Checked without the lock: either `close` got the lock, or it had already set this.
        if self._closed:
            self.close()
            raise ServiceUnavailableError("the embedding provider was closed while the model was being loaded")
        return embedder

    def _acquire(self) -> Embedder:
        try:
            from akidb_mlx_plugin.inference.shared import acquire_embedder

            embedder = acquire_embedder(self._config.model, self._options())
        except Exception as error:
            self._failure = error
            raise
        self._failure = None
        return embedder

    def _options(self) -> LoadOptions:
        from akidb_mlx_plugin.checkpoints.options import LoadOptions

        config = self._config
        return LoadOptions(
            device=config.device,
            dtype=config.dtype,
            cache_dir=config.cache_dir,
            max_cache_gb=config.max_cache_gb,
            trusted=self._trusted,
            pooling=config.pooling,
        )

    def _detach(self) -> Callable[[], None] | None:
        """Take the idle model away, and return what frees it; the next text loads it again."""
        from akidb_mlx_plugin.inference.shared import release_embedder

        with self._loading:
            embedder, self._embedder = self._embedder, None
            self.load_seconds = None
        if embedder is None:
            return None
        logger.info("freeing %s, idle for %g s", self._config.model, self._config.keep_alive)
        return partial(release_embedder, embedder)

    def _release_and_unlock(self) -> None:
        try:
            embedder, self._embedder = self._embedder, None
        finally:
            self._loading.release()
        if embedder is not None:
            from akidb_mlx_plugin.inference.shared import release_embedder

            release_embedder(embedder)
