"""A service whose engine does what the test tells it to, under a model name of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from queue_fakes import FakeClock, GatedEngine

from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.service import EmbeddingService

# One model name per test: the registry belongs to the process.
MODELS = (f"model-{i}" for i in range(1000))


@pytest.fixture
def model() -> str:
    return next(MODELS)


@pytest.fixture
def engine() -> GatedEngine:
    return GatedEngine()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def service(model: str, engine: GatedEngine, clock: FakeClock, tmp_path: Path) -> Iterator[EmbeddingService]:
    config = EmbeddingConfig.load(
        overrides={"mlx": {"model": model, "batch_size": 4, "cache_dir": tmp_path}, "service": {"queue_size": 4}}
    )
    service = EmbeddingService(config, provider=engine, clock=clock)
    yield service
    engine.release()
    service.close(drain=False)
