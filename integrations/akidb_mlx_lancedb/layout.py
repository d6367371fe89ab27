"""Which column of a LanceDB table is what, and how documents become its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from akidb_mlx_plugin.collections import StoredDocument, plain_value
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.types import Document, Vector

ALIAS = "akidb-mlx"
FUNCTIONS_KEY = b"embedding_functions"
# For metadata that has no column of its own; LanceDB filters it by json_get_int(metadata, 'year') and the like.
JSON_COLUMN = "metadata"
_JSON_INTEGERS = range(-(2**63), 2**64)


@dataclass(frozen=True)
class TableLayout:
    """The columns of a table.

    Attributes:
        label: the table, as messages call it: "table 'notes'".
        schema: all of them; a JSON column has the type in which it is written.
        id: tells documents apart; "" where nobody asked.
        text: None: the table keeps no texts.
        vector: filled by the function, or by whoever writes.
        functions: every embedding function that the table stores, as it stores them.
        stored: the fields of ours among them; None: it has none.
    """

    label: str
    schema: pa.Schema
    id: str
    text: str | None
    vector: str
    functions: tuple[Mapping[str, Any], ...]
    stored: Mapping[str, Any] | None

    @property
    def dimension(self) -> int:
        """Width of the vector column; 0: it takes any."""
        vector_type = self.schema.field(self.vector).type
        return int(vector_type.list_size) if pa.types.is_fixed_size_list(vector_type) else 0

    @property
    def fields(self) -> list[pa.Field]:
        """The columns that metadata goes to by name."""
        own = (self.id, self.text, self.vector, JSON_COLUMN if self.has_json else None)
        return [field for field in self.schema if field.name not in own]

    @property
    def has_json(self) -> bool:
        """Whether metadata without a column of its own can be kept."""
        return JSON_COLUMN in self.schema.names and isinstance(self.schema.field(JSON_COLUMN).type, pa.JsonType)

    def check_document(self, document: Document) -> None:
        """Raise InvalidInputError for a document that does not fit the columns."""
        what = f"document {document.id!r}"
        if document.text is None and self.text is not None and not self.schema.field(self.text).nullable:
            raise InvalidInputError(f"{what} has no text, and column {self.text!r} of {self.label} takes no null")
        if document.text is not None and self.text is None:
            raise InvalidInputError(f"{what} has a text, and {self.label} has no column for it; leave it out")
        metadata = document.metadata or {}
        self._check_keys(what, metadata)
        for field in self.fields:
            value = metadata.get(field.name)
            if value is None and not field.nullable:
                raise InvalidInputError(f"{what} has no {field.name!r}, and the column takes no null")
            if value is not None:
                self._check_value(what, field, value)
        self._dump(what, metadata)

    def make_rows(self, documents: Sequence[Document], vectors: Vector) -> pa.Table:
        """Return Arrow rows with every column of the table; what a document does not have is null.

        Args:
            documents: N.
            vectors: (N, D) float32.
        """
        columns = []
        values: list[Any]
        for field in self.schema:
            if field.name == self.id:
                values = [document.id for document in documents]
            elif field.name == self.text:
                values = [document.text for document in documents]
            elif field.name == self.vector:
                columns.append(_vector_array(vectors, field.type))
                continue
            elif field.name == JSON_COLUMN and self.has_json:
                values = [self._dump("", document.metadata or {}) for document in documents]
            else:
                values = [plain_value((document.metadata or {}).get(field.name)) for document in documents]
            columns.append(pa.array(values, type=field.type))
        return pa.table(columns, schema=self.schema.remove_metadata())

    def read_rows(self, rows: pa.Table) -> dict[str, StoredDocument]:
        """Return documents by id, from rows with every column."""
        vectors = rows[self.vector].combine_chunks().to_numpy(zero_copy_only=False)
        return {
            document.id: StoredDocument(
                document.text,
                None if vector is None else np.asarray(vector, dtype=np.float32),
                document.metadata or {},
            )
            for document, vector in zip(self.read_documents(rows), vectors, strict=True)
        }

    def read_documents(self, rows: pa.Table | pa.RecordBatch) -> list[Document]:
        """Return documents without their vectors, from rows with every other column."""
        names = [name for name in (self.id, self.text, JSON_COLUMN if self.has_json else None) if name]
        values = rows.select([*names, *(field.name for field in self.fields)]).to_pylist()
        return [
            Document(
                row[self.id],
                text=row[self.text] if self.text else None,
                metadata={
                    **(json.loads(row[JSON_COLUMN] or "{}") if self.has_json else {}),
                    **{field.name: row[field.name] for field in self.fields if row[field.name] is not None},
                },
            )
            for row in values
        ]

    def _check_keys(self, what: str, metadata: Mapping[str, Any]) -> None:
        own = {self.id, self.text, self.vector}
        if taken := [key for key in metadata if key in own]:
            raise InvalidInputError(f"the metadata of {what} has the key {taken[0]!r}, a column that is no metadata")
        unknown = [key for key in metadata if key not in self.schema.names]
        if unknown and not self.has_json:
            raise InvalidInputError(
                f"{what} has the metadata {unknown[0]!r}, and {self.label} has no such column; add it with "
                "table.add_columns, or leave it out"
            )

    def _check_value(self, what: str, field: pa.Field, value: Any) -> None:
        try:
            pa.array([plain_value(value)], type=field.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise InvalidInputError(
                f"{what} has {field.name} = {value!r:.80}, which does not go into a column of {field.type}: {error}"
            ) from error

    def _dump(self, what: str, metadata: Mapping[str, Any]) -> str | None:
        """Return what has no column of its own as JSON; None: nothing."""
        if not self.has_json:
            return None
        columns = {field.name for field in self.fields}
        rest = {key: plain_value(value) for key, value in metadata.items() if key not in columns and value is not None}
        try:
            _check_integers(rest)
            dumped = json.dumps(rest, ensure_ascii=False, allow_nan=False) if rest else None
            # A lone surrogate, which is no Unicode text, shows here.
            (dumped or "").encode("utf-8")
            return dumped
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"the metadata of {what} cannot be kept as JSON: {error}") from error


def _check_integers(value: Any) -> None:
    """Raise ValueError for an integer that LanceDB's JSON would turn into a float."""
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            _check_integers(item)
    elif isinstance(value, int) and value not in _JSON_INTEGERS:
        raise ValueError(f"{value} is beyond 64 bits; give it as a string")


