"""What people have in their hands, written to either database: mappings, frames, tables, files and streams of them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collection_helpers import EmbeddedByMock
from hosts import D, Host

from akidb_mlx_plugin import DimensionMismatchError, Document, InvalidInputError, UpsertError

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


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(INPUTS))
def test_every_kind_of_input(host: Host, docs: Any, tmp_path: Path, kind: str) -> None:
    response = host.upsert(docs, INPUTS[kind](tmp_path))
    assert (response.inserted, response.embeddings_generated) == (N, N - 1)
    check_written(host, docs)
    assert host.upsert(docs, INPUTS[kind](tmp_path), skip_unchanged=True).skipped == N


@pytest.mark.slow
@pytest.mark.parametrize("host", ["chroma-server", "lancedb"], indirect=True)
@pytest.mark.parametrize("kind", list(INPUTS))
async def test_every_kind_of_input_asynchronously(host: Host, name: str, mock: Any, tmp_path: Path, kind: str) -> None:
    remote = await host.connect(name, mock)
    assert (await host.module.aupsert(remote, INPUTS[kind](tmp_path))).inserted == N
    check_written(host, host.get(name))


def some(count: int) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"d{i}" for i in range(count)], "text": "x", "vector": [[1.0] * D] * count, "n": 1})


class TestRefusals:
    """A table in memory is checked whole: the last row is wrong, and nothing is embedded or written."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("column", "value", "message"),
        [
            ("id", "d0", r"row 1999, column 'id': document 'd0' occurs twice"),
            ("id", "", r"row 1999, column 'id': .* must be a non-empty string"),
            ("id", None, r"row 1999: column 'id' is empty; give an id, or .* make_ids=True"),
            ("text", 5, r"row 1999, column 'text': the text of document 'd1999' is int, not a string"),
            ("text", "\ud800", r"row 1999, column 'text': .* lone surrogate"),
            ("vector", [1.0] * 7, r"row 1999, column 'vector': .* a vector of 7 dimensions, and .* holds 8"),
            ("vector", [float("nan")] * D, r"row 1999, column 'vector': .* not a finite float32: nan at 0"),
            ("vector", "[1, 2]", r"row 1999, column 'vector': .* not one row of numbers: str"),
            ("n", object(), r"row 1999: the metadata of document 'd1999' cannot be .*"),
        ],
    )
    def test_one_bad_row(
        self, host: Host, docs: Any, mocked: EmbeddedByMock, column: str, value: Any, message: str
    ) -> None:
        frame = some(2000).astype(object)
        frame.at[0, "vector"] = None
        frame.at[1999, column] = value
        kind = DimensionMismatchError if "holds 8" in message else InvalidInputError
        for given in (frame, frame.to_dict("records")):
            with pytest.raises(kind, match=f"^{message}"):
                host.upsert(docs, given, batch_size=500)
        assert (host.read(docs), mocked) == ({}, [])

    @pytest.mark.slow
    def test_neither_text_nor_vector(self, host: Host, docs: Any) -> None:
        with pytest.raises(InvalidInputError, match=r"row 1, column 'text': .* neither text nor vector"):
            host.upsert(docs, pl.DataFrame({"id": ["a", "b"], "text": ["x", None]}))

    @pytest.mark.slow
    def test_dates_are_kept_equal_or_refused(self, host: Host, docs: Any) -> None:
        frame = pd.DataFrame({"id": ["a"], "text": ["x"], "when": [pd.Timestamp("2020-01-01")]})
        with pytest.raises(InvalidInputError, match=r"row 0: the metadata of document 'a' cannot be .*"):
            host.upsert(docs, frame)
        assert host.upsert(docs, frame.assign(when=frame["when"].dt.strftime("%Y-%m-%d"))).inserted == 1
        assert host.read(docs)["a"][1] == {"when": "2020-01-01"}

    @pytest.mark.slow
    def test_a_stream_ends_at_the_bad_row(self, host: Host, docs: Any, tmp_path: Path) -> None:
        frame = some(2000).astype(object)
        frame.at[1500, "text"] = None
        frame.at[1500, "vector"] = None
        pq.write_table(pa.Table.from_pandas(frame), tmp_path / "rows.parquet")
        with pytest.raises(UpsertError, match=r"1000 documents are in, .*: rows.parquet, row 1500, column") as raised:
            host.upsert(docs, tmp_path / "rows.parquet", batch_size=500)
        assert (raised.value.written_count, len(host.read(docs))) == (1000, 1000)

    @pytest.mark.slow
    def test_names_of_columns(self, host: Host, docs: Any) -> None:
        frame = pd.DataFrame({"key": ["a"], "body": ["a text"], "page": [7]})
        with pytest.raises(InvalidInputError, match="no column 'id' for the id; the columns are 'key', 'body', 'page'"):
            host.upsert(docs, frame)
        with pytest.raises(InvalidInputError, match=r"no column 'bdy' for the text.* did you mean 'body'\?"):
            host.upsert(docs, frame, id="key", text="bdy")
        assert host.upsert(docs, frame, id="key", text="body").inserted == 1
        assert host.read(docs)["a"][:2] == ("a text", {"page": 7})

    @pytest.mark.slow
    def test_what_is_not_taken(self, host: Host, docs: Any) -> None:
        with pytest.raises(InvalidInputError, match=r"documents is 'a text', .* an upsert takes Documents, mappings"):
            host.upsert(docs, "a text")


