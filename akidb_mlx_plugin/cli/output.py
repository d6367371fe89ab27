"""Output of commands: a table on a terminal, plain lines in a pipe, JSON on request, errors in one line."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


# A message may quote an untrusted file, at any length.
_LONGEST_MESSAGE = 2000


def printable(text: str) -> str:
    """Return a text in one line, without terminal control sequences, which untrusted names and texts may contain."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "\ufffd" for char in text)


def print_error(message: str) -> None:
    """Write one line to standard error."""
    line = printable(" ".join(message.split()))
    if len(line) > _LONGEST_MESSAGE:
        line = f"{line[: _LONGEST_MESSAGE - 1]}…"
    sys.stderr.write(f"akidb-mlx: {line}\n")


def print_json(value: Any) -> None:
    """Write a value as indented JSON to standard output."""
    text = json.dumps(value, indent=2, default=str, ensure_ascii=False)
    # JSON escapes characters below 32; other control characters can occur only in strings.
    typer.echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


class PlainFormatter(logging.Formatter):
    """Formats log records in one line each, except for a traceback, without terminal control sequences."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return a record's line."""
        return printable(super().formatMessage(record))


def print_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool = False, title: str | None = None) -> None:
    """Write rows with the same keys: JSON on request, a table on a terminal, tab-separated lines in a pipe."""
    if as_json:
        print_json(list(rows))
        return
    if not sys.stdout.isatty():
        if rows:
            typer.echo("\t".join(rows[0]))
        for row in rows:
            typer.echo("\t".join(map(_cell, row.values())))
        return
    table = Table(title=title, title_justify="left")
    for column in rows[0] if rows else ():
        numeric = all(isinstance(row[column], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    above: list[str] = []
    for row in rows:
        cells = [_cell(value) for value in row.values()]
        # The first column is shown once for consecutive rows that share it.
        table.add_row(*(["", *cells[1:]] if above[:1] == cells[:1] else cells))
        above = cells
    # Texts from a database are shown verbatim: `[size]` is not markup, and `:key:` is not an emoji.
    Console(markup=False, emoji=False).print(table)


def _cell(value: Any) -> str:
    return "" if value is None else printable(str(value))
