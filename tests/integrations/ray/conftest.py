"""One cluster for all tests; each writes into a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import ray.data
from ray_fixtures import RunningCluster


@pytest.fixture(scope="module", autouse=True)
def _connected(cluster: RunningCluster) -> Iterator[None]:
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def _in_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
