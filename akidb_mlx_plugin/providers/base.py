"""What every provider of vectors offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, ModelInfo
from akidb_mlx_plugin.validation import check_request


class EmbeddingProvider(ABC):
    """Turns texts into vectors. Any thread may call; constructing one is free."""

    load_seconds: float | None = None
    """How long the model took to load; None: nothing is loaded."""

    @abstractmethod
    def embed_batch(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResponse:
        """Embed one request.

        Raises:
            InvalidInputError: the request cannot be answered.
        """

    @abstractmethod
    def model_info(self) -> ModelInfo:
        """Describe the vectors that a request without settings of its own gets."""

    @abstractmethod
    def health_check(self) -> None:
        """Return if texts can be embedded, else raise ServiceUnavailableError; loads nothing."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held; safe to call twice."""

    def embed_requests(self, requests: Sequence[BatchEmbeddingRequest]) -> list[BatchEmbeddingResponse]:
        """Embed several requests, each in its own way; as one batch where the provider can."""
        return [self.embed_batch(request) for request in requests]

    def check_request(self, request: BatchEmbeddingRequest) -> None:
        """Raise InvalidInputError for what can be seen without computing; quick enough for an event loop."""
        check_request(request)
