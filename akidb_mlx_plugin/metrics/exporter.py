"""Prometheus metrics of every queue in the process, in their own registry.

`prometheus_client` is imported with the first event or scrape, not before.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akidb_mlx_plugin.batching.observer import BatchStats, QueueObserver
from akidb_mlx_plugin.batching.queue import BatchQueue
from akidb_mlx_plugin.batching.requests import Outcome
from akidb_mlx_plugin.errors import DeadlineExceededError, InvalidInputError, QueueFullError, ServiceUnavailableError
from akidb_mlx_plugin.metrics.specs import (
    BATCH_DURATION,
    BATCH_SIZE,
    BATCH_WAIT,
    CACHE_BYTES,
    LATENCY,
    LOAD_SECONDS,
    MEMORY_BYTES,
    METRICS,
    QUEUE_LENGTH,
    QUEUE_WAIT,
    REQUESTS,
    TEXTS,
    TOKENS,
    TRUNCATED,
    MetricSpec,
)
from akidb_mlx_plugin.runtime.memory import resident_bytes
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, PairRequest

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from akidb_mlx_plugin.providers.base import EmbeddingProvider


class QueueMetrics(QueueObserver):
    """Counts a queue's batches and requests under its model's name."""

    def __init__(self, model: str) -> None:
        """Count for a model; imports nothing before the first event."""
        self._model = model

    def batch_ended(self, stats: BatchStats) -> None:
        """Count a batch."""
        instruments = self._instruments
        instruments[BATCH_SIZE].labels(self._model).observe(stats.texts)
        instruments[BATCH_DURATION].labels(self._model).observe(stats.run_s)
        if stats.waits_s:
            instruments[BATCH_WAIT].labels(self._model).observe(max(stats.waits_s))
        for wait_s in stats.waits_s:
            instruments[QUEUE_WAIT].labels(self._model).observe(wait_s)

    def request_ended(self, request: BatchEmbeddingRequest, seconds: float, outcome: Outcome) -> None:
        """Count a request."""
        instruments = self._instruments
        kind = "pair" if isinstance(request, PairRequest) else "query" if request.kind == "query" else "document"
        instruments[REQUESTS].labels(self._model, kind, _label(outcome)).inc()
        if not isinstance(outcome, BatchEmbeddingResponse):
            return
        instruments[LATENCY].labels(self._model, kind).observe(seconds * 1e3)
        instruments[TEXTS].labels(self._model, kind).inc(len(request.inputs))
        instruments[TOKENS].labels(self._model).inc(outcome.usage.total_tokens)
        instruments[TRUNCATED].labels(self._model).inc(outcome.usage.truncated)

    @cached_property
    def _instruments(self) -> dict[MetricSpec, Any]:
        return _registered()[1]


def _label(outcome: Outcome) -> str:
    if isinstance(outcome, BatchEmbeddingResponse):
        return "ok"
    if outcome is None:
        return "cancelled"
    if isinstance(outcome, InvalidInputError):
        return "invalid"
    if isinstance(outcome, QueueFullError):
        return "refused"
    return "deadline" if isinstance(outcome, DeadlineExceededError) else "error"


@dataclass(frozen=True)
class _Watched:
    """What is read at each scrape rather than counted."""

    model: str
    provider: EmbeddingProvider
    cache_dir: Path | None


_watched: weakref.WeakKeyDictionary[BatchQueue, _Watched] = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def _renew_lock() -> None:
    """Replace, in a forked child, a lock that a parent's thread may have held."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def watch(queue: BatchQueue, provider: EmbeddingProvider, *, model: str, cache_dir: Path | None) -> None:
    """Report a queue's length, its model's load time and its cache's size, as long as the queue lives."""
    with _lock:
        _watched[queue] = _Watched(model, provider, cache_dir)


