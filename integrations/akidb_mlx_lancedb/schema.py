"""The schema of a LanceDB table: which column holds ids, texts, vectors and metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from akidb_mlx_lancedb.keys import is_key_type, make_key
from akidb_mlx_lancedb.rows import Row
from akidb_mlx_lancedb.values import check_json, check_value, is_text
from akidb_mlx_lancedb.vectors import check_vector_column, find_vector_column, reject_overflow
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.stores.compatibility import as_vector
from akidb_mlx_plugin.types import Document

ALIAS = "akidb-mlx"
FUNCTIONS_KEY = b"embedding_functions"
# For metadata without its own column; LanceDB filters it by json_get_int(metadata, 'year') and the like.
JSON_COLUMN = "metadata"


@dataclass(frozen=True)
class TableSchema:
    """The columns of a table.

    Attributes:
        label: the table, as messages call it: "table 'notes'".
        arrow: the schema of all of them; a JSON column has the type it is written in.
        id: the key column; "" if not requested.
        text: None if the table keeps no texts.
        vector: filled by the function, or by the writer.
        functions: every embedding function that the table stores, as stored.
        stored: the fields of our function that fills `vector`; None if there is none.
    """

    label: str
    arrow: pa.Schema
    id: str
    text: str | None
    vector: str
    functions: tuple[Mapping[str, Any], ...]
    stored: Mapping[str, Any] | None

    @cached_property
    def dimension(self) -> int:
        """Width of the vector column; 0 for any."""
        vector_type = self.arrow.field(self.vector).type
        return int(vector_type.list_size) if pa.types.is_fixed_size_list(vector_type) else 0

    @cached_property
    def fields(self) -> list[pa.Field]:
        """The columns for metadata of the same name."""
        own = (self.id, self.text, self.vector, JSON_COLUMN if self.has_json else None)
        return [field for field in self.arrow if field.name not in own]

    @cached_property
    def metadata_names(self) -> list[str]:
        """Every column but id, text and vector."""
        return [name for name in self.arrow.names if name not in (self.id, self.text, self.vector)]

    @cached_property
    def has_json(self) -> bool:
        """Whether metadata without its own column can be kept."""
        return JSON_COLUMN in self.arrow.names and isinstance(self.arrow.field(JSON_COLUMN).type, pa.JsonType)

    @cached_property
    def derived(self) -> dict[str, str]:
        """The other columns that functions fill, with the columns they read."""
        entries = [entry for entry in self.functions if entry["vector_column"] != self.vector]
        return {str(entry["vector_column"]): str(entry["source_column"]) for entry in entries}

    def looks_like_vectors(self, field: pa.Field) -> bool:
        """Return whether LanceDB checks a column as vectors: no NaN or null unless told otherwise.

        Source: `lancedb.table._find_vector_columns`.
        """
        is_fixed = pa.types.is_fixed_size_list(field.type)
        if not (is_fixed or pa.types.is_list(field.type)) or not pa.types.is_floating(field.type.value_type):
            return False
        is_named = field.name in self.derived or field.name == "vector" or (field.name == "embedding" and is_fixed)
        return is_named or (is_fixed and field.type.list_size >= 10)

    def check_document(self, document: Document) -> None:
        """Raise InvalidInputError for a document that does not fit the columns."""
        what = f"document {document.id!r}"
        try:
            make_key(document.id, self.arrow.field(self.id).type)
        except ValueError as error:
            kind = self.arrow.field(self.id).type
            raise InvalidInputError(
                f"{what} does not fit column {self.id!r} of {self.label}, {kind}: {error}"
            ) from None
        if document.text is None and self.text is not None and not self.arrow.field(self.text).nullable:
            raise InvalidInputError(f"{what} has no text, and column {self.text!r} of {self.label} takes no null")
        if document.text is not None and self.text is None:
            raise InvalidInputError(
                f"{what} has a text, and {self.label} has no column for it; name one with text=, or leave it out"
            )
        if document.vector is not None:
            reject_overflow(document.vector, self.arrow.field(self.vector), f"the vector of {what}")
        if not isinstance(document.metadata, Row):
            self._check_metadata(what, document.metadata or {})

    def without_column(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Return the metadata without its own column, which goes into the JSON column."""
        return {key: value for key, value in metadata.items() if key not in self._field_names and value is not None}

    @cached_property
    def _field_names(self) -> frozenset[str]:
        return frozenset(field.name for field in self.fields)

    def _check_metadata(self, what: str, metadata: Mapping[str, Any]) -> None:
        own = {self.id, self.text, self.vector}
        if taken := [key for key in metadata if key in own]:
            raise InvalidInputError(f"the metadata of {what} has the key {taken[0]!r}, a column that is not metadata")
        unknown = [key for key in metadata if key not in self.arrow.names]
        if unknown and not self.has_json:
            raise InvalidInputError(
                f"{what} has the metadata {unknown[0]!r}, and {self.label} has no such column; add it with "
                "table.add_columns, or leave it out"
            )
        for field in self.fields:
            value = metadata.get(field.name)
            if value is None and not field.nullable and field.name not in self.derived:
                raise InvalidInputError(f"{what} has no {field.name!r}, and the column takes no null")
            if value is not None:
                _check_value(what, field, value)
                if self.looks_like_vectors(field):
                    as_vector(value, f"{field.name!r} of {what}")
        if self.has_json:
            try:
                check_json(self.without_column(metadata))
            except ValueError as error:
                raise InvalidInputError(f"the metadata of {what} cannot be kept as JSON: {error}") from error


