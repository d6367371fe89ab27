"""Detect whether a process's resources have grown since it settled."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from akidb_mlx_plugin.benchmarks.process import descriptor_count, thread_count
from akidb_mlx_plugin.runtime.memory import resident_bytes

# The first 5 of 20 minutes are for settling; the same fraction of a shorter run.
_SETTLING_S = 300.0
_SETTLING_SHARE = 0.25
_MEMORY_TOLERANCE = 0.05
# Samples combined at either end, so that a short-lived thread does not count as a leak.
_WINDOW_SHARE = 0.05


@dataclass(frozen=True)
class Sample:
    """The process's resources at one moment, `at_s` seconds after the start."""

    at_s: float
    resident_bytes: int
    threads: int
    descriptors: int


@dataclass(frozen=True)
class Drift:
    """How the resources changed after the process had settled.

    Attributes:
        settled_s: time at which it had settled.
        settled_bytes: memory at that time.
        final_bytes: memory at the end.
        memory_drift: largest deviation from `settled_bytes` afterwards, as a fraction of it.
        settled_threads, final_threads: threads at that time and at the end.
        settled_descriptors, final_descriptors: likewise for file descriptors.
    """

    settled_s: float
    settled_bytes: int
    final_bytes: int
    memory_drift: float
    settled_threads: int
    final_threads: int
    settled_descriptors: int
    final_descriptors: int

    @property
    def threads_gained(self) -> int:
        """Threads gained since it settled."""
        return self.final_threads - self.settled_threads

    @property
    def descriptors_gained(self) -> int:
        """File descriptors gained since it settled."""
        return self.final_descriptors - self.settled_descriptors

    @property
    def violations(self) -> list[str]:
        """Every limit that was exceeded, in words."""
        found = []
        if self.memory_drift > _MEMORY_TOLERANCE:
            found.append(
                f"resident memory drifted by {self.memory_drift:.1%} after {self.settled_s:.0f} s, "
                f"more than {_MEMORY_TOLERANCE:.0%}"
            )
        if self.threads_gained > 0:
            found.append(f"{self.threads_gained} threads gained")
        if self.descriptors_gained > 0:
            found.append(f"{self.descriptors_gained} file descriptors gained")
        return found


def take_sample(at_s: float) -> Sample:
    """Sample the process's resources."""
    return Sample(at_s, resident_bytes(), thread_count(), descriptor_count())


def measure_drift(samples: Sequence[Sample], planned_s: float) -> Drift | None:
    """Compare the samples after settling with those at that time.

    Args:
        samples: in chronological order.
        planned_s: planned length of the run: it settles during the first quarter, at most five minutes.
    Returns:
        None if the run ended too early to compare.
    """
    settled_s = min(_SETTLING_S, _SETTLING_SHARE * planned_s)
    after = [sample for sample in samples if sample.at_s >= settled_s]
    if len(after) < 2:
        return None
    window = max(1, int(len(after) * _WINDOW_SHARE))
    first, last = after[:window], after[-window:]
    settled_bytes = round(statistics.median(sample.resident_bytes for sample in first))
    return Drift(
        settled_s=settled_s,
        settled_bytes=settled_bytes,
        final_bytes=last[-1].resident_bytes,
        memory_drift=max(abs(sample.resident_bytes - settled_bytes) for sample in after) / settled_bytes,
        settled_threads=min(sample.threads for sample in first),
        final_threads=min(sample.threads for sample in last),
        settled_descriptors=min(sample.descriptors for sample in first),
        final_descriptors=min(sample.descriptors for sample in last),
    )
