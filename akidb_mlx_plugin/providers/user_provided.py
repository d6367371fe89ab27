"""No model: the user provides every vector."""

from __future__ import annotations

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.providers.base import EmbeddingProvider
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, ModelInfo


class UserProvidedProvider(EmbeddingProvider):
    """No model: the user provides every vector."""

    def __init__(self, *, model: str | None = None, dimension: int | None = None) -> None:
        """Store the user's description of the vectors.

        Args:
            model: the user's name for the model that made them.
            dimension: their length; None if unknown.
        """
        self._model = model
        self._dimension = dimension

    def embed_batch(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResponse:
        """Raise InvalidInputError: there is no model to embed with."""
        raise InvalidInputError(
            "in mode 'user_provided' no text is embedded: provide a vector with every document and every query, "
            "or choose mode 'mlx'"
        )

    def prepare(self, request: BatchEmbeddingRequest) -> BatchEmbeddingRequest:
        """Raise InvalidInputError, like `embed_batch`."""
        self.embed_batch(request)
        return request

    def model_info(self) -> ModelInfo:
        """Describe the vectors as far as known; dimension 0 if unknown."""
        space = f"user_provided:{self._model}:{self._dimension}" if self._model and self._dimension else ""
        return ModelInfo(
            model=self._model or "user_provided",
            dimension=self._dimension or 0,
            max_tokens=0,
            native_dimension=self._dimension or 0,
            fingerprint=space,
        )

    def health_check(self) -> None:
        """Do nothing: it is always healthy."""

    def close(self) -> None:
        """Do nothing: there is nothing to release."""
