"""Find the batch size and batch timeout that best serve a given request rate on this machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from akidb_mlx_plugin.benchmarks.load import LoadRecord, OpenLoop, uniform_arrivals
from akidb_mlx_plugin.benchmarks.summary import Latencies, percentile
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import EmbeddingError
from akidb_mlx_plugin.service import EmbeddingService

BATCH_SIZES = (1, 5, 10, 20, 50, 100)
BATCH_TIMEOUTS_MS = (0.0, 10.0, 25.0, 50.0, 100.0)
# Latencies this close are equal as far as a run of a few seconds can tell.
_TIE = 1.03
# With a backlog, the last tenth of the requests waits much longer than the first.
_TAIL_SHARE = 0.1
_BACKLOG_FACTOR = 5.0
_BACKLOG_MS = 250.0


@dataclass(frozen=True)
class Cell:
    """One pair of settings with the latencies of single queries.

    Attributes:
        batch_size: most texts in a batch.
        batch_timeout_ms: about how long a slice of a large request took while others waited.
        latencies: of the queries.
        bulk_texts_per_second: of the concurrent large requests; None if none was answered.
        keeps_up: every query was answered and no backlog grew.
    """

    batch_size: int
    batch_timeout_ms: float
    latencies: Latencies
    bulk_texts_per_second: float | None
    keeps_up: bool


@dataclass(frozen=True)
class Workload:
    """The load.

    Attributes:
        queries: single texts, sent one by one.
        bulk: texts of the large request that always runs concurrently; empty for none.
        per_second: queries per second.
        seconds: duration for each pair.
    """

    queries: Sequence[str]
    bulk: Sequence[str]
    per_second: float
    seconds: float


def sweep(
    config: EmbeddingConfig,
    load: Workload,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    timeouts_ms: Sequence[float] = BATCH_TIMEOUTS_MS,
) -> Iterator[Cell]:
    """Try every pair; the caller should keep the model in memory, or it is loaded for each.

    Raises:
        KeyboardInterrupt: the user ended it; the current pair is left out.
    """
    for batch_size, timeout_ms in itertools.product(batch_sizes, timeouts_ms):
        mlx = config.mlx.model_copy(update={"batch_size": batch_size, "batch_timeout_ms": timeout_ms})
        with EmbeddingService(config.model_copy(update={"mlx": mlx})) as service:
            service.embed_batch(load.queries[:1], kind="query")
            record, bulk_rate = _try_pair(service, load)
        if record.interrupted:
            raise KeyboardInterrupt
        keeps_up = record.complete and not has_backlog(record.latency_ms)
        yield Cell(batch_size, timeout_ms, Latencies.of(record.latency_ms), bulk_rate, keeps_up)


def recommend(cells: Sequence[Cell]) -> Cell | None:
    """Return the pair with the lowest P95 among those that keep up, or None; of equals, the smaller."""
    able = [(cell.latencies.p95_ms, cell) for cell in cells if cell.keeps_up and cell.latencies.p95_ms is not None]
    if not able:
        return None
    best = min(p95_ms for p95_ms, _ in able)
    equals = [cell for p95_ms, cell in able if p95_ms <= best * _TIE]
    return min(equals, key=lambda cell: (cell.batch_size, cell.batch_timeout_ms))


def has_backlog(latency_ms: Sequence[float]) -> bool:
    """Return whether latencies keep growing.

    Args:
        latency_ms: in the order in which requests were due.
    """
    tail = max(1, round(len(latency_ms) * _TAIL_SHARE))
    first, last = percentile(latency_ms[:tail], 50), percentile(latency_ms[-tail:], 50)
    return last > max(_BACKLOG_FACTOR * first, _BACKLOG_MS)


def _try_pair(service: EmbeddingService, load: Workload) -> tuple[LoadRecord, float | None]:
    """Send the queries while large requests run one after another."""
    bulk = _Bulk(service, load.bulk)
    queries = load.queries

    def submit(index: int) -> Future[Any]:
        return service.submit(queries[index % len(queries)], kind="query")

    bulk.start()
    try:
        record = OpenLoop(submit, uniform_arrivals(load.per_second, load.seconds)).run()
    finally:
        bulk.stop()
    return record, bulk.texts_done / record.seconds if bulk.texts_done else None


class _Bulk:
    """Large requests, each sent when the previous one is answered."""

    def __init__(self, service: EmbeddingService, texts: Sequence[str]) -> None:
        self._service = service
        self._texts = texts
        self._stopped = False
        self._under_way: Future[Any] | None = None
        self.texts_done = 0

    def start(self) -> None:
        if self._texts and not self._stopped:
            self._under_way = self._service.submit(self._texts)
            self._under_way.add_done_callback(self._continue)

    def stop(self) -> None:
        self._stopped = True
        if self._under_way is not None:
            self._under_way.cancel()

    def _continue(self, done: Future[Any]) -> None:
        if not done.cancelled() and done.exception() is None:
            self.texts_done += len(self._texts)
            try:
                self.start()
            except EmbeddingError:  # the service is being closed
                self._stopped = True
