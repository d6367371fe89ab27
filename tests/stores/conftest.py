"""A store in memory, behind a model that counts what it embeds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from memory_store import CountingProvider, MemoryStore, counting_service

from akidb_mlx_plugin import EmbeddingService


@pytest.fixture
def provider() -> CountingProvider:
    return CountingProvider()


@pytest.fixture
def service(provider: CountingProvider) -> Iterator[EmbeddingService]:
    with counting_service(provider) as service:
        yield service


@pytest.fixture
def store(service: EmbeddingService) -> MemoryStore:
    return MemoryStore(service)
