"""Layers for a CPU: what they compute, where they are used."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from golden_models import embed, farthest, read_golden

from akidb_mlx_plugin.checkpoints import loading
from akidb_mlx_plugin.checkpoints.loading import LoadedModel, load_model
from akidb_mlx_plugin.nn.cpu_layers import BlockedLinear, CPULayerNorm, CPULinear, CPURMSNorm, block_width
from akidb_mlx_plugin.runtime.blas import Blas


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, 12, 20, 21, 40])
def test_it_computes_what_the_layer_does(tokens: int, bias: bool) -> None:
    linear = nn.Linear(48, 96, bias=bias)
    x = mx.random.normal((tokens, 48))
    few = BlockedLinear(linear, 32)
    assert np.allclose(np.array(few(x)), np.array(linear(x)), atol=1e-5)
    assert np.array_equal(np.array(few(x[None])), np.array(linear(x[None])))


def test_weights_are_read_from_the_blocks_for_cpu_layers_alone() -> None:
    few = BlockedLinear(nn.Linear(64, 64), 16)
    few.columns = mx.zeros_like(few.columns)
    few.bias = mx.zeros_like(few.bias)
    assert not np.array(few(mx.ones((20, 64)))).any()
    assert np.array(few(mx.ones((21, 64)))).any()


@pytest.mark.parametrize(
    ("inputs", "outputs", "width"), [(384, 1536, 32), (1536, 384, 32), (3072, 1024, 16), (384, 48, 16), (8, 40, None)]
)
def test_width_of_blocks(inputs: int, outputs: int, width: int | None) -> None:
    assert block_width(nn.Linear(inputs, outputs)) == width
    assert width is None or inputs * width * 20 <= 10**6


@pytest.mark.parametrize("bias", [True, False])
def test_norms(bias: bool) -> None:
    x = mx.random.normal((30, 300)) * 5 + 3
    norm = nn.LayerNorm(300, eps=1e-12, bias=bias)
    norm.weight = mx.random.normal((300,))
    assert np.allclose(np.array(CPULayerNorm(norm)(x)), np.array(norm(x)), atol=1e-5)
    rms = nn.RMSNorm(300, eps=1e-6)
    rms.weight = mx.random.normal((300,))
    assert np.allclose(np.array(CPURMSNorm(rms)(x)), np.array(rms(x)), atol=1e-5)
    linear = nn.Linear(300, 40, bias=bias)
    assert np.allclose(np.array(CPULinear(linear)(x)), np.array(linear(x)), atol=1e-5)


@pytest.mark.parametrize("outputs", [2, 64, 65, 300])
def test_weights_laid_out_by_columns_are_the_same_weights(outputs: int) -> None:
    linear = nn.Linear(300, outputs)
    layer = CPULinear(linear, column_major=True)
    assert np.array_equal(np.array(layer.weight), np.array(linear.weight))
    # (N, K) in steps of one number and a column.
    assert np.array(layer.weight, copy=False).strides == (4, 4 * outputs)
    x = mx.random.normal((30, 300))
    assert np.allclose(np.array(layer(x)), np.array(linear(x)), atol=1e-5)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Callable[..., LoadedModel]:
    def load(name: str, *, core: str = "SkylakeX", available: int | None = 1 << 34) -> LoadedModel:
        monkeypatch.setattr(loading, "load_blas", lambda: Blas("openblas", core=core))
        monkeypatch.setattr(loading, "available_memory", lambda: available)
        return load_model(read_golden(name).checkpoint, device="cpu")

    return load


@pytest.mark.slow
def test_vectors_are_the_same_with_and_without(loaded: Callable[..., LoadedModel]) -> None:
    for name in ("bert", "qwen3", "modernbert"):
        golden = read_golden(name)
        # A row a batch, so that those of short texts have few tokens.
        few, many = (
            embed(golden.checkpoint, loaded(name, core=core), golden.texts, budget=1)
            for core in ("SkylakeX", "Haswell")
        )
        assert farthest(few, many) < 1e-5
        assert farthest(few, golden.vectors["document"]) < 2e-5


def test_second_copy_counts_as_memory_and_is_left_out_where_that_is_short(loaded: Callable[..., LoadedModel]) -> None:
    few, plain = loaded("bert"), loaded("bert", core="Haswell")
    assert few.nbytes > plain.nbytes
    assert few.parameters == plain.parameters
    for available in (1000, None):
        assert loaded("bert", available=available).nbytes == plain.nbytes
