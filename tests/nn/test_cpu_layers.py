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
from akidb_mlx_plugin.models.bert import ModelArgs, SelfAttention
from akidb_mlx_plugin.nn.batch import Block, Pick
from akidb_mlx_plugin.nn.cpu_layers import (
    BlockedLinear,
    CPULayerNorm,
    CPULinear,
    CPURMSNorm,
    add_linear,
    block_width,
    join_linears,
    use_cpu_layers,
)
from akidb_mlx_plugin.nn.layout import in_cpu_layout
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


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 20, 21])
def test_a_residual_is_added(tokens: int, bias: bool) -> None:
    linear = nn.Linear(48, 96, bias=bias)
    x, residual = mx.random.normal((tokens, 48)), mx.random.normal((tokens, 96))
    expected = np.array(linear(x) + residual)
    for layer in (linear, CPULinear(linear), CPULinear(linear, column_major=True), BlockedLinear(linear, 32)):
        assert np.allclose(np.array(add_linear(residual, layer, x)), expected, atol=1e-5)


def test_linear_layers_are_joined_if_they_can_be() -> None:
    one, other, without = nn.Linear(8, 4), nn.Linear(8, 12), nn.Linear(8, 4, bias=False)
    x = mx.random.normal((5, 8))
    joined = join_linears(one, other, scales=(2.0, 1.0))
    assert joined is not None
    assert np.allclose(np.array(joined(x)), np.array(mx.concatenate([2 * one(x), other(x)], axis=1)), atol=1e-6)
    joined = join_linears(without, without, scales=(1.0, 3.0))
    assert joined is not None
    assert np.allclose(np.array(joined(x)), np.array(mx.concatenate([without(x), 3 * without(x)], axis=1)), atol=1e-6)
    assert join_linears(one, without, scales=(1.0, 1.0)) is None
    without.set_dtype(mx.float16)
    assert join_linears(without, without, scales=(1.0, 1.0)) is None


@pytest.mark.skipif(not in_cpu_layout(), reason="joined for a CPU alone")
def test_joined_attention_is_the_same_for_all_tokens_and_for_picked_ones() -> None:
    attention = SelfAttention(ModelArgs(1, 32, 1, 4, 64))
    x = mx.random.normal((11, 32))
    blocks = (Block(0, 2, 4), Block(8, 1, 3))
    picks = (None, Pick.of_columns(blocks, (np.array([3, 3], np.int32), np.array([0], np.int32))))
    before = [np.array(attention(x, blocks, None, pick)) for pick in picks]
    use_cpu_layers(attention, spare_bytes=0)
    assert "query" not in attention
    for pick, expected in zip(picks, before, strict=True):
        assert np.allclose(np.array(attention(x, blocks, None, pick)), expected, atol=1e-6)


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
