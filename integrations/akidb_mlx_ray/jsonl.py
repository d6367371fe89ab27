"""JSON lines as a dataset whose values keep their JSON types.

Ray's own reader guesses types block by block: "007" becomes the number 7, and columns missing from the first block
are lost.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Iterator, Mapping
from io import BufferedReader
from itertools import islice
from typing import Any

import pyarrow as pa
import ray
from pyarrow import fs
from ray.data import Dataset

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_ray.dataset import iterate

try:
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectArray
except ImportError:  # where Ray 2.51 has it
    from ray.air.util.object_extensions.arrow import ArrowPythonObjectArray

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_ROWS = 4096
_BUFFER_BYTES = 1 << 20
_MAX_TASKS = 1000

# A column's type; None if its values have several types, and stay Python objects.
Types = dict[str, "pa.DataType | None"]


def read_jsonl(paths: list[str], mixed: Collection[str] = (), columns: Collection[str] | None = None) -> Dataset:
    """Return the rows of JSON lines; every file is read twice, the first time for its types.

    Args:
        paths: files, folders of files, or either in an object store.
        mixed: columns whose values may have several types, which screening checks row by row.
        columns: those to read. Defaults to all.
    Raises:
        InvalidInputError: no files, no rows, or a column of several types; or, wrapped by Ray, a line that is not an
            object.
    """
    files = [file for path in paths for file in _list_files(path)]
    if not files:
        raise InvalidInputError(f"no JSON lines in {', '.join(paths[:4])}; their names end in {', '.join(SUFFIXES)}")
    named = ray.data.from_items([{"path": file} for file in files], override_num_blocks=min(len(files), _MAX_TASKS))
    named.context.raise_original_map_exception = True
    found: list[Types] = [
        pickle.loads(types)
        for batch in iterate(named.map_batches(_find_types, batch_format="pyarrow", batch_size=1))
        for types in batch["types"].to_pylist()
    ]
    types = _merge(found)
    if not types:
        raise InvalidInputError(f"no rows in {', '.join(paths[:4])}")
    types = {name: type_ for name, type_ in types.items() if columns is None or name in columns}
    if several := [name for name, type_ in types.items() if type_ is None and name not in mixed]:
        raise InvalidInputError(
            f"column {several[0]!r} has values of several types; convert them to one, or leave it out with columns"
        )
    return named.map_batches(_read, fn_kwargs={"types": types}, batch_format="pyarrow", batch_size=1)


def _list_files(path: str) -> list[str]:
    system, inner = _locate(path)
    info = system.get_file_info(inner)
    if info.type == fs.FileType.NotFound:
        raise InvalidInputError(f"no file {path}")
    if info.type == fs.FileType.File:
        return [path]
    prefix = path.partition("://")[0] + "://" if "://" in path else ""
    entries = system.get_file_info(fs.FileSelector(inner, recursive=True))
    return sorted(prefix + entry.path for entry in entries if entry.is_file and entry.path.endswith(SUFFIXES))


def _locate(path: str) -> tuple[fs.FileSystem, str]:
    return fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), path)


def _rows(path: str) -> Iterator[list[dict[str, Any]]]:
    """Yield rows in thousands."""
    system, inner = _locate(path)
    with system.open_input_stream(inner) as stream, BufferedReader(stream, _BUFFER_BYTES) as lines:
        objects = (_parse(line, path, number) for number, line in enumerate(lines, 1) if line.strip())
        while chunk := list(islice(objects, _ROWS)):
            yield chunk


def _parse(line: bytes, path: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InvalidInputError(f"{path}, line {number} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise InvalidInputError(f"{path}, line {number} is not a JSON object but {type(row).__name__}")
    return row


def _find_types(files: pa.Table) -> pa.Table:
    found: list[Types] = []
    for path in files["path"].to_pylist():
        for rows in _rows(path):
            names = dict.fromkeys(name for row in rows for name in row)
            found.append({name: _type_of([row.get(name) for row in rows]) for name in names})
    return pa.table({"types": pa.array([pickle.dumps(_merge(found))], pa.binary())})


def _type_of(values: list[Any]) -> pa.DataType | None:
    try:
        return pa.array(values).type
    except (ValueError, TypeError, OverflowError, NotImplementedError):  # Arrow's are of these too
        return None


def _merge(found: list[Types]) -> Types:
    merged: Types = {}
    for types in found:
        for name, type_ in types.items():
            merged[name] = _join(merged[name], type_) if name in merged else type_
    return merged


def _join(one: pa.DataType | None, other: pa.DataType | None) -> pa.DataType | None:
    if one is None or other is None or one == other:
        return one if one == other else None
    try:
        schemas = [pa.schema([("value", one)]), pa.schema([("value", other)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field("value").type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None


def _read(files: pa.Table, types: Mapping[str, pa.DataType | None]) -> Iterator[pa.Table]:
    for path in files["path"].to_pylist():
        for rows in _rows(path):
            yield pa.table({name: _column([row.get(name) for row in rows], type_) for name, type_ in types.items()})


def _column(values: list[Any], type_: pa.DataType | None) -> pa.Array:
    return ArrowPythonObjectArray.from_objects(values) if type_ is None else pa.array(values, type_)
