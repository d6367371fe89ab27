"""Linear layers and norms that are faster on a CPU; they replace MLX's once the weights are loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from akidb_mlx_plugin.nn.activations import swap_outer_axes

# OpenBLAS multiplies matrices of up to 10^6 products in place and first copies larger ones into a layout of its own.
_MOST_PRODUCTS = 10**6
# Up to this many tokens, reading small blocks is faster than copying (measured with 384 to 3,072 inputs).
_MOST_TOKENS = 20
# Block widths: whole vector registers, the wider the better.
_WIDTHS = (32, 16)
# A mean over fewer numbers than this is not worth a matrix product.
_LEAST_WIDTH = 256
# Rows transposed at a time: what they read stays in the first cache.
_TRANSPOSED_ROWS = 64


class Joining(nn.Module, ABC):
    """A module that may join layers with the same input into one, for a CPU."""

    @abstractmethod
    def join(self) -> None:
        """Join them, if their weights are float32."""


class CPULinear(nn.Linear):
    """A linear layer whose bias is added after the product.

    MLX writes the bias into every row and adds the product to it, which takes three times as long.
    """

    def __init__(self, linear: nn.Linear, *, column_major: bool = False) -> None:
        """Take a layer's weights.

        Args:
            linear: the layer.
            column_major: whether to lay the weights out by columns, as the product reads them.
        """
        nn.Module.__init__(self)
        self.weight = _by_columns(linear.weight) if column_major else linear.weight
        if "bias" in linear:
            self.bias = linear.bias

    def __call__(self, x: mx.array) -> mx.array:
        return self._add_bias(x @ self.weight.T)

    def add_to(self, residual: mx.array, x: mx.array) -> mx.array:
        """Return the sum of a residual and this layer's output; the product is added as it is computed."""
        return self._add_bias(mx.addmm(residual, x, self.weight.T))

    def _add_bias(self, y: mx.array) -> mx.array:
        return y + self.bias if "bias" in self else y


class BlockedLinear(CPULinear):
    """A linear layer with a second copy of its weights in blocks of columns, each a small matrix.

    A query multiplies every weight by only a dozen tokens: rearranging the weights takes longer than the arithmetic.
    """

    def __init__(self, linear: nn.Linear, width: int) -> None:
        """Take a layer's weights; `width` comes from `block_width`."""
        super().__init__(linear)
        # (N, K) -> (N / w, K, w)
        self.columns = mx.contiguous(linear.weight.T.reshape(linear.weight.shape[1], -1, width).transpose(1, 0, 2))

    def __call__(self, x: mx.array) -> mx.array:
        if self._takes_columns(x):
            return self._add_bias(self._by_columns(x))
        return super().__call__(x)

    def add_to(self, residual: mx.array, x: mx.array) -> mx.array:
        if self._takes_columns(x):
            return self._add_bias(residual + self._by_columns(x))
        return super().add_to(residual, x)

    def _takes_columns(self, x: mx.array) -> bool:
        return x.ndim == 2 and len(x) <= _MOST_TOKENS

    def _by_columns(self, x: mx.array) -> mx.array:
        # (1, T, K) @ (N / w, K, w) -> (T, N)
        return swap_outer_axes(x[None] @ self.columns).reshape(len(x), -1)


class CPULayerNorm(nn.LayerNorm):
    """A layer norm whose means are matrix products: a BLAS computes them several times faster than MLX sums."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        """Take a norm's weights."""
        nn.Module.__init__(self)
        self.dims, self.eps, self.weight = norm.dims, norm.eps, norm.weight
        if "bias" in norm:
            self.bias = norm.bias
        self.mean = mx.full((norm.dims, 1), 1.0 / norm.dims)

    def __call__(self, x: mx.array) -> mx.array:
        x = x - x @ self.mean
        x = x * mx.rsqrt((x * x) @ self.mean + self.eps) * self.weight
        return x + self.bias if "bias" in self else x


