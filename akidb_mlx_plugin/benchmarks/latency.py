"""Measure the latency of single queries by length, directly and through the service's queue."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from akidb_mlx_plugin.benchmarks.subject import Subject
from akidb_mlx_plugin.types import BatchEmbeddingRequest

_QUERIES = 5
# Consecutive words of the corpus that a query is cut from: a token is rarely longer than a word.
_WORDS_PER_TOKEN = 2


@dataclass(frozen=True)
class LatencyRun:
    """Latencies of queries of about one length.

    Attributes:
        tokens: requested length.
        actual_tokens: longest actual query; may be shorter, by the model's maximum or the words.
        direct_ms: one by one on the model.
        queued_ms: the same queries through the service.
    """

    tokens: int
    actual_tokens: int
    direct_ms: list[float]
    queued_ms: list[float]


def measure_latency(
    subject: Subject,
    corpus: Sequence[str],
    lengths: Sequence[int],
    *,
    repeats: int,
    now: Callable[[], float] = time.perf_counter,
) -> Iterator[LatencyRun]:
    """Time single queries, alternately directly and through the queue.

    An interrupt yields the partial result of the current length before it propagates.

    Args:
        subject: warmed up.
        corpus: texts that queries are cut from.
        lengths: tokens per query, including prompt and special tokens.
        repeats: queries per length and path.
        now: a clock in seconds.
    """
    words = [word for text in corpus[: 50 + max(lengths)] for word in text.split()]
    for length in lengths:
        queries = [_cut_query(subject, words, length, offset) for offset in range(_QUERIES)]
        run = LatencyRun(length, max(tokens for _, tokens in queries), [], [])
        interrupted: KeyboardInterrupt | None = None
        try:
            for text, _ in itertools.islice(itertools.cycle(queries), repeats):
                _time_both(subject, text, run, now)
        except KeyboardInterrupt as caught:
            interrupted = caught
        if run.direct_ms:
            yield run
        if interrupted:
            raise interrupted


def _time_both(subject: Subject, text: str, run: LatencyRun, now: Callable[[], float]) -> None:
    """Time a query on both paths, alternating their order because the second finds warm caches."""
    request = BatchEmbeddingRequest([text], "query")
    ways: list[tuple[list[float], Callable[[], object]]] = [
        (run.direct_ms, lambda: subject.provider.embed_batch(request)),
        (run.queued_ms, lambda: subject.service.embed_batch([text], kind="query")),
    ]
    for latencies_ms, embed in ways if len(run.direct_ms) % 2 == 0 else reversed(ways):
        begun = now()
        embed()
        latencies_ms.append((now() - begun) * 1e3)


def _cut_query(subject: Subject, words: Sequence[str], length: int, offset: int) -> tuple[str, int]:
    """Return the longest run of words of at most `length` tokens, and its tokens; at least one word."""
    first = offset * length * _WORDS_PER_TOKEN % max(len(words) - length, 1)
    low, high = 1, min(length, len(words) - first)

    def count_tokens(count: int) -> int:
        text = " ".join(words[first : first + count])
        return subject.provider.embed_batch(BatchEmbeddingRequest([text], "query")).usage.total_tokens

    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count_tokens(middle) <= length else (low, middle - 1)
    return " ".join(words[first : first + low]), count_tokens(low)
