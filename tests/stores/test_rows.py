"""Rows of whatever people have, as documents: columns, ids, missing values, and what is refused by name."""

from __future__ import annotations

import re
import uuid
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from akidb_mlx_plugin import Document, InvalidInputError
from akidb_mlx_plugin.stores.columns import Columns, make_id
from akidb_mlx_plugin.stores.rows import Rows


def read(given: Any, **columns: Any) -> list[Document]:
    names = {"id": "id", "text": "text", "vector": "vector", **columns}
    return list(Rows(given, Columns.choose(**names)))


def only(given: Any, **columns: Any) -> Document:
    [document] = read(given, **columns)
    return document


class TestColumns:
    def test_names(self) -> None:
        frame = pd.DataFrame({"key": ["a"], "body": ["words"], "numbers": [[1.0, 2.0]], "page": [7]})
        document = only(frame, id="key", text="body", vector="numbers")
        assert (document.id, document.text, document.metadata) == ("a", "words", {"page": 7})
        np.testing.assert_array_equal(document.vector, [1.0, 2.0])

    def test_one_column_for_two(self) -> None:
        document = only([{"url": "https://a"}], id="url", text="url")
        assert (document.id, document.text, document.metadata) == ("https://a", "https://a", None)

    @pytest.mark.parametrize(
        ("columns", "options", "message"),
        [
            (
                ["key", "text"],
                {},
                "no column 'id' for the id; the columns are 'key', 'text'; name it by id=, or have ids",
            ),
            (["ids", "text"], {}, "did you mean 'ids'? Name it by id='ids' or rename it, or have ids made"),
            (["ID", "text"], {"make_ids": True}, "did you mean 'ID'?"),
            (["id", "txt"], {}, "no column 'text' for the text, nor a column 'vector' for the vector; the columns are"),
            (["id", "txt"], {}, "did you mean 'txt'? Name it by text='txt'"),
            (["id", "Text", "vector"], {}, "did you mean 'Text'?"),
            (["id", "text", "embeddings"], {"vector": "embedding"}, "did you mean 'embeddings'? Name it by vector="),
            (["id", "body", "vector"], {"text": "bodies"}, "no column 'bodies' for the text; the columns are"),
            (["key", "text"], {"id": "kee", "make_ids": True}, "did you mean 'key'?"),
        ],
    )
    @pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, pa.table])
    def test_missing_columns(self, kind: Any, columns: list[str], options: dict[str, Any], message: str) -> None:
        table = kind({name: ["x"] for name in columns})
        with pytest.raises(InvalidInputError, match=re.escape(message)):
            read(table, **options)

    def test_mappings_may_differ(self) -> None:
        first, second = read([{"id": "a", "text": "words"}, {"id": "b", "vector": [1.0], "x": 1}])
        assert (first.metadata, second.text, second.metadata) == (None, None, {"x": 1})
        with pytest.raises(InvalidInputError, match=r"row 1: there is no column 'id' for the id; .* 'text', 'uid'"):
            read([{"id": "a", "text": "x"}, {"text": "x", "uid": 1}])
        with pytest.raises(InvalidInputError, match=r"row 0: there is no column 'text'.* did you mean 'txt'"):
            read([{"id": "a", "txt": "x"}])

    @pytest.mark.parametrize("kind", [list, pa.Table.from_pylist, pl.DataFrame])
    def test_a_column_of_metadata(self, kind: Any) -> None:
        rows = [{"id": "a", "text": "x", "metadata": {"year": 2020, "gone": None}, "page": 1}]
        assert only(kind(rows)).metadata == {"year": 2020, "page": 1}
        with pytest.raises(InvalidInputError, match="row 0: it has 'page' as a column and in 'metadata'"):
            read(kind([rows[0] | {"metadata": {"page": 2}}]))
        assert only(kind([rows[0] | {"metadata": "a text"}])).metadata == {"metadata": "a text", "page": 1}

    def test_metadata_in_json(self) -> None:
        table = pa.table({"id": ["a", "b"], "text": ["x", "y"], "metadata": pa.array(['{"n": [1]}', None], pa.json_())})
        assert [document.metadata for document in read(table)] == [{"n": [1]}, None]

    def test_a_pandas_index(self) -> None:
        frame = pd.DataFrame({"text": ["x", "y"]}, index=["a", "b"])
        with pytest.raises(
            InvalidInputError, match=r"an index is a column if it has a name: frame.rename_axis\('id'\)"
        ):
            read(frame)
        assert [document.id for document in read(frame.rename_axis("id"))] == ["a", "b"]
        levels = pd.DataFrame({"text": ["x"]}, index=pd.MultiIndex.from_tuples([("a", 1)], names=["id", None]))
        assert (only(levels).id, only(levels).metadata) == ("a", None)

    @pytest.mark.parametrize("names", [["id", "id"], ["id", 7]])
    def test_unusable_names(self, names: list[Any]) -> None:
        frame = pd.DataFrame([["a", "b"]], columns=names)
        with pytest.raises(InvalidInputError, match=r"two columns have the name 'id'|column 1 has the name 7"):
            read(frame)


