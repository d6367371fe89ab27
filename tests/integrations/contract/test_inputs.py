"""What people have in their hands, written to either database: mappings, frames, tables, files and streams of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hosts import D, Host

from akidb_mlx_plugin import Document

pytest_plugins = ("host_fixtures", "collection_fixtures")

N = 5
TEXTS = [f"text {i}" for i in range(N)]
# The third row has a vector of its own, and no year.
VECTORS = [[0.5] * D if i == 2 else None for i in range(N)]
YEARS = [None if i == 2 else 2000 + i for i in range(N)]
ROWS = [
    {"id": f"d{i}", "text": text, "vector": vector, "year": year, "tag": "x"}
    for i, (text, vector, year) in enumerate(zip(TEXTS, VECTORS, YEARS, strict=True))
]
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "text": pa.large_string(),
        "vector": pa.list_(pa.float32(), D),
        "year": pa.int16(),
        "tag": pa.dictionary(pa.int8(), pa.string()),
    }
)


def table() -> Any:
    return pa.Table.from_pylist(ROWS, SCHEMA)


def pandas_frame() -> pd.DataFrame:
    frame = pd.DataFrame(ROWS).astype({"year": "Int64", "tag": "category"})
    frame["vector"] = [None if row is None else np.array(row) for row in VECTORS]
    return frame


def polars_frame() -> pl.DataFrame:
    return pl.DataFrame(ROWS, schema_overrides={"vector": pl.Array(pl.Float32, D)})


def one_file(folder: Path) -> Path:
    pq.write_table(table(), folder / "rows.parquet", row_group_size=2)
    return folder / "rows.parquet"


def many_files(folder: Path) -> Path:
    (folder / "parts" / "tag=x").mkdir(parents=True, exist_ok=True)
    for part, start in enumerate(range(0, N, 2)):
        pq.write_table(table().drop_columns("tag").slice(start, 2), folder / "parts" / "tag=x" / f"{part}.parquet")
    (folder / "parts" / "README.txt").write_text("not a table")
    return folder / "parts"


INPUTS: dict[str, Callable[[Path], Any]] = {
    "dicts": lambda folder: ROWS,
    "generator of dicts": lambda folder: iter(ROWS),
    "pandas": lambda folder: pandas_frame(),
    "pandas, index as id": lambda folder: pandas_frame().set_index("id"),
    "pandas, Arrow types": lambda folder: table().to_pandas(types_mapper=pd.ArrowDtype),
    "polars": lambda folder: polars_frame(),
    "polars, lazy": lambda folder: polars_frame().lazy().filter(pl.col("id") != "none"),
    "arrow table": lambda folder: table(),
    "arrow batch": lambda folder: table().to_batches()[0],
    "arrow reader": lambda folder: table().to_reader(2),
    "parquet path": one_file,
    "parquet string": lambda folder: str(one_file(folder)),
    "parquet folder": many_files,
    "generator of frames": lambda folder: iter([pandas_frame()[:2], polars_frame()[2:3], table()[3:]]),
    "all mixed": lambda folder: [
        Document(**{key: ROWS[0][key] for key in ("id", "text")}, metadata={"year": 2000, "tag": "x"}),
        ROWS[1],
        pandas_frame()[2:3],
        iter(ROWS[3:4]),
        table()[4:].to_reader(),
    ],
}


def check_written(host: Host, docs: Any) -> None:
    found = host.read(docs)
    assert {id_: row[0] for id_, row in found.items()} == {f"d{i}": text for i, text in enumerate(TEXTS)}
    for i, year in enumerate(YEARS):
        assert found[f"d{i}"][1] == ({"tag": "x"} if year is None else {"tag": "x", "year": year})
    np.testing.assert_allclose(found["d2"][2], [0.5] * D, rtol=1e-6)


@pytest.mark.parametrize("kind", list(INPUTS))
def test_every_kind_of_input(host: Host, docs: Any, tmp_path: Path, kind: str) -> None:
    response = host.upsert(docs, INPUTS[kind](tmp_path))
    assert (response.inserted, response.embeddings_generated) == (N, N - 1)
    check_written(host, docs)
    assert host.upsert(docs, INPUTS[kind](tmp_path), skip_unchanged=True).skipped == N


@pytest.mark.parametrize("host", ["chroma-server", "lancedb"], indirect=True)
@pytest.mark.parametrize("kind", list(INPUTS))
async def test_every_kind_of_input_asynchronously(host: Host, name: str, mock: Any, tmp_path: Path, kind: str) -> None:
    remote = await host.connect(name, mock)
    assert (await host.module.aupsert(remote, INPUTS[kind](tmp_path))).inserted == N
    check_written(host, host.get(name))
