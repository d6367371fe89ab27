"""Each test runs on Chroma, in a folder and behind a server, and on LanceDB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hosts import ChromaHost, ChromaServerHost, D, Host, LanceHost

HOSTS = {"chroma": ChromaHost, "chroma-server": ChromaServerHost, "lancedb": LanceHost}


@pytest.fixture(params=list(HOSTS))
def host(request: pytest.FixtureRequest, tmp_path: Path, chroma_port: int) -> Host:
    """A database of each kind."""
    return HOSTS[request.param](tmp_path / "db", chroma_port)


@pytest.fixture
def mock(host: Host) -> Any:
    """The function of the stand-in model."""
    return host.make(mode="mock", dimension=D)


@pytest.fixture
def docs(host: Host, name: str, mock: Any) -> Any:
    """A new collection of the stand-in model."""
    return host.create(name, mock)
