"""Measure how fast a device multiplies matrices: most of what a model does there."""

from __future__ import annotations

import time
from collections.abc import Callable

from akidb_mlx_plugin.runtime.workers import WorkerPool

# Weights that the default model multiplies with each token, its embedding table left out.
DEFAULT_MODEL_WEIGHTS = 440e6
# Sides of one of the default model's matrices.
_INPUTS, _OUTPUTS = 1024, 3072
_AT_ONCE = 8
_ENOUGH_S = 0.8


def measure_products(pool: WorkerPool, tokens: int = 512) -> float:
    """Return trillions of operations a second of a 4-bit product as large as one of the default model's.

    Args:
        pool: computes it.
        tokens: rows that are multiplied.
    """
    return float(pool.submit(lambda: _measure_quantized(tokens)).result())


def measure_plain_products(pool: WorkerPool, tokens: int = 512) -> float:
    """Return the same of a float32 product, which a CPU computes instead."""
    return float(pool.submit(lambda: _measure_plain(tokens)).result())


def _measure_quantized(tokens: int) -> float:
    import mlx.core as mx

    from akidb_mlx_plugin.runtime.devices import emulates_bfloat16

    dtype = mx.float16 if emulates_bfloat16() else mx.bfloat16
    x = mx.random.normal((tokens, _INPUTS)).astype(dtype)
    weight, scales, biases = mx.quantize(mx.random.normal((_OUTPUTS, _INPUTS)).astype(dtype), group_size=64, bits=4)
    mx.eval(x, weight, scales, biases)

    def compute() -> None:
        # Several at once: starting one alone would be measured too.
        mx.eval([mx.quantized_matmul(x + i, weight, scales, biases, group_size=64, bits=4) for i in range(_AT_ONCE)])

    return _rate(compute, _AT_ONCE * tokens)


def _measure_plain(tokens: int) -> float:
    import mlx.core as mx

    x, weight = mx.random.normal((tokens, _INPUTS)), mx.random.normal((_INPUTS, _OUTPUTS))
    mx.eval(x, weight)
    return _rate(lambda: mx.eval(x @ weight), tokens)


def _rate(compute: Callable[[], None], rows: int) -> float:
    best = float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        compute()
        best = min(best, time.perf_counter() - begun)
        if best > _ENOUGH_S:
            break
    return 2 * rows * _INPUTS * _OUTPUTS / best / 1e12
