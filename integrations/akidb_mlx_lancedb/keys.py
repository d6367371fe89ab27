"""The key column: document ids are strings, and the column's values may be numbers or UUIDs."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from akidb_mlx_lancedb.values import exact_value, is_text


def is_key_type(column_type: pa.DataType) -> bool:
    """Return whether a column can be the key."""
    return is_text(column_type) or bool(pa.types.is_integer(column_type)) or _is_uuid(column_type)


def make_key(id_: str, column_type: pa.DataType) -> Any:
    """Return a document's id as the key column holds it.

    Raises:
        ValueError: a spelling that would not be read back.
    """
    if is_text(column_type):
        return str.__str__(id_)
    if _is_uuid(column_type):
        try:
            key = uuid.UUID(id_)
        except ValueError:
            key = None
        if key is None or str(key) != id_:
            raise ValueError("an id there is a UUID in lower case, such as '00000000-0000-4000-8000-000000000000'")
        return key.bytes
    try:
        number = int(id_)
    except ValueError:
        number = None
    if number is None or str(number) != id_:
        raise ValueError("an id there is an integer, such as '17'")
    return exact_value(number, pa.field("id", column_type))


def key_array(ids: Sequence[str], column_type: pa.DataType) -> pa.Array:
    """Return ids as an Arrow array of the column's type."""
    return pa.array([make_key(id_, column_type) for id_ in ids], column_type)


def key_literal(id_: str, column_type: pa.DataType) -> str:
    """Return an id as SQL."""
    key = make_key(id_, column_type)
    if isinstance(key, bytes):
        return f"X'{key.hex()}'"
    return str(key) if isinstance(key, int) else "'" + key.replace("'", "''") + "'"


def _is_uuid(column_type: pa.DataType) -> bool:
    return isinstance(column_type, pa.UuidType)
