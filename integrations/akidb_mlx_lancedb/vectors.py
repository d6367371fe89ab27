"""The vector column: which it is, whether it can hold the vectors, and how they are written."""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import pyarrow as pa

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.stores.compatibility import as_vector
from akidb_mlx_plugin.types import Vector


def find_vector_column(label: str, schema: pa.Schema, taken: Set[str]) -> str:
    """Return the column "vector", else the only one that may hold vectors; other functions' columns are taken.

    Raises:
        InvalidInputError: none, or several.
    """
    names = [field.name for field in schema if _is_vector(field.type) and field.name not in taken]
    if "vector" in schema.names and "vector" not in taken:
        return "vector"
    if len(names) != 1:
        listed = f" ({', '.join(names)})" if names else ""
        raise InvalidInputError(
            f"{label} has {len(names)} columns that may hold vectors{listed}, and no embedding function that names "
            "one; choose it with vector="
        )
    return str(names[0])


def check_vector_column(label: str, field: pa.Field) -> None:
    """Raise InvalidInputError for a column that cannot hold floating-point vectors."""
    if not _is_vector(field.type):
        raise InvalidInputError(
            f"column {field.name!r} of {label} holds {field.type}, which cannot keep a model's vectors; make it "
            "pa.list_(pa.float32(), width), or name another with vector="
        )


def with_width(field: pa.Field, width: int) -> pa.Field:
    """Give a vector column a width, without which LanceDB cannot search it."""
    if pa.types.is_fixed_size_list(field.type):
        return field
    return field.with_type(pa.list_(field.type.value_type, width))


def reject_overflow(vector: object, field: pa.Field, what: str) -> None:
    """Raise InvalidInputError for numbers beyond a float16 column's range."""
    if field.type.value_type == pa.float16():
        _as_column(as_vector(vector, what), field, what)


def as_stored(vector: Vector, field: pa.Field) -> Vector:
    """Return a vector as read back from its column."""
    return _as_column(vector, field, "the vector").astype(np.float32)


def vector_array(vectors: Vector, field: pa.Field) -> pa.Array:
    """Return (N, D) float32 as a column.

    Raises:
        InvalidInputError: a component is beyond the column's range.
    """
    values = pa.array(_as_column(vectors, field, "a vector").ravel())
    if pa.types.is_fixed_size_list(field.type):
        return pa.FixedSizeListArray.from_arrays(values, type=field.type)
    offsets = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1])
    return pa.ListArray.from_arrays(offsets, values).cast(field.type)


def _as_column(vectors: Vector, field: pa.Field, what: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        converted = vectors.astype(field.type.value_type.to_pandas_dtype(), copy=False)
    if not np.isfinite(converted).all():
        largest = float(np.abs(vectors).max())
        raise InvalidInputError(
            f"{what} has a component of {largest:g}, and column {field.name!r} of {field.type} keeps less; use a "
            "column of float32, or vectors of unit length"
        )
    return converted


def _is_vector(column_type: pa.DataType) -> bool:
    is_list = pa.types.is_fixed_size_list(column_type) or pa.types.is_list(column_type)
    return bool(is_list and pa.types.is_floating(column_type.value_type))
