"""Load tensors from safetensors files into modules strictly: none missing, none left over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from akidb_mlx_plugin.checkpoints.safetensors import TensorInfo, read_header
from akidb_mlx_plugin.errors import ModelNotFoundError

# NumPy dtypes for those in a safetensors file; NumPy has no bfloat16.
_NUMPY_FORMATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"}
_NUMPY_FORMATS |= {f"{kind.upper()}{size * 8}": f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}

# Last part of the names of tensors that hold numbers, in any architecture; "w1" and "w2" are the experts'.
_WEIGHTS = ("weight", "bias", "biases", "gamma", "beta", "w1", "w2")


def read_tensors(file: Path) -> dict[str, mx.array]:
    """Return a safetensors file's tensors, lazily; float64 becomes float32.

    Raises:
        ModelNotFoundError: it is damaged, or a tensor has an unsupported dtype; the tensor is named.
    """
    # MLX would notice a truncated file only on reading that far.
    header = read_header(file)
    for name, info in header.items():
        # MLX names no tensor when it rejects a dtype, and takes float8 for integers.
        if info.dtype not in _NUMPY_FORMATS and info.dtype != "C64":
            raise _unreadable(file, name, info)
    if any(info.dtype == "F64" for info in header.values()):
        return {name: _read_tensor(file, name, info) for name, info in header.items()}
    try:
        tensors = mx.load(str(file))
    except (RuntimeError, ValueError) as error:
        raise ModelNotFoundError(f"{file} cannot be read: {error}") from error
    assert isinstance(tensors, dict)
    return tensors


def _read_tensor(file: Path, name: str, info: TensorInfo) -> mx.array:
    """Read one tensor with NumPy: MLX rejects a whole file for one float64 tensor."""
    if info.dtype not in _NUMPY_FORMATS:
        raise _unreadable(file, name, info)
    start, stop = info.span
    values = np.fromfile(file, np.uint8, stop - start, offset=start).view(_NUMPY_FORMATS[info.dtype])
    values = values.reshape(info.shape)
    if info.dtype == "F64":
        return mx.array(values.astype(np.float32))
    return mx.array(values).view(mx.bfloat16) if info.dtype == "BF16" else mx.array(values)


def _unreadable(file: Path, name: str, info: TensorInfo) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{file} has {name} in the format {info.dtype}, which this package cannot read; take a copy of the model in "
        "BF16, F16 or F32, or an MLX conversion of it"
    )


def check_formats(tensors: Mapping[str, mx.array], origin: str) -> None:
    """Check that weights and biases are numbers, and that the parts of quantized matrices have valid dtypes.

    Args:
        tensors: by their names in the checkpoint, before any is renamed or split.
        origin: where they come from, for the message.
    Raises:
        ModelNotFoundError: one has another dtype; it is named.
    """
    for name, value in tensors.items():
        path, _, part = name.rpartition(".")
        if part == "weight" and f"{path}.scales" in tensors:
            fits = value.dtype == mx.uint32
        elif part == "scales":
            # Affine scales are numbers and have biases; other modes' scales are bytes and have none.
            affine = f"{path}.biases" in tensors
            fits = _is_float(value) if affine else value.dtype == mx.uint8
            if not fits and not affine and _is_float(value):
                raise ModelNotFoundError(f"{origin} has {name} as {_dtype_name(value)}, and no {path}.biases")
        else:
            fits = part not in _WEIGHTS or _is_float(value)
        if not fits:
            raise ModelNotFoundError(
                f"{origin} has {name} as {_dtype_name(value)}, which holds no weights that this package reads"
            )


def _is_float(tensor: mx.array) -> bool:
    return bool(mx.issubdtype(tensor.dtype, mx.floating))


def original_names(weights: Mapping[str, mx.array], tensors: Mapping[str, mx.array]) -> dict[str, str]:
    """Return the checkpoint's names of sanitized tensors that were only renamed."""
    stored = {id(value): name for name, value in tensors.items()}
    return {name: stored[id(value)] for name, value in weights.items() if id(value) in stored}


def load_strictly(module: nn.Module, weights: Mapping[str, mx.array], origin: str, names: Mapping[str, str]) -> None:
    """Load tensors into a module, exactly one for each parameter.

    Args:
        module: the module to fill.
        weights: by the module's names.
        origin: where they come from, for the message.
        names: their names in the checkpoint, if different.
    Raises:
        ModelNotFoundError: a tensor is missing, unknown, or has the wrong shape; it is named.
    """
    wanted = dict(tree_flatten(module.parameters()))
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    prefix = _common_prefix(names)
    problems = [f"lacks the tensor {_some([prefix + name for name in missing])}"] if missing else []
    problems += [f"has an unknown tensor {_some([names.get(name, name) for name in extra])}"] if extra else []
    problems += [
        f"has {names.get(name, name)} of shape {weights[name].shape}, expected {wanted[name].shape}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ][:3]
    problems += [
        f"has {names.get(name, name)} as {_dtype_name(weights[name])}, which this package cannot read as weights"
        for name in sorted(wanted.keys() & weights.keys())
        if not _fits(weights[name].dtype, wanted[name].dtype)
    ][:3]
    if problems:
        raise ModelNotFoundError(f"{origin} does not fit its config.json: it {'; it '.join(problems)}")
    module.update(tree_unflatten(list(weights.items())))


def _fits(stored: mx.Dtype, wanted: mx.Dtype) -> bool:
    """Return whether a dtype suits a parameter: any float for a float, packed bits only where they are expected."""
    if mx.issubdtype(wanted, mx.floating):
        return bool(mx.issubdtype(stored, mx.floating))
    return bool(stored == wanted)


def _dtype_name(tensor: mx.array) -> str:
    return str(tensor.dtype).removeprefix("mlx.core.")


def _common_prefix(names: Mapping[str, str]) -> str:
    """Return the prefix of all names in a checkpoint, such as "model."."""
    prefixes = {original.removesuffix(name) for name, original in names.items() if original.endswith(name)}
    return prefixes.pop() if len(prefixes) == 1 else ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
