"""Copies of the tiny checkpoints with other tensors, quantized ones among them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
from golden_models import GOLDEN

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.convert import convert_checkpoint
from akidb_mlx_plugin.checkpoints.quantization import Scheme
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.checkpoints.recipes import Recipe

Tensors = dict[str, mx.array]


def copy_of(name: str, folder: Path, change: Callable[[Tensors], Tensors] | None = None) -> Path:
    """Copy a tiny checkpoint with changed tensors."""
    shutil.copytree(GOLDEN / name / "model", folder)
    if change:
        file = folder / "model.safetensors"
        tensors = mx.load(str(file))
        assert isinstance(tensors, dict)
        mx.eval(tensors)
        mx.save_safetensors(str(file), change(tensors))
    return folder


def quantized(name: str, folder: Path, scheme: Scheme) -> tuple[Checkpoint, Checkpoint]:
    """Return a quantized copy of a tiny checkpoint, and one with the same weights dequantized."""
    convert_checkpoint(GOLDEN / name / "model", folder / "quantized", Recipe(scheme, scheme))
    tensors = mx.load(str(folder / "quantized" / "model.safetensors"))
    assert isinstance(tensors, dict)
    full: Tensors = {}
    for key, value in tensors.items():
        path = key.removesuffix(".weight")
        if f"{path}.scales" in tensors and key.endswith(".weight"):
            parts = [tensors.get(f"{path}.{part}") for part in ("scales", "biases")]
            parts = [part if part is None or part.dtype == mx.uint8 else part.astype(mx.float32) for part in parts]
            how = (scheme.group_size, scheme.bits, scheme.mode)
            full[key] = mx.dequantize(value, *parts, *how, dtype=mx.float32)
        elif not key.endswith((".scales", ".biases")):
            full[key] = value
    shutil.copytree(GOLDEN / name / "model", folder / "full")
    mx.save_safetensors(str(folder / "full" / "model.safetensors"), full)
    return read_checkpoint(folder / "quantized"), read_checkpoint(folder / "full")


def quantized_parts(path: str, weight: mx.array, bits: int = 4, group_size: int = 32) -> Tensors:
    packed, scales, biases = mx.quantize(weight.astype(mx.float16), group_size, bits)
    return {f"{path}.weight": packed, f"{path}.scales": scales, f"{path}.biases": biases}
