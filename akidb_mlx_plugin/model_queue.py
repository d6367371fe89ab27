"""A provider behind a queue, with metrics, and how both are closed."""

from __future__ import annotations

import atexit
import threading
import time
import weakref

from akidb_mlx_plugin.batching.deadlines import Clock
from akidb_mlx_plugin.batching.queue import BatchQueue
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.metrics.exporter import QueueMetrics, watch
from akidb_mlx_plugin.providers.base import EmbeddingProvider

_EXIT_TIMEOUT_S = 5.0

_queues: weakref.WeakSet[BatchQueue] = weakref.WeakSet()
# Threads that close queues nobody owns any more.
_closing: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def open_queue(
    provider: EmbeddingProvider, config: EmbeddingConfig, label: str, *, clock: Clock | None = None
) -> BatchQueue:
    """Return a queue in front of a provider; starts nothing.

    Args:
        provider: computes its batches.
        config: sizes, times and the cache to report.
        label: the model's name in metrics.
        clock: replaces the system's clock in tests.
    """
    queue = BatchQueue(
        provider.embed_requests,
        prepare=provider.prepare,
        begin=provider.begin,
        concurrency=lambda: provider.concurrency,
        batch_size=config.mlx.batch_size,
        batch_timeout_ms=config.mlx.batch_timeout_ms,
        max_texts=config.service.queue_size,
        deadline_ms=config.service.deadline_ms,
        observer=QueueMetrics(label),
        clock=clock,
    )
    cache_dir = config.mlx.cache_dir if config.mode == "mlx" else None
    watch(queue, provider, model=label, cache_dir=cache_dir)
    _queues.add(queue)
    return queue


def close_queue(queue: BatchQueue, provider: EmbeddingProvider, *, drain: bool = True, timeout_s: float = 30.0) -> None:
    """Close a queue, then release its provider; arguments as for `BatchQueue.close`."""
    if queue.is_foreign:
        return
    if queue.close(drain=drain, timeout_s=timeout_s):
        provider.close()
    else:
        # A model that is still computing cannot be freed yet.
        queue.when_ended(provider.close)


def close_when_forgotten(owner: object, queue: BatchQueue, provider: EmbeddingProvider) -> weakref.finalize:  # type: ignore[type-arg]
    """Close a queue once its owner is garbage-collected; detach what this returns when it is closed earlier."""
    finalizer = weakref.finalize(owner, _close_in_background, queue, provider)
    # No thread can start once the interpreter exits; `_close_all` closes the queue then.
    finalizer.atexit = False
    return finalizer


def _close_in_background(queue: BatchQueue, provider: EmbeddingProvider) -> None:
    """Close on a separate thread: the garbage collector calls this anywhere, perhaps while locks are held."""
    if queue.in_use:
        thread = threading.Thread(target=close_queue, args=(queue, provider), daemon=True)
        _closing.add(thread)
        thread.start()


@atexit.register
def _close_all() -> None:
    until = time.monotonic() + _EXIT_TIMEOUT_S
    for queue in list(_queues):
        queue.close(drain=False, timeout_s=max(0.0, until - time.monotonic()))
    # One that is freeing a model when the interpreter ends would abort the process.
    for thread in list(_closing):
        if thread.is_alive():
            thread.join(max(0.0, until - time.monotonic()))
