"""What a queue reports of its batches and requests."""

from __future__ import annotations

from dataclasses import dataclass

from akidb_mlx_plugin.batching.requests import Outcome
from akidb_mlx_plugin.types import BatchEmbeddingRequest


@dataclass(frozen=True)
class BatchStats:
    """One batch that came back.

    Attributes:
        texts: how many it held.
        waits_s: for each request that began with this batch, how long it had waited.
        run_s: how long the engine took.
    """

    texts: int
    waits_s: tuple[float, ...]
    run_s: float


class QueueObserver:
    """Is told what happens, on the thread where it happens; does nothing unless overridden."""

    def batch_ended(self, stats: BatchStats) -> None:
        """Receive a batch that came back, with vectors or with an error."""

    def request_ended(self, request: BatchEmbeddingRequest, seconds: float, outcome: Outcome) -> None:
        """Receive a request that was answered, failed (the outcome is its error) or was cancelled (None)."""
