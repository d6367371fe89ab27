"""The layout of sentence-transformers: a pipeline in `modules.json`, each module's settings in its own folder.

Source: sentence_transformers 6, and what versions since 0.3 have written. A setting that would change the vectors is
honored, or rejected by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.checkpoints.schemas import PoolingSettings
from akidb_mlx_plugin.errors import ModelNotFoundError

# Flags of sentence-transformers' `Pooling` before version 5.5, in the order in which modes are concatenated.
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
_SUPPORTED = ("Transformer", "StaticEmbedding", "Pooling", "Dense", "Normalize")
# Package of the supported classes: a class of the same name from elsewhere may do something else.
_PACKAGE = "sentence_transformers."
_VECTOR = "sentence_embedding"
# Settings that are read, and settings supported only at the value that changes nothing.
_KNOWN_SETTINGS: Mapping[str, set[str]] = {
    "Pooling": {"pooling_mode", "include_prompt", "word_embedding_dimension", "embedding_dimension", *_POOLING_FLAGS},
    "Dense": {"in_features", "out_features", "bias", "activation_function", "use_residual"},
    "Normalize": set(),
}
_FIXED_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "Pooling": {},
    "Dense": {"module_input_name": _VECTOR, "module_output_name": _VECTOR},
    "Normalize": {"module_input_name": _VECTOR, "module_output_name": _VECTOR},
}


@dataclass(frozen=True)
class Module:
    """One step of the pipeline.

    Attributes:
        kind: "Transformer", "StaticEmbedding", "Pooling", "Dense" or "Normalize".
        folder: folder of its files.
        settings: its own config.json; None if its folder is missing, as in conversions that copied only the root.
    """

    kind: str
    folder: Path
    settings: Mapping[str, Any] | None


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelNotFoundError: unreadable, not JSON, or not an object.
    """
    value = _load_json(file)
    if not isinstance(value, dict):
        raise ModelNotFoundError(f"{file} holds a {type(value).__name__}, not a JSON object")
    return value


def _load_json(file: Path) -> Any:
    try:
        text = file.read_text(encoding="utf-8")
        if text.startswith("version https://git-lfs"):
            raise ModelNotFoundError(
                f"{file} is a Git LFS pointer, not the file itself; run 'git lfs pull' in its folder"
            )
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelNotFoundError(f"{file} cannot be read as JSON: {error}") from error


def list_module_kinds(folder: Path) -> list[str] | None:
    """Return the kinds of a folder's modules, whether supported or not; None if it has no modules.json.

    Raises:
        ModelNotFoundError: it is not a list of modules.
    """
    file = folder / "modules.json"
    if not file.is_file():
        return None
    try:
        kinds = [entry["type"].rpartition(".")[2] for entry in _load_json(file)]
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelNotFoundError(f"{file} cannot be read as a list of modules: {error!r}") from error
    return [kind for kind in kinds if kind not in _IGNORED]


def read_modules(folder: Path) -> list[Module]:
    """Return the pipeline of a folder; empty for a bare checkpoint.

    Raises:
        ModelNotFoundError: unreadable, or with modules, settings or an order that this package does not support.
    """
    file = folder / "modules.json"
    if not file.is_file():
        return []
    entries = _read_entries(file)
    modules = [Module(kind, folder / path, _read_settings(folder / path, kind)) for kind, path in entries]
    for module in modules:
        _check_settings(module)
    kinds = [module.kind for module in modules]
    if "Pooling" in kinds:
        # A Normalize before pooling has no text vector to work on.
        before = kinds.index("Pooling")
        modules = [module for i, module in enumerate(modules) if i > before or module.kind != "Normalize"]
        kinds = [module.kind for module in modules]
    start = ["Transformer", "Pooling"] if kinds[:1] == ["Transformer"] else ["StaticEmbedding"]
    if kinds[: len(start)] != start or set(kinds[len(start) :]) - {"Dense", "Normalize"}:
        raise ModelNotFoundError(
            f"{file} lists the modules {', '.join(kinds) or 'none'}; supported are Transformer and Pooling, or "
            "StaticEmbedding, then any number of Dense and Normalize"
        )
    return modules


def _read_entries(file: Path) -> list[tuple[str, str]]:
    """Return the kind and path of every module that has an effect."""
    try:
        types = [(entry["type"], entry["path"]) for entry in _load_json(file)]
        if any(Path(path).is_absolute() or ".." in Path(path).parts for _, path in types):
            raise ValueError("a module is outside the folder")
        foreign = [name for name, _ in types if not name.startswith(_PACKAGE)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotFoundError(f"{file} cannot be read as a list of modules: {error!r}") from error
    if foreign:
        raise ModelNotFoundError(
            f"{file} names the class {foreign[0]}, which is custom code; this package runs none, and supports "
            "only sentence-transformers' own modules"
        )
    entries = [(name.rpartition(".")[2], path) for name, path in types]
    unknown = sorted({kind for kind, _ in entries} - {*_SUPPORTED, *_IGNORED})
    if unknown:
        raise ModelNotFoundError(f"{file} names the module {', '.join(unknown)}; supported are {', '.join(_SUPPORTED)}")
    return [(kind, path) for kind, path in entries if kind not in _IGNORED]


def _read_settings(folder: Path, kind: str) -> Mapping[str, Any] | None:
    file = folder / "config.json"
    if kind in ("Transformer", "StaticEmbedding"):
        return {}
    if file.is_file():
        return read_json(file)
    return {} if kind == "Normalize" else None


def _check_settings(module: Module) -> None:
    """Check that a module has no setting that this package would ignore."""
    if module.settings is None or module.kind not in _KNOWN_SETTINGS:
        return
    fixed = _FIXED_SETTINGS[module.kind]
    for name, value in module.settings.items():
        if name in _KNOWN_SETTINGS[module.kind] or value is None or value == fixed.get(name, False):
            continue
        what = (
            "has an unsupported input or output"
            if name in fixed
            else "has a setting that this package does not support"
        )
        raise ModelNotFoundError(f"{module.folder / 'config.json'} {what}: {name} = {value!r}")


def pooling_modes(settings: PoolingSettings) -> tuple[str, ...]:
    """Return the modes that a `Pooling` module's settings ask for, in the order of concatenation."""
    named = settings.pooling_mode
    if named is None:
        return tuple(mode for flag, mode in _POOLING_FLAGS.items() if getattr(settings, flag)) or ("mean",)
    return (named,) if isinstance(named, str) else tuple(named)