class TestIds:
    @pytest.mark.slow
    def test_made_from_the_content(self, host: Host, docs: Any, mocked: EmbeddedByMock) -> None:
        frame = pl.DataFrame({"text": ["one", "two", "one"], "n": [1, 2, 3]})
        response = host.upsert(docs, frame, make_ids=True)
        assert (response.inserted, response.repeated, sorted(mocked)) == (2, 1, ["one", "two"])
        assert sorted((text, metadata) for text, metadata, _ in host.read(docs).values()) == [
            ("one", {"n": 1}),
            ("two", {"n": 2}),
        ]
        # The same contents are the same documents, in another form and order.
        again = host.upsert(docs, reversed(frame.to_dicts()[:2]), make_ids=True, skip_unchanged=True)
        assert (again.skipped, len(host.read(docs))) == (2, 2)

    @pytest.mark.slow
    def test_integers_and_uuids(self, host: Host, docs: Any) -> None:
        number = uuid.UUID(int=7)
        host.upsert(docs, pd.DataFrame({"id": [17, 18], "text": "x"}))
        host.upsert(docs, [{"id": number, "text": "x"}])
        assert set(host.read(docs)) == {"17", "18", str(number)}


@pytest.mark.slow
@pytest.mark.parametrize("host", ["chroma-server", "lancedb"], indirect=True)
async def test_options_and_refusals_asynchronously(host: Host, name: str, mock: Any) -> None:
    remote = await host.connect(name, mock)
    frame = pd.DataFrame({"body": ["one", "two", "one"]})
    response = await host.module.aupsert(remote, frame, text="body", make_ids=True)
    assert (response.inserted, response.repeated) == (2, 1)
    with pytest.raises(InvalidInputError, match="no column 'id' for the id"):
        await host.module.aupsert(remote, frame, text="body")
    with pytest.raises(InvalidInputError, match="an upsert takes Documents"):
        await host.module.aupsert(remote, "a text")
    assert await host.count_async(remote) == 2


@pytest.mark.slow
def test_the_bar_knows_how_many_rows_there_are(
    host: Host, docs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.upsert(docs, one_file(tmp_path), show_progress=True)
    assert f"{N}/{N}" in capsys.readouterr().err
    host.upsert(docs, pd.DataFrame({"text": ["x", "x", "y"]}), make_ids=True, show_progress=True)
    assert "3/3" in capsys.readouterr().err
