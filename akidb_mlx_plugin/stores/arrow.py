"""Arrow tables, streams and Parquet files as blocks of rows; needs pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.stores.blocks import BLOCK_ROWS, METADATA, Block, CellError, Frame, check_names

_SUFFIXES = (".parquet", ".pq")
# Read of each column at a time.
_BUFFER_BYTES = 2**20


def open_arrow(table: Any) -> Frame:
    """Return a `pyarrow.Table` or `RecordBatch` to read."""

    def read(vector: str) -> Iterator[Block]:
        batches = table.to_batches(max_chunksize=BLOCK_ROWS) if isinstance(table, pa.Table) else [table]
        return _blocks(batches, vector)

    return Frame(read, table.num_rows, in_memory=True)


def open_stream(given: Any) -> Frame:
    """Return a stream of record batches to read, which may be larger than memory and can be read once.

    Args:
        given: a `pyarrow.RecordBatchReader`, or anything that offers Arrow's C stream, as DuckDB's relations do.
    """

    def read(vector: str) -> Iterator[Block]:
        try:
            reader = pa.RecordBatchReader.from_stream(given)
        except (pa.ArrowException, TypeError) as error:
            raise InvalidInputError(f"a {type(given).__name__} is not a table: {error}") from error
        with reader:
            yield from _blocks(reader, vector)

    return Frame(read, None, in_memory=False)


def open_parquet(path: Path) -> Frame:
    """Return a Parquet file, or a folder of them, to read; columns of `key=value` folders are added.

    Raises:
        InvalidInputError: there is none, or it is not Parquet.
    """
    import pyarrow.dataset as ds

    if path.is_dir():
        files = sorted(str(file) for file in path.rglob("*") if _is_data(file, path))
        if not files:
            raise InvalidInputError(f"the folder {str(path)!r} has no Parquet files (*.parquet)")
    elif path.exists():
        files = [str(path)]
    else:
        raise InvalidInputError(f"there is no file or folder {str(path)!r}")
    base = str(path) if path.is_dir() else str(path.parent)
    try:
        found = ds.dataset(files, format="parquet", partitioning="hive", partition_base_dir=base)
        fragments = list(found.get_fragments())
        rows = sum(fragment.metadata.num_rows for fragment in fragments)
    except (pa.ArrowException, OSError) as error:
        raise InvalidInputError(
            f"{str(path)!r} cannot be read as Parquet: {error}; read other formats with pandas, Polars or pyarrow, and "
            "give the table"
        ) from error
    return Frame(lambda vector: _parquet_blocks(fragments, base, vector), rows, in_memory=False)


def _is_data(file: Path, folder: Path) -> bool:
    """Return whether a file in a folder is one of its Parquet files; hidden ones are logs of Delta Lake or Spark."""
    is_hidden = any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
    return file.suffix in _SUFFIXES and not is_hidden and file.is_file()


def _parquet_blocks(fragments: Iterable[Any], base: str, vector: str) -> Iterator[Block]:
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    for fragment in fragments:
        source = str(Path(fragment.path).relative_to(base))
        keys = ds.get_partition_keys(fragment.partition_expression)
        try:
            # The dataset's own scanner decodes whole row groups, and buffering ahead keeps the whole file.
            with pq.ParquetFile(fragment.path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
                for block in _blocks(file.iter_batches(BLOCK_ROWS), vector, source):
                    rows = len(next(iter(block.columns.values()), ()))
                    added = {name: [value] * rows for name, value in keys.items() if name not in block.columns}
                    yield Block(block.columns | added, block.start, source)
        except (pa.ArrowException, OSError) as error:
            raise InvalidInputError(f"{source} cannot be read as Parquet: {error}") from error


def _blocks(batches: Iterable[Any], vector: str, source: str = "") -> Iterator[Block]:
    start = 0
    for whole in batches:
        check_names(whole.schema.names)
        for offset in range(0, whole.num_rows, BLOCK_ROWS):
            batch = whole.slice(offset, BLOCK_ROWS)
            columns: dict[str, list[Any]] = {}
            for field, column in zip(batch.schema, batch.columns, strict=True):
                name = field.name
                columns[name] = _vectors(column) if name == vector else _values(column, start, name, source)
                if name == METADATA and _is_json(field):
                    columns[name] = [None if text is None else json.loads(text) for text in columns[name]]
            yield Block(columns, start, source)
            start += batch.num_rows


def _is_json(field: Any) -> bool:
    """Return whether a column holds JSON, as "metadata" of LanceDB's tables does."""
    stored = (field.metadata or {}).get(b"ARROW:extension:name")
    return getattr(field.type, "extension_name", "") == "arrow.json" or stored == b"lance.json"


def _vectors(column: Any) -> list[Any]:
    """Return lists of numbers as arrays, and anything else as it is."""
    kind = column.type
    is_list = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        values: list[Any] = column.to_pylist()
        return values
    return [cell.values.to_numpy(zero_copy_only=False) if cell.is_valid else None for cell in column]


def _values(column: Any, start: int, name: str, source: str) -> list[Any]:
    if pa.types.is_time64(column.type) and column.type.unit == "ns":
        counts = column.cast(pa.int64())
        whole = pc.multiply(pc.divide(counts, 1000), 1000)
        changed = pc.index(pc.fill_null(pc.equal(counts, whole), True), False).as_py()
        if changed >= 0:
            raise CellError(
                f"{counts[changed]} ns is finer than Python's microseconds; cast the column to time64('us')",
                start + changed,
                name,
                source,
            )
    try:
        values: list[Any] = column.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        row = next(row for row, cell in enumerate(column) if not _is_readable(cell))
        raise CellError(f"it cannot be read: {error}", start + row, name, source) from error
    return values


def _is_readable(cell: Any) -> bool:
    try:
        cell.as_py()
    except (pa.ArrowException, ValueError, OverflowError):
        return False
    return True
