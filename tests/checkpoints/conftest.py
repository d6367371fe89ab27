"""Checkpoints are loaded and computed on the CPU here, whatever the machine has."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from golden_models import GOLDEN

from akidb_mlx_plugin.nn import layout


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute by MLX's own kernels, as a GPU does, but here."""
    monkeypatch.setattr(layout, "_emulated", True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny BERT."""
    shutil.copytree(GOLDEN / "bert" / "model", tmp_path / "m")
    return tmp_path / "m"
