"""What a run did, counted where the work was done, and summed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from akidb_mlx_plugin.display import facts_table


@dataclass(frozen=True)
class WorkerReport:
    """What one worker embedded.

    Attributes:
        worker: Ray's id of the actor.
        texts, tokens, truncated: what went through its model.
        seconds: time spent in the model; loading it and waiting for rows are not included.
    """

    worker: str
    texts: int
    tokens: int
    truncated: int
    seconds: float

    @property
    def texts_per_second(self) -> float:
        """Texts embedded per second of its work."""
        return self.texts / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class BulkResult:
    """What a run did.

    Attributes:
        rows: in the dataset.
        written: rows written to the database.
        already_there: rows whose ids it had from an earlier run.
        rejected: rows that were not written, by reason.
        rejects: the file that lists them; None if there were none.
        seconds: total wall time.
        workers: what each embedded; one that was killed and restarted counts twice, as do texts embedded again because
            its result was lost.
    """

    rows: int
    written: int
    already_there: int
    rejected: Mapping[str, int]
    rejects: Path | None
    seconds: float
    workers: tuple[WorkerReport, ...]

    @property
    def total_tokens(self) -> int:
        """Tokens embedded."""
        return sum(worker.tokens for worker in self.workers)

    @property
    def truncated(self) -> int:
        """Texts cut at the model's maximum length."""
        return sum(worker.truncated for worker in self.workers)

    @property
    def embedding_share(self) -> float:
        """Share of the wall time that the workers spent in the model, on average; the rest is Ray, reading, writing."""
        if not self.workers or not self.seconds:
            return 0.0
        return sum(worker.seconds for worker in self.workers) / len(self.workers) / self.seconds

    def _repr_html_(self) -> str:
        """Show the result in a notebook."""
        facts = {
            "rows": self.rows,
            "written": self.written,
            "already there": self.already_there or None,
            **{f"rejected: {reason}": count for reason, count in self.rejected.items()},
            "rejected rows are in": str(self.rejects) if self.rejects else None,
            "tokens": self.total_tokens,
            "texts cut at the longest": self.truncated or None,
            "took": f"{self.seconds:,.1f} s, {self.embedding_share:.0%} of it embedding",
            **{
                f"worker {worker.worker[:8]}": f"{worker.texts:,} texts, {worker.texts_per_second:,.0f} texts/s"
                for worker in self.workers
            },
        }
        return facts_table("Bulk", facts)


@dataclass(frozen=True)
class Failure:
    """A text that the model gave no usable vector for."""

    id: str
    text: str
    reason: str


@dataclass
class _Counts:
    """An actor that workers report to, and that the driver reads at the end."""

    counts: dict[str, list[float]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def add(self, worker: str, texts: int, tokens: int, truncated: int, seconds: float) -> None:
        own = self.counts.setdefault(worker, [0, 0, 0, 0.0])
        self.counts[worker] = [a + b for a, b in zip(own, (texts, tokens, truncated, seconds), strict=True)]

    def fail(self, failures: list[Failure]) -> None:
        self.failures += failures

    def read(self) -> tuple[dict[str, list[float]], list[Failure]]:
        return self.counts, self.failures


class Tally:
    """A handle to one run's counts, which can be sent to any worker."""

    def __init__(self) -> None:
        """Start the counting actor, in the connected cluster."""
        self._counts: Any = ray.remote(num_cpus=0)(_Counts).remote()

    def add(self, worker: str, *, texts: int, tokens: int, truncated: int, seconds: float) -> None:
        """Count a batch; return once it is counted, so that none is missing when the run ends."""
        ray.get(self._counts.add.remote(worker, texts, tokens, truncated, seconds))

    def fail(self, failures: list[Failure]) -> None:
        """Record texts without a vector."""
        ray.get(self._counts.fail.remote(failures))

    def read(self) -> tuple[tuple[WorkerReport, ...], list[Failure]]:
        """Return the counts so far, and each failed id once."""
        counts, failures = ray.get(self._counts.read.remote())
        reports = [
            WorkerReport(worker, int(texts), int(tokens), int(truncated), seconds)
            for worker, (texts, tokens, truncated, seconds) in sorted(counts.items())
        ]
        return tuple(reports), list({failure.id: failure for failure in failures}.values())
