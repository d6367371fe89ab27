"""A model in another process, behind `akidb-mlx serve`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from akidb_mlx_plugin.config import MLXConfig
from akidb_mlx_plugin.config_sections import RemoteConfig
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError, ModelNotFoundError, ServiceUnavailableError
from akidb_mlx_plugin.providers.base import EmbeddingProvider
from akidb_mlx_plugin.providers.client import ServerClient
from akidb_mlx_plugin.providers.defaults import with_defaults
from akidb_mlx_plugin.providers.mlx import MLXProvider
from akidb_mlx_plugin.types import (
    BatchEmbeddingRequest,
    BatchEmbeddingResponse,
    ModelInfo,
    StartedBatch,
    TextPiece,
    Vector,
)
from akidb_mlx_plugin.validation import check_request

# A server that restarts is back within seconds; where there is a fallback, nobody need wait for it.
_RECONNECT_S, _RECONNECT_WITH_FALLBACK_S = 10.0, 0.5
# For this long after a fallback, the server is not asked.
_HOLD_OFF_S = 5.0
_MOST_CALLS = 16
# The configuration's settings that select a vector space of the model.
_SPACE_SETTINGS = ("dimension", "normalize", "query_prompt", "document_prompt", "query_task", "document_task")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sent:
    """Requests on their way to a server and back: a `StartedBatch` of all their texts."""

    answers: Sequence[Future[BatchEmbeddingResponse]]
    requests: Sequence[BatchEmbeddingRequest]

    @property
    def texts(self) -> list[int]:
        return [len(request.inputs) for request in self.requests]

    def result(self) -> list[BatchEmbeddingResponse]:
        return [answer.result() for answer in self.answers]


class RemoteProvider(EmbeddingProvider):
    """A model in another process, behind `akidb-mlx serve`.

    The server applies the model's prompts; this side sends the kind of a text, and the prompts that its configuration
    sets. What the model is, it asks once: a server that later answers for other weights is refused.
    """

    def __init__(self, remote: RemoteConfig, mlx: MLXConfig, *, trusted: bool = True) -> None:
        """Store the settings; connects to nothing.

        Args:
            remote: the server, and what happens when it is unavailable.
            mlx: the model's name and the default settings of requests; how the model runs is the server's to decide.
            trusted: as for `MLXProvider`, for the fallback.
        Raises:
            InvalidInputError: a setting that only the server can have.
        """
        if remote.url is None:
            raise InvalidInputError("remote.url is not set")
        if mlx.dtype != "auto" and remote.fallback == "error":
            raise InvalidInputError(
                f"mlx.dtype = {mlx.dtype!r} is for the server to set; with remote.url, remove it here"
            )
        self._url = remote.url
        self._config = mlx
        # Free until it is needed.
        self._tokenizing = MLXProvider(mlx, trusted=trusted)
        self._fallback = self._tokenizing if remote.fallback == "local" else None
        self._client = ServerClient(
            remote.url,
            remote.token.get_secret_value() if remote.token else None,
            timeout_s=remote.timeout_ms / 1e3,
            reconnect_s=_RECONNECT_S if self._fallback is None else _RECONNECT_WITH_FALLBACK_S,
        )
        # Its threads start when they are needed.
        self._threads = ThreadPoolExecutor(_MOST_CALLS, thread_name_prefix="akidb-mlx-remote")
        self._asking = threading.Lock()
        self._info: ModelInfo | None = None
        self._served = ""
        self._asked_again_at = 0.0

    def embed_batch(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResponse:
        """Embed one request."""
        return self.embed_requests([request])[0]

    def embed_requests(self, requests: Sequence[BatchEmbeddingRequest]) -> list[BatchEmbeddingResponse]:
        """Embed several requests, all at the same time: the server merges them, with those of its other clients.

        Raises:
            InvalidInputError, ModelNotFoundError: the server refuses them, the token or the model.
            ServiceUnavailableError: it cannot be reached, and there is no fallback.
        """
        if len(requests) == 1:
            return [self._embed(with_defaults(requests[0], self._config))]
        return self._send(requests, bulk=False).result()

    def begin(self, requests: Sequence[BatchEmbeddingRequest]) -> StartedBatch:
        """Send requests, so that the server has the next texts before it has answered for these."""
        return self._send(requests, bulk=True)

    @property
    def concurrency(self) -> int:
        """Many: the server merges what it is sent. While this process embeds by itself, as its model does."""
        return self._fallback.concurrency if self._fallback is not None and self._embeds_here else _MOST_CALLS

    def prepare(self, request: BatchEmbeddingRequest) -> BatchEmbeddingRequest:
        """Complete a request and check its texts; the server checks the rest."""
        completed = with_defaults(request, self._config)
        check_request(completed)
        return completed

    def split(self, text: str, *, max_tokens: int | None = None, overlap: int = 0) -> list[TextPiece]:
        """Split a text with the tokenizer of the same model on this machine.

        Raises:
            InvalidInputError: as for `EmbeddingService.split`, or this machine's model is not the server's.
        """
        here = self._tokenizing.model_info()
        if here.fingerprint != self.model_info().fingerprint:
            raise InvalidInputError(
                f"texts are split by the tokenizer on this machine, and {here.model} here is not the server's model "
                f"(fingerprint {here.fingerprint}, the server's is {self.model_info().fingerprint}); download that "
                "one, or give split= a function that splits"
            )
        return self._tokenizing.split(text, max_tokens=max_tokens, overlap=overlap)

    def model_info(self) -> ModelInfo:
        """Describe the server's model with this configuration's settings; asks the server once."""
        try:
            self._learn()
        except ServiceUnavailableError:
            if self._fallback is None:
                raise
            self._info = self._info or self._fallback.model_info()
        assert self._info is not None
        return self._info

    def health_check(self) -> None:
        """Ask the server whether it is ready, unless this process can do without it.

        Raises:
            ServiceUnavailableError: it is not, or it refuses the token or the model.
        """
        if self._fallback is not None:
            return
        self._client.check_ready()
        try:
            self._learn()
        except (InvalidInputError, ModelNotFoundError) as error:
            raise ServiceUnavailableError(str(error)) from error

    def close(self) -> None:
        """Close the connections."""
        self._threads.shutdown(wait=False)
        self._client.close()
        self._tokenizing.close()

    @property
    def _embeds_here(self) -> bool:
        """Whether the server did not answer a moment ago, and this process computes by itself."""
        return self._fallback is not None and time.monotonic() < self._asked_again_at

    def _send(self, requests: Sequence[BatchEmbeddingRequest], *, bulk: bool) -> _Sent:
        completed = [with_defaults(request, self._config) for request in requests]
        return _Sent([self._threads.submit(self._embed, request, bulk) for request in completed], completed)

    def _embed(self, request: BatchEmbeddingRequest, bulk: bool = False) -> BatchEmbeddingResponse:
        if self._embeds_here:
            return self._embed_here(request)
        try:
            info = self._learn()
            response, served = self._client.embed(self._config.model, request, bulk=bulk)
        except ServiceUnavailableError as error:
            if self._fallback is None:
                raise
            logger.warning("%s; embedding in this process", error)
            self._asked_again_at = time.monotonic() + _HOLD_OFF_S
            return self._embed_here(request)
        if served != self._served:
            raise self._other_weights(self._served, served)
        _check_vectors(response.embeddings, request.dimension or info.dimension, self._url)
        return response

    def _embed_here(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResponse:
        """Embed in this process, if its model is the server's."""
        assert self._fallback is not None
        here = self._fallback.model_info()
        self._info = self._info or here
        if here.fingerprint != self._info.fingerprint:
            raise ServiceUnavailableError(
                f"the embedding server {self._url} is not available, and {here.model} in this process is not the same "
                f"model (fingerprint {here.fingerprint}, the server's is {self._info.fingerprint})"
            )
        return self._fallback.embed_batch(request)

    def _learn(self) -> ModelInfo:
        """Return the description of the server's model, asking for it if that has not been done.

        Raises:
            InvalidInputError: it pools otherwise than this configuration says.
            ModelNotFoundError: it is not the model whose vectors this process has used so far.
        """
        with self._asking:
            if self._info is not None and self._served:
                return self._info
            mlx = self._config
            info, served = self._client.describe(mlx.model, {key: getattr(mlx, key) for key in _SPACE_SETTINGS})
            if mlx.pooling is not None and mlx.pooling != info.pooling:
                raise InvalidInputError(
                    f"mlx.pooling = {mlx.pooling!r}, and the server {self._url} pools by {info.pooling!r}; a server "
                    "pools as the checkpoint says: embed in this process for another pooling"
                )
            if self._info is not None and self._info.fingerprint != info.fingerprint:
                raise self._other_weights(self._info.fingerprint, info.fingerprint)
            self._info, self._served = info, served
            return info

    def _other_weights(self, before: str, now: str) -> ModelNotFoundError:
        return ModelNotFoundError(
            f"the server {self._url} has other weights for {self._config.model!r} than this process has used so far "
            f"(fingerprint {now}, before {before}): their vectors cannot be compared. Serve the former ones again, or "
            "restart this process and embed its collections again"
        )


def _check_vectors(vectors: Vector, dimension: int, url: str) -> None:
    if vectors.shape[1] != dimension or not np.isfinite(vectors).all():
        raise EmbeddingError(
            f"{url} gave vectors of {vectors.shape[1]} dimensions, or with numbers that are not finite, where "
            f"{dimension} finite ones are expected"
        )
