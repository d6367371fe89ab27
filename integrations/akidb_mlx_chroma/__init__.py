"""MLX embeddings for Chroma. Importing this registers the function, so that stored collections find it."""

from akidb_mlx_chroma.collections import aupsert, create_collection, get_collection, upsert, validate_collection
from akidb_mlx_chroma.function import MLXEmbeddingFunction
from akidb_mlx_chroma.reembed import reembed

__all__ = [
    "MLXEmbeddingFunction",
    "aupsert",
    "create_collection",
    "get_collection",
    "reembed",
    "upsert",
    "validate_collection",
]
