"""Rows of a table as metadata: they go from table to table as Arrow has them, and are compared to the last bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

_COUNTED = {
    pa.float16(): pa.int16(),
    pa.float32(): pa.int32(),
    pa.float64(): pa.int64(),
    pa.date32(): pa.int32(),
    pa.date64(): pa.int64(),
}


class Page:
    """Rows that were read together."""

    def __init__(self, rows: pa.Table) -> None:
        """Note the rows, in one chunk."""
        self.rows = rows.combine_chunks()

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    @cached_property
    def _bits(self) -> dict[str, pa.Array]:
        """Columns whose equality is that of their bits, in which a NaN is itself."""
        return {name: _as_bits(self.rows[name]) for name in self.rows.schema.names}

    def value(self, name: str, index: int) -> pa.Array:
        """Return one value of a column, as an array of bits."""
        return self._bits[name].slice(index, 1)


class Row(Mapping[str, Any]):
    """One row; values become Python's only when they are asked for, because Python has not all that Arrow has."""

    def __init__(self, page: Page, index: int) -> None:
        """Note the row's place."""
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
        return all(self._has(other, name) for name in names)

    def _has(self, other: Row, name: str) -> bool:
        mine, others = self.page.value(name, self.index), other.page.value(name, other.index)
        if mine.equals(others):
            return True
        column_type = self.page.rows.schema.field(name).type
        if not isinstance(column_type, pa.JsonType):
            return False
        texts = [row[name] for row in (self, other)]
        return None not in texts and _spell(texts[0]) == _spell(texts[1])


def join_rows(rows: Sequence[Row]) -> pa.Table:
    """Return rows of any pages as one table."""
    parts = [row.page.rows.slice(row.index, 1) for row in rows]
    return pa.concat_tables(parts)


def _spell(text: str) -> str:
    """Return JSON in one of its spellings; as text, because true equals 1 in Python."""
    return json.dumps(json.loads(text), sort_keys=True)


def _as_bits(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    return array.view(_counted(array.type))


def _counted(kind: pa.DataType) -> pa.DataType:
    """Return a type of the same bits without floating-point numbers and dates."""
    if kind in _COUNTED:
        return _COUNTED[kind]
    if pa.types.is_temporal(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_counted(field.type)) for field in kind])
    if pa.types.is_map(kind):
        parts = [field.with_type(_counted(field.type)) for field in (kind.key_field, kind.item_field)]
        return pa.map_(*parts, keys_sorted=kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_counted(kind.value_type)), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_counted(kind.value_type)))
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_counted(kind.value_type)))
    return kind
