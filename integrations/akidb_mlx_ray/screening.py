"""Determine which rows can be written, before anything is embedded.

One pass reads only ids and texts, which takes a thousandth of the time of embedding them. Repeated ids are found by
their hashes, 8 bytes of the driver's memory per row, and then compared themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import ray
from ray.data import Dataset

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_ray.columns import Columns
from akidb_mlx_ray.dataset import iterate
from akidb_mlx_ray.rejects import RejectFile

# More are not a few mistakes: the column is not a key.
_MAX_REPEATED = 100_000


@dataclass(frozen=True)
class Screening:
    """The result of screening a dataset.

    Attributes:
        rows: number of rows.
        repeated: ids of more than one good row.
        first: the first row of each, with all its columns; None if no id is repeated.
    """

    rows: int
    repeated: frozenset[str]
    first: pa.Table | None


def screen(ds: Dataset, columns: Columns, rejects: RejectFile) -> Screening:
    """Check every row; reject those that cannot be embedded, and all but the first with the same id.

    Raises:
        InvalidInputError: too many ids are repeated.
    """
    present = ds.columns() or []
    wanted = [name for name in (columns.id, columns.text, columns.vector) if name in present]
    examined = ds.select_columns(wanted).map_batches(_examine, fn_kwargs={"columns": columns}, batch_format="pyarrow")
    rows = 0
    hashes = []
    for batch in iterate(examined):
        rows += batch.num_rows
        hashes.append(batch["hash"].drop_null().to_numpy())
        bad = batch.filter(pa.compute.is_valid(batch["problem"]))
        for row in bad.to_pylist():
            rejects.add(row["id"], row["text"], row["problem"])
    repeated_hashes = _repeated(hashes)
    if not len(repeated_hashes):
        return Screening(rows, frozenset(), None)
    if len(repeated_hashes) > _MAX_REPEATED:
        raise InvalidInputError(
            f"{len(repeated_hashes):,} ids of column {columns.id!r} occur more than once; name a key column"
        )
    return _find_repeated(ds, columns, repeated_hashes, rows, rejects)


def keep_good(ds: Dataset, columns: Columns, screening: Screening) -> Dataset:
    """Return the rows that can be embedded, each id once, with ids and texts as Arrow strings."""
    arguments = {"columns": columns, "repeated": screening.repeated}
    good = ds.map_batches(_drop_bad, fn_kwargs=arguments, batch_format="pyarrow")
    if screening.first is None:
        return good
    return good.union(ray.data.from_arrow(_as_strings(screening.first, columns)))


def _examine(rows: pa.Table, columns: Columns) -> pa.Table:
    """Return the hash of each row's id or, for a bad row, the problem and the row itself."""
    problems = columns.find_problems(rows)
    ids = rows[columns.id].to_pylist()
    texts = rows[columns.text].to_pylist() if columns.text in rows.column_names else [None] * rows.num_rows
    bad = [problem is not None for problem in problems]
    return pa.table(
        {
            "hash": pa.array(_hash(ids), mask=np.array(bad, dtype=bool)),
            "problem": pa.array(problems, pa.string()),
            "id": pa.array([_spell(id_) if b else None for id_, b in zip(ids, bad, strict=True)], pa.string()),
            "text": pa.array([_spell(text) if b else None for text, b in zip(texts, bad, strict=True)], pa.string()),
        }
    )


def _repeated(hashes: list[np.ndarray]) -> np.ndarray:
    together = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    together.sort()
    return np.unique(together[1:][together[1:] == together[:-1]])


def _find_repeated(ds: Dataset, columns: Columns, hashes: np.ndarray, rows: int, rejects: RejectFile) -> Screening:
    """Read the rows with repeated hashes, in order, and keep the first of each id."""
    suspects = ds.map_batches(_select_hashes, fn_kwargs={"columns": columns, "hashes": hashes}, batch_format="pyarrow")
    first: dict[str, pa.Table] = {}
    repeated = set()
    with _in_order(suspects):
        for batch in iterate(suspects):
            texts = batch[columns.text].to_pylist() if columns.text in batch.column_names else [None] * batch.num_rows
            for index, (id_, text) in enumerate(zip(batch[columns.id].to_pylist(), texts, strict=True)):
                if str(id_) in first:
                    repeated.add(str(id_))
                    rejects.add(id_, text, "duplicate id")
                else:
                    first[str(id_)] = batch.slice(index, 1)
    # Two different ids may share a hash; those rows stay.
    kept = [row for id_, row in first.items() if id_ in repeated]
    return Screening(rows, frozenset(repeated), pa.concat_tables(kept, promote_options="default") if kept else None)


@contextmanager
def _in_order(ds: Dataset) -> Iterator[None]:
    """Make Ray keep the order of rows; datasets share their options with those they were made from."""
    options = ds.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        yield
    finally:
        options.preserve_order = before


def _select_hashes(rows: pa.Table, columns: Columns, hashes: np.ndarray) -> pa.Table:
    good = np.array([problem is None for problem in columns.find_problems(rows)], dtype=bool)
    return rows.filter(pa.array(good & np.isin(_hash(rows[columns.id].to_pylist()), hashes)))


def _drop_bad(rows: pa.Table, columns: Columns, repeated: frozenset[str]) -> pa.Table:
    problems = columns.find_problems(rows)
    ids = rows[columns.id].to_pylist()
    good = [problem is None and str(id_) not in repeated for problem, id_ in zip(problems, ids, strict=True)]
    return _as_strings(rows.filter(pa.array(good, pa.bool_())), columns)


def _as_strings(rows: pa.Table, columns: Columns) -> pa.Table:
    """Convert ids and texts to Arrow strings, whatever their type was."""
    for name in (columns.id, columns.text):
        if name in rows.column_names:
            values = [None if value is None else str(value) for value in rows[name].to_pylist()]
            rows = rows.set_column(rows.column_names.index(name), name, pa.array(values, pa.string()))
    return rows


def _hash(ids: Iterable[object]) -> np.ndarray:
    """Return (N,) uint64, the same in every process."""
    # Bad ids are hashed with the others and left out later; pandas can hash only what UTF-8 can encode.
    spelled = np.array([_writable(str(id_)) for id_ in ids], dtype=object)
    hashes: np.ndarray = pd.util.hash_array(spelled, categorize=False)
    return hashes


def _spell(value: object) -> str | None:
    return None if value is None else _writable(value if isinstance(value, str) else repr(value))


def _writable(text: str) -> str:
    """Return a string that UTF-8 can encode, with unpaired surrogates escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
