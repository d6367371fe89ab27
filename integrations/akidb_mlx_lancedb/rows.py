"""A table's rows as metadata: copied from table to table in Arrow, and compared to the last bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_COUNTED = {
    pa.float16(): pa.int16(),
    pa.float32(): pa.int32(),
    pa.float64(): pa.int64(),
    pa.date32(): pa.int32(),
    pa.date64(): pa.int64(),
}


class Page:
    """Rows read together."""

    def __init__(self, rows: pa.Table) -> None:
        """Store the rows, in one chunk."""
        self.rows = rows.combine_chunks()

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    @cached_property
    def _bits(self) -> dict[str, pa.Array]:
        """Columns that compare by their bits, so that a NaN equals itself."""
        return {name: _as_bits(_one_chunk(self.rows[name])) for name in self.rows.schema.names}

    def value(self, name: str, index: int) -> pa.Array:
        """Return one value of a column, as an array of bits."""
        return self._bits[name].slice(index, 1)


class Row(Mapping[str, Any]):
    """One row; values become Python objects only on access, because Arrow has types that Python lacks."""

    def __init__(self, page: Page, index: int) -> None:
        """Store where the row is."""
        self.page = page
        self.index = index

    def __getitem__(self, name: str) -> Any:
        if name not in self.page.rows.schema.names:
            raise KeyError(name)
        return self.page.rows[name][self.index].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self.page.rows.schema.names)

    def __len__(self) -> int:
        return len(self.page.rows.schema.names)

    def has(self, other: Row, names: Sequence[str]) -> bool:
        """Return whether another row has the same values in these columns."""
        return all(self._is(name, other.page.value(name, other.index)) for name in names)

    def has_value(self, name: str, array: pa.Array) -> bool:
        """Return whether the row's value in a column is an array's only value."""
        return self._is(name, _as_bits(array))

    def _is(self, name: str, bits: pa.Array) -> bool:
        mine = self.page.value(name, self.index)
        if mine.equals(bits):
            return True
        if not isinstance(self.page.rows.schema.field(name).type, pa.JsonType):
            return False
        texts = [array[0].as_py() for array in (mine, bits)]
        return None not in texts and _spell(texts[0]) == _spell(texts[1])


def join_rows(rows: Sequence[Row]) -> pa.Table:
    """Return rows of any pages as one table, in one chunk that is not a slice of another.

    LanceDB 0.40 loses rows, after a panic on one of its threads, when given slices of nested structs.
    """
    parts = [row.page.rows.slice(row.index, 1) for row in rows]
    joined = pa.concat_tables(parts)
    return joined.combine_chunks() if len(parts) > 1 else joined.take(pa.array([0]))


def as_type(column: pa.ChunkedArray, column_type: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Cast a column that was read to the type of its target column, in a form that LanceDB accepts."""
    if column.type != column_type:
        return column.cast(column_type)
    return _fill_members(pa.concat_arrays(column.chunks)) if _has_required(column_type) else column


def _has_required(kind: pa.DataType) -> bool:
    """Return whether a type contains a struct with a non-nullable member."""
    if pa.types.is_struct(kind):
        return any(not member.nullable or _has_required(member.type) for member in kind)
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _has_required(kind.value_type)


def _fill_members(array: pa.Array) -> pa.Array:
    """Put values below nulls: LanceDB returns nulls there even for non-nullable members, but does not write them."""
    kind = array.type
    if not _has_required(kind):
        return array
    # Drop a slice's offset.
    array = array.take(pa.array(range(len(array)), pa.int64()))
    if not pa.types.is_struct(kind):
        values = _fill_members(array.values)
        return type(array).from_arrays(array.offsets, values, type=kind, mask=array.is_null())
    if array.null_count == len(array):
        return pa.array([None] * len(array), kind)
    members = []
    for index, member in enumerate(kind):
        values = _fill_members(array.field(index))
        if not member.nullable and values.null_count:
            values = pc.if_else(values.is_valid(), values, values.drop_null()[0])
        members.append(values)
    return pa.StructArray.from_arrays(members, fields=list(kind), mask=array.is_null())


def _spell(text: str) -> str:
    """Return JSON in canonical spelling; as text, because true equals 1 in Python."""
    return json.dumps(json.loads(text), sort_keys=True)


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([*column.chunks, pa.array([], column.type)])


def _as_bits(array: pa.Array) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.view(_counted(array.type))


def _counted(kind: pa.DataType) -> pa.DataType:
    """Return a type with the same bits but no floating-point numbers or dates."""
    if kind in _COUNTED:
        return _COUNTED[kind]
    if pa.types.is_temporal(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    if pa.types.is_struct(kind):
        return pa.struct([_counted_field(field) for field in kind])
    if pa.types.is_map(kind):
        keys = kind.key_field.with_type(_counted(kind.key_type))
        return pa.map_(keys, _counted_field(kind.item_field), keys_sorted=kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_counted_field(kind.value_field), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(_counted_field(kind.value_field))
    if pa.types.is_list(kind):
        return pa.list_(_counted_field(kind.value_field))
    return kind


def _counted_field(field: pa.Field) -> pa.Field:
    # Below a null, LanceDB has nulls in non-nullable members.
    return field.with_type(_counted(field.type)).with_nullable(True)
