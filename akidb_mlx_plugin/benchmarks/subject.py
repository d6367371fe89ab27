"""The model under test, with and without the service's queue."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.providers import EmbeddingProvider, make_provider
from akidb_mlx_plugin.service import EmbeddingService
from akidb_mlx_plugin.types import BatchEmbeddingRequest


@dataclass(frozen=True)
class Subject:
    """One model with two ways to call it.

    Attributes:
        config: its configuration.
        service: many callers, one queue.
        provider: called directly, one caller at a time.
    """

    config: EmbeddingConfig
    service: EmbeddingService
    provider: EmbeddingProvider


@contextmanager
def open_subject(config: EmbeddingConfig, warm_up: Sequence[str]) -> Iterator[Subject]:
    """Load a model, once for both, and close it afterwards.

    Args:
        config: which model, and how it runs.
        warm_up: texts to embed first, so that no measurement includes loading and compiling.
    """
    provider = make_provider(config)
    try:
        with EmbeddingService(config) as service:
            for kind in ("document", "query"):
                provider.embed_batch(BatchEmbeddingRequest(warm_up, kind))
            service.embed_batch(warm_up[:1])
            yield Subject(config, service, provider)
    finally:
        provider.close()


def limit_cores(count: int) -> None:
    """Limit this thread, and those it starts from now on, to this many cores; a model uses one thread per core.

    Raises:
        InvalidInputError: there are fewer cores, or the system does not support this.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise InvalidInputError("threads: this system cannot limit a process to some of its cores")
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(cores):
        raise InvalidInputError(f"threads must be 1 to {len(cores)}, the cores this process may use, got {count}")
    os.sched_setaffinity(0, set(cores[:count]))
