"""MLX embeddings for LanceDB. Importing this registers the function as "akidb-mlx", so that stored tables find it."""

from typing import TYPE_CHECKING

from akidb_mlx_lancedb.function import MLXEmbeddings
from akidb_mlx_plugin._lazy import import_when_asked

if TYPE_CHECKING:
    from akidb_mlx_lancedb.reembedding import reembed
    from akidb_mlx_lancedb.schema import table_schema
    from akidb_mlx_lancedb.tables import aupsert, create_table, open_table, upsert, validate_table

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

_HELPERS = ("aupsert", "create_table", "open_table", "upsert", "validate_table")
_ELSEWHERE = {"reembed": "reembedding", "table_schema": "schema"}
__getattr__ = import_when_asked(__name__, {**dict.fromkeys(_HELPERS, "tables"), **_ELSEWHERE})


def __dir__() -> list[str]:
    return sorted(__all__)
