"""A checkpoint into an MLX-quantized one: smaller, and on a GPU faster, at some cost in precision."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.loading import original_names, read_tensors
from akidb_mlx_plugin.checkpoints.quantization import Scheme, quantized_paths
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.checkpoints.safetensors import INDEX_NAME, find_weight_files
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.manifest import select_files
from akidb_mlx_plugin.models import find_encoder

# For how far the vectors of a conversion are from its original's: several scripts, prose and code, short and long.
SAMPLE_TEXTS = (
    "hello",
    "What is the capital of France?",
    "The quick brown fox jumps over the lazy dog.",
    "def parse_date(text: str) -> datetime.date: return datetime.date.fromisoformat(text)",
    "SELECT name, COUNT(*) FROM orders WHERE placed > '2024-01-01' GROUP BY name ORDER BY 2 DESC LIMIT 10;",
    "La photosynthèse transforme la lumière du soleil en énergie chimique.",
    "東京は日本の首都で、世界最大の都市圏の一つです。",
    "Как отсортировать список словарей по значению ключа?",
    "كيف أتعلم لغة برمجة جديدة بسرعة؟",
    "Der Vertrag kann von beiden Seiten mit einer Frist von drei Monaten zum Monatsende gekündigt werden.",
    "Bring the water to a boil, add the pasta and a spoonful of salt, and stir now and then. After nine minutes taste "
    "it; when it is done, drain it, keep a cup of the water, and toss it in the pan with the sauce until it is glossy.",
    "A binary search tree keeps its keys in order, so that looking one up, adding one or removing one takes time in "
    "proportion to its height. Where keys come in order the tree degenerates into a list; balanced trees such as red-"
    "black or AVL trees rotate nodes to keep the height logarithmic.",
)
_FIXED_SCHEMES = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
_BITS, _GROUP_SIZES = (2, 3, 4, 5, 6, 8), (32, 64, 128)
_KEPT = ("README.md", "LICENSE", "LICENSE.txt", "NOTICE")


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        folder: the new checkpoint.
        bytes_before, bytes_after: size of the weights.
        quantized, kept: matrices that were quantized, and that do not divide into groups.
    """

    folder: Path
    bytes_before: int
    bytes_after: int
    quantized: int
    kept: int


def choose_scheme(bits: int | None = None, group_size: int | None = None, mode: str = "affine") -> Scheme:
    """Return a way of quantizing that MLX has.

    Args:
        bits: per weight; None: 4, or what the mode fixes.
        group_size: weights that share a scale; None: 64, or what the mode fixes.
        mode: "affine", "mxfp4", "nvfp4" or "mxfp8".
    Raises:
        InvalidInputError: MLX has no such scheme.
    """
    if mode == "affine":
        scheme = Scheme(group_size or 64, bits or 4, mode)
        if scheme.bits in _BITS and scheme.group_size in _GROUP_SIZES:
            return scheme
        raise InvalidInputError(
            f"bits must be one of {', '.join(map(str, _BITS))} and the group size one of "
            f"{', '.join(map(str, _GROUP_SIZES))}, got {scheme.bits} and {scheme.group_size}"
        )
    if mode not in _FIXED_SCHEMES:
        raise InvalidInputError(f"mode must be affine, {', '.join(_FIXED_SCHEMES)}, got {mode!r}")
    fixed_bits, fixed_size = _FIXED_SCHEMES[mode]
    if (bits or fixed_bits, group_size or fixed_size) != (fixed_bits, fixed_size):
        raise InvalidInputError(f"mode {mode} has {fixed_bits} bits in groups of {fixed_size}")
    return Scheme(fixed_size, fixed_bits, mode)


