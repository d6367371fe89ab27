"""Why an idle model does not wait for a fuller batch: a queue that starts at once against queues that wait.

    python tests/benchmarks/batch_timeout.py                     # MiniLM, five rounds; three minutes

The queues share one model and take turns in every round. One that waits holds a batch back until it is full or its
first request has waited for the given time. Loads: 1, 4 and 32 callers who each ask again once they are answered, and
queries that arrive independently of each other, alone and beside a large request.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from akidb_mlx_plugin import BatchEmbeddingRequest, EmbeddingConfig
from akidb_mlx_plugin.batching.queue import BatchQueue
from akidb_mlx_plugin.benchmarks.load import OpenLoop, poisson_arrivals
from akidb_mlx_plugin.benchmarks.subject import open_subject
from akidb_mlx_plugin.benchmarks.summary import percentile
from akidb_mlx_plugin.benchmarks.texts import first_lines, read_corpus, take_texts

_BULK_TEXTS = 100


class WaitingQueue(BatchQueue):
    """Holds small requests back for up to `wait_ms` while they do not fill a batch."""

    wait_ms = 0.0

    def _run_next(self) -> bool:
        small = self._scheduler._small
        with self._lock:
            while not self._closing and 0 < small.texts < self._batch_size and not self._scheduler._large.requests:
                left_s = small.requests[0].submitted + self.wait_ms / 1e3 - self._clock.now()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            if not self._closing and not self._scheduler.waiting_texts:
                # Idle: the next request is to be held back too.
                self._changed.wait()
                return True
        return super()._run_next()


@contextmanager
def open_queue(embed: Callable[..., object], wait_ms: float) -> Iterator[BatchQueue]:
    """Make a queue that waits so long, or the package's own for 0."""
    queue = WaitingQueue(embed) if wait_ms else BatchQueue(embed)  # type: ignore[arg-type]
    if isinstance(queue, WaitingQueue):
        queue.wait_ms = wait_ms
    try:
        yield queue
    finally:
        queue.close(drain=False)


def ask(text: str) -> BatchEmbeddingRequest:
    """Return the request of a query."""
    return BatchEmbeddingRequest([text], "query")


def closed_loop(queue: BatchQueue, questions: Sequence[str], callers: int) -> tuple[list[float], float]:
    """Return latencies in ms and queries per second of callers who ask again once they are answered."""

    def call(text: str) -> float:
        begun = time.perf_counter()
        queue.embed(ask(text))
        return (time.perf_counter() - begun) * 1e3

    with ThreadPoolExecutor(callers) as threads:
        begun = time.perf_counter()
        latencies = list(threads.map(call, questions))
        return latencies, len(questions) / (time.perf_counter() - begun)


def open_loop(
    queue: BatchQueue, questions: Sequence[str], per_second: float, seconds: float, bulk: Sequence[str] = ()
) -> tuple[list[float], float]:
    """Return latencies in ms of queries that arrive independently, and texts embedded per second, bulk included."""
    done = 0
    stopped = False
    under_way: list[Future[object]] = []

    def send_bulk(previous: Future[object] | None = None) -> None:
        nonlocal done
        if previous is not None and not previous.cancelled():
            done += len(bulk)
        if not stopped:
            under_way[:] = [queue.submit(BatchEmbeddingRequest(list(bulk)))]  # type: ignore[list-item]
            under_way[0].add_done_callback(send_bulk)

    if bulk:
        send_bulk()
    arrivals = poisson_arrivals(per_second, seconds)
    record = OpenLoop(lambda i: queue.submit(ask(questions[i % len(questions)])), arrivals).run()
    stopped = True
    for future in under_way:
        future.cancel()
    return record.latency_ms, (record.answered + done) / record.seconds


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm-l6-v2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load whose queries arrive independently")
    parser.add_argument("--waits-ms", type=float, nargs="+", default=[0, 5, 50])
    options = parser.parse_args()
    corpus = read_corpus()
    questions, bulk = first_lines(corpus)[:100], take_texts(corpus, _BULK_TEXTS)
    loads: dict[str, Callable[[BatchQueue], tuple[list[float], float]]] = {
        "1 caller": lambda queue: closed_loop(queue, questions[:30], 1),
        "4 callers": lambda queue: closed_loop(queue, questions, 4),
        "32 callers": lambda queue: closed_loop(queue, questions, 32),
        "20 queries/s": lambda queue: open_loop(queue, questions, 20, options.seconds),
        "60 queries/s": lambda queue: open_loop(queue, questions, 60, options.seconds),
        "20 queries/s beside a bulk": lambda queue: open_loop(queue, questions, 20, options.seconds, bulk),
    }
    p50, p95, rates = (defaultdict[tuple[str, float], list[float]](list) for _ in range(3))
    with open_subject(EmbeddingConfig.from_arguments(options.model), corpus[:64]) as subject:
        for turn in range(options.rounds):
            for name, run in loads.items():
                for wait_ms in options.waits_ms if turn % 2 else options.waits_ms[::-1]:
                    with open_queue(subject.provider.embed_requests, wait_ms) as queue:
                        latencies, rate = run(queue)
                    key = (name, wait_ms)
                    p50[key].append(statistics.median(latencies))
                    p95[key].append(percentile(latencies, 95))
                    rates[key].append(rate)
    for name in loads:
        for wait_ms in options.waits_ms:
            key = (name, wait_ms)
            median, late, rate = (statistics.median(values[key]) for values in (p50, p95, rates))
            print(f"{name:28} wait {wait_ms:3g} ms: median {median:6.1f} ms, P95 {late:6.1f} ms, {rate:5.0f} texts/s")


if __name__ == "__main__":
    main()
