"""Write vectors of `akidb-mlx embed` as npy, JSONL or Parquet, completely or not at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from akidb_mlx_plugin.cli.embed_input import PARQUET_NEEDS
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError
from akidb_mlx_plugin.installation import install_command
from akidb_mlx_plugin.types import Vector

Rows = Sequence[dict[str, Any]]


class VectorWriter(ABC):
    """Writes rows and their vectors chunk by chunk; close it before its file, also after an error."""

    _inner: Any = None

    def __init__(self, file: BinaryIO, schema: Any, field: str) -> None:
        """Write to an open file.

        Args:
            file: open for writing, and seekable.
            schema: Arrow schema of the rows; None to infer it from the first ones.
            field: field for the vector in a row.
        """
        self._file = file
        self._schema = schema
        self._field = field

    @abstractmethod
    def write(self, rows: Rows, vectors: Vector) -> None:
        """Append rows with their (N, D) vectors."""

    @abstractmethod
    def finish(self, dimension: int) -> None:
        """Write what can be written only at the end.

        Args:
            dimension: length of the vectors, even if there are none.
        """

    def close(self) -> None:
        """Close the writer of the format, if any."""
        if self._inner is not None:
            self._inner.close()

    def _check_free(self, rows: Rows) -> None:
        if any(self._field in row for row in rows):
            raise InvalidInputError(f"the rows already have a field {self._field!r}; choose another --vector-column")


class NpyWriter(VectorWriter):
    """Writes only an (N, D) float32 array, in input order."""

    _count = 0

    def write(self, rows: Rows, vectors: Vector) -> None:
        """Append vectors."""
        if not self._count:
            self._write_header(vectors.shape[1])
        self._count += len(vectors)
        self._file.write(vectors.astype("<f4", copy=False).tobytes())

    def finish(self, dimension: int) -> None:
        """Write the number of rows into the header; NumPy leaves room there for any."""
        self._file.seek(0)
        self._write_header(dimension)

    def _write_header(self, dimension: int) -> None:
        from numpy.lib import format as npy

        header = {"descr": "<f4", "fortran_order": False, "shape": (self._count, dimension)}
        npy.write_array_header_1_0(self._file, header)


class JsonlWriter(VectorWriter):
    """Writes the input rows, each with its vector."""

    def write(self, rows: Rows, vectors: Vector) -> None:
        """Append rows."""
        self._check_free(rows)
        for row, vector in zip(rows, vectors, strict=True):
            # Nine digits round-trip a float32; its str() gives fewer where possible.
            numbers = "[" + ", ".join(map(str, vector)) + "]"
            try:
                line = json.dumps(row, ensure_ascii=False, default=str, allow_nan=False)
            except ValueError as error:
                raise InvalidInputError(
                    f"a row has a number that JSON cannot represent ({error}); write .parquet"
                ) from error
            except RecursionError as error:
                raise InvalidInputError("a row is nested too deeply for JSON; write .parquet") from error
            comma = ", " if row else ""
            self._file.write(f"{line[:-1]}{comma}{json.dumps(self._field)}: {numbers}}}\n".encode())

    def finish(self, dimension: int) -> None:
        """Do nothing: every line is complete."""


class ParquetWriter(VectorWriter):
    """Writes the input rows with a column of fixed-size lists."""

    def write(self, rows: Rows, vectors: Vector) -> None:
        """Append a row group."""
        import pyarrow as pa

        self._check_free(rows)
        names = list(dict.fromkeys(str(key) for row in rows for key in row))
        if self._schema is None:
            columns = [self._make_column(name, rows, None) for name in names]
            self._schema = pa.schema([pa.field(name, c.type) for name, c in zip(names, columns, strict=True)])
        elif unknown := [name for name in names if name not in self._schema.names]:
            raise InvalidInputError(
                f"the field {unknown[0]!r} is missing in all of the first rows; write .jsonl instead"
            )
        else:
            columns = [self._make_column(field.name, rows, field.type) for field in self._schema]
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        schema = self._schema.append(pa.field(self._field, column.type))
        try:
            self._open(schema).write_table(pa.table([*columns, column], schema=schema))
        except pa.ArrowException as error:  # such as an object without any field
            raise InvalidInputError(f"Parquet cannot store these rows: {error}; write .jsonl instead") from error

    def _make_column(self, name: str, rows: Rows, kind: Any) -> Any:
        """Return one field of the rows as an Arrow array; `kind` is its type, None to infer it."""
        import pyarrow as pa

        values = [row.get(name) for row in rows]
        if kind is not None and pa.types.is_null(kind) and any(value is not None for value in values):
            raise InvalidInputError(f"the field {name!r} is null in all of the first rows; write .jsonl instead")
        try:
            return pa.array(values, type=kind)
        except (pa.ArrowException, OverflowError, TypeError, RecursionError) as error:
            raise InvalidInputError(
                f"the field {name!r} does not fit one column: {error}; write .jsonl instead"
            ) from error

    def finish(self, dimension: int) -> None:
        """Write the file's footer; without any rows, write an empty table."""
        import pyarrow as pa

        schema = self._schema if self._schema is not None else pa.schema([])
        self._open(schema.append(pa.field(self._field, pa.list_(pa.float32(), dimension)))).close()

    def _open(self, schema: Any) -> Any:
        from pyarrow.parquet import ParquetWriter as ArrowWriter

        self._inner = self._inner or ArrowWriter(self._file, schema)
        return self._inner