def convert_checkpoint(source: Path, target: Path, scheme: Scheme) -> Conversion:
    """Write a quantized copy of a checkpoint, with its tokenizer and sentence-transformers files.

    Args:
        source: a checkpoint folder, not quantized.
        target: a folder that does not exist or is empty; it appears when it is whole.
        scheme: how to quantize.
    Raises:
        ModelNotFoundError: the source cannot be loaded, or is quantized already.
        InvalidInputError: there is something at the target.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidInputError(f"{target} exists and is not an empty folder; name another, or remove it")
    checkpoint = read_checkpoint(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        quantized, kept = _write_weights(checkpoint, scratch, scheme)
        _copy_rest(checkpoint, scratch)
        place = scratch / checkpoint.folder.relative_to(checkpoint.root)
        (place / "config.json").write_text(json.dumps(_settings(checkpoint.config, scheme), indent=2) + "\n", "utf-8")
        scratch.chmod(0o755)
        scratch.replace(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return Conversion(target, _weight_bytes(checkpoint.root), _weight_bytes(target), quantized, kept)


def mean_cosine(source: Path, target: Path) -> float:
    """Return how alike two checkpoints' vectors of the sample texts are, 1 for the same."""
    # Deferred: it brings the threads and queues that a conversion has no need of.
    from akidb_mlx_plugin.embedder import Embedder

    vectors = []
    for folder in (source, target):
        with Embedder.load(folder) as embedder:
            vectors.append(embedder.embed(SAMPLE_TEXTS, normalize=True).embeddings)
    return float(np.mean(np.sum(vectors[0] * vectors[1], axis=1)))


def _write_weights(checkpoint: Checkpoint, folder: Path, scheme: Scheme) -> tuple[int, int]:
    """Write model.safetensors; return how many matrices were quantized, and how many could not be."""
    encoder = find_encoder(checkpoint.model_type).from_config(checkpoint.config)
    tensors = {k: v for file in find_weight_files(checkpoint.folder) for k, v in read_tensors(file).items()}
    if quantized_paths(tensors):
        raise ModelNotFoundError(f"{checkpoint.root} is quantized already; convert its original")
    head = {name: value for name, value in tensors.items() if name.startswith("dense.")}
    weights = encoder.sanitize({name: value for name, value in tensors.items() if name not in head})
    names = original_names(weights, tensors)
    del tensors
    wide = any(value.dtype == mx.bfloat16 for value in weights.values()) or not encoder.float16_is_safe
    dtype = mx.bfloat16 if wide else mx.float16
    modules = dict(encoder.named_modules())
    written: dict[str, mx.array] = {}
    quantized = kept = 0
    # Taken out one by one, so that each original is freed before the next is read.
    for name in list(weights):
        value = weights.pop(name)
        # Names that mlx-lm's models made up are those of its own conversions.
        original = names.get(name, name.removeprefix("model.") if name.startswith("model.model.") else name)
        module = modules.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if module is None or not _is_worth_it(module, checkpoint):
            written[original] = value
        elif value.shape[-1] % scheme.group_size:
            written[original], kept = value, kept + 1
        else:
            written |= _quantize(original.removesuffix(".weight"), value.astype(dtype), scheme)
            quantized += 1
        mx.eval(written)
    place = folder / checkpoint.folder.relative_to(checkpoint.root)
    place.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(place / "model.safetensors"), {**written, **head}, metadata={"format": "mlx"})
    return quantized, kept


def _is_worth_it(module: nn.Module, checkpoint: Checkpoint) -> bool:
    """Tell whether a module is to be quantized: not the few rows of positions and segments."""
    if isinstance(module, nn.Embedding):
        return bool(module.weight.shape[0] == checkpoint.config["vocab_size"])
    return hasattr(module, "to_quantized")


def _quantize(path: str, weight: mx.array, scheme: Scheme) -> dict[str, mx.array]:
    packed, scales, *biases = mx.quantize(weight, scheme.group_size, scheme.bits, mode=scheme.mode)
    tensors = {f"{path}.weight": packed, f"{path}.scales": scales}
    return {**tensors, f"{path}.biases": biases[0]} if biases else tensors


def _settings(config: Mapping[str, Any], scheme: Scheme) -> dict[str, Any]:
    quantization: dict[str, Any] = {"group_size": scheme.group_size, "bits": scheme.bits}
    if scheme.mode != "affine":
        quantization["mode"] = scheme.mode
    # Both names, as mlx-lm writes them.
    return {**config, "quantization": quantization, "quantization_config": quantization}


def _copy_rest(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy what belongs to a checkpoint beside its weights and config.json."""
    root = checkpoint.root
    paths = [file.relative_to(root).as_posix() for file in [*root.glob("*"), *root.glob("*/*")] if file.is_file()]
    ours = {file.relative_to(root).as_posix() for file in find_weight_files(checkpoint.folder)}
    for path in {*select_files(paths), *(path for path in paths if path in _KEPT)} - ours:
        if Path(path).name != INDEX_NAME:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, folder / path)


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
