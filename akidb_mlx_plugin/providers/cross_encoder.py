"""A reranker on MLX behind the interface of providers: pairs in, scores out in place of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from akidb_mlx_plugin.config import MLXConfig
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.providers.lazy import LazyProvider
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, ModelInfo, PairRequest
from akidb_mlx_plugin.validation import check_pairs

if TYPE_CHECKING:
    from akidb_mlx_plugin.checkpoints.options import LoadOptions
    from akidb_mlx_plugin.inference.reranker import Reranker


@dataclass(frozen=True)
class RerankSettings:
    """Settings of a reranker that an embedding model does not have.

    Attributes:
        activation: what turns logits into scores; None for the checkpoint's.
        instruction: for a language model, what to look for; None for that of its card.
        offline: True to never download; None for HF_HUB_OFFLINE.
    """

    activation: str | None = None
    instruction: str | None = None
    offline: bool | None = None


class CrossEncoderProvider(LazyProvider["Reranker"]):
    """A reranker on MLX, shared across the process and loaded on first use."""

    def __init__(self, config: MLXConfig, settings: RerankSettings, *, trusted: bool = True) -> None:
        """Store the settings; loads nothing.

        Args:
            config: the model and how it is loaded; settings of vectors are not used.
            settings: those of rerankers.
            trusted: as for `MLXProvider`.
        """
        super().__init__(config.keep_alive)
        self._config = config
        self._settings = settings
        self._trusted = trusted

    def embed_requests(self, requests: Sequence[BatchEmbeddingRequest]) -> list[BatchEmbeddingResponse]:
        """Score several requests as one batch; loads the model if needed.

        Raises:
            ModelNotFoundError, DownloadError: it could not be loaded; the next call tries again.
        """
        with self._lazy.use() as reranker:
            return reranker.score_requests([_as_pairs(request) for request in requests])

    def prepare(self, request: BatchEmbeddingRequest) -> BatchEmbeddingRequest:
        """Check the pairs of a request."""
        check_pairs(_as_pairs(request))
        return request

    def model_info(self) -> ModelInfo:
        """Describe the model from its checkpoint, downloaded if needed, without loading the weights."""
        from akidb_mlx_plugin.checkpoints.lookup import find_cross_encoder

        checkpoint = find_cross_encoder(self._config.model, self._options(), activation=self._settings.activation)
        loaded = self._lazy.model
        return ModelInfo(
            model=checkpoint.name,
            dimension=checkpoint.scores,
            max_tokens=checkpoint.max_tokens,
            normalize=False,
            similarity=checkpoint.activation,
            repo=checkpoint.repo,
            revision=checkpoint.revision,
            device=loaded.device if loaded else "",
            dtype=loaded.dtype if loaded else "",
            parameters=loaded.parameters if loaded else 0,
        )

    def _acquire(self) -> Reranker:
        from akidb_mlx_plugin.inference.shared import acquire_reranker

        settings = self._settings
        return acquire_reranker(
            self._config.model, self._options(), activation=settings.activation, instruction=settings.instruction
        )

    def _options(self) -> LoadOptions:
        from akidb_mlx_plugin.checkpoints.options import LoadOptions

        return LoadOptions(
            device=self._config.device,
            dtype=self._config.dtype,
            cache_dir=self._config.cache_dir,
            max_cache_gb=self._config.max_cache_gb,
            trusted=self._trusted,
            offline=self._settings.offline,
        )


def _as_pairs(request: BatchEmbeddingRequest) -> PairRequest:
    if not isinstance(request, PairRequest):
        raise InvalidInputError("a reranker scores pairs of texts; embed texts with an embedding model")
    return request
