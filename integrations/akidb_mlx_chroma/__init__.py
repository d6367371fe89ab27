"""MLX embeddings for Chroma. Importing this registers the function for stored collections."""

from typing import TYPE_CHECKING

from akidb_mlx_chroma.function import MLXEmbeddingFunction
from akidb_mlx_plugin._lazy import import_when_asked

if TYPE_CHECKING:
    from akidb_mlx_chroma.collections import (
        aget_collection,
        aupsert,
        avalidate_collection,
        get_collection,
        upsert,
        validate_collection,
    )
    from akidb_mlx_chroma.creation import acreate_collection, create_collection
    from akidb_mlx_chroma.grouping import group_by_parent
    from akidb_mlx_chroma.reembedding import areembed, reembed
    from akidb_mlx_chroma.reranking import arerank, rerank

__all__ = [
    "MLXEmbeddingFunction",
    "acreate_collection",
    "aget_collection",
    "areembed",
    "arerank",
    "aupsert",
    "avalidate_collection",
    "create_collection",
    "get_collection",
    "group_by_parent",
    "reembed",
    "rerank",
    "upsert",
    "validate_collection",
]

_HELPERS = {
    "collections": (
        "aget_collection",
        "aupsert",
        "avalidate_collection",
        "get_collection",
        "upsert",
        "validate_collection",
    ),
    "creation": ("acreate_collection", "create_collection"),
    "grouping": ("group_by_parent",),
    "reembedding": ("areembed", "reembed"),
    "reranking": ("arerank", "rerank"),
}
__getattr__ = import_when_asked(__name__, {name: module for module, names in _HELPERS.items() for name in names})


def __dir__() -> list[str]:
    return sorted(__all__)
