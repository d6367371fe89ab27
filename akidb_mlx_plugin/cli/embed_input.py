"""Read texts for `akidb-mlx embed` from lines, JSONL or Parquet, a chunk at a time."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError
from akidb_mlx_plugin.installation import install_command
from akidb_mlx_plugin.validation import check_unicode

Format = Literal["lines", "jsonl", "parquet"]

PARQUET_NEEDS = "Parquet needs pyarrow, which comes with LanceDB"
# Rows of a Parquet file in memory as Python objects at once.
_BATCH = 512
# File types that certainly do not have one text per line.
_OTHER_FORMATS = (".csv", ".tsv", ".json", ".xlsx", ".gz", ".bz2", ".xz", ".zip", ".zst")
_FORMATS: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}


class TextSource:
    """Rows with a text each, in order; a context manager that keeps the file open.

    Attributes:
        text_column: name of the text field in a row.
        total: number of rows; None if unknown.
        schema: Arrow schema of a Parquet file; None for other formats.
    """

    def __init__(self, path: str, file_format: Format | None, text_column: str) -> None:
        """Open a file.

        Args:
            path: "-" for standard input.
            file_format: None to go by the extension; lines if that is unknown.
            text_column: field in JSONL and Parquet; lines become rows with only this field.
        Raises:
            InvalidInputError: no such file, or not in its format.
        """
        self.text_column = text_column
        self.total: int | None = None
        self.schema: Any = None
        self._label = "standard input" if path == "-" else path
        suffix = Path(path).suffix.lower()
        if file_format is None and suffix in _OTHER_FORMATS:
            raise InvalidInputError(
                f"{path} does not look like lines, JSONL or Parquet; convert it, or specify --input-format"
            )
        self._format = file_format or _FORMATS.get(suffix, "lines")
        self._close = ExitStack()
        if self._format == "parquet":
            self._parquet = self._open_parquet(path)
        else:
            self._bytes = self._open_standard_input() if path == "-" else self._open(path)

    def __enter__(self) -> TextSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()

    def read_chunks(self, size: int) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows in chunks of `size`; each has a string in its text field.

        Raises:
            InvalidInputError: a row is not in the format, or has no text; it names the row.
        """
        readers = {"lines": self._read_lines, "jsonl": self._read_objects, "parquet": self._read_table}
        numbered = enumerate(readers[self._format](), start=1)
        while chunk := list(islice(numbered, size)):
            for number, row in chunk:
                self._check(number, row)
            yield [row for _, row in chunk]

    def _read_lines(self) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(self._bytes, start=1):
            yield {self.text_column: self._decode(number, line).rstrip("\r\n")}

    def _read_objects(self) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(self._bytes, start=1):
            text = self._decode(number, line)
            if not text.strip():
                continue
            try:
                row = json.loads(text, parse_constant=_reject_constant)
            except (ValueError, RecursionError) as error:
                reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
                raise InvalidInputError(f"line {number} of {self._label} is not JSON: {reason}") from error
            # JSON Lines of plain strings are accepted too.
            yield {self.text_column: row} if isinstance(row, str) else row

    def _read_table(self) -> Iterator[dict[str, Any]]:
        from pyarrow import ArrowException

        batches = self._parquet.iter_batches(batch_size=_BATCH)
        while True:
            try:
                rows = next(batches).to_pylist()
            except StopIteration:
                return
            # Its pages may be damaged where its footer is whole, and what calls itself text may be no UTF-8.
            except (OSError, ArrowException, ValueError, OverflowError) as error:
                raise InvalidInputError(f"{self._label} cannot be read as Parquet: {error}") from error
            yield from rows

    def _decode(self, number: int, line: bytes) -> str:
        try:
            return line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"line {number} of {self._label} is not UTF-8: {error}") from error

    def _check(self, number: int, row: Any) -> None:
        if not isinstance(row, dict):
            raise InvalidInputError(f"row {number} of {self._label} is {row!r:.40}, not an object with fields")
        text = row.get(self.text_column)
        if self.text_column in row and not isinstance(text, str):
            raise InvalidInputError(
                f"row {number} of {self._label}: field {self.text_column!r} is {text!r:.40}, not a text; "
                "leave such rows out"
            )
        if text is None:
            fields = f"{', '.join(map(str, row)):.400}" or "none"
            raise InvalidInputError(
                f"row {number} of {self._label} has no text in field {self.text_column!r}; its fields are {fields}; "
                "specify the right one with --text-column"
            )
        check_unicode(text, f"the text in row {number} of {self._label}")

    def _open_standard_input(self) -> Any:
        if sys.stdin is None:
            raise InvalidInputError("standard input is closed; name a file of texts")
        return sys.stdin.buffer

    def _open(self, path: str) -> Any:
        try:
            if Path(path).is_file():
                with open(path, "rb") as file:
                    self.total = sum(1 for _ in file)
            return self._close.enter_context(open(path, "rb"))
        except OSError as error:
            raise InvalidInputError(f"cannot read {path}: {error.strerror}") from error

    def _open_parquet(self, path: str) -> Any:
        if path == "-":
            raise InvalidInputError("Parquet cannot be read from a pipe; give the file")
        try:
            from pyarrow import ArrowException
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise EmbeddingError(f"{PARQUET_NEEDS}: {install_command('lancedb')}") from error
        try:
            file = self._close.enter_context(ParquetFile(path))
        except OSError as error:
            raise InvalidInputError(f"cannot read {path}: {error.strerror or error}") from error
        except (ArrowException, ValueError) as error:
            raise InvalidInputError(f"{path} is not Parquet: {error}") from error
        self.total, self.schema = file.metadata.num_rows, file.schema_arrow
        return file


def _reject_constant(name: str) -> None:
    raise ValueError(f"it has no {name}")