def read_table_schema(
    name: str, arrow: pa.Schema, on: str | None, *, text: str | None = None, vector: str | None = None
) -> TableSchema:
    """Determine what each column of a table is for.

    Args:
        name: of the table.
        arrow: the schema as LanceDB gives it.
        on: the key column; None if it does not matter.
        text, vector: columns the caller chose. Default to those of the table's function, else the usual names.
    Raises:
        InvalidInputError: no such column, no or several possible columns for vectors, or unreadable stored settings.
    """
    label = f"table {name!r}"
    functions = _read_functions(label, arrow)
    if on is not None:
        _check_id_column(label, arrow, on)
        _reject_blobs(label, arrow)
    for column in (text, vector):
        if column is not None and column not in arrow.names:
            raise InvalidInputError(f"{label} has no column {column!r}; it has {', '.join(arrow.names)}")
    entry = _choose(label, functions, text, vector)
    taken = {str(other["vector_column"]) for other in functions if other is not entry}
    vector = vector or (entry["vector_column"] if entry else find_vector_column(label, arrow, taken))
    text = text or (entry["source_column"] if entry else "text" if "text" in arrow.names else None)
    is_ours = bool(entry and entry.get("name") == ALIAS)
    if text is not None and not is_text(arrow.field(text).type):
        if is_ours:
            raise InvalidInputError(f"column {text!r} of {label} holds {arrow.field(text).type}, not text")
        # Another package's function may embed images.
        text = None
    check_vector_column(label, arrow.field(vector))
    stored = (entry.get("model") or {}) if entry and is_ours else None
    return TableSchema(label, _writable(arrow), on or "", text, vector, functions, stored)


def read_table_schemas(name: str, arrow: pa.Schema) -> list[TableSchema]:
    """Return a schema per column that this package's functions fill; without any, the vector column's."""
    ours = [entry for entry in _read_functions(f"table {name!r}", arrow) if entry.get("name") == ALIAS]
    if not ours:
        return [read_table_schema(name, arrow, None)]
    return [read_table_schema(name, arrow, None, vector=entry["vector_column"]) for entry in ours]


