"""Summary statistics of measurements."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Median and spread of some measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Latencies:
    """Latencies of requests in milliseconds; all None if there were none."""

    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    worst_ms: float | None

    @classmethod
    def of(cls, values_ms: Sequence[float]) -> Latencies:
        """Summarize any number of latencies."""
        if not values_ms:
            return cls(None, None, None, None)
        return cls(*(percentile(values_ms, share) for share in (50, 95, 99, 100)))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` percent of the values do not exceed (nearest rank)."""
    if not values:
        raise ValueError("percentile of an empty sequence")
    ordered = sorted(values)
    return ordered[max(math.ceil(share / 100 * len(ordered)), 1) - 1]
