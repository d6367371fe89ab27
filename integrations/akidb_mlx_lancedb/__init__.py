"""MLX embeddings for LanceDB. Importing this registers the function as "akidb-mlx", so that stored tables find it."""

from akidb_mlx_lancedb.function import MLXEmbeddings

__all__ = ["MLXEmbeddings"]
