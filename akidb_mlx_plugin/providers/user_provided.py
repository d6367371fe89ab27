"""No model: the user brings every vector."""

from __future__ import annotations

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.providers.base import EmbeddingProvider
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, ModelInfo


class UserProvidedProvider(EmbeddingProvider):
    """No model: the user brings every vector."""

    def __init__(self, *, model: str | None = None, dimension: int | None = None) -> None:
        """Note what the user says of the vectors.

        Args:
            model: the user's name for what made them.
            dimension: their length; None: not known beforehand.
        """
        self._model = model
        self._dimension = dimension

    def embed_batch(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResponse:
        """Raise InvalidInputError: there is nothing to embed with."""
        raise InvalidInputError(
            "in mode 'user_provided' no text is embedded: give a vector with every document and every query, "
            "or choose mode 'mlx'"
        )

    def check_request(self, request: BatchEmbeddingRequest) -> None:
        """Raise InvalidInputError, as `embed_batch`."""
        self.embed_batch(request)

    def model_info(self) -> ModelInfo:
        """Describe the vectors as far as they are known; dimension 0: it is not."""
        space = f"user_provided:{self._model}:{self._dimension}" if self._model and self._dimension else ""
        return ModelInfo(
            model=self._model or "user_provided",
            dimension=self._dimension or 0,
            max_tokens=0,
            native_dimension=self._dimension or 0,
            fingerprint=space,
        )

    def health_check(self) -> None:
        """Return: nothing can fail."""

    def close(self) -> None:
        """Return: nothing is held."""
