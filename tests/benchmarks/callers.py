"""What the queue is worth: many callers with a text each, through it, taking turns without it, and as one big batch.

    python tests/benchmarks/callers.py                   # 32 callers, 640 docstrings, five rounds; a minute

Afterwards a lone caller asks short questions, through the queue and directly in turn. The exit status is 1 where a bar
is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from akidb_mlx_plugin import BatchEmbeddingRequest, EmbeddingConfig, EmbeddingService
from akidb_mlx_plugin.benchmarks.subject import open_subject
from akidb_mlx_plugin.benchmarks.texts import first_lines, read_corpus, take_texts
from akidb_mlx_plugin.metrics import metrics_registry
from akidb_mlx_plugin.metrics.specs import BATCH_SIZE

_SHARE_BAR, _ADDED_MS_BAR, _COSINE_BAR = 0.60, 1.0, 0.99999
_QUESTIONS = 300
_CROWD = 64


def mean_batch_size(service: EmbeddingService) -> Callable[[], float]:
    """Return a function that tells the mean size of the batches since now, by the metrics."""
    labels = {"model": service.config.mlx.model}

    def totals() -> tuple[float, float]:
        values = (metrics_registry().get_sample_value(f"{BATCH_SIZE.name}_{end}", labels) for end in ("sum", "count"))
        texts, batches = (value or 0.0 for value in values)
        return texts, batches

    before = totals()

    def mean() -> float:
        texts, batches = totals()
        return (texts - before[0]) / max(batches - before[1], 1)

    return mean


def rate_of(embed: Callable[[str], object], texts: Sequence[str], callers: int) -> float:
    """Return texts per second when so many threads ask for one text after the other."""
    with ThreadPoolExecutor(callers) as threads:
        begun = time.perf_counter()
        list(threads.map(embed, texts))
        return len(texts) / (time.perf_counter() - begun)


def compare_ways(service: EmbeddingService, direct: Callable[..., object], texts: list[str], callers: int) -> float:
    """Measure one round, print it, and return the queue's rate as a share of the big batch's."""
    turn = threading.Lock()

    def take_turn(text: str) -> None:
        with turn:
            direct(BatchEmbeddingRequest([text]))

    mean = mean_batch_size(service)
    queue = rate_of(lambda text: service.embed_batch([text]), texts, callers)
    batch_size = mean()
    turns = rate_of(take_turn, texts, callers)
    begun = time.perf_counter()
    direct(BatchEmbeddingRequest(texts))
    batch = len(texts) / (time.perf_counter() - begun)
    print(
        f"queue {queue:.0f} texts/s (batches of {batch_size:.1f}), taking turns {turns:.0f}, one batch {batch:.0f}: "
        f"{queue / batch:.0%} of it, {queue / turns:.2f} times the turns",
        flush=True,
    )
    return queue / batch


def added_latency_ms(service: EmbeddingService, direct: Callable[..., object], questions: list[str]) -> float:
    """Print a lone caller's medians, and return what the queue adds."""
    latencies: dict[str, list[float]] = {"queue": [], "direct": []}
    for i in range(_QUESTIONS):
        question = questions[i % len(questions)]
        ways = [
            ("queue", lambda text=question: service.embed_batch([text], kind="query")),
            ("direct", lambda text=question: direct(BatchEmbeddingRequest([text], "query"))),
        ]
        # Who goes second finds the caches warm: they change places.
        for name, ask in ways if i % 2 else ways[::-1]:
            begun = time.perf_counter()
            ask()
            latencies[name].append((time.perf_counter() - begun) * 1e3)
    queue, alone = (statistics.median(latencies[name]) for name in ("queue", "direct"))
    print(f"lone caller, median of {_QUESTIONS}: {queue:.2f} ms through the queue, {alone:.2f} ms directly")
    return queue - alone


async def crowd(service: EmbeddingService, texts: list[str]) -> float:
    """Ask from threads and coroutines at once; print and return the least cosine with what one batch gives."""
    expected = service.embed_batch(texts).embeddings
    mean = mean_batch_size(service)
    with ThreadPoolExecutor(_CROWD) as threads:
        loop = asyncio.get_running_loop()
        from_threads = [
            loop.run_in_executor(threads, lambda text=text: service.embed_batch([text])) for text in texts[:_CROWD]
        ]
        answers = await asyncio.gather(*from_threads, *(service.aembed_batch([text]) for text in texts[_CROWD:]))
    vectors = np.concatenate([answer.embeddings for answer in answers])
    least = float((vectors * expected).sum(axis=1).min())
    print(f"{_CROWD} threads and {_CROWD} coroutines: least cosine {least:.7f}, batches of {mean():.1f}")
    return least


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm-l6-v2")
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--texts", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    corpus = read_corpus()
    texts = take_texts(corpus, options.texts)
    with open_subject(EmbeddingConfig.from_arguments(options.model), texts[:64]) as subject:
        direct, service = subject.provider.embed_batch, subject.service
        share = statistics.median(compare_ways(service, direct, texts, options.callers) for _ in range(options.rounds))
        added = added_latency_ms(service, direct, first_lines(corpus)[:30])
        least = asyncio.run(crowd(service, take_texts(corpus, 2 * _CROWD)))
    print(f"queue: {share:.0%} of one batch (bar {_SHARE_BAR:.0%}); it adds {added:.2f} ms (bar {_ADDED_MS_BAR:g} ms)")
    sys.exit(share < _SHARE_BAR or added >= _ADDED_MS_BAR or least < _COSINE_BAR)


if __name__ == "__main__":
    main()
