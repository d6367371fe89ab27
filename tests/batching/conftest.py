"""A queue in front of an engine that does what the test tells it to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from queue_fakes import FakeClock, GatedEngine

from akidb_mlx_plugin.batching.queue import BatchQueue


@pytest.fixture
def engine() -> GatedEngine:
    return GatedEngine()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def queue(engine: GatedEngine, clock: FakeClock) -> Iterator[BatchQueue]:
    queue = BatchQueue(engine.embed_requests, batch_size=4, max_texts=50, clock=clock)
    yield queue
    engine.release()
    queue.close(drain=False)
