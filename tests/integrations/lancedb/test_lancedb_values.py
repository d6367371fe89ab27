"""What goes into a LanceDB table as metadata comes back equal, or is refused before anything is embedded."""

from __future__ import annotations

import datetime as dt
import enum
import http
import json
import uuid
from decimal import Decimal
from typing import Any

import lancedb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from akidb_mlx_lancedb import MLXEmbeddings, create_table, upsert
from collection_helpers import EmbeddedByMock

from akidb_mlx_plugin import Document, InvalidInputError

pytest_plugins = ("collection_fixtures",)

D = 8
# Files of LanceDB 0.38 have no maps.
HAS_MAPS = tuple(map(int, lancedb.__version__.split(".")[:2])) >= (0, 40)
BERLIN = dt.timezone(dt.timedelta(hours=1))
UUID = uuid.UUID("12345678-1234-4234-8234-123456789abc")
MOMENT = dt.datetime(2024, 5, 6, 7, 8, 9, 123456)


class Color(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@pytest.fixture
def db() -> Any:
    return lancedb.connect("memory://")


def write(db: Any, mock: MLXEmbeddings, field: pa.Field, value: Any) -> Any:
    """Write a document with one value into a table with one column, and return the table."""
    table = create_table(db, "docs", mock, schema=pa.schema([field]), mode="overwrite")
    upsert(table, [Document("a", "a text", metadata={field.name: value})])
    return table


KEPT: list[tuple[pa.DataType, Any, Any]] = [
    (pa.int64(), http.HTTPStatus.OK, 200),
    (pa.int64(), 2020.0, 2020),
    (pa.uint64(), 2**64 - 1, 2**64 - 1),
    (pa.int8(), np.int64(-128), -128),
    (pa.float64(), 2**53, float(2**53)),
    (pa.float64(), -0.0, -0.0),
    (pa.float32(), 0.1, float(np.float32(0.1))),
    (pa.float16(), 0.1, float(np.float16(0.1))),
    (pa.bool_(), np.bool_(True), True),
    (pa.string(), Color.RED, "red"),
    (pa.string(), np.str_("ü"), "ü"),
    (pa.large_string(), "\0", "\0"),
    (pa.string_view(), "x", "x"),
    (pa.binary(), bytearray(b"\xff\0"), b"\xff\0"),
    (pa.binary(2), b"ab", b"ab"),
    (pa.uuid(), UUID, UUID),
    (pa.decimal128(38, 2), Decimal("1.5"), Decimal("1.50")),
    (pa.decimal128(38, 2), 7, Decimal("7.00")),
    (pa.date32(), dt.date.min, dt.date.min),
    (pa.date32(), dt.date.max, dt.date.max),
    (pa.date32(), np.datetime64("2024-05", "M"), dt.date(2024, 5, 1)),
    (pa.date64(), dt.date(2024, 5, 6), dt.date(2024, 5, 6)),
    (pa.timestamp("us"), dt.datetime.min, dt.datetime.min),
    (pa.timestamp("us"), dt.datetime.max, dt.datetime.max),
    (pa.timestamp("us", "UTC"), MOMENT.replace(tzinfo=BERLIN), MOMENT.replace(tzinfo=BERLIN)),
    (pa.timestamp("ns"), pd.Timestamp("2024-05-06 07:08:09.123456789"), pd.Timestamp("2024-05-06 07:08:09.123456789")),
    (pa.timestamp("us"), pd.NaT, None),
    (pa.timestamp("s"), np.datetime64("NaT"), None),
    *[
        (pa.timestamp(column), np.datetime64("2024-05-06T07:08:09", unit), MOMENT.replace(microsecond=0))
        for unit in ("s", "ms", "us", "ns")
        for column in ("s", "ms", "us")
    ],
    (pa.timestamp("us"), np.datetime64("2024-05-06", "D"), dt.datetime(2024, 5, 6)),
    (pa.time32("s"), dt.time(23, 59, 59), dt.time(23, 59, 59)),
    (pa.time64("us"), dt.time.max, dt.time.max),
    (pa.duration("ms"), dt.timedelta(milliseconds=1500), dt.timedelta(milliseconds=1500)),
    (pa.duration("us"), np.timedelta64(90, "m"), dt.timedelta(minutes=90)),
    (pa.list_(pa.int64()), (1, Level.HIGH, None), [1, 3, None]),
    (pa.list_(pa.float32(), 2), np.array([1.0, 2.0]), [1.0, 2.0]),
    (pa.list_(pa.timestamp("us")), np.array([MOMENT], "datetime64[ns]"), [MOMENT]),
    (pa.struct([("a", pa.int64()), ("b", pa.string())]), {"a": 1}, {"a": 1, "b": None}),
    *([(pa.map_(pa.string(), pa.int64()), {"k": 1}, [("k", 1)])] if HAS_MAPS else []),
    (pa.dictionary(pa.int32(), pa.string()), "x", "x"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "value", "expected"), KEPT, ids=[f"{kind}-{value!r:.30}" for kind, value, _ in KEPT])
def test_kept(db: Any, mock: MLXEmbeddings, kind: pa.DataType, value: Any, expected: Any) -> None:
    table = write(db, mock, pa.field("m", kind), value)
    stored = table.to_arrow()["m"][0].as_py()
    assert stored == expected
    assert repr(stored) == repr(expected) or not isinstance(expected, float)
    again = upsert(table, [Document("a", "a text", metadata={"m": value})], skip_unchanged=True)
    assert again.skipped == 1


DAY = dt.date(2024, 5, 6)
STRICT = pa.struct([pa.field("a", pa.int64(), nullable=False)])
REFUSED: list[tuple[pa.DataType, Any, str]] = [
    (pa.int64(), 1.5, "not an integer.*round it"),
    (pa.int64(), True, "bool is not a number"),
    (pa.int64(), "1", "str is not a number"),
    (pa.int64(), float("nan"), "int64 holds"),
    (pa.int64(), Decimal("1e999999999"), "int64 holds"),
    (pa.int64(), 10**400, "int64 holds"),
    (pa.uint8(), 256, "uint8 holds 0 to 255"),
    (pa.uint8(), -1, "uint8 holds 0 to 255"),
    (pa.float32(), 1e300, "store inf"),
    (pa.float32(), 1e-300, "store 0"),
    (pa.float32(), 2**24 + 1, "cannot represent it exactly"),
    (pa.float64(), 2**53 + 1, "cannot represent it exactly"),
    (pa.float64(), 10**400, "store inf"),
    (pa.float16(), 70000.0, "store inf"),
    (pa.bool_(), 1, "int is not a boolean"),
    (pa.string(), b"abc", "bytes is not a string"),
    (pa.string(), 5, "int is not a string"),
    (pa.string(), "\ud800", "lone surrogate"),
    (pa.binary(), "abc", "convert"),
    (pa.binary(2), b"abc", "3"),
    (pa.decimal128(5, 2), Decimal("1.234"), "data loss"),
    (pa.list_(pa.string()), "abc", "str is not a list"),
    (pa.list_(pa.int64()), [1.5], "not an integer"),
    (pa.list_(pa.int64()), {1, 2}, "set is not a list"),
    (pa.list_(pa.int64(), 2), [1], "1 items, and the column holds 2"),
    (pa.list_(pa.field("item", pa.int64(), nullable=False)), [None], "'item' takes no null"),
    (pa.struct([("a", pa.int64())]), {"a": 1, "author": "me"}, "no member 'author'"),
    (pa.struct([("a", pa.int64())]), [1], "list is not a mapping"),
    (STRICT, {"a": None}, "'a' takes no null"),
    (STRICT, {}, "'a' takes no null"),
    (pa.list_(STRICT), [{"a": 1}, {}], "'a' takes no null"),
    (pa.timestamp("us"), MOMENT.replace(tzinfo=BERLIN), "would lose this one"),
    (pa.timestamp("us", "UTC"), MOMENT, "has no time zone"),
    (pa.timestamp("us", "UTC"), np.datetime64("2024-05-06"), "datetime64 has no time zone"),
    (pa.timestamp("s"), MOMENT, "finer than one unit"),
    (pa.timestamp("us"), np.datetime64(1, "ns"), "finer than one unit"),
    (pa.timestamp("ns"), np.datetime64(1, "ps"), "finer than a nanosecond"),
    (pa.timestamp("ns"), dt.datetime.max, "cannot represent it"),
    (pa.timestamp("us"), DAY, "date is not a point in time"),
    (pa.timestamp("us"), 1715000000, "int is not a point in time"),
    (pa.timestamp("us"), "2024-05-06", "str is not a point in time"),
    (pa.date32(), MOMENT, "datetime is not a date"),
    (pa.date32(), np.datetime64("2024-05-06T01"), "finer than a day"),
    (pa.time64("us"), dt.time(1, tzinfo=BERLIN), "no time zone"),
    (pa.duration("s"), dt.timedelta(milliseconds=1500), "finer than one unit"),
    (pa.duration("s"), np.timedelta64(1, "M"), "no fixed length"),
    (pa.map_(pa.string(), pa.int64()), [("k",)], "list of pairs"),
    (pa.uuid(), "12345678-1234-4234-8234-123456789abc", ""),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "value", "message"), REFUSED, ids=[f"{kind}-{v!r:.30}" for kind, v, _ in REFUSED])
