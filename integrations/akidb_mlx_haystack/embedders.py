"""Haystack's two kinds of embedders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict

from akidb_mlx_plugin.config import Device, EmbeddingConfig
from akidb_mlx_plugin.service import EmbeddingService, shared_service
from akidb_mlx_plugin.types import Overflow


@component
class MLXTextEmbedder:
    """Embeds a query with MLX.

        pipeline.add_component("embedder", MLXTextEmbedder("minilm-l6-v2"))
        pipeline.connect("embedder.embedding", "retriever.query_embedding")

    Making one is free: `warm_up`, or the first text, loads the model, once for the whole process.
    """

    def __init__(
        self,
        model: str | None = None,
        dimension: int | None = None,
        normalize: bool | None = None,
        *,
        pooling: str | None = None,
        query_prompt: str | None = None,
        device: Device | None = None,
        overflow: Overflow | None = None,
    ) -> None:
        """Choose a model; None stands for the environment's value, else the default.

        Args:
            model: a short name (`akidb-mlx models list`), a Hugging Face repository "org/repo", or a folder.
            dimension: length of the vectors, by matryoshka truncation where the model was trained for it.
            normalize: scale vectors to unit length, or leave them unchanged. Defaults to the checkpoint's.
            pooling: how token vectors become one, instead of what the checkpoint says, such as "mean" or "cls+mean".
            query_prompt: text put before each query instead of the model's.
            device: "auto", "gpu" or "cpu".
            overflow: "truncate" texts longer than the model takes, or "error". Defaults to the configuration.
        Raises:
            InvalidInputError: an unusable value.
        """
        self._settings = _list_settings(model, dimension, normalize, pooling, device, overflow)
        self._query_prompt = query_prompt
        self._config = EmbeddingConfig.from_arguments(**self._settings, query_prompt=query_prompt)

    def warm_up(self) -> None:
        """Load the model, and download it if needed."""
        _warm_up(shared_service(self._config))

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """Embed a query.

        Returns:
            `embedding`: its vector; `meta`: the model's name.
        """
        return {"embedding": shared_service(self._config).encode_query([text])[0].tolist(), "meta": _meta(self._config)}

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Embed a query without blocking the event loop."""
        (vector,) = await shared_service(self._config).aencode_query([text])
        return {"embedding": vector.tolist(), "meta": _meta(self._config)}

    def to_dict(self) -> dict[str, Any]:
        """Return what a stored pipeline keeps."""
        return default_to_dict(self, **self._settings, query_prompt=self._query_prompt)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MLXTextEmbedder:
        """Make the component of a stored pipeline."""
        return default_from_dict(cls, data)


@component
class MLXDocumentEmbedder:
    """Embeds documents with MLX: their content, after the metadata that is named.

    pipeline.add_component("embedder", MLXDocumentEmbedder("minilm-l6-v2"))
    pipeline.connect("embedder.documents", "writer.documents")
    """

    def __init__(
        self,
        model: str | None = None,
        dimension: int | None = None,
        normalize: bool | None = None,
        *,
        pooling: str | None = None,
        document_prompt: str | None = None,
        device: Device | None = None,
        overflow: Overflow | None = None,
        meta_fields_to_embed: Sequence[str] = (),
        embedding_separator: str = "\n",
    ) -> None:
        """Choose a model; the arguments are those of `MLXTextEmbedder`, and these.

        Args:
            model, dimension, normalize, pooling, device, overflow: as for `MLXTextEmbedder`.
            document_prompt: text put before each document instead of the model's.
            meta_fields_to_embed: names of metadata to embed, before the content.
            embedding_separator: what stands between them.
        Raises:
            InvalidInputError: an unusable value.
        """
        self._settings = _list_settings(model, dimension, normalize, pooling, device, overflow)
        self._document_prompt = document_prompt
        self._config = EmbeddingConfig.from_arguments(**self._settings, document_prompt=document_prompt)
        self._fields = list(meta_fields_to_embed)
        self._separator = embedding_separator

    def warm_up(self) -> None:
        """Load the model, and download it if needed."""
        _warm_up(shared_service(self._config))

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents.

        Returns:
            `documents`: copies of them with their vectors, in order; `meta`: the model's name.
        """
        vectors = shared_service(self._config).encode_document(self._list_texts(documents)).tolist()
        return {"documents": _embedded(documents, vectors), "meta": _meta(self._config)}

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Embed documents without blocking the event loop."""
        vectors = (await shared_service(self._config).aencode_document(self._list_texts(documents))).tolist()
        return {"documents": _embedded(documents, vectors), "meta": _meta(self._config)}

    def to_dict(self) -> dict[str, Any]:
        """Return what a stored pipeline keeps."""
        return default_to_dict(
            self,
            **self._settings,
            document_prompt=self._document_prompt,
            meta_fields_to_embed=self._fields,
            embedding_separator=self._separator,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MLXDocumentEmbedder:
        """Make the component of a stored pipeline."""
        return default_from_dict(cls, data)

    def _list_texts(self, documents: list[Document]) -> list[str]:
        return [
            self._separator.join(
                [
                    *(str(document.meta[name]) for name in self._fields if document.meta.get(name) is not None),
                    document.content or "",
                ]
            )
            for document in documents
        ]


def _list_settings(
    model: str | None,
    dimension: int | None,
    normalize: bool | None,
    pooling: str | None,
    device: Device | None,
    overflow: Overflow | None,
) -> dict[str, Any]:
    """Return the arguments of both components, which a stored pipeline keeps."""
    return {
        "model": model,
        "dimension": dimension,
        "normalize": normalize,
        "pooling": pooling,
        "device": device,
        "overflow": overflow,
    }


def _warm_up(service: EmbeddingService) -> None:
    service.encode("warm up")


def _meta(config: EmbeddingConfig) -> dict[str, Any]:
    return {"model": config.mlx.model if config.mode == "mlx" else config.mode}


def _embedded(documents: list[Document], vectors: list[list[float]]) -> list[Document]:
    return [replace(document, embedding=vector) for document, vector in zip(documents, vectors, strict=True)]
