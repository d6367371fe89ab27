"""What a database stores about an embedding function: the settings that determine its vectors, and nothing else.

They are JSON, written into Chroma's collection configuration and LanceDB's table metadata. Settings of a machine
(cache, device, batch size) are not stored: they come from its own configuration when the collection is reopened.
Settings read back are untrusted data, and are checked like any other input.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from reprlib import Repr
from typing import Any, get_args

from pydantic import ValidationError

from akidb_mlx_plugin.config import EmbeddingConfig, MLXConfig, Mode
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.hub.registry import ModelSpec, list_models

# Name in the database -> section and key of the configuration in mode "mlx".
_MLX_KEYS = ("dimension", "normalize", "pooling", "query_prompt", "document_prompt", "query_task", "document_task")
SETTINGS = ("model", "mode", *_MLX_KEYS)
_LONGEST_VECTOR = 2**20
# Untrusted values may be of any size and depth.
_SHORT = Repr()


def stored_settings(config: EmbeddingConfig) -> dict[str, Any]:
    """Return a configuration's stored settings: JSON values, every one spelled out.

    The model's default dimension and normalization are written down if they are known without a download, so that a
    later version's defaults change no existing collection. Otherwise None stands for what the checkpoint says; the
    collection's fingerprint detects if that changes.
    """
    if config.mode == "mlx":
        settings = {"model": _lasting_name(config.mlx.model), "mode": "mlx"}
        known = {"dimension": _dimension(config), "normalize": _normalize(config)}
        return settings | {key: getattr(config.mlx, key) for key in _MLX_KEYS} | known
    section = config.mock if config.mode == "mock" else config.user_provided
    model = None if config.mode == "mock" else config.user_provided.model
    unused = dict.fromkeys(_MLX_KEYS)
    return {"model": model, "mode": config.mode, **unused, "dimension": section.dimension, "normalize": True}


def config_from_stored(
    settings: Mapping[str, Any], machine: Mapping[str, Any] | None = None, *, stored: bool = True
) -> EmbeddingConfig:
    """Return the configuration for stored settings, with this machine's values for what is not stored.

    Args:
        settings: as `stored_settings` returns them.
        machine: the caller's values for what is not stored, such as the device.
        stored: whether they come from a database. It may be older than the setting `pooling`, which is then None,
            whatever this machine's environment says.
    Raises:
        InvalidInputError: an unknown setting, or a value that cannot be used.
    """
    check_settings(settings)
    mode = settings.get("mode", "mlx")
    mlx = {key: settings[key] for key in _MLX_KEYS if key in settings} if mode == "mlx" else {}
    if mode == "mlx" and stored:
        mlx.setdefault("pooling", None)
    if mode == "mlx" and settings.get("model") is not None:
        mlx["model"] = settings["model"]
    given = {key: value for key, value in (machine or {}).items() if value is not None}
    sections: dict[str, dict[str, Any]] = {"mlx": {**mlx, **given}}
    if mode == "mock" and settings.get("dimension") is not None:
        sections["mock"] = {"dimension": settings["dimension"]}
    if mode == "user_provided":
        sections["user_provided"] = {key: settings.get(key) for key in ("model", "dimension")}
    return EmbeddingConfig.load(overrides={"mode": mode, **sections})


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check that this version knows all settings, before anything is made from them.

    Raises:
        InvalidInputError: not a mapping, a key that is not in `SETTINGS`, or a value of another type.
    """
    if not isinstance(settings, Mapping):
        raise InvalidInputError(f"stored settings must be a mapping, got {type(settings).__name__}")
    unknown = [str(key) for key in settings if key not in SETTINGS]
    if unknown:
        raise InvalidInputError(
            f"unknown embedding settings {', '.join(unknown)}; this version knows {', '.join(SETTINGS)}. "
            "If they are stored in a database, upgrade akidb-mlx-plugin: a newer one wrote them"
        )
    _check_types(settings)


def check_same_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Check that a change of settings keeps the vectors of one collection comparable.

    Raises:
        InvalidInputError: it names each setting with both values.
    """
    changed = [key for key in SETTINGS if old.get(key) != new.get(key)]
    if changed:
        changes = "; ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed)
        raise InvalidInputError(
            f"this would mix two vector spaces in one collection ({changes}); "
            "make a new collection, and move the documents with `akidb-mlx reembed`"
        )


def _check_types(settings: Mapping[str, Any]) -> None:
    """Check the values, without looking at the environment.

    Chroma takes an error here to mean that the function cannot be stored, and silently stores none.
    """
    if (mode := settings.get("mode", "mlx")) not in get_args(Mode):
        raise InvalidInputError(f"stored setting mode = {_SHORT.repr(mode)}: it is one of {', '.join(get_args(Mode))}")
    given = {key: value for key, value in settings.items() if key != "mode" and value is not None}
    try:
        MLXConfig.model_validate(given)
    except ValidationError as error:
        key = error.errors()[0]["loc"][0]
        fault = error.errors(include_input=False)[0]["msg"]
        raise InvalidInputError(f"stored setting {key} = {_SHORT.repr(given[str(key)])}: {fault.lower()}") from error
    if given.get("dimension", 0) > _LONGEST_VECTOR:
        raise InvalidInputError(f"stored setting dimension: no vectors have more than {_LONGEST_VECTOR} components")


def _dimension(config: EmbeddingConfig) -> int | None:
    """Return the length of the vectors if the registry or the user names it; reads no file, so it never fails."""
    if config.mlx.dimension is not None:
        return config.mlx.dimension
    spec = _spec(config)
    # The registry's dimension is for a single pooling mode.
    return spec.dimension if spec and "+" not in (config.mlx.pooling or "") else None


def _normalize(config: EmbeddingConfig) -> bool | None:
    """Return whether vectors get unit length, if the user or the registry, whose models all do, says so."""
    return True if config.mlx.normalize is None and _spec(config) else config.mlx.normalize


def _spec(config: EmbeddingConfig) -> ModelSpec | None:
    return next((spec for spec in list_models() if config.mlx.model in (spec.name, spec.repo)), None)


def _lasting_name(model: str) -> str:
    """Make a relative folder absolute: the database may be reopened from another folder."""
    if model in (".", "..") or model.startswith(("./", "../")):
        with suppress(OSError):  # the current folder has been removed
            return os.path.abspath(model)
    return model
