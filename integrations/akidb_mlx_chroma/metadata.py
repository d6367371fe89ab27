"""Metadata as Chroma returns it, and what it would reject, lose or change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from datetime import date, time, timedelta
from enum import Enum
from numbers import Number
from reprlib import Repr
from typing import Any

import numpy as np
from chromadb.api.types import SparseVector

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.types import Document
from akidb_mlx_plugin.validation import check_unicode

# What `akidb_mlx_chroma.recovery` marks its records with.
KEPT_KEY, KEPT_ID_KEY, KEPT_BY_KEY = "akidb_mlx:kept", "akidb_mlx:kept_id", "akidb_mlx:kept_by"
# Chroma's own keys: its server rejects the first two kinds, and never returns the third.
_RESERVED = ("#", "$", "chroma:")
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1
# Chroma writes floats as JSON and reads them with a parser that may be off by one in the last place, once per hop.
_FLOAT_TOLERANCE_ULP = 4
_REMEDIES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    ((date, time), "give a text, value.isoformat(), or a number, value.timestamp()"),
    (np.datetime64, "give str(value)"),
    (timedelta, "give a number, value.total_seconds()"),
    (np.timedelta64, "give a number, value / np.timedelta64(1, 's')"),
    (Enum, "give value.value"),
    ((bytes, bytearray, memoryview), "decode it, or give base64.b64encode(value).decode()"),
    (Mapping, "give each entry a key of its own, or json.dumps(value)"),
    (Set, "give sorted(value)"),
    (Number, "give str(value), or float(value) where rounding does no harm"),
    (np.ma.MaskedArray, "fill what is masked, value.filled(...), or leave it out"),
)
_OTHERWISE = "Chroma keeps strings, numbers, booleans and lists of one of these; give str(value)"


def plain_metadata(document: Document) -> dict[str, Any] | None:
    """Return a document's metadata as Chroma returns it, in plain Python types, or None if it has none.

    Raises:
        InvalidInputError: a key or value that Chroma would reject, lose or change; it names both, and the remedy.
    """
    if not document.metadata:
        return None
    plain: dict[str, Any] = {}
    for key, value in document.metadata.items():
        try:
            check_key(key)
            check_unicode(key, f"the key {key!r}")
            plain[str.__str__(key)] = _plain_value(value)
        except ValueError as error:
            raise InvalidInputError(
                f"the metadata of document {document.id!r} cannot be stored: {_show(key)} is {_show(value)}: {error}"
            ) from error
    return plain


def check_key(key: str) -> None:
    """Raise InvalidInputError for a metadata key that is reserved or that Chroma would reject."""
    if not key or key.startswith(_RESERVED):
        raise InvalidInputError(
            f"Chroma does not accept keys that are empty or begin with '#', '$' or 'chroma:', got {key!r}; rename it"
        )
    if key in (KEPT_KEY, KEPT_ID_KEY, KEPT_BY_KEY):
        raise InvalidInputError(f"the key {key!r} is this package's own; rename it")


def is_same_metadata(wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    """Return whether two documents' metadata is equal, types included; a null counts as absent."""
    one, other = ({key: value for key, value in m.items() if value is not None} for m in (wanted, stored))
    return one.keys() == other.keys() and all(_is_same(value, other[key]) for key, value in one.items())


def has_sparse_vector(metadata: Mapping[str, Any] | None) -> bool:
    """Return whether any value is a sparse vector."""
    return any(isinstance(value, SparseVector) for value in (metadata or {}).values())


def _plain_value(value: Any) -> Any:
    """Return a metadata value as Chroma returns it.

    Raises:
        ValueError: it would not be read back equal; says why, and what to give instead.
    """
    if value is None:
        return None
    if isinstance(value, SparseVector):
        for number in value.values:
            _plain_scalar(number)
        return value
    is_array = isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)
    if is_array and value.ndim == 0:
        return _plain_scalar(value[()])
    if is_array or isinstance(value, list | tuple):
        return _plain_list(value)
    return _plain_scalar(value)


def _plain_list(values: Sequence[Any] | np.ndarray[Any, Any]) -> list[Any]:
    if not len(values):
        raise ValueError("Chroma does not keep empty lists; leave the key out")
    plain = []
    for item in values:
        if item is None or isinstance(item, list | tuple | Mapping) or (isinstance(item, np.ndarray) and item.ndim):
            raise ValueError(f"Chroma does not keep {_kind(item)} in a list; give json.dumps(value)")
        plain.append(_plain_scalar(item))
    kinds = sorted({type(item).__name__ for item in plain})
    if len(kinds) > 1:
        raise ValueError(
            f"Chroma keeps only lists of one type, and this one has {' and '.join(kinds)}; convert its items"
        )
    return plain


def _plain_scalar(value: Any) -> bool | int | float | str:
    """Return the plain value of subclasses and NumPy types: `http.HTTPStatus.OK` is 200 to a database."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, str):
        check_unicode(value, "the text")
        return str.__str__(value)
    # The base class's own methods: a subclass may override them.
    if isinstance(value, int | np.integer) and not isinstance(value, np.timedelta64):
        whole = int.__int__(value) if isinstance(value, int) else int(value)
        if not _SMALLEST <= whole <= _LARGEST:
            raise ValueError("Chroma keeps 64-bit integers; give it as a string")
        return whole
    if isinstance(value, float | np.floating):
        number = float.__float__(value) if isinstance(value, float) else float(value)
        if not math.isfinite(number):
            raise ValueError("Chroma keeps finite numbers only; leave it out")
        if not isinstance(value, float) and number != value:
            raise ValueError("Chroma keeps 64-bit floats; give float(value)")
        return number
    remedy = next((remedy for kinds, remedy in _REMEDIES if isinstance(value, kinds)), _OTHERWISE)
    raise ValueError(f"Chroma does not keep {_kind(value)}; {remedy}")


def _is_same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, float):
        return bool(one == other or abs(one - other) <= _FLOAT_TOLERANCE_ULP * math.ulp(one))
    return bool(one == other)


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _show(value: object) -> str:
    """Return a value for a message, whatever its size and depth."""
    if isinstance(value, int) and not isinstance(value, bool) and int.bit_length(value) > 1000:
        return f"an integer of {int.bit_length(value)} bits"
    short = Repr()
    short.maxstring = short.maxother = 60
    try:
        return short.repr(value)
    except Exception:
        # An unknown class, or integers in a list that are too long for Python to print.
        return f"a value of type {type(value).__name__}"
