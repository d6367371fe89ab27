"""Convert a checkpoint: quantize it with MLX (smaller, and faster on a GPU, but less precise), or unpickle it."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.head import is_in_head
from akidb_mlx_plugin.checkpoints.pickles import find_pickles, read_pickles
from akidb_mlx_plugin.checkpoints.quantization import Scheme, quantized_paths
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.checkpoints.recipes import UNQUANTIZED, Recipe
from akidb_mlx_plugin.checkpoints.safetensors import INDEX_NAME, find_weight_files
from akidb_mlx_plugin.checkpoints.sentence_transformers import read_json
from akidb_mlx_plugin.checkpoints.static_embedding import STATIC
from akidb_mlx_plugin.checkpoints.tensors import original_names, read_tensors
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.hub.files import select_files
from akidb_mlx_plugin.models import find_encoder

_KEPT = ("README.md", "LICENSE", "LICENSE.txt", "NOTICE")


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        folder: the new checkpoint.
        bytes_before, bytes_after: size of the weights.
        quantized, kept: number of matrices quantized, and of those kept because they do not divide into groups.
    """

    folder: Path
    bytes_before: int
    bytes_after: int
    quantized: int
    kept: int


def convert_checkpoint(source: Path, target: Path, recipe: Recipe) -> Conversion:
    """Write a copy of a checkpoint as safetensors, with its tokenizer and sentence-transformers files.

    Args:
        source: a checkpoint folder, not quantized; its weights may be pickled where PyTorch is installed.
        target: a folder that does not exist or is empty; it appears once it is complete.
        recipe: how to quantize.
    Raises:
        ModelNotFoundError: the source cannot be loaded, or is already quantized.
        InvalidInputError: the target is not empty.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidInputError(f"{target} exists and is not an empty folder; name another, or remove it")
    checkpoint = read_checkpoint(source)
    if checkpoint.model_type == STATIC and recipe != UNQUANTIZED:
        raise InvalidInputError(f"{source} is a table of token vectors, which this package does not quantize")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        _copy_rest(checkpoint, scratch)
        quantized, kept = _write_weights(checkpoint, scratch, recipe)
        _write_head(checkpoint, scratch, recipe.head)
        if recipe.layers or recipe.tables:
            place = scratch / checkpoint.folder.relative_to(checkpoint.root)
            settings = json.dumps(_settings(checkpoint, recipe), indent=2)
            (place / "config.json").write_text(f"{settings}\n", "utf-8")
        scratch.chmod(0o755)
        scratch.replace(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return Conversion(target, _weight_bytes(checkpoint.root), _weight_bytes(target), quantized, kept)


def _write_weights(checkpoint: Checkpoint, folder: Path, recipe: Recipe) -> tuple[int, int]:
    """Write model.safetensors; return the numbers of matrices that were quantized and that could not be."""
    encoder = find_encoder(checkpoint.model_type, checkpoint.config).from_config(checkpoint.config)
    tensors = _read_weights(checkpoint.folder)
    if quantized_paths(tensors):
        raise ModelNotFoundError(f"{checkpoint.root} is already quantized; convert the original")
    head = {name: value for name, value in tensors.items() if is_in_head(name, checkpoint.dense)}
    weights = encoder.sanitize({name: value for name, value in tensors.items() if name not in head})
    names = original_names(weights, tensors)
    del tensors
    wide = any(value.dtype == mx.bfloat16 for value in weights.values()) or not encoder.float16_is_safe
    dtype = mx.bfloat16 if wide else mx.float16
    modules = dict(encoder.named_modules())
    written: dict[str, mx.array] = {}
    quantized = kept = 0
    # Popped one by one, so that each original is freed before the next is read.
    for name in list(weights):
        value = weights.pop(name)
        # Names that only mlx-lm's models use are those of its own conversions.
        original = names.get(name, name.removeprefix("model.") if name.startswith("model.model.") else name)
        module = modules.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        scheme = _scheme_for(module, checkpoint, recipe)
        if scheme is None:
            written[original] = value
        elif value.shape[-1] % scheme.group_size:
            written[original], kept = value, kept + 1
        else:
            written |= _quantize(original.removesuffix(".weight"), value.astype(dtype), scheme)
            quantized += 1
        mx.eval(written)
    _save(folder / checkpoint.folder.relative_to(checkpoint.root), {**written, **head})
    return quantized, kept


def _write_head(checkpoint: Checkpoint, folder: Path, scheme: Scheme | None) -> None:
    """Write the dense layers that have their own folders and are pickled or to be quantized."""
    for layer in checkpoint.dense:
        pickled = layer.folder is not None and not any(layer.folder.glob("*.safetensors"))
        if layer.folder is None or not (pickled or (scheme and layer.in_features % scheme.group_size == 0)):
            continue
        tensors = _read_weights(layer.folder)
        if scheme and layer.in_features % scheme.group_size == 0:
            tensors |= _quantize("linear", tensors.pop("linear.weight").astype(mx.bfloat16), scheme)
        _save(folder / layer.folder.relative_to(checkpoint.root), tensors)


def _save(folder: Path, tensors: dict[str, mx.array]) -> None:
    """Write a folder's weights.

    Raises:
        OSError: the disk is full, or the file cannot be written for another reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Evaluated first, so that an error below concerns only the file.
    mx.eval(tensors)
    file = folder / "model.safetensors"
    try:
        mx.save_safetensors(str(file), tensors, metadata={"format": "mlx"})
    except RuntimeError as error:
        room = shutil.disk_usage(folder).free / 1e6
        raise OSError(f"{file} cannot be written ({room:.1f} MB free on the disk): {error}") from error