class CPURMSNorm(nn.RMSNorm):
    """An RMS norm computed like `CPULayerNorm`."""

    def __init__(self, norm: nn.RMSNorm) -> None:
        """Take a norm's weights."""
        nn.Module.__init__(self)
        self.eps, self.weight = norm.eps, norm.weight
        self.mean = mx.full((len(norm.weight), 1), 1.0 / len(norm.weight))

    def __call__(self, x: mx.array) -> mx.array:
        return x * mx.rsqrt((x * x) @ self.mean + self.eps) * self.weight


def add_linear(residual: mx.array, linear: nn.Module, x: mx.array) -> mx.array:
    """Return residual + linear(x), in fewer passes over memory where the layer is one for a CPU."""
    return linear.add_to(residual, x) if isinstance(linear, CPULinear) else linear(x) + residual


def join_linears(*linears: nn.Module, scales: Sequence[float]) -> nn.Linear | None:
    """Return one layer whose outputs are those of several with the same input, each times a number.

    None if one is not in float32, or only some have a bias.
    """
    biases = ["bias" in linear for linear in linears]
    if not all(_is_float32(linear, nn.Linear) for linear in linears) or any(biases) != all(biases):
        return None
    joined = nn.Linear(1, 1, bias=biases[0])
    joined.weight = mx.concatenate([linear.weight * scale for linear, scale in zip(linears, scales, strict=True)])
    if biases[0]:
        joined.bias = mx.concatenate([linear.bias * scale for linear, scale in zip(linears, scales, strict=True)])
    return joined


def use_cpu_layers(encoder: nn.Module, *, spare_bytes: int) -> None:
    """Replace an encoder's float32 layers with those of this file, and join those that can be.

    Args:
        encoder: with weights in their final dtype.
        spare_bytes: memory for second copies of the linear layers; none are made if together they need more.
    """
    for module in encoder.modules():
        if isinstance(module, Joining):
            module.join()
    linears = [module for module in encoder.modules() if _is_float32(module, nn.Linear)]
    cut = sum(linear.weight.nbytes for linear in linears if block_width(linear)) <= spare_bytes

    def exchange(module: nn.Module) -> nn.Module:
        if _is_float32(module, nn.Linear):
            width = block_width(module) if cut else None
            return BlockedLinear(module, width) if width else CPULinear(module, column_major=_is_wide(module))
        for kind, replacement in _NORMS.items():
            if _is_float32(module, kind) and len(module.weight) >= _LEAST_WIDTH:
                return replacement(module)
        return module

    encoder.update_modules(tree_map(exchange, encoder.leaf_modules(), is_leaf=nn.Module.is_module))


def block_width(linear: nn.Linear) -> int | None:
    """Return the number of columns in a block of a layer's weights; None where they cannot be split into blocks."""
    outputs, inputs = linear.weight.shape
    fitting = (w for w in _WIDTHS if outputs % w == 0 and w * inputs * _MOST_TOKENS <= _MOST_PRODUCTS)
    return next(fitting, None)


def _by_columns(weight: mx.array) -> mx.array:
    """Return the same matrix, laid out in memory by columns."""
    parts = [weight[i : i + _TRANSPOSED_ROWS].T for i in range(0, len(weight), _TRANSPOSED_ROWS)]
    return mx.contiguous(mx.concatenate(parts, axis=1)).T


def _is_wide(linear: nn.Linear) -> bool:
    """Return whether a product with weights laid out by columns is faster.

    Of a dozen tokens it takes 0.6 to 0.9 times as long, of a thousand 0.97 to 1; measured with OpenBLAS without kernels
    for small matrices. Matrices with more inputs than outputs gain nothing.
    """
    outputs, inputs = linear.weight.shape
    return bool(outputs >= inputs)


_NORMS: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {
    nn.LayerNorm: CPULayerNorm,
    nn.RMSNorm: CPURMSNorm,
}


def _is_float32(module: nn.Module, kind: type[nn.Module]) -> bool:
    # Exactly this class: a subclass may compute something else.
    return type(module) is kind and "weight" in module and module.weight.dtype == mx.float32
