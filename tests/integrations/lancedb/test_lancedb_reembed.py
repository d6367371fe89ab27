"""What a re-embedded LanceDB table takes over."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import akidb_mlx_lancedb
import lancedb
import pyarrow as pa
import pytest
from collection_helpers import EmbeddedByMock

from akidb_mlx_plugin import Document, InvalidInputError

pytest_plugins = ("host_fixtures", "collection_fixtures")


class TestLanceDB:
    def test_every_column_goes_over(self, tmp_path: Path) -> None:
        db: Any = lancedb.connect(tmp_path)
        rows = pa.table(
            {
                "key": ["a", "b"],
                "body": ["first", "second"],
                "meaning": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
                "at": pa.array([datetime(2026, 1, 2), None], pa.timestamp("us")),
                "score": pa.array([0.1, 0.2], pa.float32()),
                "tags": [["x", None], None],
                "place": [{"lat": 1.5, "name": "here"}, None],
                "raw": pa.array([b"\x00\xff", None]),
                "other": pa.array([[1.0] * 4, None], pa.list_(pa.float32(), 4)),
            }
        )
        old = akidb_mlx_lancedb.MLXEmbeddings.create(mode="mock", dimension=2)
        entry = {
            "name": "akidb-mlx",
            "model": old.safe_model_dump(),
            "source_column": "body",
            "vector_column": "meaning",
        }
        schema = rows.schema.with_metadata({"embedding_functions": json.dumps([entry]), "mine": "kept"})
        table = db.create_table("docs", rows, schema=schema)
        new = akidb_mlx_lancedb.MLXEmbeddings.create(mode="mock", dimension=8)
        made = akidb_mlx_lancedb.reembed(table, new, on="key")
        assert made.schema.metadata[b"mine"] == b"kept"
        kept = [name for name in rows.schema.names if name != "meaning"]
        assert made.to_arrow().select(kept).sort_by("key") == rows.select(kept)
        assert made.search("second", vector_column_name="meaning").limit(1).to_list()[0]["key"] == "b"
        assert akidb_mlx_lancedb.reembed(table, new, on="key").count_rows() == 2

    def test_a_table_without_ids_says_how_to_get_some(self, tmp_path: Path) -> None:
        db: Any = lancedb.connect(tmp_path)
        table = db.create_table(
            "docs", pa.table({"text": ["a"], "vector": pa.array([[1.0]], pa.list_(pa.float32(), 1))})
        )
        new = akidb_mlx_lancedb.MLXEmbeddings.create(mode="mock", dimension=8)
        with pytest.raises(InvalidInputError, match=r"no key column 'id'.*add_columns\({'id': 'uuid\(\)'}\)"):
            akidb_mlx_lancedb.reembed(table, new)
        table.add_columns({"id": "uuid()"})
        assert akidb_mlx_lancedb.reembed(table, new).count_rows() == 1

    def test_what_is_not_a_number_goes_over_and_is_unchanged(self, tmp_path: Path, mocked: EmbeddedByMock) -> None:
        db: Any = lancedb.connect(tmp_path)
        make = akidb_mlx_lancedb.MLXEmbeddings.create
        place = pa.struct([pa.field("lat", pa.float64())])
        schema = pa.schema([("score", pa.float64()), ("scores", pa.list_(pa.float32())), ("place", place)])
        table = akidb_mlx_lancedb.create_table(db, "docs", make(mode="mock", dimension=8), schema=schema)
        nan = float("nan")
        documents = [
            Document("a", "a", metadata={"score": nan, "scores": [nan, 1.0], "place": {"lat": nan}}),
            Document("b", "b", metadata={"score": 1.0, "scores": [], "place": {"lat": None}}),
        ]
        akidb_mlx_lancedb.upsert(table, documents)
        mocked.clear()
        assert akidb_mlx_lancedb.upsert(table, documents, skip_unchanged=True).skipped == 2
        changed = [Document("a", "a", metadata={"score": nan, "scores": [nan, nan], "place": {"lat": nan}})]
        assert akidb_mlx_lancedb.upsert(table, changed, skip_unchanged=True).inserted == 1
        assert mocked == []
        for _ in range(2):
            assert akidb_mlx_lancedb.reembed(table, make(mode="mock", dimension=16)).count_rows() == 2
        assert sorted(mocked) == ["a", "b"]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["d0", "d7", "d0"], r"2 ids of table 'docs' are in more than one row, 'd0' in 3 .* on=.*add_columns"),
            ([None], r"1 rows of table 'docs' have no 'id'.* on="),
        ],
    )
    def test_ids_that_do_not_tell_rows_apart(
        self, tmp_path: Path, mocked: EmbeddedByMock, more: list[Any], message: str
    ) -> None:
        db: Any = lancedb.connect(tmp_path)
        ids = [*(f"d{i}" for i in range(1500)), *more]
        vectors = pa.array([[1.0]] * len(ids), pa.list_(pa.float32(), 1))
        table = db.create_table("docs", pa.table({"id": ids, "text": [f"of {id_}" for id_ in ids], "vector": vectors}))
        new = akidb_mlx_lancedb.MLXEmbeddings.create(mode="mock", dimension=8)
        with pytest.raises(InvalidInputError, match=message):
            akidb_mlx_lancedb.reembed(table, new)
        assert mocked == []
        table.add_columns({"key": "uuid()"})
        assert akidb_mlx_lancedb.reembed(table, new, name="keyed", on="key").count_rows() == len(ids)
