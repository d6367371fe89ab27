"""MLX embeddings for LanceDB. Importing this registers the function as "akidb-mlx", so that stored tables find it."""

from akidb_mlx_lancedb.function import MLXEmbeddings
from akidb_mlx_lancedb.reembed import reembed
from akidb_mlx_lancedb.tables import aupsert, create_table, open_table, table_schema, upsert, validate_table

__all__ = [
    "MLXEmbeddings",
    "aupsert",
    "create_table",
    "open_table",
    "reembed",
    "table_schema",
    "upsert",
    "validate_table",
]