def read_layout(name: str, schema: pa.Schema, on: str | None) -> TableLayout:
    """Find out what a table's columns are.

    Args:
        name: of the table.
        schema: as LanceDB gives it.
        on: the column that tells documents apart; None: it does not matter.
    Raises:
        InvalidInputError: no such column, none for vectors, or stored settings that cannot be read.
    """
    label = f"table {name!r}"
    functions = _read_functions(label, schema.metadata or {})
    ours = [entry for entry in functions if entry.get("name") == ALIAS]
    if len(ours) > 1:
        raise InvalidInputError(f"{label} has {len(ours)} columns embedded by this package; use table.merge_insert")
    entry = ours[0] if ours else functions[0] if len(functions) == 1 else {}
    if on is not None:
        _check_id_column(label, schema, on)
    vector = entry.get("vector_column") or _find_vector_column(label, schema)
    text = entry.get("source_column") or ("text" if "text" in schema.names else None)
    if missing := [column for column in (vector, text) if column is not None and column not in schema.names]:
        raise InvalidInputError(f"{label} has no column {missing[0]!r}, which its stored function names")
    stored = ours[0].get("model") or {} if ours else None
    return TableLayout(label, _writable(schema), on or "", text, vector, functions, stored)


def _check_id_column(label: str, schema: pa.Schema, on: str) -> None:
    if on not in schema.names:
        raise InvalidInputError(
            f"{label} has no column {on!r} to tell documents apart by; name one with on= (--on), or add one with "
            f"table.add_columns({{{on!r}: 'uuid()'}})"
        )
    if not _is_text(schema.field(on).type):
        raise InvalidInputError(f"column {on!r} of {label} holds {schema.field(on).type}; an id is a string")


def _read_functions(label: str, metadata: Mapping[bytes, bytes]) -> tuple[Mapping[str, Any], ...]:
    try:
        entries = json.loads(metadata.get(FUNCTIONS_KEY) or b"[]")
        return tuple(dict(entry) for entry in entries)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"{label} stores embedding functions that cannot be read: {error}") from error


def _find_vector_column(label: str, schema: pa.Schema) -> str:
    names = [field.name for field in schema if _is_vector(field.type)]
    if "vector" in names:
        return "vector"
    if len(names) != 1:
        raise InvalidInputError(
            f"{label} has {len(names)} columns that may hold vectors, and no embedding function that names one"
        )
    return str(names[0])


def _is_vector(column_type: pa.DataType) -> bool:
    is_list = pa.types.is_fixed_size_list(column_type) or pa.types.is_list(column_type)
    return bool(is_list and pa.types.is_floating(column_type.value_type))


def _is_text(column_type: pa.DataType) -> bool:
    return bool(pa.types.is_string(column_type) or pa.types.is_large_string(column_type))


def _writable(schema: pa.Schema) -> pa.Schema:
    """Return the schema with JSON columns in the type they are written in: LanceDB shows what it keeps inside."""
    fields = [
        pa.field(field.name, pa.json_(), field.nullable)
        if (field.metadata or {}).get(b"ARROW:extension:name") == b"lance.json"
        else field
        for field in schema
    ]
    return pa.schema(fields, metadata=schema.metadata)


def _vector_array(vectors: Vector, column_type: pa.DataType) -> pa.Array:
    values = pa.array(vectors.ravel().astype(column_type.value_type.to_pandas_dtype(), copy=False))
    width = vectors.shape[1]
    if pa.types.is_fixed_size_list(column_type):
        return pa.FixedSizeListArray.from_arrays(values, type=column_type)
    offsets = pa.array(np.arange(len(vectors) + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, values).cast(column_type)
