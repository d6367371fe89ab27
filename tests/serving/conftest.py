"""Servers of mock vectors, with an engine that a test can hold."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from local_server import DIMENSION, LocalServer, mock_config, serving
from queue_fakes import GatedEngine


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with serving(mock_config()) as running:
        yield running


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[GatedEngine]:
    """The engine of servers that start in this test."""
    gated = GatedEngine(DIMENSION)
    monkeypatch.setattr("akidb_mlx_plugin.service.make_provider", lambda config, trusted: gated)
    yield gated
    gated.release()
