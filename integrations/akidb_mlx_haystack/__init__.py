"""MLX embeddings for Haystack: a component for queries and one for documents."""

from typing import TYPE_CHECKING

from akidb_mlx_plugin._lazy import import_when_asked

if TYPE_CHECKING:
    from akidb_mlx_haystack.embedders import MLXDocumentEmbedder, MLXTextEmbedder

__all__ = ["MLXDocumentEmbedder", "MLXTextEmbedder"]

__getattr__ = import_when_asked(
    __name__, dict.fromkeys(__all__, "embedders"), framework="haystack", install="haystack-ai"
)


def __dir__() -> list[str]:
    return sorted(__all__)
