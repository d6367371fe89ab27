"""MLX embeddings for LanceDB. Importing this registers the function as "akidb-mlx" for stored tables."""

from typing import TYPE_CHECKING

from akidb_mlx_lancedb.function import MLXEmbeddings
from akidb_mlx_plugin._lazy import import_when_asked

if TYPE_CHECKING:
    from akidb_mlx_lancedb.creation import create_table, table_schema
    from akidb_mlx_lancedb.grouping import group_by_parent
    from akidb_mlx_lancedb.reembedding import reembed
    from akidb_mlx_lancedb.reranker import MLXReranker
    from akidb_mlx_lancedb.tables import aupsert, open_table, upsert, validate_table

__all__ = [
    "MLXEmbeddings",
    "MLXReranker",
    "aupsert",
    "create_table",
    "group_by_parent",
    "open_table",
    "reembed",
    "table_schema",
    "upsert",
    "validate_table",
]

_HELPERS = {
    "creation": ("create_table", "table_schema"),
    "grouping": ("group_by_parent",),
    "reembedding": ("reembed",),
    "reranker": ("MLXReranker",),
    "tables": ("aupsert", "open_table", "upsert", "validate_table"),
}
__getattr__ = import_when_asked(__name__, {name: module for module, names in _HELPERS.items() for name in names})


def __dir__() -> list[str]:
    return sorted(__all__)
