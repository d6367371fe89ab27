"""Activations and softmax against their definitions in double precision, with the CPU's and the other code path."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from akidb_mlx_plugin.nn import layout
from akidb_mlx_plugin.nn.activations import ACTIVATIONS, GATED_ACTIVATIONS, softmax_parts

# Dense where the functions bend, sparse far out.
POINTS = np.concatenate([np.linspace(-12, 12, 20_001), [-1e4, -300, -88, -40, 40, 88, 300, 1e4]]).astype(np.float32)


def _gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def _gelu_tanh(x: float) -> float:
    return x * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _silu(x: float) -> float:
    return x / (1 + math.exp(-x)) if x > -700 else 0.0


DEFINITIONS: dict[str, Callable[[float], float]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda x: max(x, 0.0),
    "silu": _silu,
    "swish": _silu,
}


@pytest.fixture(autouse=True, params=["on a CPU", "elsewhere"])
def _device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    monkeypatch.setattr(layout, "_emulated", request.param != "on a CPU")
    yield
    mx.set_default_device(before)


def test_every_activation_has_a_definition() -> None:
    assert ACTIVATIONS.keys() == GATED_ACTIVATIONS.keys() == DEFINITIONS.keys()


@pytest.mark.parametrize("name", DEFINITIONS)
def test_activation(name: str) -> None:
    expected = np.array([DEFINITIONS[name](float(x)) for x in POINTS])
    actual = np.array(ACTIVATIONS[name](mx.array(POINTS)))
    assert (np.abs(actual - expected) / np.maximum(1, np.abs(POINTS))).max() < 1e-6


@pytest.mark.parametrize("name", DEFINITIONS)
def test_gated_activation(name: str) -> None:
    gate, up = mx.array(POINTS), mx.array(POINTS[::-1].copy() / 100)
    expected = np.array(ACTIVATIONS[name](gate)) * np.array(up)
    assert np.abs(np.array(GATED_ACTIVATIONS[name](gate, up)) - expected).max() < 1e-4


@pytest.mark.parametrize("name", DEFINITIONS)
def test_narrow_formats_are_rounded_once(name: str) -> None:
    gate, up = mx.array(POINTS[:20_001]).astype(mx.bfloat16), mx.array(POINTS[:20_001][::-1].copy()).astype(mx.bfloat16)
    exact = ACTIVATIONS[name](gate.astype(mx.float32))
    for narrow, wide in (
        (ACTIVATIONS[name](gate), exact),
        (GATED_ACTIVATIONS[name](gate, up), exact * up.astype(mx.float32)),
    ):
        assert narrow.dtype == mx.bfloat16
        assert np.array_equal(
            np.array(narrow.astype(mx.float32)), np.array(wide.astype(mx.bfloat16).astype(mx.float32))
        )


def softmax(scores: np.ndarray) -> np.ndarray:
    weights, totals = softmax_parts(mx.array(scores), axis=-1)
    return np.array(weights / totals)


@pytest.mark.parametrize("spread", [0.1, 3.0, 50.0, 1e4])
def test_softmax(spread: float) -> None:
    scores = (np.random.default_rng(0).standard_normal((50, 200)) * spread).astype(np.float32)
    shifted = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
    expected = shifted / shifted.sum(axis=1, keepdims=True)
    assert np.abs(softmax(scores) - expected).max() < 1e-6


def test_softmax_gives_a_hidden_key_nothing() -> None:
    scores = np.zeros((3, 1000), dtype=np.float32)
    scores[:, 1:] = -np.inf
    weights = softmax(scores)
    assert np.abs(weights[:, 0] - 1).max() < 1e-6
    assert weights[:, 1:].max() == 0


_MANY_SHAPES = """
import os, random
import akidb_mlx_plugin, mlx.core as mx
from akidb_mlx_plugin.nn.activations import softmax_parts

mx.set_default_device(mx.cpu)
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
random.seed(1)
seen = []
for step in range(3000):
    scores = mx.zeros((random.randint(1, 30), 12, 1, random.randint(1, 60), random.randint(1, 60)))
    mx.eval(softmax_parts(scores, axis=-2))
    if step in (999, 2999):
        seen.append(resident())
print(seen[1] - seen[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's account of memory")
def test_softmax_keeps_nothing_of_the_shapes_it_has_seen() -> None:
    done = subprocess.run([sys.executable, "-c", _MANY_SHAPES], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000_000
