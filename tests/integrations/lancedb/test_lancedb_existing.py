"""Tables as people have them: several embedded columns, other ids, other names, other connections, no function."""

from __future__ import annotations

import uuid
from datetime import date, datetime
from pathlib import Path
from typing import Any

import akidb_mlx_lancedb.documents
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from akidb_mlx_lancedb import MLXEmbeddings, aupsert, create_table, open_table, reembed, upsert, validate_table
from akidb_mlx_lancedb.schema import _reject_blobs
from collection_helpers import EmbeddedByMock
from lancedb.pydantic import LanceModel, Vector

from akidb_mlx_plugin import DimensionMismatchError, Document, InvalidInputError
from akidb_mlx_plugin.providers.mock import hash_texts
from akidb_mlx_plugin.stores.reembed import default_name
from akidb_mlx_plugin.types import ModelInfo

pytest_plugins = ("collection_fixtures",)

D = 8
REQUIRED = pa.struct(
    [
        pa.field("a", pa.int64(), nullable=False),
        pa.field("b", pa.struct([pa.field("c", pa.int8(), nullable=False)])),
    ]
)
# Files of LanceDB 0.38 have no maps.
HAS_MAPS = tuple(map(int, lancedb.__version__.split(".")[:2])) >= (0, 40)
UUIDS = [str(uuid.UUID(int=number)) for number in range(3)]


@pytest.fixture
def new() -> MLXEmbeddings:
    return MLXEmbeddings.create(mode="mock", dimension=16)


class TestSeveralEmbeddedColumns:
    @pytest.fixture
    def page(self, mock: MLXEmbeddings) -> type[LanceModel]:
        other = MLXEmbeddings.create(mode="mock", dimension=D)

        class Page(LanceModel):
            id: str
            title: str = mock.SourceField()
            body: str | None = other.SourceField(default=None)
            title_vector: Vector(D) = mock.VectorField()  # type: ignore[valid-type]
            body_vector: Vector(D) | None = other.VectorField(default=None)

        return Page

    @pytest.fixture
    def pages(self, db: Any, mock: MLXEmbeddings, page: type[LanceModel]) -> Any:
        return create_table(db, "pages", mock, schema=page)

    def test_one_function_for_two_columns(self, db: Any, mock: MLXEmbeddings) -> None:
        class Page(LanceModel):
            id: str
            title: str = mock.SourceField()
            body: str = mock.SourceField()
            title_vector: Vector(D) = mock.VectorField()  # type: ignore[valid-type]
            body_vector: Vector(D) = mock.VectorField()  # type: ignore[valid-type]

        with pytest.raises(
            InvalidInputError, match=r"a function of its own: MLXEmbeddings.create\(...\) once for each"
        ):
            create_table(db, "pages", mock, schema=Page)

    def test_opening_and_checking(self, db: Any, pages: Any, mock: MLXEmbeddings, new: MLXEmbeddings) -> None:
        pages.add([{"id": "1", "title": "cats", "body": "they sleep"}])
        assert not any(key.startswith(b"akidb_mlx:") for key in pages.schema.metadata)
        for arguments in ({}, {"vector": "body_vector"}, {"text": "title"}):
            open_table(db, "pages", **arguments)
            validate_table(pages, mock, query_vector=[1.0] * D, **arguments)
        with pytest.raises(DimensionMismatchError, match="mock makes 16"):
            open_table(db, "pages", new)

    def test_which_is_meant_has_to_be_said(self, pages: Any, new: MLXEmbeddings, mocked: EmbeddedByMock) -> None:
        for refused in (lambda: upsert(pages, [Document("1", "x")]), lambda: reembed(pages, new)):
            with pytest.raises(InvalidInputError, match=r"2 columns \(title -> title_vector, body .*with vector="):
                refused()
        with pytest.raises(InvalidInputError, match="no column 'other'; it has id, title"):
            upsert(pages, [Document("1", "x")], vector="other")
        assert mocked == []

    def test_the_other_is_embedded_too(self, pages: Any, mocked: EmbeddedByMock) -> None:
        documents = [
            Document("1", "cats", metadata={"body": "they sleep"}),
            Document("2", "dogs"),
            Document("3", "ants", metadata={"body": "they work", "body_vector": [3.0] * D}),
        ]
        upsert(pages, documents, text="title")
        assert sorted(mocked) == ["ants", "cats", "dogs", "they sleep"]
        rows = {row["id"]: row for row in pages.to_arrow().to_pylist()}
        np.testing.assert_array_equal(rows["1"]["body_vector"], hash_texts(["they sleep"], D)[0])
        np.testing.assert_array_equal(rows["1"]["title_vector"], hash_texts(["cats"], D)[0])
        assert (rows["2"]["body_vector"], rows["3"]["body_vector"]) == (None, [3.0] * D)
        assert upsert(pages, documents, text="title", skip_unchanged=True).skipped == 3
        changed = Document("1", "cats", metadata={"body": "they purr"})
        assert upsert(pages, [changed], text="title", skip_unchanged=True).inserted == 1
        assert pages.search("they purr", vector_column_name="body_vector").limit(1).to_list()[0]["id"] == "1"

    @pytest.mark.slow
    def test_one_after_the_other_under_a_new_model(self, pages: Any, new: MLXEmbeddings) -> None:
        upsert(pages, [Document("1", "cats", metadata={"body": "they sleep"})], vector="title_vector")
        half = reembed(pages, new, name="half", vector="title_vector")
        assert half.to_arrow()["body_vector"].equals(pages.to_arrow()["body_vector"])
        with pytest.raises(DimensionMismatchError):
            validate_table(half, new, vector="body_vector")
        both = reembed(half, new, name="both", vector="body_vector")
        validate_table(both, new, vector="title_vector")
        for column, text in (("title_vector", "cats"), ("body_vector", "they sleep")):
            assert both.search(text, vector_column_name=column).limit(1).to_list()[0]["id"] == "1"


