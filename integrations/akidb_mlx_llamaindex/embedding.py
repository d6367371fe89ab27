"""LlamaIndex's interface of an embedding model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr

from akidb_mlx_plugin.argument_names import explain_unknown
from akidb_mlx_plugin.config import Device, EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.service import EmbeddingService, shared_service
from akidb_mlx_plugin.types import Overflow

_SETTINGS = ("dimension", "normalize", "pooling", "query_prompt", "document_prompt", "device", "overflow")


class MLXEmbedding(BaseEmbedding):
    """Embeds LlamaIndex's nodes and queries with MLX.

        Settings.embed_model = MLXEmbedding("minilm-l6-v2")

    Making one is free: the model is loaded with the first text, once for the whole process.

    Attributes:
        model_name: a short name (`akidb-mlx models list`), a Hugging Face repository "org/repo", or a folder. Defaults,
            like all that follow, to the environment's value, else to the default model.
        dimension: length of the vectors, by matryoshka truncation where the model was trained for it.
        normalize: scale vectors to unit length, or leave them unchanged. Defaults to the checkpoint's.
        pooling: how token vectors become one, instead of what the checkpoint says, such as "mean" or "cls+mean".
        query_prompt, document_prompt: text put before each text instead of the model's.
        device: "auto", "gpu" or "cpu".
        overflow: "truncate" texts longer than the model takes, or "error". Defaults to the configuration.
    """

    dimension: int | None = None
    normalize: bool | None = None
    pooling: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    device: Device | None = None
    overflow: Overflow | None = None
    _config: EmbeddingConfig = PrivateAttr()

    def __init__(self, model_name: str | Path | None = None, *, embed_batch_size: int = 256, **settings: Any) -> None:
        """Choose a model.

        Args:
            model_name: see above.
            embed_batch_size: texts that LlamaIndex passes at a time; the batches of the model are its own.
            settings: the other attributes above, and those of `BaseEmbedding`.
        Raises:
            InvalidInputError: an unknown setting, or an unusable value.
        """
        if unknown := [name for name in settings if name not in type(self).model_fields]:
            # The field is LlamaIndex's; everywhere else in this package it is `model`.
            raise InvalidInputError(
                explain_unknown(unknown[0], sorted(type(self).model_fields), {"model": "model_name"})
            )
        config = EmbeddingConfig.from_arguments(
            model_name, **{name: settings[name] for name in _SETTINGS if settings.get(name) is not None}
        )
        name = config.mlx.model if config.mode == "mlx" else config.mode
        super().__init__(model_name=name, embed_batch_size=embed_batch_size, **settings)
        self._config = config

    @classmethod
    def class_name(cls) -> str:
        """Return the name that LlamaIndex writes into what it stores."""
        return "MLXEmbedding"

    @property
    def service(self) -> EmbeddingService:
        """The process-wide service behind this object."""
        return shared_service(self._config)

    def _get_query_embedding(self, query: str) -> list[float]:
        return cast("list[float]", self.service.encode_query([query])[0].tolist())

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return cast("list[float]", (await self.service.aencode_query([query]))[0].tolist())

    def _get_text_embedding(self, text: str) -> list[float]:
        return cast("list[float]", self.service.encode_document([text])[0].tolist())

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return cast("list[float]", (await self.service.aencode_document([text]))[0].tolist())

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return cast("list[list[float]]", self.service.encode_document(texts).tolist())

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return cast("list[list[float]]", (await self.service.aencode_document(texts)).tolist())
