"""MLX-quantized tensors: recognized by their shapes, kept quantized or turned into plain matrices.

A quantized matrix `m` is three tensors: `m.weight` packed into 32-bit words, `m.scales`, and `m.biases` in affine mode.
Bits and group size follow from the shapes, so that checkpoints with per-layer settings need no special handling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.errors import ModelNotFoundError

# Each mode other than affine has one-byte scales and a single (bits, group size).
_MODES = {(4, 16): "nvfp4", (4, 32): "mxfp4", (8, 32): "mxfp8"}


@dataclass(frozen=True)
class Scheme:
    """How one matrix is quantized, in the terms of `mx.quantize`."""

    group_size: int
    bits: int
    mode: str


def check_method(config: Mapping[str, Any]) -> None:
    """Reject checkpoints quantized by anything other than MLX.

    Raises:
        ModelNotFoundError: `quantization_config` names a method whose tensors are laid out differently.
    """
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    if method is not None and "quantization" not in config:
        raise ModelNotFoundError(
            f"the checkpoint is quantized by {method!r}, which this package cannot read; use the original, or an MLX "
            "conversion of it"
        )


def quantized_paths(weights: Mapping[str, mx.array]) -> set[str]:
    """Return the paths of the quantized modules."""
    return {name.removesuffix(".scales") for name in weights if name.endswith(".scales")}


def scheme_of(path: str, weights: Mapping[str, mx.array], columns: int) -> Scheme:
    """Return how a matrix is quantized.

    Args:
        path: path of its module.
        weights: all tensors, by name.
        columns: columns of the plain matrix.
    Raises:
        ModelNotFoundError: its tensors do not fit together.
    """
    weight, scales = weights.get(f"{path}.weight"), weights[f"{path}.scales"]
    if weight is None or weight.dtype != mx.uint32:
        raise ModelNotFoundError(f"{path}.scales has no matching {path}.weight of 32-bit words")
    group_size, rest = divmod(columns, scales.shape[-1])
    bits, more = divmod(weight.shape[-1] * 32, columns)
    mode = "affine" if scales.dtype != mx.uint8 else _MODES.get((bits, group_size))
    if rest or more or mode is None or (mode == "affine") != (f"{path}.biases" in weights):
        raise ModelNotFoundError(
            f"{path} has {weight.shape} quantized weights with {scales.shape} scales, which is not an MLX quantization "
            f"of {columns} columns"
        )
    return Scheme(group_size, bits, mode)


def quantize_modules(model: nn.Module, schemes: Mapping[str, Scheme]) -> None:
    """Prepare the modules at these paths for quantized weights."""
    if schemes:
        nn.quantize(model, class_predicate=lambda path, module: asdict(schemes[path]) if path in schemes else False)


def dequantize(path: str, weights: dict[str, mx.array], scheme: Scheme) -> None:
    """Replace a quantized matrix with a plain float32 one; lazily, nothing is computed here."""
    scales, biases = weights.pop(f"{path}.scales"), weights.pop(f"{path}.biases", None)
    if scheme.mode == "affine":
        # In float32, which is exact and takes a CPU a fifth of the time of float16.
        scales = scales.astype(mx.float32)
        biases = None if biases is None else biases.astype(mx.float32)
    packed = weights[f"{path}.weight"]
    weights[f"{path}.weight"] = mx.dequantize(
        packed, scales, biases, scheme.group_size, scheme.bits, scheme.mode, dtype=mx.float32
    )
