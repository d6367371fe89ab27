"""Measure texts and tokens per second by the number of texts in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from akidb_mlx_plugin.benchmarks.process import peak_bytes
from akidb_mlx_plugin.benchmarks.summary import Spread
from akidb_mlx_plugin.benchmarks.texts import take_texts
from akidb_mlx_plugin.providers.base import EmbeddingProvider
from akidb_mlx_plugin.types import BatchEmbeddingRequest


@dataclass(frozen=True)
class ThroughputRun:
    """One measurement.

    Attributes:
        texts: texts embedded.
        tokens: tokens in them.
        seconds: wall time.
        peak_bytes: peak memory of the process so far.
    """

    texts: int
    tokens: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class ThroughputResult:
    """All measurements of one size."""

    texts: int
    tokens: int
    runs: int
    texts_per_second: Spread
    tokens_per_second: Spread
    peak_bytes: int


def measure_throughput(
    provider: EmbeddingProvider,
    corpus: Sequence[str],
    sizes: Sequence[int],
    *,
    runs: int,
    per_call: int | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> Iterator[ThroughputRun]:
    """Embed ever more texts, cycling through all sizes in every run so that slow phases affect them equally.

    Args:
        provider: warmed up.
        corpus: texts to use.
        sizes: numbers of texts, used in ascending order, so that the memory peak is that of the size.
        runs: number of runs.
        per_call: texts per request; None for all of them.
        now: a clock in seconds.
    """
    for _ in range(runs):
        for size in sorted(sizes):
            texts = take_texts(corpus, size)
            step = per_call or size
            begun = now()
            tokens = sum(
                provider.embed_batch(BatchEmbeddingRequest(texts[start : start + step])).usage.total_tokens
                for start in range(0, size, step)
            )
            yield ThroughputRun(size, tokens, now() - begun, peak_bytes())


def sum_up(runs: Sequence[ThroughputRun]) -> list[ThroughputResult]:
    """Return one result per size, in ascending order."""
    results = []
    for size in sorted({run.texts for run in runs}):
        mine = [run for run in runs if run.texts == size]
        results.append(
            ThroughputResult(
                texts=size,
                tokens=mine[0].tokens,
                runs=len(mine),
                texts_per_second=Spread.of([run.texts / run.seconds for run in mine]),
                tokens_per_second=Spread.of([run.tokens / run.seconds for run in mine]),
                # Later runs start from the peak of larger sizes.
                peak_bytes=mine[0].peak_bytes,
            )
        )
    return results