class _WatchedCollector:
    """Reads the watched queues at each scrape."""

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        with _lock:
            open_queues = [(queue, watched) for queue, watched in _watched.items() if _is_open(queue)]
        length = GaugeMetricFamily(QUEUE_LENGTH.name, QUEUE_LENGTH.help, labels=QUEUE_LENGTH.labels)
        load = GaugeMetricFamily(LOAD_SECONDS.name, LOAD_SECONDS.help, labels=LOAD_SECONDS.labels)
        # Several queues may serve one model, but a series may appear only once.
        for model in {watched.model: None for _, watched in open_queues}:
            mine = [(queue, watched) for queue, watched in open_queues if watched.model == model]
            length.add_metric([model], sum(queue.waiting_texts for queue, _ in mine))
            times = [watched.provider.load_seconds for _, watched in mine if watched.provider.load_seconds is not None]
            if times:
                load.add_metric([model], max(times))
        yield length
        yield load
        folders = {watched.cache_dir for _, watched in open_queues if watched.cache_dir is not None}
        yield GaugeMetricFamily(CACHE_BYTES.name, CACHE_BYTES.help, value=sum(map(_folder_bytes, folders)))
        # The client's own collector reads /proc.
        if sys.platform != "linux":
            yield GaugeMetricFamily(MEMORY_BYTES.name, MEMORY_BYTES.help, value=resident_bytes())


def _is_open(queue: BatchQueue) -> bool:
    return not queue.closed and not queue.is_foreign


def _folder_bytes(folder: Path) -> float:
    from akidb_mlx_plugin.hub.cache import cache_size_gb

    try:
        return cache_size_gb(folder) * 1e9
    except OSError:
        return 0.0


def _registered() -> tuple[CollectorRegistry, dict[MetricSpec, Any]]:
    """Return the registry and its counters and histograms; the first call makes them."""
    with _lock:
        return _register()


@cache
def _register() -> tuple[CollectorRegistry, dict[MetricSpec, Any]]:
    from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

    registry = CollectorRegistry()
    instruments: dict[MetricSpec, Any] = {}
    for spec in METRICS:
        if spec.type == "histogram":
            instruments[spec] = Histogram(spec.name, spec.help, spec.labels, buckets=spec.buckets, registry=registry)
        elif spec.type == "counter":
            instruments[spec] = Counter(spec.name, spec.help, spec.labels, registry=registry)
    registry.register(_WatchedCollector())
    ProcessCollector(registry=registry)
    return registry, instruments


def metrics_registry() -> CollectorRegistry:
    """Return the registry, to expose in your own server."""
    return _registered()[0]


def exposition() -> str:
    """Return all metrics in the Prometheus text format."""
    from prometheus_client import generate_latest

    return generate_latest(metrics_registry()).decode("utf-8")


class MetricsServer:
    """A small HTTP server for Prometheus to scrape."""

    def __init__(self, port: int, addr: str) -> None:
        """Listen on a port; 0 picks a free one."""
        from prometheus_client import start_http_server

        if not isinstance(port, int) or not 0 <= port <= 65535:
            raise InvalidInputError(f"port must be 0 to 65535, got {port!r}; 0 picks a free one")
        try:
            self._server, self._thread = start_http_server(port, addr, registry=metrics_registry())
        except OSError as error:
            raise ServiceUnavailableError(
                f"cannot serve metrics on {addr}:{port}: {error.strerror or error}; "
                "choose another port, or 0 for a free one"
            ) from error
        self.port: int = self._server.server_port
        """The port it listens on."""

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def start_metrics_server(port: int, addr: str = "127.0.0.1") -> MetricsServer:
    """Serve the metrics over HTTP at /metrics, on a daemon thread.

    Args:
        port: 0 picks a free one; see `MetricsServer.port`.
        addr: defaults to the loopback interface, because metrics name models and folders.
    Raises:
        ServiceUnavailableError: the port is in use, or the address is not this machine's.
        InvalidInputError: the port is not a number from 0 to 65535.
    """
    return MetricsServer(port, addr)


def dashboard_json() -> str:
    """Return the Grafana dashboard that comes with the package."""
    return resources.files("akidb_mlx_plugin.metrics").joinpath("grafana.json").read_text(encoding="utf-8")
