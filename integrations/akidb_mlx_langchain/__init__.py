"""MLX embeddings for LangChain, where it asks for an `Embeddings` of its own."""

from typing import TYPE_CHECKING

from akidb_mlx_plugin._lazy import import_when_asked

if TYPE_CHECKING:
    from akidb_mlx_langchain.embeddings import MLXEmbeddings

__all__ = ["MLXEmbeddings"]

__getattr__ = import_when_asked(
    __name__, {"MLXEmbeddings": "embeddings"}, framework="langchain_core", install="langchain-core"
)


def __dir__() -> list[str]:
    return sorted(__all__)