def test_refused(
    db: Any, mock: MLXEmbeddings, mocked: EmbeddedByMock, kind: pa.DataType, value: Any, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"(?s)document 'a' has m = .*column of .*{message}"):
        write(db, mock, pa.field("m", kind), value)
    assert (db.open_table("docs").count_rows(), mocked) == (0, [])


def test_a_null_where_the_column_takes_none(db: Any, mock: MLXEmbeddings, mocked: EmbeddedByMock) -> None:
    for value in (None, pd.NaT):
        with pytest.raises(InvalidInputError, match=r"'m'.*takes no null"):
            write(db, mock, pa.field("m", pa.timestamp("us"), nullable=False), value)
    assert mocked == []


class TestJson:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (http.HTTPStatus.OK, 200),
            ([Level.HIGH, (True,)], [3, [True]]),
            ({Color.RED: Color.RED}, {"red": "red"}),
            (np.float32(0.5), 0.5),
            ({"a": [np.int64(2**63 - 1), np.bool_(False), np.array([1.5])]}, {"a": [2**63 - 1, False, [1.5]]}),
            ([5e-324, -0.0, 1.7976931348623157e308, 1.0], [5e-324, -0.0, 1.7976931348623157e308, 1.0]),
            ({"": {"a.b": 1, "a": {"b": None}}}, {"": {"a.b": 1, "a": {"b": None}}}),
            ("\0 \\u0041 😀", "\0 \\u0041 😀"),
        ],
    )
    def test_kept(self, db: Any, mock: MLXEmbeddings, value: Any, expected: Any) -> None:
        table = create_table(db, "docs", mock)
        upsert(table, [Document("a", "a", metadata={"x": value})])
        stored = json.loads(table.to_arrow()["metadata"][0].as_py())["x"]
        assert json.dumps(stored, sort_keys=True) == json.dumps(expected, sort_keys=True)
        assert upsert(table, [Document("a", "a", metadata={"x": value})], skip_unchanged=True).skipped == 1

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({1: "a"}, "key 1 would become a string"),
            ({True: "a"}, "key True"),
            ({"a": {None: 1}}, "key None"),
            (float("inf"), "not a JSON number"),
            ({1, 2}, "set is not a JSON type"),
            (np.datetime64("2024-05-06T07:08:09", "ns"), "datetime64 is not a JSON type"),
            (np.array(["2024-05-06"], "datetime64[ns]"), "not a JSON type"),
            (MOMENT, "datetime is not a JSON type"),
            (Decimal("1.5"), "Decimal is not a JSON type"),
            (enum.IntFlag("Flag", {"A": 2**70}).A, "beyond 64 bits"),
        ],
    )
    def test_refused(self, db: Any, mock: MLXEmbeddings, mocked: EmbeddedByMock, value: Any, message: str) -> None:
        table = create_table(db, "docs", mock)
        with pytest.raises(InvalidInputError, match=f"document 'a' cannot be kept as JSON.*{message}"):
            upsert(table, [Document("a", "a", metadata={"x": value})])
        assert mocked == []

    def test_nested_without_end(self, db: Any, mock: MLXEmbeddings) -> None:
        table = create_table(db, "docs", mock)
        deep: list[Any] = []
        deep.append(deep)
        with pytest.raises(InvalidInputError, match="nested more than"):
            upsert(table, [Document("a", "a", metadata={"x": deep})])

    def test_true_is_not_one(self, db: Any, mock: MLXEmbeddings) -> None:
        table = create_table(db, "docs", mock)
        upsert(table, [Document("a", "a", metadata={"x": [1]})])
        assert upsert(table, [Document("a", "a", metadata={"x": [True]})], skip_unchanged=True).inserted == 1
        assert json.loads(table.to_arrow()["metadata"][0].as_py()) == {"x": [True]}


