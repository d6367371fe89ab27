"""Write a dataset to a LanceDB table."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlparse

import lance
import lance_ray
import lancedb
import numpy as np
import pyarrow as pa
from akidb_mlx_lancedb import MLXEmbeddings, create_table, open_table, validate_table
from akidb_mlx_lancedb.handles import find_table
from akidb_mlx_lancedb.keys import key_literal
from akidb_mlx_lancedb.schema import read_table_schema
from filelock import FileLock, Timeout
from lancedb.embeddings import EmbeddingFunctionConfig, get_registry
from lancedb.index import BTree
from ray.data import Dataset

from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_ray.columns import is_string
from akidb_mlx_ray.dataset import Workers
from akidb_mlx_ray.pipeline import BulkStore, Options, check_service, run
from akidb_mlx_ray.results import BulkResult

# Rows that an interruption can cost and that one file of the table holds: a hundredth of the run, within limits.
_COMMIT_SHARE = 100
_MIN_COMMIT_ROWS, _MAX_COMMIT_ROWS = 4096, 500_000
_LOOKUP_ROWS = 4096
_NAME = re.compile(r"[a-zA-Z0-9._-]+")
# From this many rows on, ids are looked up in an index; below, by reading the column.
_INDEXED_ROWS = 100_000


def write_lancedb(
    ds: Dataset,
    uri: str | Path,
    table: str,
    on: str = "id",
    *,
    embedding_function: MLXEmbeddings | None = None,
    text_column: str = "text",
    vector_column: str = "vector",
    concurrency: int = 1,
    num_cpus: float | None = None,
    num_gpus: float = 0.0,
    batch_size: int = 1024,
    strict: bool = False,
    rejects: str | Path | None = None,
    commit_rows: int | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> BulkResult:
    """Embed a dataset's rows whose ids a table lacks, and write them there.

    The table is created if it does not exist, with its embedding function and stamp, so that it embeds text afterward
    like any other. Rows are committed in thousands: restarting an interrupted run continues after the last commit, and
    writes no row twice.

    Args:
        ds: rows with an id and a text each; other columns are kept. A row's own vector is used unchanged.
        uri: the database: a folder that every node sees, or "s3://bucket/path".
        table: its name.
        on: the key column; strings, or integers, which become strings.
        embedding_function: defaults to the one that the table stores, or to the default model for a new one.
        text_column: the text to embed.
        vector_column: where the vectors go.
        concurrency: number of actors, each with its own model.
        num_cpus: processors for each, and so its threads. Defaults to one, or less if that leaves none for reading.
        num_gpus: GPUs for each.
        batch_size: rows given to the model at a time.
        strict: reject a dataset with a row that cannot be embedded, before anything is written. Otherwise such rows are
            left out: those without id or text, with a text that is empty or not a string, or with an earlier row's id.
        rejects: where those rows are written, as JSON lines. Defaults to TABLE.rejected.jsonl in the current folder.
        commit_rows: rows written at a time. Defaults to a hundredth of the rows, from 4,096 to 500,000.
        storage_options: LanceDB's, for object stores.
    Returns:
        What was done.
    Raises:
        InvalidInputError: a column or a value cannot be used, or, if strict, a row, or another run writes to the same
            local table; nothing was written.
        DimensionMismatchError: the function, or one of the dataset's vectors, does not fit the table; likewise.
        EmbeddingError: the run ended midway. The same call continues from there.
    """
    store = BulkTable(str(uri), table, on, embedding_function, text_column, vector_column, commit_rows, storage_options)
    path = Path(rejects) if rejects else Path(f"{table}.rejected.jsonl")
    with _only_run(str(uri), table):
        return run(ds, store, Workers(concurrency, num_cpus, num_gpus, batch_size), Options(strict, path))


class BulkTable(BulkStore):
    """A table that may not exist yet."""

    def __init__(
        self,
        uri: str,
        name: str,
        on: str = "id",
        function: MLXEmbeddings | None = None,
        text_column: str = "text",
        vector_column: str = "vector",
        commit_rows: int | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        """Check that the function fits an existing table; creates nothing. Arguments as for `write_lancedb`."""
        if uri.startswith("db://"):
            raise InvalidInputError(f"{uri} is LanceDB's cloud, which Lance cannot write to by itself; use table.add")
        if commit_rows is not None and commit_rows < 1:
            raise InvalidInputError(f"commit_rows must be at least 1, got {commit_rows}")
        if not _NAME.fullmatch(name):
            raise InvalidInputError(f"{name!r} is not a table's name: letters, digits, '.', '_' and '-'")
        self.label = f"table {name!r}"
        self._name = name
        self._storage_options = dict(storage_options or {})
        self._commit_rows = commit_rows
        self._db = cast(Any, lancedb.connect(uri, storage_options=self._storage_options or None))
        self._table: Any = _open_checked(self._db, name, function)
        self.trusted = function is not None or self._table is None
        if self._table is not None:
            schema = read_table_schema(name, self._table.schema, on)
            _check_names(self.label, schema.text, text_column, schema.vector, vector_column)
            function = function or MLXEmbeddings.from_stored(schema.stored or {})
        self._function = function or MLXEmbeddings.from_config(EmbeddingConfig.load())
        self.service = self._function.service
        self.columns = replace(check_service(self.service), id=on, text=text_column, vector=vector_column)

    def check_columns(self, given: Mapping[str, Any]) -> None:
        """Reject columns that the table lacks or, if it is new, cannot have."""
        if self._table is None:
            self._new_schema(given)
            return
        if unknown := [name for name in given if name not in self._table.schema.names]:
            raise InvalidInputError(
                f"{self.label} has no column {unknown[0]!r}; add it with table.add_columns, or leave it out: "
                f"ds.drop_columns([{unknown[0]!r}]), or --columns with the others"
            )
        own = (self.columns.id, self.columns.text, self.columns.vector)
        for field in self._table.schema:
            if field.name in own:
                continue
            if field.name not in given and not field.nullable:
                raise InvalidInputError(f"{self.label} needs {field.name!r}, and the rows have no such column")
            if field.name in given and not _fits(given[field.name], field.type):
                raise InvalidInputError(
                    f"{self.label} has {field.type} in column {field.name!r}, and the rows have {given[field.name]}; "
                    "convert it, or leave it out"
                )

    def make(self, given: Mapping[str, Any]) -> None:
        """Create the table if it does not exist; index a large table's ids, or its new ones."""
        if self._table is None:
            schema = self._new_schema(given)
            self._table = create_table(self._db, self._name, self._function, schema=schema, on=self.columns.id)
        if self._table.count_rows() < _INDEXED_ROWS:
            return
        names = [index.name for index in self._table.list_indices() if self.columns.id in index.columns]
        if not names:
            self._table.create_index(self.columns.id, config=BTree())
        elif self._table.index_stats(names[0]).num_unindexed_rows >= _INDEXED_ROWS:
            options = self._storage_options or None
            lance.dataset(self._uri(), storage_options=options).optimize.optimize_indices(index_names=names[:1])
            self._table.checkout_latest()

    def drop_present(self, ds: Dataset) -> Dataset:
        """Look ids up in the table's current version, a batch at a time."""
        if self._table is None or not self._table.count_rows():
            return ds
        arguments = {
            "uri": self._uri(),
            "version": self._table.version,
            "on": self.columns.id,
            "storage_options": tuple(self._storage_options.items()),
            "lookup": uuid.uuid4().hex,
        }
        return ds.map_batches(_drop_present, fn_kwargs=arguments, batch_format="pyarrow", batch_size=_LOOKUP_ROWS)

    def write(self, ds: Dataset, rows: int) -> int:
        """Let `lance_ray` append, with a commit for every few thousand rows."""
        before = self._table.count_rows()
        schema = self._table.schema.remove_metadata()
        commit_rows = min(max(rows // _COMMIT_SHARE, _MIN_COMMIT_ROWS), _MAX_COMMIT_ROWS)
        lance_ray.write_lance(
            ds.map_batches(_align, fn_kwargs={"schema": schema}, batch_format="pyarrow"),
            self._uri(),
            mode="append",
            stream=True,
            batch_size=self._commit_rows or commit_rows,
            storage_options=self._storage_options or None,
        )
        self._table.checkout_latest()
        return int(self._table.count_rows() - before)

    def _uri(self) -> str:
        return f"{str(self._db.uri).rstrip('/')}/{self._name}.lance"

    def _new_schema(self, given: Mapping[str, Any]) -> pa.Schema:
        columns = self.columns
        own = {
            columns.id: pa.field(columns.id, pa.string(), nullable=False),
            columns.text: pa.field(columns.text, pa.string()),
            columns.vector: pa.field(columns.vector, pa.list_(pa.float32(), columns.dimension)),
        }
        others = {name: _field(name, column_type) for name, column_type in given.items() if name not in own}
        config = EmbeddingFunctionConfig(
            vector_column=columns.vector, source_column=columns.text, function=self._function
        )
        metadata = get_registry().get_table_metadata([config])  # type: ignore[no-untyped-call]
        return pa.schema([*own.values(), *others.values()], metadata=metadata)


@contextmanager
def _only_run(uri: str, table: str) -> Iterator[None]:
    """Let one run at a time write to a local table: a run looks up existing ids only when it begins.

    Raises:
        InvalidInputError: another run writes to it.
    """
    parsed = urlparse(uri)
    lock = None
    if parsed.scheme in ("", "file"):
        folder = Path(unquote(parsed.path) if parsed.scheme else uri)
        lock = FileLock(folder / f".{table}.bulk.lock", timeout=0)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise InvalidInputError(
                f"another run is writing to table {table!r} of {uri}, and both would write the same new ids; wait "
                "until it has finished"
            ) from None
        except OSError:
            # A folder that cannot be written is reported by the run itself.
            lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _open_checked(db: Any, name: str, function: MLXEmbeddings | None) -> Any:
    """Open a table and check that its own or the given function fits; return None if there is no such table."""
    table = find_table(db, name)
    if table is not None and function is None:
        return open_table(db, name)
    if table is not None:
        validate_table(table, function)
    return table


def _check_names(label: str, text: str | None, text_column: str, vector: str, vector_column: str) -> None:
    for what, own, given in (("text", text, text_column), ("vector", vector, vector_column)):
        if own is not None and own != given:
            raise InvalidInputError(
                f"{label} has its {what} in column {own!r}, not {given!r}; pass {what}_column={own!r}, and rename the "
                f"dataset's column with ds.rename_columns"
            )


def _fits(given: Any, own: pa.DataType) -> bool:
    """Return whether a column accepts values of a type unchanged."""
    if not isinstance(given, pa.DataType) or given == own or pa.types.is_null(given):
        return isinstance(given, pa.DataType)
    if pa.types.is_integer(given):
        return bool(pa.types.is_integer(own) or pa.types.is_floating(own))
    if pa.types.is_floating(given):
        return bool(pa.types.is_floating(own))
    if is_string(given) or is_string(own):
        return is_string(given) and is_string(own)
    try:
        pa.array([], given).cast(own)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def _field(name: str, column_type: Any) -> pa.Field:
    if not isinstance(column_type, pa.DataType) or isinstance(column_type, pa.ExtensionType):
        raise InvalidInputError(
            f"column {name!r} holds {column_type}, which LanceDB cannot keep; make plain Arrow values of it, or leave "
            f"it out: ds.drop_columns([{name!r}]), or --columns with the others"
        )
    return pa.field(name, column_type)


def _drop_present(
    rows: pa.Table, uri: str, version: int, on: str, storage_options: tuple[tuple[str, str], ...], lookup: str
) -> pa.Table:
    ids = rows[on].to_pylist()
    if not ids:
        return rows
    quoted = ", ".join(key_literal(id_, pa.string()) for id_ in ids)
    found = _open(uri, version, storage_options, lookup).to_table(columns=[on], filter=f"`{on}` IN ({quoted})")
    present = set(found[on].to_pylist())
    return rows.filter(pa.array(np.array([id_ not in present for id_ in ids], dtype=bool)))


@lru_cache(maxsize=4)
def _open(uri: str, version: int, storage_options: tuple[tuple[str, str], ...], lookup: str) -> Any:
    """Open a table once in each worker for each lookup, at its version when the run began.

    A dropped and recreated table may reach the same version: hence `lookup`.
    """
    return lance.dataset(uri, version=version, storage_options=dict(storage_options) or None)


def _align(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows with a table's columns in its order; missing values are null."""
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
