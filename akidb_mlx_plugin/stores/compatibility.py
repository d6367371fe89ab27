"""Whether a function's vectors fit those in a collection.

A collection made by the adapters has three values in its metadata, under names that never change. Values read back are
untrusted data: they are compared, never obeyed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from akidb_mlx_plugin.errors import (
    DimensionMismatchError,
    DownloadError,
    EmbeddingError,
    InvalidInputError,
    ModelNotFoundError,
)
from akidb_mlx_plugin.service import EmbeddingService, shared_service
from akidb_mlx_plugin.stores.settings import SETTINGS, config_from_stored, stored_settings
from akidb_mlx_plugin.types import ModelInfo

MODEL_KEY = "akidb_mlx:model"
DIMENSION_KEY = "akidb_mlx:dimension"
FINGERPRINT_KEY = "akidb_mlx:fingerprint"
_PREFIX = "akidb_mlx:"
# The mode of functions that embed nothing; also names their vectors if no model is named.
_USER_PROVIDED = "user_provided"

_REMEDY = (
    "open it with the model and settings it was made with, or move its documents to a new one with 'akidb-mlx reembed'"
)


@dataclass(frozen=True)
class StoredVectors:
    """What a database says about a collection's vectors.

    Attributes:
        label: the collection, as messages call it: "collection 'docs'".
        metadata: the collection's own, with or without the stamp; values may be text, numbers or bytes.
        settings: of our embedding function, as `settings.stored_settings` wrote them; None if it has no such function.
        dimension: what the database itself requires of every vector; 0 if nothing yet.
    """

    label: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] | None = None
    dimension: int = 0


@dataclass(frozen=True)
class _Stamp:
    """The three values; empty or 0 if missing."""

    model: str
    dimension: int
    fingerprint: str


def make_stamp(info: ModelInfo) -> dict[str, str | int]:
    """Return what a new collection's metadata says about its vectors, without unknown values."""
    values: dict[str, str | int] = {
        MODEL_KEY: info.model,
        DIMENSION_KEY: info.dimension,
        FINGERPRINT_KEY: info.fingerprint,
    }
    return {key: value for key, value in values.items() if value}