class TestIds:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("kind", "ids", "wrong"),
        [
            (pa.int64(), ["1", "-2", str(2**63 - 1)], ["x", "01", " 1", "1.0", str(2**63)]),
            (pa.uint64(), ["0", "2", str(2**64 - 1)], ["-1"]),
            (pa.uuid(), UUIDS, ["x", UUIDS[1].upper().replace("0", "A"), UUIDS[1].replace("-", "")]),
            (pa.large_string(), ["a", "it's", "ü"], []),
            (pa.string_view(), ["a", "b", "c"], []),
        ],
        ids=str,
    )
    def test_any_type(
        self, db: Any, mock: MLXEmbeddings, new: MLXEmbeddings, kind: Any, ids: list[str], wrong: list[str]
    ) -> None:
        table = create_table(db, "docs", mock, schema=pa.schema([pa.field("id", kind), pa.field("n", pa.int64())]))
        documents = [Document(id_, f"text {id_}", metadata={"n": 1}) for id_ in ids]
        upsert(table, documents)
        upsert(table, [Document(ids[0], "changed", metadata={"n": 2})])
        assert upsert(table, documents[1:], skip_unchanged=True).skipped == 2
        made = reembed(table, new, name="next")
        rows = {str(row["id"]): (row["text"], row["n"]) for row in made.to_arrow().to_pylist()}
        assert rows == {ids[0]: ("changed", 2), **{id_: (f"text {id_}", 1) for id_ in ids[1:]}}
        for id_ in wrong:
            with pytest.raises(InvalidInputError, match=f"document {id_!r} does not fit column 'id' of .*: "):
                upsert(table, [Document(id_, "x", metadata={"n": 1})])
        assert table.count_rows() == 3


class TestNames:
    def test_columns_of_other_names(self, db: Any, mock: MLXEmbeddings, new: MLXEmbeddings) -> None:
        row = {"key": "1", "content": "hello", "meaning": [0.1] * D, "picture": [0.2] * D}
        table = db.create_table("docs", [row])
        with pytest.raises(InvalidInputError, match=r"2 columns that may hold vectors \(meaning, picture\).*vector="):
            upsert(table, [Document("2", "x")], on="key", embedding_function=mock)
        with pytest.raises(InvalidInputError, match="no column for it; name one with text="):
            upsert(table, [Document("2", "x")], on="key", vector="meaning", embedding_function=mock)
        place = {"on": "key", "text": "content", "vector": "meaning"}
        upsert(table, [Document("2", "x", metadata={"picture": [1.0] * D})], embedding_function=mock, **place)
        made = reembed(table, new, name="next", **place)
        assert made.search("hello", vector_column_name="meaning").limit(1).to_list()[0]["key"] == "1"
        assert made.to_arrow().sort_by("key")["picture"].to_pylist()[1] == [1.0] * D

    def test_a_new_table_with_them(self, db: Any, mock: MLXEmbeddings) -> None:
        table = create_table(db, "docs", mock, text="content", vector="meaning", on="key")
        assert table.schema.names == ["key", "content", "meaning", "metadata"]
        upsert(table, [Document("1", "hello")], on="key")
        assert create_table(db, "docs", mock, text="content", exist_ok=True).count_rows() == 1

    @pytest.mark.parametrize(
        "model", ["org/Größe 7B+chat", "./a folder/Modell..v2", "模型", "x" * 300, "a..b", ".hidden"]
    )
    def test_the_default_name_is_a_name(self, db: Any, model: str) -> None:
        name = default_name("docs", ModelInfo(model, D, 0))
        db.create_table(name, schema=pa.schema({"id": pa.string()}))
        assert name.startswith("docs-")
        assert ".." not in name
        assert name[-1].isalnum()


