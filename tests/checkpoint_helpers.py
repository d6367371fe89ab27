"""Checkpoint folders made from the golden ones, rearranged as others publish them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from golden_models import GOLDEN

from akidb_mlx_plugin import Embedder
from akidb_mlx_plugin.types import Vector

TEXTS = ("boil the water", "the stone bridge over the river in winter", "a")


def copy_golden(name: str, folder: Path) -> Path:
    shutil.copytree(GOLDEN / name / "model", folder)
    return folder


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


def change(file: Path, **changes: Any) -> None:
    write(file, {**(json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}), **changes})


def pipeline(folder: Path, *kinds: str, package: str = "sentence_transformers.models") -> None:
    """Write modules.json as sentence-transformers did for years."""
    paths = ["" if kind == "Transformer" else f"{i}_{kind}" for i, kind in enumerate(kinds)]
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write(folder / "modules.json", entries)


def front_matter(folder: Path, **facts: Any) -> None:
    lines = [f"{key}: {json.dumps(value)}" for key, value in facts.items()]
    (folder / "README.md").write_text("\n".join(["---", *lines, "---", "", "# A model", ""]), encoding="utf-8")


def add_dense(folder: Path, index: int, sides: tuple[int, int], **settings: Any) -> mx.array:
    """Add a dense layer without a bias; returns its matrix."""
    weight = mx.random.normal((sides[1], sides[0]), key=mx.random.key(index)) * 0.3
    place = folder / f"{index}_Dense"
    activation = "torch.nn.modules.linear.Identity"
    write(
        place / "config.json",
        {"in_features": sides[0], "out_features": sides[1], "bias": False, "activation_function": activation}
        | settings,
    )
    mx.save_safetensors(str(place / "model.safetensors"), {"linear.weight": weight})
    return weight


def embed(folder: Path | str, texts: tuple[str, ...] = TEXTS, **arguments: Any) -> Vector:
    with Embedder.load(folder, device="cpu") as embedder:
        return embedder.embed(texts, **arguments).embeddings


def cosine(a: Vector, b: Vector) -> float:
    """Return the least cosine between rows."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    return float(np.min(np.sum(unit[0] * unit[1], axis=1)))