_WRITERS: dict[str, type[VectorWriter]] = {
    ".npy": NpyWriter,
    ".jsonl": JsonlWriter,
    ".ndjson": JsonlWriter,
    ".parquet": ParquetWriter,
    ".pq": ParquetWriter,
}


def find_writer(path: Path) -> type[VectorWriter]:
    """Return the writer class for a file name.

    Raises:
        InvalidInputError: an unknown extension, or a folder.
        EmbeddingError: Parquet without pyarrow.
    """
    if path.suffix.lower() not in _WRITERS:
        raise InvalidInputError(f"--output {path}: the name must end in one of {', '.join(_WRITERS)}")
    if path.is_dir():
        raise InvalidInputError(f"--output {path} is a folder; name a file in it")
    writer = _WRITERS[path.suffix.lower()]
    if writer is ParquetWriter:
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise EmbeddingError(f"{PARQUET_NEEDS}: {install_command('lancedb')}") from error
    return writer


class atomic_write:  # noqa: N801 - used as a context manager, named like contextlib's
    """Writes a temporary file next to the target, and replaces the target on success; otherwise leaves nothing.

    An existing file keeps its permissions. A symbolic link is kept and its target replaced; a pipe or a device gets the
    bytes once they are complete.

    A class, not a generator: an interrupt while it is being entered would leave a generator's cleanup unrun.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._real = Path(os.path.realpath(path))
        self._temporary: Path | None = None
        if not self._real.exists() or self._real.is_file():
            self._temporary = self._real.with_name(f".akidb-mlx-{os.getpid()}.part")

    def __enter__(self) -> BinaryIO:
        """Open the file.

        Raises:
            InvalidInputError: it cannot be written.
        """
        try:
            if self._temporary is None:
                self._file: BinaryIO = cast(BinaryIO, tempfile.TemporaryFile())
                return self._file
            self._file = open(self._temporary, "wb")
            if self._real.exists():
                os.fchmod(self._file.fileno(), stat.S_IMODE(self._real.stat().st_mode))
            return self._file
        except OSError as error:
            self._remove()
            raise InvalidInputError(f"cannot write {self._path}: {error.strerror}") from error
        except BaseException:
            self._remove()
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._file:
                if kind is None:
                    self._complete()
            if kind is None and self._temporary is not None:
                self._temporary.replace(self._real)
                _sync_folder(self._real.parent)
        finally:
            self._remove()

    def _complete(self) -> None:
        """Flush every byte to the disk, or to the reader of the pipe."""
        self._file.flush()
        if self._temporary is not None:
            os.fsync(self._file.fileno())
            return
        self._file.seek(0)
        with open(self._real, "wb") as output:
            shutil.copyfileobj(self._file, output)

    def _remove(self) -> None:
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush the new name to the disk too; some file systems do not support it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