class TestConnections:
    @pytest.fixture(params=["namespace", "child", "database"])
    def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, dict[str, Any]]:
        if request.param == "namespace":
            return lancedb.connect_namespace("dir", {"root": str(tmp_path)}), {}
        db: Any = lancedb.connect(tmp_path)
        if request.param == "database":
            return db, {}
        db.create_namespace(["team"])
        return db, {"namespace_path": ["team"]}

    @pytest.mark.slow
    async def test_every_helper(self, place: tuple[Any, dict[str, Any]], mock: MLXEmbeddings, new: Any) -> None:
        db, namespace = place
        # More than a page of names before it.
        for number in range(12):
            db.create_table(f"a{number:02}", schema=pa.schema({"x": pa.int64()}), **namespace)
        table = create_table(db, "docs", mock, exist_ok=True, **namespace)
        upsert(table, [Document("a", "a")])
        await aupsert(table, [Document("b", "b")])
        assert create_table(db, "docs", mock, exist_ok=True, **namespace).count_rows() == 2
        opened = open_table(db, "docs", **namespace)
        validate_table(opened, mock)
        for _ in range(2):
            made = reembed(opened, new)
            assert (made.name, made.count_rows()) == ("docs-mock", 2)
        assert open_table(db, "docs-mock", new, **namespace).search("b").limit(1).to_list()[0]["id"] == "b"

    async def test_asynchronous_namespaces(self, tmp_path: Path, mock: MLXEmbeddings) -> None:
        db = lancedb.connect_namespace_async("dir", {"root": str(tmp_path)})
        for refused in (lambda: create_table(db, "docs", mock), lambda: open_table(db, "docs")):
            with pytest.raises(InvalidInputError, match="synchronous connection"):
                refused()

    async def test_reembedding_an_asynchronous_table(self, db: Any, mock: MLXEmbeddings, new: MLXEmbeddings) -> None:
        create_table(db, "docs", mock)
        table = await (await lancedb.connect_async(db.uri)).open_table("docs")
        with pytest.raises(InvalidInputError, match="asynchronous connection"):
            reembed(table, new)

    def test_into_another_database(self, db: Any, tmp_path: Path, mock: MLXEmbeddings, new: MLXEmbeddings) -> None:
        table = create_table(db, "docs", mock)
        upsert(table, [Document("a", "a")])
        other: Any = lancedb.connect(tmp_path / "other")
        assert reembed(table, new, name="docs", db=other).count_rows() == 1
        assert other.list_tables().tables == ["docs"]


class TestNoFunction:
    @pytest.fixture
    def plain(self, db: Any) -> Any:
        schema = pa.schema({"id": pa.string(), "text": pa.string(), "vector": pa.list_(pa.float32(), D)})
        return db.create_table("docs", schema=schema)

    def test_a_table_that_would_not_embed_is_not_handed_out(
        self, db: Any, plain: Any, mock: MLXEmbeddings, new: MLXEmbeddings
    ) -> None:
        for refused in (
            lambda: create_table(db, "docs", mock, exist_ok=True),
            lambda: open_table(db, "docs", mock),
        ):
            with pytest.raises(InvalidInputError, match=r"'docs' stores no function .* null\. reembed.*upsert"):
                refused()
        upsert(db.open_table("docs"), [Document("a", "a")], embedding_function=mock)
        made = reembed(plain, new)
        made.add([{"id": "b", "text": "b"}])
        assert made.search("b").limit(1).to_list()[0]["id"] == "b"

    def test_vectors_that_are_brought_need_none(self, db: Any, plain: Any) -> None:
        theirs = MLXEmbeddings.create(mode="user_provided", dimension=D)
        assert create_table(db, "docs", theirs, exist_ok=True).name == "docs"


