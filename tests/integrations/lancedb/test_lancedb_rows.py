"""Rows of people's tables in LanceDB's: columns of other names and types, and tables copied into others."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from akidb_mlx_lancedb import MLXEmbeddings, create_table, upsert

from akidb_mlx_plugin import Document, InvalidInputError

D = 8
OTHERS = pa.schema(
    {"key": pa.int64(), "when": pa.timestamp("ns"), "tags": pa.list_(pa.string()), "price": pa.float32()}
)


@pytest.fixture
def articles(db: Any, mock: MLXEmbeddings) -> Any:
    """A table with names and types of its own."""
    return create_table(db, "articles", mock, schema=OTHERS, text="body", vector="numbers", on="key")


def test_the_columns_of_the_table_are_those_of_the_rows(articles: Any) -> None:
    when = pd.Timestamp("2020-01-01 00:00:00.000000001")
    frame = pd.DataFrame({"key": [1, 2], "body": ["a", "b"], "when": [when, None], "tags": [["x", "y"], None]})
    upsert(articles, frame.assign(price=[0.5, float("nan")]), on="key")
    rows = articles.to_arrow().sort_by("key").select(["key", "body", "when", "tags", "price"]).to_pylist()
    assert rows[0] == {"key": 1, "body": "a", "when": when, "tags": ["x", "y"], "price": 0.5}
    assert rows[1] == {"key": 2, "body": "b", "when": None, "tags": None, "price": None}
    assert upsert(articles, frame.assign(price=[0.5, None]), on="key", skip_unchanged=True).skipped == 2


def test_names_that_only_the_rows_have(articles: Any) -> None:
    frame = pl.DataFrame({"nr": [1], "review": ["a text"], "embedding": [[1.0] * D]})
    upsert(articles, frame, id="nr", text="review", vector="embedding", on="key")
    [row] = articles.to_arrow().to_pylist()
    assert (row["key"], row["body"], row["numbers"]) == (1, "a text", [1.0] * D)
    with pytest.raises(InvalidInputError, match="table 'articles' has no column 'review'; it has body, numbers"):
        upsert(articles, [Document("2", "x")], text="review", on="key")
    with pytest.raises(InvalidInputError, match=r"no column 'revue' for the text.*did you mean 'review'"):
        upsert(articles, frame, id="nr", text="revue", on="key")
    with pytest.raises(InvalidInputError, match=r"row 0: the metadata of document '1' has the key 'body', a column"):
        upsert(articles, frame.with_columns(body=pl.lit("y")), id="nr", text="review", vector="embedding", on="key")


def test_a_column_that_the_table_lacks(db: Any, mock: MLXEmbeddings) -> None:
    schema = pa.schema({"id": pa.string(), "text": pa.string(), "vector": pa.list_(pa.float32(), D)})
    table = db.create_table("plain", schema=schema)
    rows = [{"id": "a", "text": "x"}, {"id": "b", "text": "x", "page": 7}]
    with pytest.raises(
        InvalidInputError, match=r"^row 1: document 'b' has the metadata 'page', and table 'plain' has no"
    ):
        upsert(table, rows, embedding_function=mock)
    assert table.count_rows() == 0


def test_made_ids_fit_a_column_of_uuids(db: Any, mock: MLXEmbeddings) -> None:
    table = create_table(db, "docs", mock, schema=pa.schema({"id": pa.uuid(), "n": pa.int64()}))
    upsert(table, pd.DataFrame({"text": ["x"], "n": [1]}), make_ids=True)
    upsert(table, pd.DataFrame({"text": ["x"], "n": [2]}), make_ids=True)
    [row] = table.to_arrow().to_pylist()
    assert (type(row["id"]), row["n"]) == (uuid.UUID, 2)
    integers = create_table(db, "integers", mock, schema=pa.schema({"id": pa.int64()}))
    with pytest.raises(InvalidInputError, match=r"row 0: document .* does not fit column 'id' .* an integer"):
        upsert(integers, [{"text": "x"}], make_ids=True)


def test_a_table_copied_into_another(db: Any, mock: MLXEmbeddings) -> None:
    """Vectors go over as they are, and metadata in JSON are metadata again."""
    first, second = (create_table(db, name, mock) for name in ("first", "second"))
    upsert(first, [Document("a", "x", metadata={"n": 1, "list": [1, "b"]}), Document("b", vector=[1.0] * D)])
    response = upsert(second, first.to_arrow())
    assert (response.inserted, response.embeddings_generated) == (2, 0)
    assert second.to_arrow().sort_by("id").to_pylist() == first.to_arrow().sort_by("id").to_pylist()


def test_times_of_each_package_are_read_back(db: Any, mock: MLXEmbeddings) -> None:
    moment = dt.datetime(2020, 1, 1, 12, tzinfo=dt.timezone.utc)
    fields = {"id": pa.string(), "moment": pa.timestamp("us", "UTC"), "day": pa.date32(), "length": pa.duration("us")}
    row = {"text": "x", "moment": moment, "day": dt.date(2020, 1, 1), "length": dt.timedelta(hours=1)}
    table = create_table(db, "docs", mock, schema=pa.schema(fields))
    kinds = (pd.DataFrame, pl.DataFrame, pa.Table.from_pylist, list)
    for number, kind in enumerate(kinds):
        upsert(table, kind([{"id": f"{number}"} | row]))
    read = table.to_arrow().select(["moment", "day", "length"]).to_pylist()
    assert read == [{name: row[name] for name in ("moment", "day", "length")}] * len(kinds)
