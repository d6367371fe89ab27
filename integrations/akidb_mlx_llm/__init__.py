"""A plugin of LLM, https://llm.datasette.io, which finds it by the entry point in pyproject.toml.

llm embed -m akidb-mlx/minilm-l6-v2 -c 'parse a date'
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import cast

from akidb_mlx_plugin._lazy import missing_framework
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.hub.registry import list_models

try:
    import llm
except ModuleNotFoundError as error:
    raise missing_framework(__name__, "llm", "llm") from error

__all__ = ["MLXEmbeddingModel", "register_embedding_models"]


class MLXEmbeddingModel(llm.EmbeddingModel):
    """A model that `llm embed-models` lists.

    It embeds without prompts, because LLM has one call for queries and documents.

    Attributes:
        batch_size: texts that LLM passes at a time; the batches of the model are its own.
    """

    batch_size = 256

    def __init__(self, model: str) -> None:
        """Name a model; it is loaded with the first text.

        Args:
            model: a short name, a Hugging Face repository "org/repo", or a folder.
        """
        self.model_id = f"akidb-mlx/{model}"
        self._model = model

    def embed_batch(self, items: Iterable[str | bytes], *, key: str | None = None) -> Iterator[list[float]]:
        """Embed texts, in order.

        Args:
            items: the texts.
            key: LLM's, for services on the web; not used.
        """
        # Imported with the first text: LLM imports every plugin whenever it starts.
        from akidb_mlx_plugin.service import shared_service

        service = shared_service(EmbeddingConfig.from_arguments(self._model))
        yield from service.encode(cast("list[str]", list(items))).tolist()


@llm.hookimpl
def register_embedding_models(register: Callable[..., None]) -> None:
    """List the models that have short names, and the one that the environment names."""
    names = [spec.name for spec in list_models()]
    config = EmbeddingConfig.load()
    for name in dict.fromkeys([*names, config.mlx.model]):
        register(MLXEmbeddingModel(name))