class TestVectorColumns:
    @pytest.mark.parametrize(
        "kind",
        [pa.list_(kind, D) for kind in (pa.uint8(), pa.int32(), pa.bool_(), pa.string())]
        + [pa.list_(pa.list_(pa.float32(), D)), pa.float32()],
        ids=str,
    )
    def test_columns_that_cannot_hold_vectors(
        self, db: Any, mock: MLXEmbeddings, mocked: EmbeddedByMock, kind: pa.DataType
    ) -> None:
        with pytest.raises(InvalidInputError, match=r"column 'vector' of .* cannot keep .* pa.list_\(pa.float32"):
            create_table(db, "docs", mock, schema=pa.schema([pa.field("vector", kind)]))
        plain = db.create_table("plain", schema=pa.schema({"id": pa.string(), "text": pa.string(), "vector": kind}))
        with pytest.raises(InvalidInputError, match=r"column 'vector' of .* cannot keep"):
            upsert(plain, [Document("a", "a")], embedding_function=mock)
        assert (plain.count_rows(), mocked) == (0, [])

    def test_a_column_without_a_width_gets_the_functions(self, db: Any, mock: MLXEmbeddings) -> None:
        table = create_table(db, "docs", mock, schema=pa.schema([pa.field("vector", pa.list_(pa.float32()))]))
        upsert(table, [Document("a", "a text")])
        table.add([{"id": "b", "text": "another"}])
        assert table.search("another").limit(1).to_list()[0]["id"] == "b"

    @pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()], ids=str)
    def test_every_width_of_float(self, db: Any, mock: MLXEmbeddings, kind: pa.DataType) -> None:
        table = create_table(db, "docs", mock, schema=pa.schema([pa.field("vector", pa.list_(kind, D))]))
        given = Document("b", "b", vector=[0.1] * D)
        upsert(table, [Document("a", "a"), given])
        table.add([{"id": "c", "text": "c"}])
        merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute([{"id": "d", "text": "d"}])
        again = db.create_table("again", [{"id": "e", "text": "e"}], schema=table.schema)
        assert again.to_arrow()["vector"].null_count == 0
        assert [table.search(text).limit(1).to_list()[0]["id"] for text in "acd"] == ["a", "c", "d"]
        assert upsert(table, [given], skip_unchanged=True).skipped == 1

    def test_vectors_beyond_the_column(self, db: Any, mock: MLXEmbeddings, mocked: EmbeddedByMock) -> None:
        table = create_table(db, "docs", mock, schema=pa.schema([pa.field("vector", pa.list_(pa.float16(), D))]))
        with pytest.raises(InvalidInputError, match=r"vector of document 'b' has a component of 70000.*keeps less"):
            upsert(table, [Document("a", "a"), Document("b", vector=[70000.0] * D)])
        assert (table.count_rows(), mocked) == (0, [])

    def test_another_column_of_vectors(self, db: Any, mock: MLXEmbeddings, mocked: EmbeddedByMock) -> None:
        table = create_table(db, "docs", mock, schema=pa.schema([pa.field("picture", pa.list_(pa.float32(), 32))]))
        with pytest.raises(
            InvalidInputError, match=r"'picture' of document 'b' has a component that is not .* nan at 31"
        ):
            upsert(table, [Document("a", "a"), Document("b", "b", metadata={"picture": [1.0] * 31 + [float("nan")]})])
        assert mocked == []
        upsert(table, [Document("a", "a"), Document("b", "b", metadata={"picture": [1.0] * 32})])
        assert table.to_arrow().sort_by("id")["picture"].to_pylist() == [None, [1.0] * 32]
