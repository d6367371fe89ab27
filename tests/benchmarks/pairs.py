"""Measuring side by side: turns that alternate, and ratios of neighbours."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from contenders import Timing, Worker

# A contender's threads may spin for a moment after its turn.
_SETTLE_S = 0.4


@dataclass(frozen=True)
class Ratio:
    """How one quantity compares with another, over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> Ratio:
        """Compare what was measured in the same round, and sum the rounds up."""
        ratios = [a / b for a, b in zip(above, below, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))


def alternate(
    workers: Mapping[str, Worker], texts: Path, *, rounds: int, apart: bool = False
) -> Iterator[dict[str, Timing]]:
    """Let the contenders take turns, A B C A B C …; yields a round when it is over."""
    for _ in range(rounds):
        timings = {}
        for name, worker in workers.items():
            time.sleep(_SETTLE_S)
            timings[name] = worker.embed(texts, apart=apart)
        yield timings


def total_seconds(rounds: Sequence[Mapping[str, Timing]], name: str) -> list[float]:
    """Return what each round took a contender."""
    return [sum(timings[name].seconds) for timings in rounds]


def median_seconds(rounds: Sequence[Mapping[str, Timing]], name: str) -> list[float]:
    """Return the median over the texts of each round."""
    return [statistics.median(timings[name].seconds) for timings in rounds]


def least_cosine(one: Path, other: Path) -> float:
    """Return the smallest cosine between the vectors of the same text in two files."""
    a, b = (np.load(file).astype(np.float64) for file in (one, other))
    cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(cosines.min())
