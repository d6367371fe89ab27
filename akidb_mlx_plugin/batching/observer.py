"""What a queue reports about its batches and requests."""

from __future__ import annotations

from dataclasses import dataclass

from akidb_mlx_plugin.batching.requests import Outcome
from akidb_mlx_plugin.types import BatchEmbeddingRequest


@dataclass(frozen=True)
class BatchStats:
    """One finished batch.

    Attributes:
        texts: how many it held.
        waits_s: how long each request that began with this batch had waited.
        run_s: how long the engine took.
    """

    texts: int
    waits_s: tuple[float, ...]
    run_s: float


class QueueObserver:
    """Receives events on the thread where they happen; does nothing unless overridden."""

    def batch_ended(self, stats: BatchStats) -> None:
        """Receive a finished batch, whether it succeeded or failed."""

    def request_ended(self, request: BatchEmbeddingRequest, seconds: float, outcome: Outcome) -> None:
        """Receive a request that was answered, failed (the outcome is its error) or was canceled (None)."""
