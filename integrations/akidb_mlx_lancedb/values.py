"""Metadata values on their way into Arrow columns and JSON: each is read back equal, or is rejected."""

from __future__ import annotations

import datetime as dt
import json
import math
import operator
import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from akidb_mlx_lancedb.temporal import count_units
from akidb_mlx_plugin.validation import check_unicode

_LOWEST_JSON_INTEGER, _HIGHEST_JSON_INTEGER = -(2**63), 2**64 - 1
_DEEPEST_JSON = 128
_FLOATS: dict[Any, Any] = {pa.float16(): np.float16, pa.float32(): np.float32, pa.float64(): np.float64}


def is_text(column_type: pa.DataType) -> bool:
    """Return whether a column holds strings."""
    return bool(
        pa.types.is_string(column_type) or pa.types.is_large_string(column_type) or pa.types.is_string_view(column_type)
    )


def make_array(values: list[Any], field: pa.Field) -> pa.Array:
    """Return checked values as an Arrow array.

    Args:
        values: as for `exact_value`; None is a null.
        field: the column.
    """
    column_type = field.type
    return pa.array([None if value is None else exact_value(value, field) for value in values], column_type)


def check_value(value: Any, field: pa.Field) -> None:
    """Raise ValueError, or what Arrow raises, for a value that a column would change; as `make_array` would."""
    kind = field.type
    if pa.types.is_primitive(kind) or is_text(kind):
        exact_value(value, field)
    else:
        make_array([value], field)


def exact_value(value: Any, field: pa.Field) -> Any:
    """Return a value in a form that Arrow converts to an equal one.

    Floating-point columns keep the nearest number they can hold; everything else is read back unchanged.

    Args:
        value: of any type.
        field: a column, or part of one: a list's items, a struct's member.
    Raises:
        ValueError: the column cannot hold it; the message says what would change, and what to give.
    """
    # "Not a time", numpy's and pandas' missing value; nothing else of these types differs from itself.
    if isinstance(value, np.datetime64 | np.timedelta64 | dt.date) and value != value:
        value = None
    if value is None:
        if not field.nullable:
            raise ValueError(f"{field.name!r} takes no null")
        return None
    kind = field.type
    if is_text(kind):
        return _exact_text(value)
    if pa.types.is_boolean(kind):
        return _exact_boolean(value)
    if pa.types.is_integer(kind):
        return _exact_integer(value, kind)
    if kind in _FLOATS:
        return _exact_float(value, kind)
    if pa.types.is_temporal(kind):
        return count_units(value, kind)
    if pa.types.is_nested(kind):
        return _exact_nested(value, kind)
    if pa.types.is_dictionary(kind):
        return exact_value(value, field.with_type(kind.value_type))
    return _exact_other(value, kind)


def check_json(value: Any, depth: int = 0) -> None:
    """Check that a value reads back equal from JSON.

    Raises:
        ValueError: it would change: no JSON type, a key that is not a string, a number that is not finite or beyond
            64 bits.
    """
    if depth > _DEEPEST_JSON:
        raise ValueError(f"it is nested more than {_DEEPEST_JSON} levels deep")
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biufU":
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        check_unicode(value, "it")
    elif isinstance(value, int):
        if not _LOWEST_JSON_INTEGER <= int(value) <= _HIGHEST_JSON_INTEGER:
            raise ValueError(f"{int(value)} is beyond 64 bits; give it as a string")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value!r} is not a JSON number; leave it out")
    elif isinstance(value, Mapping):
        if unusable := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"the key {unusable[0]!r} would become a string; give it as a string")
        for key, item in value.items():
            check_unicode(key, "it")
            check_json(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            check_json(item, depth + 1)
    else:
        raise ValueError(f"{type(value).__name__} is not a JSON type; give a string, number, list or mapping")


def dump_json(value: Any) -> str:
    """Return a checked value as JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_to_json_type)


def _to_json_type(value: Any) -> Any:
    """Convert a mapping, or NumPy's numbers and arrays, to types that `json` knows."""
    return dict(value) if isinstance(value, Mapping) else value.tolist()


def _exact_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_name(value)} is not a string; give str(value)")
    check_unicode(value, "it")
    # The value of an enum member, whose str() is its name.
    return str.__str__(value)


