"""Tables that people have in memory, in files or as streams, read as blocks of rows with Python's values.

pandas, Polars and pyarrow are recognized without being imported: an object of theirs exists only if its package was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.stores.blocks import BLOCK_ROWS, Block, CellError, Frame, check_names

_NEEDS_PYARROW = "needs pyarrow: pip install pyarrow"


def open_frame(given: object) -> Frame | None:
    """Return a table to read, or None if this is not one; reads no rows.

    Args:
        given: a pandas or Polars frame, a pyarrow table, batch or reader, or anything that offers Arrow's C stream.
    Raises:
        InvalidInputError: one column of a table, or a table that only pyarrow could read and it is not installed.
    """
    pandas, polars, arrow = (sys.modules.get(name) for name in ("pandas", "polars", "pyarrow"))
    if _is_a(given, pandas, "DataFrame"):
        return _open_pandas(given)
    if _is_a(given, polars, "DataFrame"):
        return _open_polars(given)
    if _is_a(given, polars, "LazyFrame"):
        return Frame(lambda vector: _polars_blocks(_collect(given)), None, in_memory=False)
    if _is_a(given, arrow, "Table", "RecordBatch"):
        from akidb_mlx_plugin.stores.arrow import open_arrow

        return open_arrow(given)
    if any(_is_a(given, module, "Series", "Array", "ChunkedArray") for module in (pandas, polars, arrow)):
        raise InvalidInputError(f"a {type(given).__name__} is one column; give a table with its name, and the ids")
    if not hasattr(type(given), "__arrow_c_stream__"):
        return None
    try:
        from akidb_mlx_plugin.stores.arrow import open_stream
    except ImportError as error:
        if isinstance(given, Iterable):
            return None
        raise InvalidInputError(f"reading a {type(given).__name__} {_NEEDS_PYARROW}") from error
    return open_stream(given)


def open_path(path: str | Path) -> Frame:
    """Return a Parquet file, or a folder of them, to read in batches.

    Raises:
        InvalidInputError: there is none, it is not Parquet, or pyarrow is not installed.
    """
    try:
        from akidb_mlx_plugin.stores.arrow import open_parquet
    except ImportError as error:
        raise InvalidInputError(f"reading the Parquet file {str(path)!r} {_NEEDS_PYARROW}") from error
    return open_parquet(Path(path).expanduser())


def _is_a(given: object, module: Any, *names: str) -> bool:
    """Return whether something is an instance of a class of a module, which may not be imported at all."""
    kinds = tuple(getattr(module, name) for name in names if hasattr(module, name))
    return isinstance(given, kinds)


def _open_pandas(frame: Any) -> Frame:
    index = frame.index
    levels = [(level, name) for level, name in enumerate(index.names) if name is not None]
    names = [*(name for _, name in levels), *frame.columns]

    def read(vector: str) -> Iterator[Block]:
        check_names(names)
        for start in range(0, len(frame), BLOCK_ROWS):
            part = frame.iloc[start : start + BLOCK_ROWS]
            columns = [part.index.get_level_values(level).tolist() for level, _ in levels]
            columns += [part.iloc[:, position].tolist() for position in range(part.shape[1])]
            yield Block(dict(zip(names, columns, strict=True)), start)

    hint = ""
    if not levels and getattr(index, "dtype", None) is not None and index.dtype.kind not in "iu":
        hint = "; an index is a column if it has a name: frame.rename_axis('id')"
    return Frame(read, len(frame), in_memory=True, hint=hint)


def _open_polars(frame: Any) -> Frame:
    return Frame(lambda vector: _polars_blocks([frame]), len(frame), in_memory=True)


def _collect(frame: Any) -> Iterable[Any]:
    """Compute a LazyFrame in parts; Polars before 1.34 can only compute it whole."""
    if hasattr(frame, "collect_batches"):
        batches: Iterable[Any] = frame.collect_batches(chunk_size=BLOCK_ROWS)
        return batches
    return [frame.collect()]


def _polars_blocks(frames: Iterable[Any]) -> Iterator[Block]:
    start = 0
    for frame in frames:
        for part in frame.iter_slices(BLOCK_ROWS):
            yield Block({column.name: _polars_values(column, start) for column in part.get_columns()}, start)
            start += len(part)


def _polars_values(column: Any, start: int) -> list[Any]:
    values: list[Any] = column.to_list()
    kind = str(column.dtype)
    # Python's dates and times end at microseconds, and Polars cuts the rest off.
    if "time_unit='ns'" in kind or "Time" in kind:
        again = type(column)(column.name, values, dtype=column.dtype)
        changed = column.ne_missing(again).to_list()
        if any(changed):
            row = changed.index(True)
            raise CellError(
                "it has nanoseconds, which Python's types do not hold; cast the column to microseconds",
                start + row,
                column.name,
            )
    return values
