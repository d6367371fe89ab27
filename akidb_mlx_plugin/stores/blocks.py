"""Tables as blocks of rows, which the readers of each kind of table return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from akidb_mlx_plugin.errors import InvalidInputError

# Rows converted at a time: few enough for any length of text, and enough that the cost of each call does not matter.
BLOCK_ROWS = 1024
# A column of this name that holds mappings is the metadata itself, as in a Document.
METADATA = "metadata"


@dataclass(frozen=True)
class Block:
    """Some rows of a table.

    Attributes:
        columns: the values of each column, by name; equally many of each.
        start: position of its first row in its table.
        source: the file that it was read from; empty for a table in memory.
    """

    columns: dict[str, list[Any]]
    start: int
    source: str = ""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each row's values, by column."""
        for values in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, values, strict=True))


@dataclass(frozen=True)
class Frame:
    """A table to read.

    Attributes:
        read: yields its rows; takes the name of the column of vectors, which are kept as arrays where they are.
        rows: how many there are; None if unknown.
        in_memory: whether it can be read again without cost.
        hint: what a message about a missing column adds; empty for nothing.
    """

    read: Callable[[str], Iterable[Block]]
    rows: int | None
    in_memory: bool
    hint: str = ""


class CellError(InvalidInputError):
    """A value that Python cannot hold unchanged.

    Attributes:
        row: its position in the table.
        column: the column's name.
        source: the file, if any.
    """

    def __init__(self, message: str, row: int, column: str, source: str = "") -> None:
        self.row, self.column, self.source = row, column, source
        super().__init__(message)


def check_names(names: list[Any]) -> None:
    """Check the names of a table's columns.

    Raises:
        InvalidInputError: one is not a string, or two are the same.
    """
    for position, name in enumerate(names):
        if not isinstance(name, str):
            raise InvalidInputError(f"column {position} has the name {name!r:.80}, not a string; rename it")
        if name in names[:position]:
            raise InvalidInputError(f"two columns have the name {name!r}; rename one of them")
