"""Which columns of a row hold its id, text and vector, and what their values stand for."""

from __future__ import annotations

import datetime as dt
import difflib
import hashlib
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.stores.blocks import METADATA
from akidb_mlx_plugin.stores.compatibility import as_vector
from akidb_mlx_plugin.validation import check_unicode


@dataclass(frozen=True)
class Columns:
    """Which columns of a row hold what; every other column is metadata.

    Attributes:
        id: the ids: strings, integers or UUIDs.
        text: the texts.
        vector: the vectors.
        make_ids: make the id of a row without one from its content.
        chosen: names that the caller gave, which every table must have.
        no_documents: why Documents cannot be taken with these columns; empty if they can.
    """

    id: str = "id"
    text: str = "text"
    vector: str = "vector"
    make_ids: bool = False
    chosen: frozenset[str] = frozenset()
    no_documents: str = ""

    @classmethod
    def choose(cls, id: str, text: str, vector: str, *, make_ids: bool = False) -> Columns:
        """Return the columns that a caller chose, who left the usual names alone where they fit."""
        chosen = {id, text, vector} - {cls.id, cls.text, cls.vector}
        return cls(id, text, vector, make_ids, frozenset(chosen))

    def check_table(self, names: Collection[str], hint: str = "") -> None:
        """Check that a table has the columns, before any of its rows is converted.

        Args:
            names: its columns.
            hint: what else may help if there are no ids.
        Raises:
            InvalidInputError: a column is missing; it names those there are, and a similar one.
        """
        for what, name in (("id", self.id), ("text", self.text), ("vector", self.vector)):
            is_required = name in self.chosen or (what == "id" and not self.make_ids)
            # A column "Text" would become metadata.
            is_misspelled = any(str(other).casefold() == name.casefold() for other in names)
            if name not in names and (is_required or is_misspelled):
                raise InvalidInputError(self.describe_missing(what, names) + (hint if what == "id" else ""))
        if self.text not in names and self.vector not in names:
            raise InvalidInputError(self.describe_missing("text", names))

    def describe_missing(self, what: str, names: Iterable[object]) -> str:
        """Return a message about a missing column.

        Args:
            what: "id", "text" or "vector".
            names: of the columns there are.
        """
        wanted: str = getattr(self, what)
        known = [str(name) for name in names]
        message = f"there is no column {wanted!r} for the {what}"
        if what == "text":
            message += f", nor a column {self.vector!r} for the vector" * (self.vector not in known)
        close = difflib.get_close_matches(wanted.casefold(), [name.casefold() for name in known], 1)
        like = next((name for name in known if close and name.casefold() == close[0]), None)
        remedy = (
            f"name it by {what}=" if like is None else f"did you mean {like!r}? Name it by {what}={like!r} or rename it"
        )
        if what == "id":
            remedy += ", or have ids made from the contents by make_ids=True"
        return f"{message}; the columns are {', '.join(map(repr, known)) or 'none'}; {remedy}"


def make_id(text: object, vector: object) -> str:
    """Return an id made from content, the same in every process: half a SHA-256, in the form of a UUID.

    Args:
        text: what is hashed, unless it is None.
        vector: numbers, hashed as float32 if there is no text.
    Raises:
        InvalidInputError: neither, or not a text or a vector.
    """
    if text is None and vector is None:
        raise InvalidInputError("it has neither text nor vector to make an id of; give one of them")
    if text is None:
        content = b"vector:" + as_vector(vector, "the vector").astype("<f4").tobytes()
    elif isinstance(text, str):
        check_unicode(text, "the text")
        content = b"text:" + text.encode()
    else:
        raise InvalidInputError(f"the text is {type(text).__name__}, not a string")
    return str(uuid.UUID(bytes=hashlib.sha256(content).digest()[:16]))


def plain_id(value: Any, columns: Columns, row: Mapping[str, Any]) -> str:
    """Return an id as the string that databases keep: integers in decimal, UUIDs in lower case."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64):
        return str(int(value))
    if isinstance(value, uuid.UUID):
        return str(value)
    if value is None and columns.id not in row:
        raise InvalidInputError(columns.describe_missing("id", row))
    if value is None:
        raise InvalidInputError(
            f"column {columns.id!r} is empty; give an id, or have ids made from the contents by make_ids=True"
        )
    raise InvalidInputError(
        f"column {columns.id!r} is {value!r:.80}, {type(value).__name__}; ids are strings, integers or UUIDs (where "
        "some integers are missing pandas makes them floats: frame[name].astype('Int64'))"
    )


def read_metadata(row: Mapping[str, Any], columns: Columns) -> dict[str, Any] | None:
    """Return a row's other values, without missing ones."""
    own = (columns.id, columns.text, columns.vector)
    found: dict[str, Any] = {name: value for name, value in row.items() if name not in own}
    whole = found.get(METADATA)
    if isinstance(whole, Mapping):
        del found[METADATA]
        if both := [name for name in whole if name in found]:
            raise InvalidInputError(f"it has {both[0]!r} as a column and in {METADATA!r}; rename one of them")
        found |= whole
    return {name: value for name, value in found.items() if not is_missing(value)} or None


def is_missing(value: Any) -> bool:
    """Return whether a value stands for none: None, NaN, and the NaT and NA of NumPy and pandas."""
    if value is None:
        return True
    if isinstance(value, float | np.floating | np.datetime64 | np.timedelta64 | dt.date | dt.timedelta):
        # Nothing else of these types differs from itself.
        return bool(value != value)
    return type(value).__name__ in ("NAType", "NaTType")


def value_or_none(value: Any) -> Any:
    """Return None for a missing value."""
    return None if is_missing(value) else value