class TestEveryColumn:
    @pytest.mark.slow
    def test_goes_over_as_it_is(self, db: Any, new: MLXEmbeddings) -> None:
        """Also what Python has no value for: years beyond 9999, nanoseconds."""
        least, most = -(2**62), 2**62
        rows = pa.table(
            {
                "id": ["a", "b"],
                "text": ["one", "two"],
                "vector": pa.array([[1.0], [2.0]], pa.list_(pa.float32(), 1)),
                "seconds": pa.array([least, most], pa.timestamp("s")),
                "nanoseconds": pa.array([least, most], pa.timestamp("ns", "Europe/Berlin")),
                "day": pa.array([-(2**31), 2**31 - 1], pa.date32()),
                "lasting": pa.array([least, most], pa.duration("ns")),
                "clock": pa.array([0, 86399999999999], pa.time64("ns")),
                "half": pa.array([float("nan"), -0.0], pa.float16()),
                "place": pa.array(
                    [{"at": [date.max, None], "score": float("nan")}, None],
                    pa.struct([("at", pa.list_(pa.date32())), ("score", pa.float32())]),
                ),
                "required": pa.array([{"a": 1, "b": {"c": 2}}, None], REQUIRED),
                "list": pa.array([[None, {"a": 1, "b": None}], None], pa.list_(REQUIRED)),
                "nothing": pa.array([None, None], pa.struct([pa.field("a", pa.int64(), nullable=False)])),
                "tag": pa.array(["x", None]).dictionary_encode(),
                "uri": ["s3://bucket/ä?b=c#d", None],
                "other": pa.array([[1.0] * 32, None], pa.list_(pa.float32(), 32)),
                "metadata": pa.array(['{"a":[1,{"b":null}]}', None], pa.json_()),
            }
        )
        if HAS_MAPS:
            pairs = pa.array([[("k", float("nan"))], []], pa.map_(pa.string(), pa.float64()))
            rows = rows.append_column("pairs", pairs)
        table = db.create_table("docs", rows, on_bad_vectors="null")
        for size in (2, None):
            made = reembed(table, new, name="next", vector="vector", batch_size=size)
        reembed(table, new, name="one-by-one", vector="vector", batch_size=1)
        kept = [name for name in rows.schema.names if name != "vector"]
        before, after = ((part.to_arrow().sort_by("id").select(kept)) for part in (table, made))
        assert after.schema.equals(before.schema)
        for name in kept:
            if name not in ("half", "place", "pairs"):
                assert after[name].equals(before[name]), name
            assert str(after[name].combine_chunks()) == str(before[name].combine_chunks())

    def test_a_change_in_any_column_is_seen(
        self, db: Any, mock: MLXEmbeddings, new: MLXEmbeddings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        schema = pa.schema([("at", pa.timestamp("ns")), ("score", pa.float64())])
        table = create_table(db, "docs", mock, schema=schema)
        upsert(table, [Document("a", "a", metadata={"at": datetime(2024, 1, 1), "score": float("nan")})])
        made = reembed(table, new, name="next")
        made.update(where="id = 'a'", values={"score": 1.0})
        mocked: list[str] = []
        monkeypatch.setattr(
            akidb_mlx_lancedb.documents, "_fill_derived", lambda schema, rows: mocked.append("w") or rows
        )
        assert reembed(table, new, name="next").to_arrow()["score"][0].as_py() != 1.0
        assert mocked == ["w"]

    def test_blobs_of_a_type_that_another_package_registered(self) -> None:
        class Blob(pa.ExtensionType):
            def __init__(self) -> None:
                super().__init__(pa.struct([("data", pa.large_binary()), ("uri", pa.string())]), "lance.blob.v2")

            def __arrow_ext_serialize__(self) -> bytes:
                return b""

            @classmethod
            def __arrow_ext_deserialize__(cls, *_: Any) -> pa.ExtensionType:
                return cls()

        with pytest.raises(InvalidInputError, match="column 'film' of docs holds blobs"):
            _reject_blobs("docs", pa.schema([("id", pa.string()), ("film", Blob())]))

    def test_blobs_are_refused_by_name(self, db: Any, mock: MLXEmbeddings, new: MLXEmbeddings) -> None:
        blob = pa.field("film", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
        schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), D)), blob])
        table = db.create_table("docs", schema=schema)
        for refused in (lambda: upsert(table, [Document("a", "a")]), lambda: reembed(table, new)):
            with pytest.raises(InvalidInputError, match=r"column 'film' .* holds blobs.*large_binary"):
                refused()
