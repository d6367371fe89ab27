"""Fixtures of the tests of collections and tables."""

from __future__ import annotations

import pytest
from collection_helpers import EmbeddedByMock

from akidb_mlx_plugin import BatchEmbeddingRequest, BatchEmbeddingResponse
from akidb_mlx_plugin.providers.mock import MockProvider


@pytest.fixture
def mocked(monkeypatch: pytest.MonkeyPatch) -> EmbeddedByMock:
    """Record what the stand-in model embeds during the test."""
    seen = EmbeddedByMock()
    embed_batch = MockProvider.embed_batch

    def record(self: MockProvider, request: BatchEmbeddingRequest) -> BatchEmbeddingResponse:
        seen.extend(request.inputs)
        return embed_batch(self, request)

    monkeypatch.setattr(MockProvider, "embed_batch", record)
    return seen
