"""Whether what a process holds has grown since it settled."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from akidb_mlx_plugin.benchmarks.process import descriptor_count, resident_bytes, thread_count

# Of a run of 20 minutes the first five are for settling; of a shorter one as large a share.
_SETTLING_S = 300.0
_SETTLING_SHARE = 0.25
_MEMORY_TOLERANCE = 0.05
# Samples on either end that are taken together, so that a thread that lives for a moment is not a leak.
_WINDOW_SHARE = 0.05


@dataclass(frozen=True)
class Sample:
    """What the process held at one moment, `at_s` seconds from the start."""

    at_s: float
    resident_bytes: int
    threads: int
    descriptors: int


@dataclass(frozen=True)
class Drift:
    """What became of it after it had settled.

    Attributes:
        settled_s: when that was.
        settled_bytes: memory then.
        final_bytes: memory at the end.
        memory_drift: largest departure from `settled_bytes` at any time after, as a share of it.
        settled_threads, final_threads: threads then and at the end.
        settled_descriptors, final_descriptors: likewise of file descriptors.
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
        """Threads at the end that were not there before."""
        return self.final_threads - self.settled_threads

    @property
    def descriptors_gained(self) -> int:
        """File descriptors at the end that were not there before."""
        return self.final_descriptors - self.settled_descriptors

    @property
    def violations(self) -> list[str]:
        """What is not as it should be, in words."""
        found = []
        if self.memory_drift > _MEMORY_TOLERANCE:
            found.append(
                f"resident memory moved by {self.memory_drift:.1%} after {self.settled_s:.0f} s, "
                f"more than {_MEMORY_TOLERANCE:.0%}"
            )
        if self.threads_gained > 0:
            found.append(f"{self.threads_gained} threads gained")
        if self.descriptors_gained > 0:
            found.append(f"{self.descriptors_gained} file descriptors gained")
        return found


def take_sample(at_s: float) -> Sample:
    """Look at the process now."""
    return Sample(at_s, resident_bytes(), thread_count(), descriptor_count())


def measure_drift(samples: Sequence[Sample], planned_s: float) -> Drift | None:
    """Compare the time after settling with the moment it had settled.

    Args:
        samples: in the order of time.
        planned_s: how long the run was meant to be: it settles for the first quarter of that, five minutes at most.
    Returns:
        None where the run ended before there was something to compare.
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
