"""Read weights written by `torch.save`, where PyTorch is installed; for conversions only."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import mlx.core as mx

from akidb_mlx_plugin.checkpoints.sentence_transformers import read_json
from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.hub.files import PICKLED_FILES, without_weights


def find_pickles(folder: Path) -> list[Path]:
    """Return the pickled weight files of a folder; may be empty.

    Raises:
        ModelNotFoundError: the index names one that is missing.
    """
    whole, index = (folder / name for name in PICKLED_FILES)
    if not index.is_file():
        return [whole] if whole.is_file() else []
    names = read_json(index).get("weight_map")
    files = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
    missing = [name for name in files if Path(name).name != name or not (folder / name).is_file()]
    if missing or not files:
        raise ModelNotFoundError(f"{index} names {', '.join(missing) or 'no file'}, which {folder} does not have")
    return [folder / name for name in files]


def read_pickles(folder: Path) -> dict[str, mx.array]:
    """Return the tensors of a folder's pickled weights without running any code in them.

    Raises:
        ModelNotFoundError: there are none, PyTorch is not installed, or they hold anything but tensors.
    """
    files = find_pickles(folder)
    if not files:
        raise ModelNotFoundError(f"{folder} {without_weights(file.name for file in folder.iterdir())}")
    if importlib.util.find_spec("torch") is None:
        raise ModelNotFoundError(
            f"{files[0]} is a pickle, which only PyTorch can read, and PyTorch is not installed; run the conversion "
            "in an environment that has it (pip install torch)"
        )
    import torch

    tensors: dict[str, mx.array] = {}
    for file in files:
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises pickle's errors and RuntimeError
            raise ModelNotFoundError(f"{file} cannot be read as plain tensors: {error}") from error
        if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
            raise ModelNotFoundError(f"{file} does not hold a dictionary of tensors")
        tensors |= {str(name): _to_mlx(torch, value) for name, value in loaded.items()}
    return tensors


def _to_mlx(torch: Any, tensor: Any) -> mx.array:
    # NumPy has no bfloat16: the bits are passed as integers.
    if tensor.dtype == torch.bfloat16:
        return mx.array(tensor.contiguous().view(torch.int16).numpy()).view(mx.bfloat16)
    return mx.array(tensor.contiguous().numpy())
