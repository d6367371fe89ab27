"""Models in the cache of the tests."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from loopback_hub import Hub, tiny_files

from akidb_mlx_plugin.hub import ensure_model
from akidb_mlx_plugin.hub.locks import record_of


@pytest.fixture
def folders(hub: Hub, cache_dir: Path) -> list[Path]:
    """Three models in the cache, the first unused for longest."""
    found = []
    for age, name in ((300, "org/a"), (200, "org/b"), (100, "org/c")):
        hub.add(name, tiny_files(seed=age))
        found.append(ensure_model(name).folder)
        used = time.time() - age
        os.utime(record_of(found[-1]), (used, used))
    return found