def _read_weights(folder: Path) -> dict[str, mx.array]:
    """Return all tensors of a folder; lazy ones from safetensors."""
    if find_pickles(folder) and not any(folder.glob("*.safetensors")):
        return read_pickles(folder)
    return {name: value for file in find_weight_files(folder) for name, value in read_tensors(file).items()}


def _scheme_for(module: nn.Module | None, checkpoint: Checkpoint, recipe: Recipe) -> Scheme | None:
    if module is None or not _should_quantize(module, checkpoint):
        return None
    return recipe.tables if isinstance(module, nn.Embedding) else recipe.layers


def _should_quantize(module: nn.Module, checkpoint: Checkpoint) -> bool:
    """Return whether to quantize a module: not the small tables of positions and segments."""
    if isinstance(module, nn.Embedding):
        return bool(module.weight.shape[0] == checkpoint.config["vocab_size"])
    return hasattr(module, "to_quantized")


def _quantize(path: str, weight: mx.array, scheme: Scheme) -> dict[str, mx.array]:
    packed, scales, *biases = mx.quantize(weight, scheme.group_size, scheme.bits, mode=scheme.mode)
    tensors = {f"{path}.weight": packed, f"{path}.scales": scales}
    return {**tensors, f"{path}.biases": biases[0]} if biases else tensors


def _settings(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, Any]:
    """Return config.json with the quantization, by module where it differs, under both names that mlx-lm writes."""
    quantization = _described(recipe.layers)
    if recipe.tables != recipe.layers:
        encoder = find_encoder(checkpoint.model_type, checkpoint.config).from_config(checkpoint.config)
        tables = [name for name, module in encoder.named_modules() if isinstance(module, nn.Embedding)]
        quantization |= {name: _described(recipe.tables) or False for name in tables}
    stored = read_json(checkpoint.folder / "config.json")
    return {**stored, "quantization": quantization, "quantization_config": quantization}


def _described(scheme: Scheme | None) -> dict[str, Any]:
    if scheme is None:
        return {}
    mode = {} if scheme.mode == "affine" else {"mode": scheme.mode}
    return {"group_size": scheme.group_size, "bits": scheme.bits, **mode}


def _copy_rest(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy a checkpoint's files other than the weights."""
    root = checkpoint.root
    paths = [file.relative_to(root).as_posix() for file in [*root.glob("*"), *root.glob("*/*")] if file.is_file()]
    safetensors = [] if find_pickles(checkpoint.folder) else find_weight_files(checkpoint.folder)
    ours = {file.relative_to(root).as_posix() for file in safetensors}
    for path in {*select_files(paths), *(path for path in paths if path in _KEPT)} - ours:
        if Path(path).name != INDEX_NAME:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, folder / path)


def _weight_bytes(folder: Path) -> int:
    files = [*folder.rglob("*.safetensors")] or [file for file in folder.rglob("*.bin") if file.is_file()]
    return sum(file.stat().st_size for file in files)