def _choose(
    label: str, functions: Sequence[Mapping[str, Any]], text: str | None, vector: str | None
) -> Mapping[str, Any] | None:
    """Return the function that embeds documents' texts, or None if these columns have none."""
    if text is not None or vector is not None:
        fitting = [
            entry
            for entry in functions
            if text in (None, entry["source_column"]) and vector in (None, entry["vector_column"])
        ]
    else:
        fitting = [entry for entry in functions if entry.get("name") == ALIAS]
        if not fitting and len(functions) == 1:
            fitting = list(functions)
    if len(fitting) > 1:
        columns = ", ".join(f"{entry['source_column']} -> {entry['vector_column']}" for entry in fitting)
        raise InvalidInputError(f"{label} embeds {len(fitting)} columns ({columns}); choose one with vector=")
    return fitting[0] if fitting else None


def _check_value(what: str, field: pa.Field, value: Any) -> None:
    try:
        check_value(value, field)
    except (pa.ArrowException, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInputError(
            f"{what} has {field.name} = {value!r:.80}, which does not fit a column of {field.type}: {error}"
        ) from error


def _check_id_column(label: str, arrow: pa.Schema, on: str) -> None:
    if on not in arrow.names:
        raise InvalidInputError(
            f"{label} has no key column {on!r}; name one with on= (--on), or add one with "
            f"table.add_columns({{{on!r}: 'uuid()'}})"
        )
    if not is_key_type(arrow.field(on).type):
        raise InvalidInputError(
            f"column {on!r} of {label} holds {arrow.field(on).type}; ids are strings, integers or UUIDs"
        )


def _reject_blobs(label: str, arrow: pa.Schema) -> None:
    """Reject columns that LanceDB reads as descriptions of their contents, which cannot be written back."""
    for field in arrow:
        metadata = field.metadata or {}
        # Where Lance's own package is imported, the type is known by its name, and the metadata are gone.
        names = (metadata.get(b"ARROW:extension:name", b"").decode(), getattr(field.type, "extension_name", ""))
        if "lance.blob.v2" in names or b"lance-encoding:blob" in metadata:
            raise InvalidInputError(
                f"column {field.name!r} of {label} holds blobs, which only LanceDB's own table.add writes and "
                "table.fetch_blobs reads; use that, or a column of pa.large_binary()"
            )


def _read_functions(label: str, arrow: pa.Schema) -> tuple[Mapping[str, Any], ...]:
    try:
        entries = json.loads((arrow.metadata or {}).get(FUNCTIONS_KEY) or b"[]")
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{label} stores embedding functions that cannot be read: {error}") from error
    if not isinstance(entries, list):
        raise InvalidInputError(f"{label} stores {type(entries).__name__} as embedding functions, not a list")
    for entry in entries:
        if not isinstance(entry, dict):
            raise InvalidInputError(f"{label} stores {entry!r:.80} as an embedding function, not a mapping")
        for key in ("source_column", "vector_column"):
            if entry.get(key) not in arrow.names:
                raise InvalidInputError(
                    f"{label} has no column {entry.get(key)!r:.80}, which its stored function names"
                )
        if entry.get("name") == ALIAS and not isinstance(entry.get("model") or {}, dict):
            raise InvalidInputError(
                f"{label} stores {entry['model']!r:.80} as the settings of its function, not a mapping"
            )
    vectors = [entry["vector_column"] for entry in entries]
    if len(set(vectors)) < len(vectors):
        # LanceDB writes this if one function object is in two pairs of fields.
        raise InvalidInputError(
            f"{label} has two functions for one column of {', '.join(vectors)}; give each pair of SourceField and "
            "VectorField a function of its own: MLXEmbeddings.create(...) once for each"
        )
    return tuple(entries)


def _writable(arrow: pa.Schema) -> pa.Schema:
    """Return the schema with JSON columns in the type they are written in: LanceDB shows its internal type."""
    fields = [
        pa.field(field.name, pa.json_(), field.nullable)
        if (field.metadata or {}).get(b"ARROW:extension:name") == b"lance.json"
        else field
        for field in arrow
    ]
    return pa.schema(fields, metadata=arrow.metadata)