def _exact_boolean(value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{_name(value)} is not a boolean; give True or False")
    return bool(value)


def _exact_integer(value: Any, kind: pa.DataType) -> int:
    number = _number(value)
    lowest = -(2 ** (kind.bit_width - 1)) if pa.types.is_signed_integer(kind) else 0
    highest = 2 ** (kind.bit_width - (1 if lowest else 0)) - 1
    # A comparison is cheap, while int() of a Decimal may write out a billion digits. A NaN is never in range.
    if not (number == number and lowest <= number <= highest):
        raise ValueError(f"{kind} holds {lowest} to {highest}; use a wider column")
    if int(number) != number:
        raise ValueError("it is not an integer, and would be rounded; round it, or use a float column")
    return int(number)


def _exact_float(value: Any, kind: pa.DataType) -> Any:
    number = _number(value)
    try:
        with np.errstate(over="ignore", under="ignore"):
            kept = _FLOATS[kind](float(number))
    except OverflowError:
        kept = _FLOATS[kind](math.inf)
    if isinstance(number, float):
        # A narrower column may round, as requested, but must not lose the number.
        is_kept = bool(np.isfinite(kept) == math.isfinite(number)) and (kept != 0 or number == 0)
    else:
        is_kept = math.isfinite(kept) and type(number)(float(kept)) == number
    if not is_kept:
        raise ValueError(f"{kind} cannot represent it exactly, and would store {kept}; use a wider column")
    return kept if kind == pa.float16() else float(kept)


def _number(value: Any) -> Any:
    """Return an int, float or Decimal without any subclass."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(operator.index(value))
    if isinstance(value, float | np.float16 | np.float32):
        return float(value)
    if isinstance(value, Decimal):
        return value
    if isinstance(value, np.longdouble) and (float(value) == value or value != value):
        return float(value)
    raise ValueError(f"{_name(value)} is not a number; convert it")


def _exact_nested(value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_struct(kind):
        return _exact_struct(value, kind)
    if pa.types.is_map(kind):
        pairs = list(value.items()) if isinstance(value, Mapping) else _items(value)
        if any(not isinstance(pair, list | tuple) or len(pair) != 2 for pair in pairs):
            raise ValueError("a map is given as a mapping, or as a list of pairs")
        return [(exact_value(key, kind.key_field), exact_value(item, kind.item_field)) for key, item in pairs]
    if not hasattr(kind, "value_field"):
        return _exact_other(value, kind)
    items = _items(value)
    if pa.types.is_fixed_size_list(kind) and len(items) != kind.list_size:
        raise ValueError(f"it has {len(items)} items, and the column holds {kind.list_size}")
    return [exact_value(item, kind.value_field) for item in items]


def _exact_struct(value: Any, kind: pa.DataType) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{_name(value)} is not a mapping of the members {[member.name for member in kind]}")
    names = {member.name for member in kind}
    if unknown := [key for key in value if key not in names]:
        raise ValueError(f"the column has no member {unknown[0]!r}, and would drop it; leave it out")
    return {member.name: exact_value(value.get(member.name), member) for member in kind}


def _items(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray) and value.ndim:
        return list(value)
    if not isinstance(value, list | tuple):
        raise ValueError(f"{_name(value)} is not a list; give one")
    return list(value)


def _exact_other(value: Any, kind: pa.DataType) -> Any:
    """Return a value of a rarer type, which Arrow must convert to an equal one."""
    if isinstance(kind, pa.JsonType):
        parsed = json.loads(_exact_text(value))
        check_json(parsed)
        return dump_json(parsed)
    if pa.types.is_decimal(kind) and not isinstance(value, Decimal):
        number = _number(value)
        value = Decimal(number) if isinstance(number, int) else value
    given = bytes(value) if isinstance(value, bytearray | memoryview) else value
    # Arrow before 26 takes only a UUID's bytes.
    given = given.bytes if isinstance(given, uuid.UUID) else given
    kept = pa.array([given], kind)[0].as_py()
    if kept != value:
        raise ValueError(f"the column would keep {kept!r:.80}; convert it, or use another type of column")
    return given


def _name(value: Any) -> str:
    return type(value).__name__
