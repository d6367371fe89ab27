"""Which columns hold a row's id, text and vector, and what can be wrong with a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from akidb_mlx_plugin.errors import DimensionMismatchError, InvalidInputError
from akidb_mlx_plugin.validation import check_unicode


@dataclass(frozen=True)
class Columns:
    """Which columns of a dataset hold what.

    Attributes:
        id: the key column; strings or integers.
        text: the text to embed.
        vector: where vectors go; if a dataset already has it, its vectors are kept and its nulls filled.
        dimension: length of every vector.
        embeds: whether there is a model; without one every row must have its vector.
    """

    id: str
    text: str
    vector: str
    dimension: int
    embeds: bool = True

    def check_schema(self, given: Mapping[str, Any]) -> None:
        """Check that a dataset has the required columns, before any row is read.

        Args:
            given: its columns with their types, Arrow's if Ray knows them.
        Raises:
            InvalidInputError: a missing column, or a type that cannot be an id, a text or a vector.
            DimensionMismatchError: its vectors have another length.
        """
        for what, name in (("id", self.id), ("text", self.text)):
            if name not in given and not (name == self.text and self.vector in given):
                raise InvalidInputError(
                    f"the rows have no column {name!r} for the {what}; they have {', '.join(given) or 'none'}"
                )
        text_type = given.get(self.text)
        if isinstance(text_type, pa.DataType) and not _may_be_text(text_type):
            raise InvalidInputError(f"column {self.text!r} holds {text_type}, not text; name another")
        vector_type = given.get(self.vector)
        if not isinstance(vector_type, pa.DataType) or pa.types.is_null(vector_type):
            return
        if not _is_list(vector_type):
            raise InvalidInputError(f"column {self.vector!r} holds {vector_type}; vectors are Arrow lists of numbers")
        if pa.types.is_fixed_size_list(vector_type) and vector_type.list_size != self.dimension:
            raise DimensionMismatchError(
                f"column {self.vector!r} holds vectors of {vector_type.list_size} dimensions, and {self.dimension} are "
                "needed; drop the column to have the texts embedded",
                expected=self.dimension,
                actual=vector_type.list_size,
            )

    def find_problems(self, rows: pa.Table) -> list[str | None]:
        """Return what is wrong with each row, or None if it can be embedded or has its vector."""
        ids = rows[self.id].to_pylist()
        texts = rows[self.text].to_pylist() if self.text in rows.column_names else [None] * rows.num_rows
        has_vector, vector_problems = self._look_at_vectors(rows)
        return [
            _problem_of_id(id_) or bad_vector or self._problem_of_text(text, has_vector=given)
            for id_, text, given, bad_vector in zip(ids, texts, has_vector, vector_problems, strict=True)
        ]

    def _look_at_vectors(self, rows: pa.Table) -> tuple[list[bool], list[str | None]]:
        """Return which rows have a vector, and what is wrong with it."""
        nothing: list[str | None] = [None] * rows.num_rows
        if self.vector not in rows.column_names or not _is_list(rows.schema.field(self.vector).type):
            return [False] * rows.num_rows, nothing
        vectors = rows[self.vector].to_pylist()
        return [vector is not None for vector in vectors], [self._problem_of_vector(vector) for vector in vectors]

    def _problem_of_vector(self, vector: list[float | None] | None) -> str | None:
        if vector is None:
            return None
        if len(vector) != self.dimension:
            return f"vector of {len(vector)} dimensions, not {self.dimension}"
        return None if np.isfinite(np.asarray(vector, dtype=np.float32)).all() else "vector that is not finite"

    def _problem_of_text(self, text: Any, *, has_vector: bool) -> str | None:
        if text is not None and not isinstance(text, str):
            return f"text is {type(text).__name__}, not a string"
        if text is not None and _has_unpaired_surrogate(text):
            return "text with an unpaired surrogate"
        if has_vector:
            return None
        if not self.embeds:
            return "no vector"
        if text is None:
            return "no text"
        return None if text.strip() else "empty text"


def _problem_of_id(id_: Any) -> str | None:
    if id_ is None or id_ == "":
        return "no id"
    if isinstance(id_, str) and _has_unpaired_surrogate(id_):
        return "id with an unpaired surrogate"
    is_id = isinstance(id_, str | int) and not isinstance(id_, bool)
    return None if is_id else f"id is {type(id_).__name__}, not a string"


def _has_unpaired_surrogate(text: str) -> bool:
    """Return whether a string holds an unpaired surrogate, which JSON allows and UTF-8 does not."""
    try:
        check_unicode(text, "text")
    except InvalidInputError:
        return True
    return False


def _is_list(column_type: pa.DataType) -> bool:
    is_list = (
        pa.types.is_fixed_size_list(column_type) or pa.types.is_list(column_type) or pa.types.is_large_list(column_type)
    )
    return bool(
        is_list and (pa.types.is_floating(column_type.value_type) or pa.types.is_integer(column_type.value_type))
    )


def _may_be_text(column_type: pa.DataType) -> bool:
    """Return whether a column may hold strings: Ray keeps Python objects of mixed types in its own type."""
    if pa.types.is_dictionary(column_type):
        return _may_be_text(column_type.value_type)
    return bool(is_string(column_type) or pa.types.is_null(column_type) or isinstance(column_type, pa.ExtensionType))


def is_string(column_type: pa.DataType) -> bool:
    """Return whether a column's type is a string type, in any Arrow layout."""
    if pa.types.is_dictionary(column_type):
        return is_string(column_type.value_type)
    return bool(
        pa.types.is_string(column_type) or pa.types.is_large_string(column_type) or pa.types.is_string_view(column_type)
    )
