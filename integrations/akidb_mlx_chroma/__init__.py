"""MLX embeddings for Chroma. Importing this registers the function, so that stored collections find it."""

from typing import TYPE_CHECKING

from akidb_mlx_chroma.function import MLXEmbeddingFunction
from akidb_mlx_plugin.lazy import import_when_asked

if TYPE_CHECKING:
    from akidb_mlx_chroma.collections import (
        acreate_collection,
        aget_collection,
        aupsert,
        create_collection,
        get_collection,
        upsert,
        validate_collection,
    )
    from akidb_mlx_chroma.reembedding import reembed

__all__ = [
    "MLXEmbeddingFunction",
    "acreate_collection",
    "aget_collection",
    "aupsert",
    "create_collection",
    "get_collection",
    "reembed",
    "upsert",
    "validate_collection",
]

_HELPERS = (
    "acreate_collection",
    "aget_collection",
    "aupsert",
    "create_collection",
    "get_collection",
    "upsert",
    "validate_collection",
)
__getattr__ = import_when_asked(__name__, {**dict.fromkeys(_HELPERS, "collections"), "reembed": "reembedding"})


def __dir__() -> list[str]:
    return sorted(__all__)
