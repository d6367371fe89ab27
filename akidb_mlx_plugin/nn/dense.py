"""The `Dense` module of sentence-transformers: a linear layer after pooling.

Source: sentence_transformers `Dense`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError

# Vectors shorter than this keep their length: torch's `normalize`.
SMALLEST_NORM = 1e-12
# By the last part of the torch class name, in lower case.
_ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "identity": nn.Identity(),
    "tanh": mx.tanh,
    # Not compiled, unlike MLX's own: a matrix of one row per text needs no kernel.
    "relu": lambda x: mx.maximum(x, 0.0),
    "gelu": lambda x: x * (1 + mx.erf(x / math.sqrt(2))) / 2,
    "silu": lambda x: x * mx.sigmoid(x),
    "sigmoid": mx.sigmoid,
}


@dataclass(frozen=True)
class Norm:
    """Settings of a layer norm: its epsilon, and whether it has a bias."""

    eps: float
    bias: bool


class Dense(nn.Module):
    """A linear layer with an activation; with options for a norm before or after it and a residual connection."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        activation: str,
        residual: bool,
        normalize_input: bool = False,
        norm: Norm | None = None,
    ) -> None:
        """Build the layer with uninitialized weights.

        Raises:
            ModelNotFoundError: no such activation.
        """
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ModelNotFoundError(
                f"unsupported activation {activation!r} in a Dense module; supported are {', '.join(_ACTIVATIONS)}"
            )
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.adds_input = residual
        self.normalizes_input = normalize_input
        # Different sizes need a projection for the residual.
        if residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)
        self._activation = _ACTIVATIONS[activation]
        if norm:
            self.norm = nn.LayerNorm(out_features, eps=norm.eps, bias=norm.bias)

    def __call__(self, x: mx.array) -> mx.array:
        if self.normalizes_input:
            x = x / mx.maximum(mx.linalg.norm(x, axis=-1, keepdims=True), SMALLEST_NORM)
        out = self._activation(self.linear(x))
        if "norm" in self:
            out = self.norm(out)
        if not self.adds_input:
            return out
        return out + (self.residual(x) if "residual" in self else x)
