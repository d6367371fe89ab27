"""Add a column of vectors to a dataset, with a pool of actors."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.util.client import ray as client

from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.hub.cache import default_cache_dir
from akidb_mlx_plugin.service import EmbeddingService
from akidb_mlx_plugin.stores.settings import stored_settings
from akidb_mlx_plugin.types import Kind
from akidb_mlx_ray.embedder import TextEmbedder

_BATCH_SIZE = 1024
_CPUS_BESIDE = 1.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workers:
    """The actors that embed.

    Attributes:
        concurrency: how many.
        num_cpus: processors for each, and so its threads. Defaults to one, or to a share of the cluster's if that
            would leave none for reading and writing.
        num_gpus: GPUs for each.
        batch_size: rows given to the model at a time.
    """

    concurrency: int = 1
    num_cpus: float | None = None
    num_gpus: float = 0.0
    batch_size: int = _BATCH_SIZE

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise InvalidInputError(f"concurrency must be at least 1, got {self.concurrency}")
        if self.batch_size < 1:
            raise InvalidInputError(f"batch_size must be at least 1, got {self.batch_size}")

    def cpus_each(self) -> float:
        """Return the processors that each actor asks Ray for."""
        # Actors that took every processor would leave none to read their rows, and wait forever.
        left = max(float(ray.cluster_resources().get("CPU", 0.0)) - _CPUS_BESIDE, 0.0)
        if self.num_cpus is None:
            return min(1.0, left / self.concurrency)
        if self.num_cpus * self.concurrency > left:
            # Not an error: a cluster may scale up on demand.
            logger.warning(
                "the cluster has %g CPUs, and %d x %g for workers leave less than one for reading and writing; "
                "unless it grows, the run will wait: use fewer workers, or fewer num_cpus for each",
                left + _CPUS_BESIDE,
                self.concurrency,
                self.num_cpus,
            )
        return self.num_cpus

    def gpus_each(self) -> float | None:
        """Return the GPUs that each actor asks Ray for, or None if it needs none."""
        there = float(ray.cluster_resources().get("GPU", 0.0))
        if self.num_gpus * self.concurrency > there:
            logger.warning(
                "the cluster has %g GPUs, and the workers request %d x %g; unless it grows, the others will wait",
                there,
                self.concurrency,
                self.num_gpus,
            )
        return self.num_gpus or None


def embed_dataset(
    ds: Dataset,
    model: str | Path | None = None,
    *,
    text_column: str = "text",
    vector_column: str = "vector",
    kind: Kind = "document",
    dimension: int | None = None,
    normalize: bool | None = None,
    pooling: str | Sequence[str] | None = None,
    concurrency: int = 1,
    num_cpus: float | None = None,
    num_gpus: float = 0.0,
    batch_size: int = _BATCH_SIZE,
) -> Dataset:
    """Return a dataset with vectors added; like everything in Ray Data, it is computed when consumed.

    `write_lancedb` and `write_chroma` do this themselves, and embed only what the database lacks.

    Args:
        ds: rows with a text each, or already with a vector.
        model: a short name, "org/repo", or a folder that every node has. Defaults to the environment's.
        text_column: the text to embed.
        vector_column: where (D,) float32 vectors go, as Arrow lists of fixed size. If the rows already have it, its
            vectors are kept and its nulls filled.
        kind: which of the model's prompts precedes each text.
        dimension: length of the vectors. Defaults to the model's.
        normalize: scale vectors to unit length. Defaults to the configuration, else the checkpoint.
        pooling: how token vectors become one, such as "mean" or "cls+mean". Defaults to the configuration, else the
            checkpoint.
        concurrency: number of actors, each with its own model.
        num_cpus: processors for each, and so its threads. Defaults to one, or less if that leaves none for reading.
        num_gpus: GPUs for each.
        batch_size: rows given to the model at a time.
    Raises:
        InvalidInputError: a missing column, or an unusable value.
        ModelNotFoundError, DownloadError: the model is not available locally and cannot be fetched; loads no weights.
    """
    reject_client()
    config = EmbeddingConfig.from_arguments(model, dimension=dimension, normalize=normalize, pooling=pooling)
    with EmbeddingService(config) as service:
        service.model_info()
    if text_column not in (names := ds.columns() or []):
        raise InvalidInputError(f"the rows have no column {text_column!r}; they have {', '.join(names) or 'none'}")
    arguments = {
        **embedder_arguments(config),
        "text_column": text_column,
        "vector_column": vector_column,
        "kind": kind,
    }
    return map_embedder(ds, arguments, Workers(concurrency, num_cpus, num_gpus, batch_size))


def iterate(ds: Dataset) -> Iterator[pa.Table]:
    """Compute a dataset, a block at a time."""
    yield from ds.iter_batches(batch_size=None, batch_format="pyarrow")


def reject_client() -> None:
    """Raise InvalidInputError if Ray is connected with ray://, which Ray Data does not support."""
    if client.is_connected():
        raise InvalidInputError(
            "Ray Data does not work through ray://; run this on a node of the cluster with ray.init('auto'), or as a "
            "job (ray job submit). akidb-mlx bulk --address ray://HOST:10001 submits such a job by itself"
        )


def embedder_arguments(config: EmbeddingConfig) -> dict[str, Any]:
    """Return `TextEmbedder` arguments that give a configuration's vectors on any node."""
    mlx = config.mlx
    # The default cache is elsewhere on a node with another home, and workers run in another folder.
    cache_dir = str(mlx.cache_dir.resolve()) if mlx.cache_dir != default_cache_dir() else None
    return {"settings": stored_settings(config), "device": mlx.device, "cache_dir": cache_dir}


def map_embedder(ds: Dataset, arguments: Mapping[str, Any], workers: Workers) -> Dataset:
    """Embed a dataset's rows with a pool of actors; `arguments` are `TextEmbedder`'s."""
    # One batch per block: Ray gives an actor whole blocks, and a small file, one block, would occupy only one actor.
    embedded = ds.repartition(target_num_rows_per_block=workers.batch_size).map_batches(
        TextEmbedder,
        fn_constructor_kwargs=dict(arguments),
        batch_format="pyarrow",
        batch_size=workers.batch_size,
        compute=ActorPoolStrategy(size=workers.concurrency),
        num_cpus=workers.cpus_each(),
        num_gpus=workers.gpus_each(),
    )
    # Ray would wrap an error in its own, which loses the original on its way from the worker.
    embedded.context.raise_original_map_exception = True
    return embedded
