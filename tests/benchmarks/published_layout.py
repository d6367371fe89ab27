"""Checkpoints laid out as mlx-community publishes them: the JSON files of the root, and everything else in the weights.

mlx-embeddings' `convert` leaves `1_Pooling` and `2_Dense` behind, casts all to float16, and quantizes every matrix
whose rows divide into groups, the dense layers behind the pooling among them: in 4 bits those cost EmbeddingGemma 0.007
of the mean cosine, which is nearly all that its vectors have less than those of `akidb-mlx convert`.
Source: https://github.com/Blaizzy/mlx-embeddings, `convert.py` and `models/gemma3_text.py`
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.quantization import Scheme
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.checkpoints.recipes import Recipe
from akidb_mlx_plugin.checkpoints.safetensors import find_weight_files
from akidb_mlx_plugin.checkpoints.tensors import read_tensors

# Architectures whose class there holds the encoder as `model`; the others' names are those of Hugging Face.
_NESTED = ("gemma3_text", "llama", "modernbert", "qwen3")


def rearrange(source: Path, target: Path, repo: str) -> Path:
    """Write a checkpoint's tensors, number for number, in the published layout.

    Args:
        source: a checkpoint folder, its encoder at the root.
        target: a folder that does not exist.
        repo: the repository that README.md names as `base_model`; "": none.
    Returns:
        The target.
    """
    checkpoint = read_checkpoint(source)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    prefix = _prefix(checkpoint)
    for key in ("quantization", "quantization_config"):
        if key in config:
            config[key] = {f"{prefix}{k}" if isinstance(v, dict) else k: v for k, v in config[key].items()}
    return _write(checkpoint, target, _published_tensors(checkpoint), config, repo)


def convert_as_published(source: Path, target: Path, recipe: Recipe, repo: str) -> Path:
    """Write a quantized copy as mlx-embeddings' converter does; arguments as `rearrange`.

    Args:
        recipe: tables and layers alone are looked at; what lies behind the pooling is a layer.
    """
    checkpoint = read_checkpoint(source)
    tensors: dict[str, mx.array] = {}
    overrides: dict[str, Any] = {}
    assert recipe.layers is not None
    for name, value in _published_tensors(checkpoint).items():
        value = value.astype(mx.float16)
        table = len(value) == checkpoint.config["vocab_size"]
        scheme = recipe.tables if table else recipe.layers
        if scheme is None or not name.endswith(".weight") or value.ndim != 2 or value.shape[1] % scheme.group_size:
            tensors[name] = value
            continue
        path = name.removesuffix(".weight")
        packed, scales, biases = mx.quantize(value, scheme.group_size, scheme.bits)
        tensors |= {name: packed, f"{path}.scales": scales, f"{path}.biases": biases}
        if scheme != recipe.layers:
            overrides[path] = _described(scheme)
        mx.eval(packed, scales, biases)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    quantization = {**_described(recipe.layers), **overrides}
    return _write(
        checkpoint, target, tensors, {**config, "quantization": quantization, "quantization_config": quantization}, repo
    )


def _published_tensors(checkpoint: Checkpoint) -> dict[str, mx.array]:
    """Return all tensors, lazy, by their published names."""
    prefix = _prefix(checkpoint)
    tensors = {}
    for file in find_weight_files(checkpoint.folder):
        for name, value in read_tensors(file).items():
            inside = name.startswith(("dense.", prefix or "dense."))
            tensors[name if inside else f"{prefix}{name}"] = value
    for i, layer in enumerate(checkpoint.dense):
        for file in find_weight_files(layer.folder) if layer.folder else []:
            tensors |= {name.replace("linear", f"dense.{i}", 1): value for name, value in read_tensors(file).items()}
    return tensors


def _prefix(checkpoint: Checkpoint) -> str:
    return "model." if checkpoint.model_type in _NESTED else ""


def _described(scheme: Scheme) -> dict[str, Any]:
    return {"group_size": scheme.group_size, "bits": scheme.bits, "mode": scheme.mode}


def _write(
    checkpoint: Checkpoint, target: Path, tensors: dict[str, mx.array], config: dict[str, Any], repo: str
) -> Path:
    assert checkpoint.folder == checkpoint.root
    target.mkdir(parents=True)
    for file in checkpoint.root.glob("*.json"):
        if file.name != "model.safetensors.index.json":
            shutil.copyfile(file, target / file.name)
    (target / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    mx.save_safetensors(str(target / "model.safetensors"), tensors, metadata={"format": "mlx"})
    base = f"base_model: {repo}\n" if repo else ""
    card = f"---\nlibrary_name: mlx\n{base}tags:\n- mlx\n- sentence-transformers\n---\n\n# {target.name}\n"
    (target / "README.md").write_text(card, encoding="utf-8")
    return target
