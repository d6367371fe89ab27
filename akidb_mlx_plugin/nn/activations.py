"""Activations and softmax that vectorize on a CPU and use MLX's own kernels elsewhere.

MLX computes erf, exp and tanh one element at a time on a CPU (10 to 25 ns each). Here they are approximated to 1e-6
by sums and products, which MLX vectorizes.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.nn.compiled import Kernels, is_guarded
from akidb_mlx_plugin.nn.layout import in_cpu_layout


def swap_outer_axes(x: mx.array) -> mx.array:
    """Transpose (A, B, d) to (B, A, d), copying 8 bytes at a time where elements can be paired."""
    dtype = x.dtype
    pairs = x.shape[-1] * dtype.size % 8 == 0
    x = mx.contiguous((x.view(mx.uint64) if pairs else x).transpose(1, 0, 2))
    return x.view(dtype) if pairs else x


# Fewest elements for which a kernel per shape pays off, and how many such kernels a thread keeps.
_LEAST_ELEMENTS, _KEPT_SHAPES = 1 << 17, 8


class _PerShape:
    """A function compiled separately for each shape of its first argument; a thread keeps the last few.

    MLX never frees a compiled function by itself, and each takes about 45 kB.
    """

    def __init__(self, function: Callable[..., mx.array]) -> None:
        self._function = function
        self._of_thread = threading.local()

    def __call__(self, *inputs: mx.array) -> mx.array:
        kept: OrderedDict[tuple[int, ...], Callable[..., mx.array]] = self._of_thread.__dict__.setdefault(
            "kept", OrderedDict()
        )
        shape = inputs[0].shape
        if shape not in kept:
            kept[shape] = mx.compile(self._function)
            if len(kept) > _KEPT_SHAPES:
                kept.popitem(last=False)
        kept.move_to_end(shape)
        return kept[shape](*inputs)


class _Fused:
    """An elementwise function of arrays of one shape, fused into one pass over memory.

    MLX compiles a function for one shape or for all. The latter spreads its constants in memory and costs three times
    as much. So large arrays, which recur in the next layer, get their own kernel, and small ones share the general one.
    Minima, maxima and reductions belong outside: they do not vectorize in a compiled kernel.
    """

    def __init__(self, function: Callable[..., mx.array]) -> None:
        self._function = function
        self._shapeless: Callable[..., mx.array] = mx.compile(function, shapeless=True)
        self._per_shape = _PerShape(function)
        self._kernels = Kernels()

    def __call__(self, *inputs: mx.array) -> mx.array:
        if not is_guarded():
            return self._compiled(inputs)
        # Flattened to one contiguous axis: MLX compiles a separate kernel for each kind of strides, and for arrays of
        # one element.
        shape, dtypes = inputs[0].shape, tuple(x.dtype for x in inputs)
        large = inputs[0].size >= _LEAST_ELEMENTS
        if inputs[0].size == 1 or not self._kernels.may_use((large, *dtypes), lambda: self._example(large, dtypes)):
            return self._function(*inputs)
        return self._compiled(tuple(x.reshape(-1) for x in inputs)).reshape(shape)

    def _compiled(self, inputs: tuple[mx.array, ...]) -> mx.array:
        return (self._per_shape if inputs[0].size >= _LEAST_ELEMENTS else self._shapeless)(*inputs)

    def _example(self, large: bool, dtypes: tuple[mx.Dtype, ...]) -> mx.array:
        compiled = mx.compile(self._function) if large else self._shapeless
        return compiled(*(mx.zeros((2,), dtype) for dtype in dtypes))


# exp(t) - 1 = t + C2 t^2 + C3 t^3 + C4 t^4, fitted by reweighted least squares minimizing the error of exp(32 t).
_EXP_C2, _EXP_C3, _EXP_C4 = 0.49999487, 0.16644867, 0.03915204
_LEAST_EXPONENT = -40.0


@_Fused
def _exp_in_range(x: mx.array) -> mx.array:
    """Return exp(x) for -40 <= x <= 0, absolute error below 2e-7: a polynomial of x/32, squared five times; 0 at -40.

    The powers are kept minus one, (1 + e)^2 - 1 = e (e + 2): squaring numbers close to one would double their rounding
    error five times.
    """
    t = x * (1.0 / 32.0)
    e = t * (1.0 + t * (_EXP_C2 + t * (_EXP_C3 + t * _EXP_C4)))
    for _ in range(5):
        e = e * (e + 2.0)
    return e + 1.0


def softmax_parts(scores: mx.array, axis: int) -> tuple[mx.array, mx.array]:
    """Return the softmax over an axis as numerators and their sum; -inf gets 0, each sum needs a finite entry."""
    below = mx.maximum(scores - mx.max(scores, axis=axis, keepdims=True), _LEAST_EXPONENT)
    weights = _exp_in_range(below)
    return weights, mx.sum(weights, axis=axis, keepdims=True)


# gelu(x) = x (1/2 + r P(r^2) / Q(r^2)) with r = x clipped to ±5.2, where the normal distribution is 0 or 1 within 1e-7.
# Fitted to erf in double precision by iteratively reweighted least squares in a Chebyshev basis, minimax error 2.6e-7.
_GELU_RANGE = 5.2
_P0, _P1, _P2, _P3, _P4, _P5 = (0.39893904, 0.07581327, 0.0071090516, 0.0005818521, 7.6201873e-06, -2.1936755e-08)
_Q0, _Q1, _Q2, _Q3, _Q4 = (1.0, 0.35666734, 0.052315116, 0.0042008800, 0.00019881083)


@_Fused
def _normal_cdf_minus_half(r: mx.array) -> mx.array:
    # In pairs (Estrin), not one by one (Horner): MLX splits a kernel more than eleven operations deep.
    s = r * r
    s2 = s * s
    p = (_P0 + _P1 * s) + s2 * ((_P2 + _P3 * s) + s2 * (_P4 + _P5 * s))
    q = (_Q0 + _Q1 * s) + s2 * ((_Q2 + _Q3 * s) + s2 * _Q4)
    return r * p / q


@_Fused
def _times_half_more(x: mx.array, y: mx.array) -> mx.array:
    return x * (0.5 + y)


def _gelu(x: mx.array) -> mx.array:
    return _times_half_more(x, _normal_cdf_minus_half(mx.clip(x, -_GELU_RANGE, _GELU_RANGE)))


@_Fused
def _times_sigmoid(x: mx.array, size: mx.array, e: mx.array) -> mx.array:
    """Return x / (1 + exp(-y)) from |x| and e = exp(-|y|), where x and y have the same sign."""
    return ((x + size) + (x - size) * e) / (2.0 + 2.0 * e)


def _swish(x: mx.array, y: mx.array) -> mx.array:
    return _times_sigmoid(x, mx.abs(x), _exp_in_range(mx.maximum(-mx.abs(y), _LEAST_EXPONENT)))


def _silu(x: mx.array) -> mx.array:
    return _swish(x, x)


@_Fused
def _gelu_tanh_argument(x: mx.array) -> mx.array:
    # (1 + tanh(y)) / 2 = sigmoid(2 y)
    return 1.5957691216057308 * (x + 0.044715 * x * x * x)


def _gelu_tanh(x: mx.array) -> mx.array:
    return _swish(x, _gelu_tanh_argument(x))


def _relu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0.0)


# (on a CPU, elsewhere), by Hugging Face's names for them.
_FORMS: dict[str, tuple[Callable[[mx.array], mx.array], Callable[[mx.array], mx.array]]] = {
    "gelu": (_gelu, nn.gelu),
    "gelu_new": (_gelu_tanh, nn.gelu_approx),
    "gelu_pytorch_tanh": (_gelu_tanh, nn.gelu_approx),
    "relu": (_relu, _relu),
    "silu": (_silu, nn.silu),
    "swish": (_silu, nn.silu),
}


def _activation(name: str) -> Callable[[mx.array], mx.array]:
    on_a_cpu, elsewhere = _FORMS[name]
    # In float32 inside, or a narrow dtype is rounded after every operation; in one kernel that costs nothing.
    fused = _PerShape(lambda x: elsewhere(x.astype(mx.float32)).astype(x.dtype))
    return lambda x: on_a_cpu(x.astype(mx.float32)).astype(x.dtype) if in_cpu_layout() else fused(x)


def _gated(name: str) -> Callable[[mx.array, mx.array], mx.array]:
    on_a_cpu, elsewhere = _FORMS[name]
    fused = _PerShape(lambda x, y: (elsewhere(x.astype(mx.float32)) * y).astype(y.dtype))
    return lambda x, y: (on_a_cpu(x.astype(mx.float32)) * y).astype(y.dtype) if in_cpu_layout() else fused(x, y)


# f(x), and f(x) * y in one pass.
ACTIVATIONS = {name: _activation(name) for name in _FORMS}
GATED_ACTIVATIONS = {name: _gated(name) for name in _FORMS}
