"""Linear layers and norms as a CPU computes them best; they take the place of MLX's once weights are loaded."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from akidb_mlx_plugin.nn.activations import swap_outer_axes

# OpenBLAS multiplies matrices of up to 10^6 products as they lie and copies larger ones into a layout of its own first.
_MOST_PRODUCTS = 10**6
# Up to so many tokens reading small blocks is faster than copying (measured with 384 to 3,072 inputs).
_MOST_TOKENS = 20
# Widths of a block: whole vector registers, the wider the better.
_WIDTHS = (32, 16)
# A mean over fewer numbers than this is not worth a matrix product.
_LEAST_WIDTH = 256


class CPULinear(nn.Linear):
    """A linear layer whose bias is added after the product.

    MLX writes the bias into every row first and has the product added to that, which takes three times as long.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """Take over a layer's weights."""
        nn.Module.__init__(self)
        self.weight = linear.weight
        if "bias" in linear:
            self.bias = linear.bias

    def __call__(self, x: mx.array) -> mx.array:
        y = x @ self.weight.T
        return y + self.bias if "bias" in self else y


class BlockedLinear(CPULinear):
    """A linear layer that has its weights a second time, in blocks of columns, each a small matrix.

    A query multiplies every weight by a dozen tokens: rearranging the weights for it takes longer than the arithmetic.
    """

    def __init__(self, linear: nn.Linear, width: int) -> None:
        """Take over a layer's weights; `width` is as `block_width` says."""
        super().__init__(linear)
        # (N, K) -> (N / w, K, w)
        self.columns = mx.contiguous(linear.weight.T.reshape(linear.weight.shape[1], -1, width).transpose(1, 0, 2))

    def __call__(self, x: mx.array) -> mx.array:
        if len(x) > _MOST_TOKENS or x.ndim != 2:
            return super().__call__(x)
        # (1, T, K) @ (N / w, K, w) -> (T, N)
        y = swap_outer_axes(x[None] @ self.columns).reshape(len(x), -1)
        return y + self.bias if "bias" in self else y


class CPULayerNorm(nn.LayerNorm):
    """A layer norm whose means are matrix products, which a BLAS computes several times faster than MLX a sum."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        """Take over a norm's weights."""
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
    """As `CPULayerNorm`, of root mean squares."""

    def __init__(self, norm: nn.RMSNorm) -> None:
        """Take over a norm's weights."""
        nn.Module.__init__(self)
        self.eps, self.weight = norm.eps, norm.weight
        self.mean = mx.full((len(norm.weight), 1), 1.0 / len(norm.weight))

    def __call__(self, x: mx.array) -> mx.array:
        return x * mx.rsqrt((x * x) @ self.mean + self.eps) * self.weight


def use_cpu_layers(encoder: nn.Module, *, spare_bytes: int) -> None:
    """Exchange an encoder's float32 layers for those of this file.

    Args:
        encoder: its weights are in their final format.
        spare_bytes: what second copies of the linear layers may take together; there are none if they take more.
    """
    linears = [module for module in encoder.modules() if _is_float32(module, nn.Linear)]
    cut = sum(linear.weight.nbytes for linear in linears if block_width(linear)) <= spare_bytes

    def exchange(module: nn.Module) -> nn.Module:
        if _is_float32(module, nn.Linear):
            width = block_width(module) if cut else None
            return BlockedLinear(module, width) if width else CPULinear(module)
        for kind, replacement in _NORMS.items():
            if _is_float32(module, kind) and len(module.weight) >= _LEAST_WIDTH:
                return replacement(module)
        return module

    encoder.update_modules(tree_map(exchange, encoder.leaf_modules(), is_leaf=nn.Module.is_module))


def block_width(linear: nn.Linear) -> int | None:
    """Return how many columns a block of a layer's weights may have; None where it cannot be cut into such blocks."""
    outputs, inputs = linear.weight.shape
    fitting = (w for w in _WIDTHS if outputs % w == 0 and w * inputs * _MOST_TOKENS <= _MOST_PRODUCTS)
    return next(fitting, None)


_NORMS: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {
    nn.LayerNorm: CPULayerNorm,
    nn.RMSNorm: CPURMSNorm,
}


def _is_float32(module: nn.Module, kind: type[nn.Module]) -> bool:
    # Of exactly this kind: a subclass may compute something else.
    return type(module) is kind and "weight" in module and module.weight.dtype == mx.float32
