"""MLX embeddings for LlamaIndex."""

from typing import TYPE_CHECKING

from akidb_mlx_plugin._lazy import import_when_asked

if TYPE_CHECKING:
    from akidb_mlx_llamaindex.embedding import MLXEmbedding

__all__ = ["MLXEmbedding"]

__getattr__ = import_when_asked(
    __name__, {"MLXEmbedding": "embedding"}, framework="llama_index.core", install="llama-index-core"
)


def __dir__() -> list[str]:
    return sorted(__all__)