class TestMissingValues:
    @pytest.mark.parametrize(
        "nothing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, np.datetime64("NaT"), pd.Timedelta("NaT")]
    )
    def test_of_every_kind(self, nothing: Any) -> None:
        document = only([{"id": "a", "text": "x", "vector": nothing, "x": nothing}])
        assert (document.vector, document.metadata) == (None, None)
        assert only([{"id": "a", "text": nothing, "vector": [1.0]}]).text is None
        with pytest.raises(InvalidInputError, match="row 0: column 'id' is empty"):
            read([{"id": nothing, "text": "x"}])

    @pytest.mark.parametrize("dtype", ["float64", "Int64", "datetime64[ns]", "str", "category", "boolean", "object"])
    def test_of_pandas_columns(self, dtype: str) -> None:
        frame = pd.DataFrame({"id": ["a", "b"], "text": "x", "n": pd.Series([None, None]).astype(dtype)})
        assert [document.metadata for document in read(frame)] == [None, None]


class TestIds:
    @pytest.mark.parametrize(
        ("given", "id_"),
        [
            (17, "17"),
            (np.int8(-3), "-3"),
            (2**70, str(2**70)),
            (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
            (np.str_("a"), "a"),
            ("017", "017"),
        ],
    )
    def test_integers_and_uuids(self, given: Any, id_: str) -> None:
        assert only([{"id": given, "text": "x"}]).id == id_

    @pytest.mark.parametrize("given", [1.0, True, b"a", ("a",), np.timedelta64(1, "s")])
    def test_other_types(self, given: Any) -> None:
        with pytest.raises(InvalidInputError, match=r"row 1: column 'id' is .*; ids are strings, integers or UUIDs"):
            read([{"id": "a", "text": "x"}, {"id": given, "text": "x"}], make_ids=True)

    @pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, pa.table])
    def test_columns_of_integers(self, kind: Any) -> None:
        assert [document.id for document in read(kind({"id": [1, 2], "text": ["x", "y"]}))] == ["1", "2"]

    def test_made_from_the_content(self) -> None:
        # Stored in people's databases: these never change.
        assert make_id("a text", [1.0]) == make_id("a text", None) == "14f46f43-0f27-ec73-24be-2e42b0d631b7"
        assert (
            make_id(None, [1.0, 2.5]) == make_id(None, np.array([1.0, 2.5])) == "af95d9ff-170e-68c7-48b8-d3e1bbb7f7b8"
        )
        assert make_id("", None) != make_id(None, [0.0])

    def test_only_where_there_is_none(self) -> None:
        first, second = read([{"id": "a", "text": "x"}, {"text": "x"}], make_ids=True)
        assert (first.id, second.id) == ("a", make_id("x", None))
        with pytest.raises(InvalidInputError, match="row 0: it has neither text nor vector to make an id of"):
            read([{"text": None}], make_ids=True)
        with pytest.raises(InvalidInputError, match="row 0: the text is int"):
            read([{"text": 5}], make_ids=True)

    def test_equal_contents_are_one_document(self) -> None:
        frame = pd.DataFrame({"text": ["x", "y", "x", "x"], "n": [1, 2, 3, 4]})
        rows = Rows(frame, Columns(make_ids=True))
        for _ in range(2):
            assert [document.metadata for document in rows] == [{"n": 1}, {"n": 2}]
            assert (rows.repeated, rows.total) == (2, 4)

    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=20))
    def test_one_id_for_each_text(self, texts: list[str]) -> None:
        made = read([{"text": text} for text in texts], make_ids=True)
        assert [document.text for document in made] == list(dict.fromkeys(texts))
        assert len({document.id for document in made}) == len(made)