def without_stamp(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return a collection's metadata without this package's entries."""
    return {key: value for key, value in metadata.items() if not key.startswith(_PREFIX)}


def service_from_stored(settings: Mapping[str, Any]) -> EmbeddingService:
    """Return the service for stored settings, which are not trusted to download a model outside the registry.

    Raises:
        InvalidInputError: settings this version does not know or cannot use.
    """
    return shared_service(config_from_stored(settings), trusted=False)


def check_compatible(stored: StoredVectors, service: EmbeddingService | None) -> int:
    """Check that a function's vectors fit a collection, before anything is embedded; loads no weights.

    Args:
        stored: what the database says.
        service: of the function to check; None if there is none, and the caller gives every vector.
    Returns:
        The length that every vector must have; 0 while it is unknown.
    Raises:
        DimensionMismatchError: another length, or another model; the message names both, and the remedy.
        InvalidInputError: the stored values cannot be used.
    """
    stamp = _read_stamp(stored)
    _check_fixed(stored, stamp)
    held = stored.dimension or stamp.dimension
    info = None if service is None else _describe(service, stored, held)
    if service is None or info is None:
        return held
    model = stamp.model or _settings_model(stored)
    if held and info.dimension and held != info.dimension:
        holds = f"{stored.label} holds vectors of {held} dimensions" + (f" ({model})" if model else "")
        raise DimensionMismatchError(
            f"{holds}, and {info.model} makes {info.dimension}; {_REMEDY}", expected=held, actual=info.dimension
        )
    if not _are_comparable(stored, stamp, service, info):
        raise DimensionMismatchError(
            f"{stored.label} holds vectors of {model or 'another model'} ({_length(held)}), and the function "
            f"is {info.model} ({_length(info.dimension)}), of other weights, prompts or settings"
            f"{_name_differences(stored, service)}: their vectors cannot be compared; {_REMEDY}",
            expected=held or info.dimension,
            actual=info.dimension,
        )
    return held or info.dimension


def has_same_normalization(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether stored settings differ in `normalize` alone and still make the same vectors.

    They do if one spells out what the other leaves to the checkpoint. Nothing outside the registry is downloaded.
    """
    if any(one.get(key) != other.get(key) for key in SETTINGS if key != "normalize"):
        return False
    try:
        return len({service_from_stored(settings).model_info().fingerprint for settings in (one, other)}) == 1
    except EmbeddingError:
        return False


def check_query_vector(label: str, dimension: int, vector: object) -> None:
    """Check that a query vector fits a collection, before the search.

    Args:
        label: the collection, as messages call it.
        dimension: what it must have; 0 for any.
        vector: D numbers.
    Raises:
        DimensionMismatchError: another length.
        InvalidInputError: not a list of finite numbers.
    """
    length = len(as_vector(vector, f"the query vector for {label}"))
    if dimension and length != dimension:
        raise DimensionMismatchError(
            f"{label} holds vectors of {dimension} dimensions, and the query vector has {length}; "
            "make it with the model that the collection was made with",
            expected=dimension,
            actual=length,
        )


def as_vector(vector: object, what: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return numbers of any kind as (D,) float32.

    Args:
        vector: a list, tuple or array.
        what: what messages call it.
    Raises:
        InvalidInputError: not one row of numbers, empty, or not finite as float32.
    """
    try:
        row = np.asarray(vector)
    except ValueError as error:
        raise InvalidInputError(f"{what} is not one row of numbers: {error}") from error
    if row.dtype.kind not in "fiu" or row.ndim != 1:
        raise InvalidInputError(f"{what} is not one row of numbers: {type(vector).__name__}, shape {row.shape}")
    if not row.size:
        raise InvalidInputError(f"{what} is empty")
    # A float64 beyond float32's range becomes infinite here, and is rejected below.
    with np.errstate(over="ignore"):
        row = row.astype(np.float32, copy=False)
    if not np.isfinite(row).all():
        position = int(np.flatnonzero(~np.isfinite(row))[0])
        raise InvalidInputError(f"{what} has a component that is not a finite float32: {row[position]} at {position}")
    return row


def _read_stamp(stored: StoredVectors) -> _Stamp:
    values = {key: stored.metadata.get(key, "") for key in (MODEL_KEY, DIMENSION_KEY, FINGERPRINT_KEY)}
    texts = {
        key: value.decode("utf-8", "replace") if isinstance(value, bytes) else value for key, value in values.items()
    }
    try:
        dimension = int(texts[DIMENSION_KEY] or 0)
    except (TypeError, ValueError):
        dimension = -1
    if dimension < 0:
        raise InvalidInputError(
            f"the metadata of {stored.label} has {DIMENSION_KEY} = {texts[DIMENSION_KEY]!r}, which is not a dimension"
        )
    return _Stamp(str(texts[MODEL_KEY] or ""), dimension, str(texts[FINGERPRINT_KEY] or ""))


def _check_fixed(stored: StoredVectors, stamp: _Stamp) -> None:
    if stored.dimension and stamp.dimension and stored.dimension != stamp.dimension:
        raise DimensionMismatchError(
            f"{stored.label} was made for vectors of {stamp.dimension} dimensions ({stamp.model}), but its first "
            f"write, without this package, had {stored.dimension}, and the database requires that of all others; "
            "make a new one",
            expected=stamp.dimension,
            actual=stored.dimension,
        )


def _describe(service: EmbeddingService, stored: StoredVectors, held: int) -> ModelInfo | None:
    """Describe a function's model; return None if the function is the collection's own and its model is unavailable.

    Such a collection still takes vectors; a text is rejected, with the reason, before any write.
    """
    try:
        return service.model_info()
    except DownloadError:
        if (
            held
            and stored.settings
            and stored_settings(config_from_stored(stored.settings)) == stored_settings(service.config)
        ):
            return None
        raise


def _are_comparable(stored: StoredVectors, stamp: _Stamp, service: EmbeddingService, info: ModelInfo) -> bool:
    """Return whether vectors can be compared: by fingerprint, else by settings; a missing value counts as a match."""
    fingerprint, is_given = stamp.fingerprint, stamp.fingerprint.startswith(f"{_USER_PROVIDED}:")
    if not fingerprint and stored.settings is not None:
        config = config_from_stored(stored.settings)
        if stored_settings(config) == stored_settings(service.config):
            return True
        is_given = config.mode == _USER_PROVIDED
        try:
            # A model may have several names: its short name, its repository, its folder.
            fingerprint = service_from_stored(stored.settings).model_info().fingerprint
        except ModelNotFoundError:
            return _is_moved(stored.settings, stored_settings(service.config))
        except EmbeddingError:
            return False
    if fingerprint and info.fingerprint:
        return fingerprint == info.fingerprint
    return _have_same_name(
        stamp.model or _settings_model(stored), is_given, info.model, service.config.mode == _USER_PROVIDED
    )


def _name_differences(stored: StoredVectors, service: EmbeddingService) -> str:
    """Return which stored settings differ from a function's, in parentheses; empty if none do, or they are unknown."""
    if stored.settings is None:
        return ""
    there, here = stored_settings(config_from_stored(stored.settings)), stored_settings(service.config)
    names = [name for name in here if name != "model" and there.get(name) != here[name]]
    pairs = "; ".join(f"{name} is {there.get(name)!r} there and {here[name]!r} here" for name in names)
    return f" ({pairs})" if pairs else ""


def _is_moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether settings differ only in a folder's location: a missing folder has no weights to compare."""
    models = [str(settings.get("model") or "") for settings in (old, new)]
    is_folder = all(os.path.isabs(model) for model in models)
    others = [
        {**stored_settings(config_from_stored({**settings, "model": None})), "model": None} for settings in (old, new)
    ]
    return is_folder and os.path.basename(models[0]) == os.path.basename(models[1]) and others[0] == others[1]


def _have_same_name(stored: str, is_stored_given: bool, model: str, is_given: bool) -> bool:
    """Return whether names make vectors comparable, where users give some and may not name a model."""
    if not stored or not (is_stored_given or is_given):
        return True
    # A model's vectors are not those that a user provides unnamed, or under another name.
    return stored == model or (is_stored_given and is_given and _USER_PROVIDED in (stored, model))


def _settings_model(stored: StoredVectors) -> str:
    if stored.settings is None:
        return ""
    return str(stored.settings.get("model") or stored.settings.get("mode") or "")


def _length(dimension: int) -> str:
    return f"{dimension} dimensions" if dimension else "unknown dimensions"
