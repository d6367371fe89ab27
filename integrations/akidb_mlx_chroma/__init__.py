"""MLX embeddings for Chroma. Importing this registers the function, so that stored collections find it."""

from akidb_mlx_chroma.function import MLXEmbeddingFunction

__all__ = ["MLXEmbeddingFunction"]
