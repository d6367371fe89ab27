"""Soak test: mixed traffic from many callers at once, to detect resource leaks."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from akidb_mlx_plugin.benchmarks.drift import Sample, take_sample
from akidb_mlx_plugin.errors import EmbeddingError
from akidb_mlx_plugin.service import EmbeddingService

_PAUSE_S = 0.05
_LARGE_PAUSE_S = 10.0
_LARGE_TEXTS = 300
_LONGEST_ANSWER_S = 120.0


@dataclass(frozen=True)
class SoakRecord:
    """Results of a soak test.

    Attributes:
        samples: one per second.
        requests: completed requests by kind; for cancellations, those cancelled.
        failures: count by error name.
        interrupted: the user ended it early.
    """

    samples: list[Sample]
    requests: dict[str, int]
    failures: dict[str, int]
    interrupted: bool


@dataclass
class _Counts:
    requests: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, counter: Counter[str], name: str) -> None:
        with self.lock:
            counter[name] += 1


class Traffic:
    """Callers of every kind, each on its own thread, until stopped."""

    def __init__(self, service: EmbeddingService, corpus: Sequence[str], dimensions: Sequence[int]) -> None:
        """Plan the traffic.

        Args:
            service: warmed up.
            corpus: texts to use.
            dimensions: vector lengths to request.
        """
        self._service = service
        self._corpus = corpus
        self._dimensions = [None, *dimensions]
        self._stop = threading.Event()
        self._counts = _Counts()
        callers: list[tuple[str, Callable[[random.Random], None], float]] = [
            ("query", self._ask, _PAUSE_S),
            ("query of another thread", self._ask, _PAUSE_S),
            ("small batch", self._send_small, 4 * _PAUSE_S),
            ("large batch", self._send_large, _LARGE_PAUSE_S),
            ("cancelled", self._cancel, 2 * _PAUSE_S),
        ]
        self._threads = [
            threading.Thread(target=self._call, args=(name, send, pause_s, seed), daemon=True)
            for seed, (name, send, pause_s) in enumerate(callers)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop, and wait for requests in progress."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_LONGEST_ANSWER_S)

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return successful requests by kind, and failed ones by error."""
        with self._counts.lock:
            return dict(self._counts.requests), dict(self._counts.failures)

    def _call(self, name: str, send: Callable[[random.Random], None], pause_s: float, seed: int) -> None:
        generator = random.Random(seed)
        while not self._stop.wait(generator.uniform(0.5, 1.5) * pause_s):
            try:
                send(generator)
            except EmbeddingError as error:
                self._counts.add(self._counts.failures, type(error).__name__)
            else:
                self._counts.add(self._counts.requests, name)

    def _ask(self, generator: random.Random) -> None:
        text = generator.choice(self._corpus).partition("\n")[0]
        self._service.embed_batch([text], kind="query", dimension=generator.choice(self._dimensions))

    def _send_small(self, generator: random.Random) -> None:
        texts = generator.choices(self._corpus, k=generator.randint(2, 8))
        self._service.embed_batch(texts, normalize=generator.random() < 0.5)

    def _send_large(self, generator: random.Random) -> None:
        self._service.embed_batch(generator.choices(self._corpus, k=_LARGE_TEXTS))

    def _cancel(self, generator: random.Random) -> None:
        future = self._service.submit(generator.choices(self._corpus, k=generator.randint(1, 4)))
        # Cancelled while it is queued, while it is computed, or afterwards.
        self._stop.wait(generator.uniform(0, 0.05))
        future.cancel()


def run_soak(
    service: EmbeddingService,
    corpus: Sequence[str],
    *,
    seconds: float,
    interval_s: float = 1.0,
    on_sample: Callable[[Sample], None] = lambda sample: None,
) -> SoakRecord:
    """Run mixed traffic while sampling the process; an interrupt ends it early.

    Args:
        service: warmed up.
        corpus: texts to use.
        seconds: duration.
        interval_s: time between samples.
        on_sample: called with each sample, for a progress bar.
    """
    info = service.model_info()
    traffic = Traffic(service, corpus, info.dimensions or (info.dimension,))
    samples: list[Sample] = []
    interrupted = False
    start = time.perf_counter()
    traffic.start()
    try:
        while (elapsed := time.perf_counter() - start) < seconds:
            samples.append(take_sample(elapsed))
            on_sample(samples[-1])
            time.sleep(min(interval_s, max(seconds - elapsed, 0)))
        samples.append(take_sample(time.perf_counter() - start))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        traffic.stop()
    return SoakRecord(samples, *traffic.counts(), interrupted)
