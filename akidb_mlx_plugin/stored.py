"""What a database keeps of an embedding function: the settings that select the vector space, and nothing else.

They are JSON, written into Chroma's collection configuration and LanceDB's table metadata. What belongs to a machine
(cache, device, batch size) is not stored: it comes from that machine's configuration when the collection is reopened.
Whatever is read back is data from a stranger, and is checked like any other input.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.registry import list_models

# Name in the database -> section and key of the configuration in mode "mlx".
_MLX_KEYS = ("dimension", "normalize", "query_prompt", "document_prompt", "query_task", "document_task")
SETTINGS = ("model", "mode", *_MLX_KEYS)


def settings_of(config: EmbeddingConfig) -> dict[str, Any]:
    """Return what is stored of a configuration: JSON values, every one spelled out.

    The model's default dimension is written down where it is known without a download, so that another default in a
    later version changes no existing collection.
    """
    if config.mode == "mlx":
        settings = {"model": _lasting_name(config.mlx.model), "mode": "mlx"}
        return settings | {key: getattr(config.mlx, key) for key in _MLX_KEYS} | {"dimension": _dimension(config)}
    section = config.mock if config.mode == "mock" else config.user_provided
    model = None if config.mode == "mock" else config.user_provided.model
    unused = dict.fromkeys(_MLX_KEYS)
    return {"model": model, "mode": config.mode, **unused, "dimension": section.dimension, "normalize": True}


def config_of(settings: Mapping[str, Any], machine: Mapping[str, Any] | None = None) -> EmbeddingConfig:
    """Return the configuration for stored settings, with this machine's values for what is not stored.

    Args:
        settings: as `settings_of` makes them.
        machine: values of the caller's own for what is not stored, such as the device.
    Raises:
        InvalidInputError: an unknown setting, or a value that cannot be used.
    """
    check_settings(settings)
    mode = settings.get("mode", "mlx")
    mlx = {key: settings[key] for key in _MLX_KEYS if key in settings} if mode == "mlx" else {}
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
    """Refuse settings this version does not know, before anything is made from them.

    Raises:
        InvalidInputError: not a mapping, or a key that is none of `SETTINGS`.
    """
    if not isinstance(settings, Mapping):
        raise InvalidInputError(f"stored settings must be a mapping, got {type(settings).__name__}")
    unknown = [str(key) for key in settings if key not in SETTINGS]
    if unknown:
        raise InvalidInputError(
            f"unknown embedding settings {', '.join(unknown)}; this version knows {', '.join(SETTINGS)}. "
            "If they are stored in a database, upgrade akidb-mlx-plugin: a newer one wrote them"
        )


def check_same_space(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse a change of settings that would mix two vector spaces in one collection.

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


def _dimension(config: EmbeddingConfig) -> int | None:
    """Return the length of the vectors where the registry or the user names it; looks at no file, so never fails."""
    if config.mlx.dimension is not None:
        return config.mlx.dimension
    known = (spec.dimension for spec in list_models() if config.mlx.model in (spec.name, spec.repo))
    return next(known, None)


def _lasting_name(model: str) -> str:
    """Return a relative folder as an absolute one: who reopens the database may stand elsewhere."""
    if model in (".", "..") or model.startswith(("./", "../")):
        with suppress(OSError):  # the current folder has been removed
            return os.path.abspath(model)
    return model
