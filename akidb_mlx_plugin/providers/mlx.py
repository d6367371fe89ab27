"""A model on MLX, shared across the process and loaded on first use."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from akidb_mlx_plugin.config import MLXConfig
from akidb_mlx_plugin.providers.defaults import with_defaults
from akidb_mlx_plugin.providers.lazy import LazyProvider
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, ModelInfo, StartedBatch, TextPiece
from akidb_mlx_plugin.validation import check_request

if TYPE_CHECKING:
    from akidb_mlx_plugin.checkpoints.options import LoadOptions
    from akidb_mlx_plugin.inference.embedder import Embedder
    from akidb_mlx_plugin.inference.splitting import TextSplitter


@dataclass(frozen=True)
class _Held:
    """A started batch that holds its model until it is done."""

    started: StartedBatch
    model: ExitStack

    @property
    def texts(self) -> Sequence[int]:
        return self.started.texts

    def result(self) -> list[BatchEmbeddingResponse]:
        with self.model:
            return self.started.result()


class MLXProvider(LazyProvider["Embedder"]):
    """A model on MLX, shared across the process and loaded on first use."""

    def __init__(self, config: MLXConfig, *, trusted: bool = True) -> None:
        """Store the settings; loads nothing.

        Args:
            config: the model, and default settings for requests.
            trusted: False if the model's name comes from a stored collection: then only models that are known,
                allowed or already on disk are loaded.
        """
        super().__init__(config.keep_alive)
        self._config = config
        self._trusted = trusted
        self._described: ModelInfo | None = None
        self._splitter: TextSplitter | None = None

    def embed_requests(self, requests: Sequence[BatchEmbeddingRequest]) -> list[BatchEmbeddingResponse]:
        """Embed several requests as one batch; loads the model if needed.

        Raises:
            ModelNotFoundError, DownloadError: it could not be loaded; the next call tries again.
        """
        with self._lazy.use() as embedder:
            return embedder.embed_requests([with_defaults(request, self._config) for request in requests])

    @property
    def concurrency(self) -> int:
        """Number of cores where a query occupies only one, otherwise 1; also until the model is loaded."""
        embedder = self._lazy.model
        return 1 if embedder is None else embedder.concurrency

    def begin(self, requests: Sequence[BatchEmbeddingRequest]) -> StartedBatch:
        """Start to compute as many first texts of large requests as a forward pass takes; loads the model if needed.

        Raises:
            As `embed_requests`.
        """
        with ExitStack() as held:
            embedder = held.enter_context(self._lazy.use())
            started = embedder.begin([with_defaults(request, self._config) for request in requests])
            return _Held(started, held.pop_all())

    def prepare(self, request: BatchEmbeddingRequest) -> BatchEmbeddingRequest:
        """Complete a request and check it against the model, or before it is loaded, against what every model needs."""
        completed = with_defaults(request, self._config)
        embedder = self._lazy.model
        if embedder is None:
            check_request(completed)
            return completed
        return embedder.resolve(completed)

    def check_lengths(self, request: BatchEmbeddingRequest, names: Sequence[str] | None = None) -> None:
        """Raise InvalidInputError for a text that is too long, if the request refuses those; loads the model."""
        with self._lazy.use() as embedder:
            embedder.check_lengths(with_defaults(request, self._config), names)

    def split(self, text: str, *, max_tokens: int | None = None, overlap: int = 0) -> list[TextPiece]:
        """Split a text with the model's tokenizer; loads the tokenizer alone unless the model is in memory."""
        prompt, task = self._config.document_prompt, self._config.document_task
        embedder = self._lazy.model
        if embedder is not None:
            self._splitter = embedder.splitter(prompt=prompt, task=task)
        elif self._splitter is None:
            from akidb_mlx_plugin.inference.embedder import load_splitter

            self._splitter = load_splitter(self._config.model, self._options(), prompt=prompt, task=task)
        return self._splitter.split(text, max_tokens=max_tokens, overlap=overlap)

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
        embedder = self._lazy.model
        if embedder is None:
            return self._described
        loaded = embedder.info()
        return replace(self._described, device=loaded.device, dtype=loaded.dtype, parameters=loaded.parameters)

    def _acquire(self) -> Embedder:
        from akidb_mlx_plugin.inference.shared import acquire_embedder

        embedder = acquire_embedder(self._config.model, self._options())
        embedder.keep_warm(self._config.keep_warm_s)
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
