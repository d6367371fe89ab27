"""The layout of sentence-transformers: a pipeline in `modules.json`, each module's settings in a folder of its own.

Source: sentence_transformers 6, and what versions since 0.3 have written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.checkpoints.safetensors import TensorInfo, find_weight_files, read_header
from akidb_mlx_plugin.errors import ModelNotFoundError

# sentence-transformers `Pooling` before version 5.5: the order is that in which several modes are concatenated.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Dropout does nothing outside training.
_IGNORED = {"Dropout"}


@dataclass(frozen=True)
class Module:
    """One step of the pipeline.

    Attributes:
        kind: "Transformer", "Pooling", "Dense" or "Normalize".
        folder: where its files lie.
        settings: its own config.json; empty for the transformer and where there is none.
    """

    kind: str
    folder: Path
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class DenseLayer:
    """A `Dense` module behind the pooling.

    Attributes:
        folder: where its weights lie; None: inside the model's own files as `dense.{i}.*`.
        in_features, out_features: its sides.
        bias: whether it has one.
        activation: last part of the torch class's name in lower case, such as "identity" or "tanh".
        residual: whether its input is added to its output.
    """

    folder: Path | None
    in_features: int
    out_features: int
    bias: bool = False
    activation: str = "identity"
    residual: bool = False


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelNotFoundError: unreadable, not JSON, or not an object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelNotFoundError(f"{file} holds a {type(value).__name__}, not a JSON object")
    return value


def read_modules(folder: Path) -> list[Module]:
    """Return the pipeline of a folder, or nothing for a bare checkpoint.

    Raises:
        ModelNotFoundError: unreadable, or a pipeline of other modules or another order than this package computes.
    """
    file = folder / "modules.json"
    if not file.is_file():
        return []
    try:
        entries = [(entry["type"].rpartition(".")[2], entry["path"]) for entry in json.loads(file.read_text("utf-8"))]
        if any(Path(path).is_absolute() or ".." in Path(path).parts for _, path in entries):
            raise ValueError("a module lies outside")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotFoundError(f"{file} cannot be read as a list of modules: {error!r}") from error
    entries = [(kind, path) for kind, path in entries if kind not in _IGNORED]
    kinds = [kind for kind, _ in entries]
    unknown = sorted(set(kinds) - {"Transformer", "Pooling", "Dense", "Normalize"})
    if unknown:
        raise ModelNotFoundError(
            f"{file} names the module {', '.join(unknown)}; supported are Transformer, Pooling, Dense and Normalize"
        )
    order = ["Transformer", "Pooling", *["Dense"] * kinds.count("Dense")]
    if kinds not in (order, [*order, "Normalize"]):
        raise ModelNotFoundError(
            f"{file} orders its modules {', '.join(kinds)}; supported is Transformer, Pooling, any number of Dense, "
            "and perhaps Normalize"
        )
    modules = [Module(kind, folder / path, _settings(folder / path, kind)) for kind, path in entries]
    for module in modules:
        if module.settings.get("module_input_name", "sentence_embedding") != "sentence_embedding":
            raise ModelNotFoundError(f"{module.folder} works on tokens; this package makes one vector per text")
    return modules


def _settings(folder: Path, kind: str) -> Mapping[str, Any]:
    file = folder / "config.json"
    if kind == "Transformer" or (kind == "Normalize" and not file.is_file()):
        return {}
    return read_json(file)


def pooling_modes(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the modes that a `Pooling` module's settings ask for, in the order of concatenation."""
    named = settings.get("pooling_mode")
    if named is None:
        return tuple(mode for flag, mode in _POOLING_FLAGS.items() if settings.get(flag)) or ("mean",)
    return (named,) if isinstance(named, str) else tuple(named)


def read_transformer_settings(folder: Path) -> dict[str, Any]:
    """Return `sentence_bert_config.json` (or its `sentence_*_config.json` kin), which lies beside the transformer."""
    for file in sorted(folder.glob("sentence_*_config.json")):
        return read_json(file)
    return {}


def dense_layers(modules: Sequence[Module]) -> tuple[DenseLayer, ...]:
    """Return the dense layers of a pipeline.

    Raises:
        ModelNotFoundError: one does not say its sides.
    """
    layers = []
    for module in modules:
        if module.kind != "Dense":
            continue
        settings = module.settings
        try:
            sides = int(settings["in_features"]), int(settings["out_features"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelNotFoundError(f"{module.folder / 'config.json'} has no in_features or out_features") from error
        layers.append(
            DenseLayer(
                module.folder,
                *sides,
                bias=bool(settings.get("bias", True)),
                activation=str(settings.get("activation_function", "tanh")).rpartition(".")[2].lower(),
                residual=bool(settings.get("use_residual", False)),
            )
        )
    return tuple(layers)


def dense_inside(folder: Path, modules: Sequence[Module], width: int) -> tuple[DenseLayer, ...]:
    """Return the dense layers whose weights lie in the model's own files, as MLX conversions of EmbeddingGemma do.

    Args:
        folder: of the encoder.
        modules: their settings, where the conversion has kept them.
        width: of the pooled vectors.
    """
    try:
        headers = [read_header(file) for file in find_weight_files(folder)]
    except ModelNotFoundError:
        # Described, not loaded: without its weights a checkpoint has no layers inside.
        return ()
    found: dict[str, TensorInfo] = {name: info for header in headers for name, info in header.items()}
    inside = [name for name in found if re.fullmatch(r"dense\.\d+\.weight", name)]
    described = dense_layers(modules)
    layers = []
    for i in range(len(inside)):
        weight = found.get(f"dense.{i}.weight")
        if weight is None:
            raise ModelNotFoundError(f"{folder} has the dense layers {', '.join(sorted(inside))}, but no dense.{i}")
        settings = described[i] if i < len(described) else DenseLayer(None, width, weight.shape[0])
        layer = replace(
            settings, folder=None, in_features=width, out_features=weight.shape[0], bias=f"dense.{i}.bias" in found
        )
        layers.append(layer)
        width = layer.out_features
    return tuple(layers)
