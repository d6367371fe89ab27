"""Values and sources of rows: what comes out equal, what is refused by name, and what is read when."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from akidb_mlx_plugin import Document, InvalidInputError
from akidb_mlx_plugin.stores.columns import Columns
from akidb_mlx_plugin.stores.rows import Rows


def read(given: Any, **columns: Any) -> list[Document]:
    names = {"id": "id", "text": "text", "vector": "vector", **columns}
    return list(Rows(given, Columns.choose(**names)))


def only(given: Any, **columns: Any) -> Document:
    [document] = read(given, **columns)
    return document


class TestValues:
    VALUES = st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5).filter(
            lambda name: name.casefold() not in ("id", "text", "vector", "metadata")
        ),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(-(2**63), 2**63 - 1),
            st.floats(allow_nan=False),
            st.text(st.characters(exclude_categories=["Cs"])),
            st.datetimes(),
            st.dates(),
            st.timedeltas(dt.timedelta(-10_000), dt.timedelta(10_000)),
            st.lists(st.integers(0, 9), min_size=1),
        ),
        max_size=4,
    )

    @pytest.mark.slow
    @given(VALUES)
    def test_metadata_come_out_equal(self, values: dict[str, Any]) -> None:
        row = {"id": "a", "text": "x", **values}
        expected = {name: value for name, value in values.items() if value is not None} or None
        assert only([row]).metadata == expected
        assert only(pa.Table.from_pylist([row])).metadata == expected
        assert only(pl.DataFrame([row])).metadata == expected
        assert only(pd.DataFrame([row], dtype=object)).metadata == expected

    @pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64(), pa.int8()])
    @pytest.mark.parametrize("listed", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 3)])
    def test_vectors(self, kind: Any, listed: Any) -> None:
        vectors = pa.array([[9, 9, 9], [1, 2, 3], None], pa.list_(pa.int8())).cast(listed(kind))
        table = pa.table({"id": ["a", "b", "c"], "text": ["x"] * 3, "vector": vectors})
        frames = [table.slice(1), table.slice(1).to_pandas()]
        frames += [] if kind == pa.float16() else [pl.from_arrow(table)[1:]]
        for frame in frames:
            second, third = read(frame)
            np.testing.assert_array_equal(second.vector, [1, 2, 3])
            assert third.vector is None

    @pytest.mark.parametrize(
        "column",
        [
            pl.Series([0, 1_001]).cast(pl.Datetime("ns")),
            pl.Series([0, 1_001]).cast(pl.Duration("ns")),
            pl.Series([0, 1_001]).cast(pl.Time),
            pl.Series([[0], [1_001]]).cast(pl.List(pl.Datetime("ns"))),
            pa.array([0, 1_001], pa.time64("ns")),
        ],
        ids=["moment", "duration", "time", "list", "Arrow"],
    )
    def test_nanoseconds_are_not_cut_off(self, column: Any) -> None:
        frame = pa.table if isinstance(column, pa.Array) else pl.DataFrame
        with pytest.raises(InvalidInputError, match=r"row 1, column 'when': .* cast the column"):
            read(frame({"id": ["a", "b"], "text": ["x", "y"], "when": column}))
        assert read(frame({"id": ["a"], "text": ["x"], "when": column[:1]}))

    def test_nanoseconds_of_pandas_stay(self) -> None:
        when = pd.Timestamp("2020-01-01 00:00:00.000000001")
        for frame in (pd.DataFrame, lambda columns: pa.Table.from_pandas(pd.DataFrame(columns))):
            assert only(frame({"id": ["a"], "text": ["x"], "when": [when]})).metadata == {"when": when}

    def test_what_python_cannot_hold(self) -> None:
        far = pa.array([0, 2**60], pa.timestamp("s"))
        with pytest.raises(InvalidInputError, match="row 1, column 'when': it cannot be read"):
            read(pa.table({"id": ["a", "b"], "text": ["x", "y"], "when": far}))


class TestSources:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (None, "documents is NoneType, not a Document; an upsert takes"),
            (5, "documents is int"),
            (b"text", "documents is bytes"),
            ("a text", "documents is 'a text', which is not the path of a Parquet file; an upsert takes"),
            ("x" * 5000, "which is not the path"),
            ("nul\0", "which is not the path"),
            ("missing.parquet", "there is no file or folder 'missing.parquet'"),
            (Path("missing"), "there is no file or folder 'missing'"),
            (Document("a", "x"), r"documents is Document, one document; put it in \[ \]"),
            ({"id": "a"}, r"documents is dict, one row; put it in \[ \]"),
            (["a text"], "item 0 is 'a text', which is not the path"),
            ([Document("a", "x"), 5], "item 1 is int, not a Document"),
            (iter([[{"id": "a", "text": "x"}, 5]]), "item 0, item 1 is int"),
            (np.zeros((2, 2)), "item 0, item 0 is float64"),
            (pd.Series(["x"]), "a Series is one column"),
            (pl.Series(["x"]), "a Series is one column"),
            (pa.array(["x"]), "a StringArray is one column"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_is_not_taken(self, given: Any, message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            read(given)

    def test_anything_that_offers_arrows_stream(self) -> None:
        class Relation:
            def __arrow_c_stream__(self, requested_schema: object = None) -> object:
                return pa.table({"id": ["a"], "text": ["x"]}).__arrow_c_stream__(requested_schema)

        class Numbers:
            def __arrow_c_stream__(self, requested_schema: object = None) -> object:
                return pa.chunked_array([[1]]).__arrow_c_stream__(requested_schema)

        assert only(Relation()).id == "a"
        with pytest.raises(InvalidInputError, match="a Numbers is not a table"):
            read(Numbers())

    def test_rows_are_counted_where_they_can_be(self, tmp_path: Path) -> None:
        table = pa.table({"id": ["a", "b"], "text": ["x", "y"]})
        pq.write_table(table, tmp_path / "t.parquet")
        rows = table.to_pylist()
        expected: list[tuple[Any, bool, int | None]] = [
            (rows, True, 2),
            (table, True, 2),
            ([*rows, table.to_pandas(), pl.from_arrow(table)], True, 6),
            (tmp_path / "t.parquet", False, 2),
            ([str(tmp_path), *rows], False, 4),
            (table.to_reader(), False, None),
            (iter(rows), False, None),
            (dict.fromkeys("ab", rows[0]).values(), False, 2),
            ([iter(rows)], False, None),
        ]
        for source, in_memory, total in expected:
            found = Rows(source, Columns())
            assert (found.in_memory, found.total) == (in_memory, total)

    @pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
    def test_frames_need_no_pyarrow(self, kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "akidb_mlx_plugin.stores.arrow", raising=False)
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        assert only(kind({"id": ["a"], "text": ["x"], "vector": [[1.0]]})).vector == [1.0]
        with pytest.raises(InvalidInputError, match="needs pyarrow: pip install pyarrow"):
            read(tmp_path)

    def test_streams_are_read_as_they_are_needed(self) -> None:
        taken: list[int] = []

        def frames() -> Iterator[pd.DataFrame]:
            for number in range(3):
                taken.append(number)
                yield pd.DataFrame({"id": [f"{number}"], "text": ["x"]})

        documents = iter(Rows(frames(), Columns()))
        assert (next(documents).id, taken) == ("0", [0])


class TestParquet:
    def test_is_read_in_batches(self, tmp_path: Path) -> None:
        """The last row group cannot be read, and the first ones are documents by then."""
        path = tmp_path / "t.parquet"
        pq.write_table(pa.table({"id": [f"{i}" for i in range(5000)], "text": ["x"] * 5000}), path, row_group_size=2000)
        group = pq.read_metadata(path).row_group(2).column(0)
        with path.open("r+b") as file:
            file.seek(group.dictionary_page_offset or group.data_page_offset)
            file.write(b"\xff" * 16)
        documents = iter(Rows(path, Columns()))
        assert [next(documents).id for _ in range(3072)][-1] == "3071"
        with pytest.raises(InvalidInputError, match=r"t\.parquet cannot be read as Parquet"):
            next(documents)

    @pytest.mark.slow
    def test_is_never_whole_in_memory(self, tmp_path: Path) -> None:
        vectors = np.random.default_rng(0).standard_normal((16_000, 384)).astype(np.float32)
        table = pa.table({"id": range(16_000), "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), 384)})
        pq.write_table(table, tmp_path / "t.parquet")
        before = pa.total_allocated_bytes()
        for _ in islice(Rows(tmp_path / "t.parquet", Columns()), 4000):
            assert pa.total_allocated_bytes() - before < vectors.nbytes / 2

    def test_a_folder(self, tmp_path: Path) -> None:
        for year, name in ((2020, "b"), (2021, "a")):
            folder = tmp_path / f"year={year}"
            folder.mkdir()
            columns = {"id": [name], "text": ["x"]} | ({"more": [1]} if name == "a" else {})
            pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        (tmp_path / "notes.csv").write_text("id,text")
        for hidden in ("_delta_log", ".cache"):
            (tmp_path / hidden).mkdir()
            (tmp_path / hidden / "0.parquet").write_bytes(b"of no concern")
        found = {document.id: document.metadata for document in read(tmp_path)}
        assert found == {"b": {"year": 2020}, "a": {"year": 2021, "more": 1}}

    def test_errors_name_the_file(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"id": ["a", None], "text": ["x", "y"]}), tmp_path / "t.parquet")
        with pytest.raises(InvalidInputError, match=r"^t.parquet, row 1: column 'id' is empty"):
            read(tmp_path / "t.parquet")
        with pytest.raises(InvalidInputError, match=r"^item 1, t.parquet, row 1: column 'id' is empty"):
            read([{"id": "a", "text": "x"}, tmp_path])

    def test_what_is_not_parquet(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"has no Parquet files \(\*.parquet\)"):
            read(tmp_path)
        (tmp_path / "t.jsonl").write_text(json.dumps({"id": "a"}))
        with pytest.raises(InvalidInputError, match=r"cannot be read as Parquet: .*; read other formats with pandas"):
            read(str(tmp_path / "t.jsonl"))
