"""The full shapes of the two models this package is named for, with random weights: they load, vectors are sound."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

from akidb_mlx_plugin.hub.registry import list_models


def _benchmark() -> ModuleType:
    file = Path(__file__).parents[1] / "benchmarks" / "full_shape.py"
    spec = importlib.util.spec_from_file_location("full_shape", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma-300m-4bit", "qwen3-0.6b-4bit"])
def test_full_shape(name: str) -> None:
    benchmark = _benchmark()
    # Not pytest's folder, which it keeps: hundreds of megabytes.
    with tempfile.TemporaryDirectory() as scratch:
        folder = benchmark.make_full_shape(name, Path(scratch) / name)
        (spec,) = [spec for spec in list_models() if spec.name == name]
        size = (folder / "model.safetensors").stat().st_size / 1e6
        assert abs(size - spec.size_mb) < 0.1 * spec.size_mb
        # Past the half of Gemma's window, 257 tokens, where that has one.
        facts = benchmark.check(folder, ["a", "x" * 40, "y" * (300 if "gemma" in name else 60)])
    assert facts["farthest_from_unit"] < 1e-5
    assert facts["least_cosine_alone_together"] > 0.99999
