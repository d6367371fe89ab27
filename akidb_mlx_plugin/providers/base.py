"""The interface of every provider."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.types import (
    BatchEmbeddingRequest,
    BatchEmbeddingResponse,
    ModelInfo,
    StartedBatch,
    TextPiece,
)
from akidb_mlx_plugin.validation import check_request


class EmbeddingProvider(ABC):
    """Turns texts into vectors. Thread-safe; constructing one is cheap."""

    load_seconds: float | None = None
    """How long the model took to load; None if none is loaded."""

    @abstractmethod
    def embed_batch(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResponse:
        """Embed one request.

        Raises:
            InvalidInputError: the request cannot be answered.
        """

    @abstractmethod
    def model_info(self) -> ModelInfo:
        """Describe the vectors of a request with default settings."""

    @abstractmethod
    def health_check(self) -> None:
        """Raise ServiceUnavailableError if texts cannot be embedded; loads nothing."""

    @abstractmethod
    def close(self) -> None:
        """Release all resources; safe to call twice."""

    def embed_requests(self, requests: Sequence[BatchEmbeddingRequest]) -> list[BatchEmbeddingResponse]:
        """Embed several requests, each with its own settings; as one batch where supported."""
        return [self.embed_batch(request) for request in requests]

    @property
    def concurrency(self) -> int:
        """How many small batches are best computed at the same time: above 1 if one alone leaves cores idle."""
        return 1

    def begin(self, requests: Sequence[BatchEmbeddingRequest]) -> StartedBatch | None:
        """Start to compute the first texts of large requests, so that the next ones can be tokenized meanwhile.

        Returns:
            As many texts as are best computed at once, and at least one of each request; None if this provider computes
            only within `embed_requests`.
        """
        return None

    def check_lengths(  # noqa: B027 - a provider may cut no text
        self, request: BatchEmbeddingRequest, names: Sequence[str] | None = None
    ) -> None:
        """Raise InvalidInputError for a text that is too long, if the request refuses those; computes nothing.

        Args:
            request: with any number of texts.
            names: what to call each text in the message; default to its position.
        """

    def split(self, text: str, *, max_tokens: int | None = None, overlap: int = 0) -> list[TextPiece]:
        """Split a text into pieces that the model takes whole; arguments and errors as for `EmbeddingService.split`."""
        raise InvalidInputError(
            f"{self.model_info().model!r} has no tokenizer to split texts with; choose mode 'mlx', or give split= a "
            "function that splits"
        )

    def prepare(self, request: BatchEmbeddingRequest) -> BatchEmbeddingRequest:
        """Check a request and complete it with defaults, as far as possible without computing.

        Fast enough for an event loop. What it returns is embedded later, alone or in parts.

        Raises:
            InvalidInputError: the request cannot be answered.
        """
        check_request(request)
        return request
