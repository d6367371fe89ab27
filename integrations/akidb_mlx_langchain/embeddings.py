"""LangChain's interface of an embedding model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from langchain_core.embeddings import Embeddings

from akidb_mlx_plugin.argument_names import named_arguments
from akidb_mlx_plugin.config import Device, EmbeddingConfig
from akidb_mlx_plugin.service import EmbeddingService, shared_service
from akidb_mlx_plugin.types import Overflow
from akidb_mlx_plugin.validation import list_inputs


class MLXEmbeddings(Embeddings):
    """Embeds the texts of LangChain's vector stores, retrievers and splitters with MLX.

        store = InMemoryVectorStore(MLXEmbeddings("minilm-l6-v2"))

    Making one is free: the model is loaded with the first text, once for the whole process.
    """

    @named_arguments
    def __init__(
        self,
        model: str | Path | None = None,
        dimension: int | None = None,
        normalize: bool | None = None,
        *,
        pooling: str | Sequence[str] | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        device: Device | None = None,
        overflow: Overflow | None = None,
    ) -> None:
        """Choose a model; None stands for the environment's value, else the default.

        Args:
            model: a short name (`akidb-mlx models list`), a Hugging Face repository "org/repo", or a folder.
            dimension: length of the vectors, by matryoshka truncation where the model was trained for it.
            normalize: scale vectors to unit length, or leave them unchanged. Defaults to the checkpoint's.
            pooling: how token vectors become one, instead of what the checkpoint says.
            query_prompt, document_prompt: text put before each text instead of the model's.
            device: "auto", "gpu" or "cpu".
            overflow: "truncate" texts longer than the model takes, or "error". Defaults to the configuration.
        Raises:
            InvalidInputError: an unusable value.
        """
        self._config = EmbeddingConfig.from_arguments(
            model,
            dimension=dimension,
            normalize=normalize,
            pooling=pooling,
            query_prompt=query_prompt,
            document_prompt=document_prompt,
            device=device,
            overflow=overflow,
        )

    @property
    def service(self) -> EmbeddingService:
        """The process-wide service behind this object."""
        return shared_service(self._config)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents, in order."""
        return cast("list[list[float]]", self.service.encode_document(list_inputs(texts)).tolist())

    def embed_query(self, text: str) -> list[float]:
        """Embed a query."""
        return cast("list[float]", self.service.encode_query([text])[0].tolist())

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents without blocking the event loop."""
        return cast("list[list[float]]", (await self.service.aencode_document(list_inputs(texts))).tolist())

    async def aembed_query(self, text: str) -> list[float]:
        """Embed a query without blocking the event loop."""
        return cast("list[float]", (await self.service.aencode_query([text]))[0].tolist())
