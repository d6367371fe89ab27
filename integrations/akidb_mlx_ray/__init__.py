"""The embedder as a Ray Data stage, for corpora beyond one machine, and writers to LanceDB and Chroma."""

from typing import TYPE_CHECKING

from akidb_mlx_plugin._lazy import import_when_asked

if TYPE_CHECKING:
    from akidb_mlx_ray.chroma import write_chroma
    from akidb_mlx_ray.dataset import embed_dataset
    from akidb_mlx_ray.embedder import TextEmbedder
    from akidb_mlx_ray.lancedb import write_lancedb
    from akidb_mlx_ray.results import BulkResult, WorkerReport

# Imported on first use: a worker that embeds needs neither database.
_LAZY = {
    "BulkResult": "results",
    "TextEmbedder": "embedder",
    "WorkerReport": "results",
    "embed_dataset": "dataset",
    "write_chroma": "chroma",
    "write_lancedb": "lancedb",
}

__all__ = ["BulkResult", "TextEmbedder", "WorkerReport", "embed_dataset", "write_chroma", "write_lancedb"]

__getattr__ = import_when_asked(__name__, _LAZY)


def __dir__() -> list[str]:
    return sorted(__all__)
