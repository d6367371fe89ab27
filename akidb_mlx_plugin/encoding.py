"""Embed by the names that sentence-transformers gave its methods, as functions for other frameworks."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NoReturn

import numpy as np

from akidb_mlx_plugin.argument_names import named_arguments
from akidb_mlx_plugin.types import BatchEmbeddingResponse, Kind, ModelInfo, Vector
from akidb_mlx_plugin.validation import list_inputs


class TextEncoder(ABC):
    """The methods `encode`, `encode_query` and `encode_document`: texts in, an array out.

    They wait in line for room in a full queue, as bulk work does.
    """

    @abstractmethod
    def submit_when_room(
        self,
        text: str | Sequence[str],
        *,
        kind: Kind = "document",
        normalize: bool | None = None,
        dimension: int | None = None,
        prompt: str | None = None,
    ) -> Future[BatchEmbeddingResponse]:
        """Queue texts, and return at once."""

    @abstractmethod
    def model_info(self) -> ModelInfo:
        """Describe the model and its vectors."""

    @named_arguments
    def encode(
        self,
        texts: str | Sequence[str],
        *,
        prompt: str = "",
        normalize: bool | None = None,
        dimension: int | None = None,
    ) -> Vector:
        """Embed a text or several with no prompt before them, or with this one.

        For frameworks that embed queries and documents with one function. A model that was trained with prompts wants
        `encode_query` and `encode_document`.

        Args:
            texts: a string, or a list of strings.
            prompt: put before each text. Unlike in sentence-transformers, a checkpoint's `default_prompt_name` is not.
            normalize: whether to scale vectors to unit length. Defaults to the configuration, else to the checkpoint.
            dimension: keep this many leading components. Defaults to the configuration, else to the model's default.
        Returns:
            float32: (D,) for a string, (N, D) for a list, in order.
        Raises:
            InvalidInputError: an invalid text or argument; nothing was computed.
            ServiceUnavailableError: closed, past the deadline, or forked.
            ModelNotFoundError, DownloadError: the model could not be loaded; the next call tries again.
        """
        return self._encode(texts, "document", prompt, normalize, dimension)

    @named_arguments
    def encode_query(
        self,
        texts: str | Sequence[str],
        *,
        prompt: str | None = None,
        normalize: bool | None = None,
        dimension: int | None = None,
    ) -> Vector:
        """Embed queries; `prompt` defaults to the model's for queries, the rest is as for `encode`."""
        return self._encode(texts, "query", prompt, normalize, dimension)

    @named_arguments
    def encode_document(
        self,
        texts: str | Sequence[str],
        *,
        prompt: str | None = None,
        normalize: bool | None = None,
        dimension: int | None = None,
    ) -> Vector:
        """Embed documents; `prompt` defaults to the model's for documents, the rest is as for `encode`."""
        return self._encode(texts, "document", prompt, normalize, dimension)

    async def aencode_query(self, texts: str | Sequence[str], *, prompt: str | None = None) -> Vector:
        """Embed queries without blocking the event loop. Canceling the task withdraws the request."""
        return await self._aencode(texts, "query", prompt)

    async def aencode_document(self, texts: str | Sequence[str], *, prompt: str | None = None) -> Vector:
        """Embed documents without blocking the event loop. Canceling the task withdraws the request."""
        return await self._aencode(texts, "document", prompt)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} belongs to its process and cannot be copied or pickled; make another "
            "with the same arguments. dspy.Embedder copies what it is given unless it has caching=False"
        )

    def _encode(
        self,
        texts: str | Sequence[str],
        kind: Kind,
        prompt: str | None,
        normalize: bool | None,
        dimension: int | None,
    ) -> Vector:
        inputs = [texts] if isinstance(texts, str) else list_inputs(texts)
        if not inputs:
            return np.empty((0, dimension or self.model_info().dimension), dtype=np.float32)
        future = self.submit_when_room(inputs, kind=kind, prompt=prompt, normalize=normalize, dimension=dimension)
        try:
            vectors = future.result().embeddings
        except BaseException:
            # Interrupted by the user: nobody waits for the rest.
            future.cancel()
            raise
        return vectors[0] if isinstance(texts, str) else vectors

    async def _aencode(self, texts: str | Sequence[str], kind: Kind, prompt: str | None) -> Vector:
        inputs = [texts] if isinstance(texts, str) else list_inputs(texts)
        if not inputs:
            # Finding the dimension may take a download.
            return await asyncio.to_thread(self._encode, inputs, kind, prompt, None, None)
        response = await asyncio.wrap_future(self.submit_when_room(inputs, kind=kind, prompt=prompt))
        return response.embeddings[0] if isinstance(texts, str) else response.embeddings
