"""Activations and softmax that vectorise on a CPU and use MLX's own kernels elsewhere.

MLX computes erf, exp and tanh one element at a time on a CPU (10 to 25 ns each). Here they are sums and products,
which it vectorises, accurate to 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn


def on_cpu() -> bool:
    """Tell whether this thread computes on the CPU."""
    return bool(mx.default_device() == mx.cpu)


# exp(t) - 1 = t + C2 t^2 + C3 t^3 + C4 t^4, fitted by reweighted least squares so that the error of exp(32 t) is least.
_EXP_C2, _EXP_C3, _EXP_C4 = 0.49999487, 0.16644867, 0.03915204


def _exp_nonpositive(x: mx.array) -> mx.array:
    """exp(x) for x <= 0, absolute error below 2e-7: a polynomial of x/32, squared five times; 0 below -40.

    The powers are carried less one, (1 + e)^2 - 1 = e (e + 2), or squaring would double the rounding error of numbers
    close to one five times.
    """
    t = mx.maximum(x, -40.0) * (1.0 / 32.0)
    e = t * (1.0 + t * (_EXP_C2 + t * (_EXP_C3 + t * _EXP_C4)))
    for _ in range(5):
        e = e * (e + 2.0)
    return e + 1.0


# Compiled once for all shapes: a reduction inside would be compiled, and kept, for every shape of scores anew.
_fused_exp = mx.compile(_exp_nonpositive, shapeless=True)


def _softmax_last(scores: mx.array) -> mx.array:
    weights = _fused_exp(scores - mx.max(scores, axis=-1, keepdims=True))
    return weights / mx.sum(weights, axis=-1, keepdims=True)


def softmax(scores: mx.array) -> mx.array:
    """Softmax over the last axis; an entry of -inf gets nothing, and every row needs one finite entry."""
    return _softmax_last(scores) if on_cpu() else mx.softmax(scores, axis=-1, precise=True)


# gelu(x) = x (1/2 + x P(x^2) / Q(x^2)) for |x| <= 5.2; beyond, the normal distribution is 0 or 1 within 1e-7. Fitted
# to erf in double precision by iteratively reweighted least squares in a Chebyshev basis, minimax error 2.6e-7.
_GELU_RANGE = 5.2
_GELU_P = (0.39893904, 0.07581327, 0.0071090516, 0.0005818521, 7.6201873e-06, -2.1936755e-08)
_GELU_Q = (1.0, 0.35666734, 0.052315116, 0.0042008800, 0.00019881083)


def _horner(s: mx.array, coefficients: tuple[float, ...]) -> mx.array:
    value = coefficients[-1] * s + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        value = value * s + coefficient
    return value


def _rational_gelu(x: mx.array) -> mx.array:
    r = mx.clip(x, -_GELU_RANGE, _GELU_RANGE)
    s = r * r
    return x * (0.5 + r * _horner(s, _GELU_P) / _horner(s, _GELU_Q))


def _sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + exp(-x)), from the exponential of a non-positive number on both sides of zero."""
    e = _exp_nonpositive(-mx.abs(x))
    return mx.where(x >= 0, 1.0, e) / (1.0 + e)


def _silu(x: mx.array) -> mx.array:
    return x * _sigmoid(x)


def _gelu_tanh(x: mx.array) -> mx.array:
    # (1 + tanh(y)) / 2 = sigmoid(2 y)
    return x * _sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


# (on a CPU, elsewhere), by Hugging Face's names.
_FORMS: dict[str, tuple[Callable[[mx.array], mx.array], Callable[[mx.array], mx.array]]] = {
    "gelu": (_rational_gelu, nn.gelu),
    "gelu_new": (_gelu_tanh, nn.gelu_approx),
    "gelu_pytorch_tanh": (_gelu_tanh, nn.gelu_approx),
    "relu": (nn.relu, nn.relu),
    "silu": (_silu, nn.silu),
    "swish": (_silu, nn.silu),
}


def _activation(name: str) -> Callable[[mx.array], mx.array]:
    def fuse(form: Callable[[mx.array], mx.array]) -> Callable[[mx.array], mx.array]:
        # In float32 inside, or a narrow format is rounded after every operation; in one kernel that costs nothing.
        fused: Callable[[mx.array], mx.array]
        fused = mx.compile(lambda x: form(x.astype(mx.float32)).astype(x.dtype), shapeless=True)
        return fused

    on_a_cpu, elsewhere = (fuse(form) for form in _FORMS[name])
    return lambda x: on_a_cpu(x) if on_cpu() else elsewhere(x)


def _gated(name: str) -> Callable[[mx.array, mx.array], mx.array]:
    def fuse(form: Callable[[mx.array], mx.array]) -> Callable[[mx.array, mx.array], mx.array]:
        fused: Callable[[mx.array, mx.array], mx.array]
        fused = mx.compile(lambda x, y: (form(x.astype(mx.float32)) * y).astype(y.dtype), shapeless=True)
        return fused

    on_a_cpu, elsewhere = (fuse(form) for form in _FORMS[name])
    return lambda x, y: on_a_cpu(x, y) if on_cpu() else elsewhere(x, y)


# f(x), and f(x) * y in one pass.
ACTIVATIONS = {name: _activation(name) for name in _FORMS}
GATED_ACTIVATIONS = {name: _gated(name) for name in _FORMS}
