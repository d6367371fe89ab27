"""The embedder as a stage of Ray Data, for corpora beyond one machine, and its ways into LanceDB and Chroma."""

from akidb_mlx_ray.chroma import write_chroma
from akidb_mlx_ray.dataset import embed_dataset
from akidb_mlx_ray.embedder import TextEmbedder
from akidb_mlx_ray.lancedb import write_lancedb
from akidb_mlx_ray.results import BulkResult, WorkerReport

__all__ = ["BulkResult", "TextEmbedder", "WorkerReport", "embed_dataset", "write_chroma", "write_lancedb"]
