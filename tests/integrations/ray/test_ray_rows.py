"""Rows that cannot be embedded or kept: refused, or left out and listed."""

from __future__ import annotations

import gzip
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.data
from akidb_mlx_chroma import MLXEmbeddingFunction
from akidb_mlx_lancedb import MLXEmbeddings, create_table
from akidb_mlx_ray import write_lancedb
from akidb_mlx_ray.chroma import BulkCollection, Server
from akidb_mlx_ray.jsonl import read_jsonl
from akidb_mlx_ray.lancedb import BulkTable
from akidb_mlx_ray.pipeline import typed_errors
from ray_corpus import MOCK, corpus, read_lines

from akidb_mlx_plugin import EmbeddingService, InvalidInputError

pytest_plugins = ("host_fixtures", "ray_fixtures")

# Ray starts processes for each run.
pytestmark = pytest.mark.slow


def bad_rows() -> Any:
    rows = [
        {"id": "a", "text": "first"},
        {"id": "b", "text": None},
        {"id": "c", "text": "  "},
        {"id": None, "text": "nobody's"},
        {"id": "a", "text": "second"},
        {"id": "d", "text": "good"},
        {"id": "a", "text": "third"},
    ]
    return ray.data.from_arrow(pa.Table.from_pylist(rows))


def test_bad_rows_go_to_a_side_file(tmp_path: Path) -> None:
    result = write_lancedb(bad_rows(), tmp_path, "docs", embedding_function=MLXEmbeddings.create(**MOCK))
    assert result.written == 2
    assert dict(result.rejected) == {"duplicate id": 2, "no text": 1, "empty text": 1, "no id": 1}
    assert result.rejects == Path("docs.rejected.jsonl")
    lines = {(line["id"], line["text"], line["reason"]) for line in read_lines(result.rejects)}
    assert lines == {
        ("a", "second", "duplicate id"),
        ("a", "third", "duplicate id"),
        ("b", None, "no text"),
        ("c", "  ", "empty text"),
        (None, "nobody's", "no id"),
    }
    rows = lancedb.connect(tmp_path).open_table("docs").to_arrow().to_pylist()
    assert {(row["id"], row["text"]) for row in rows} == {("a", "first"), ("d", "good")}
    assert all(np.linalg.norm(row["vector"]) == pytest.approx(1, abs=1e-5) for row in rows)


def test_repeated_ids_whose_rows_have_nulls_alone_in_a_column(tmp_path: Path) -> None:
    blocks = [
        pa.table({"id": ["a"], "text": ["first"], "note": pa.nulls(1)}),
        pa.table({"id": ["b"], "text": ["first"], "note": ["kept"]}),
        pa.table({"id": ["a", "b", "c"], "text": ["second"] * 3, "note": ["left out"] * 3}),
    ]
    function = MLXEmbeddings.create(**MOCK)
    result = write_lancedb(ray.data.from_arrow(blocks), tmp_path, "docs", embedding_function=function)
    assert (result.written, dict(result.rejected)) == (3, {"duplicate id": 2})
    rows = lancedb.connect(tmp_path).open_table("docs").to_arrow().to_pylist()
    assert {row["id"]: row["note"] for row in rows} == {"a": None, "b": "kept", "c": "left out"}


def test_options_of_a_dataset_with_repeated_ids_stay_as_they_were(tmp_path: Path) -> None:
    ds = bad_rows()
    assert not ds.context.execution_options.preserve_order
    write_lancedb(ds, tmp_path, "docs", embedding_function=MLXEmbeddings.create(**MOCK))
    assert not ds.context.execution_options.preserve_order


@pytest.mark.parametrize("rejects", ["nowhere/rejected.jsonl", "."])
def test_side_file_that_cannot_be_written_is_refused_before_a_row_is_read(rejects: str, tmp_path: Path) -> None:
    unread = ray.data.range(10).map_batches(lambda batch: pytest.fail("a row was read"))
    with pytest.raises(InvalidInputError, match=r"cannot write .*, the file of rejected rows"):
        write_lancedb(unread, tmp_path, "docs", embedding_function=MLXEmbeddings.create(**MOCK), rejects=rejects)


def test_good_rows_leave_an_earlier_side_file_alone(tmp_path: Path) -> None:
    Path("docs.rejected.jsonl").write_text("of an earlier run\n", encoding="utf-8")
    result = write_lancedb(corpus(3), tmp_path, "docs", embedding_function=MLXEmbeddings.create(**MOCK))
    assert (result.written, result.rejects) == (3, None)
    assert Path("docs.rejected.jsonl").read_text(encoding="utf-8") == "of an earlier run\n"


def test_strict_run_stops_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"5 rows cannot be embedded \(2 duplicate id, .*Nothing was written"):
        write_lancedb(bad_rows(), tmp_path, "docs", embedding_function=MLXEmbeddings.create(**MOCK), strict=True)
    assert "docs" not in lancedb.connect(tmp_path)
    assert len(read_lines(Path("docs.rejected.jsonl"))) == 5


def test_texts_of_mixed_types_are_told_apart(tmp_path: Path) -> None:
    items = [{"id": "a", "text": "good"}, {"id": "b", "text": 7}, {"id": "c", "text": ["x"]}]
    ds = ray.data.from_items(items, override_num_blocks=1)
    result = write_lancedb(ds, tmp_path, "docs", embedding_function=MLXEmbeddings.create(**MOCK))
    assert result.written == 1
    assert dict(result.rejected) == {"text is int, not a string": 1, "text is list, not a string": 1}


def test_vectors_of_the_dataset_are_taken_as_they_are(tmp_path: Path) -> None:
    given = [1.0] + [0.0] * 7
    rows = pa.table(
        {
            "id": ["a", "b", "c", "d"],
            "text": ["given", "embedded", "wrong", None],
            "vector": pa.array([given, None, [1.0, 2.0], given], pa.list_(pa.float32())),
        }
    )
    result = write_lancedb(ray.data.from_arrow(rows), tmp_path, "docs", embedding_function=MLXEmbeddings.create(**MOCK))
    assert dict(result.rejected) == {"vector of 2 dimensions, not 8": 1}
    assert sum(worker.texts for worker in result.workers) == 1
    stored = {row["id"]: row["vector"] for row in lancedb.connect(tmp_path).open_table("docs").to_arrow().to_pylist()}
    assert stored["a"] == stored["d"] == given
    assert stored["b"] == EmbeddingService(**MOCK).embed_batch(["embedded"]).embeddings[0].tolist()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"key": ["a"], "text": ["b"]}, "no column 'id' for the id; they have key, text"),
        ({"id": ["a"], "body": ["b"]}, "no column 'text' for the text; they have id, body"),
        ({"id": ["a"], "text": [1]}, "column 'text' holds int64, not text"),
        ({"id": ["a"], "text": ["b"], "vector": [[1.0, 2.0]]}, None),
    ],
)
def test_wrong_columns_are_named(rows: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    function = MLXEmbeddings.create(**MOCK)
    ds = ray.data.from_arrow(pa.table(rows))
    if message is None:
        assert write_lancedb(ds, tmp_path, "docs", embedding_function=function).written == 0
        return
    with pytest.raises(InvalidInputError, match=message):
        write_lancedb(ds, tmp_path, "docs", embedding_function=function)
    assert "docs" not in lancedb.connect(tmp_path)


def test_json_lines_keep_their_types(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "a.jsonl").write_text('{"id": "007", "text": "x", "zip": "01234", "n": 1, "day": "2020-01-01"}\n\n')
    with gzip.open(tmp_path / "more" / "b.jsonl.gz", "wt") as file:
        file.write('{"id": 7, "text": 5, "n": 2.5, "tag": {"q": [1]}}\n{"id": null, "text": "123"}\n')
    rows = read_jsonl([str(tmp_path)], ("id", "text")).take_all()
    assert sorted(rows, key=lambda row: str(row["id"])) == [
        {"id": "007", "text": "x", "zip": "01234", "n": 1.0, "day": "2020-01-01", "tag": None},
        {"id": 7, "text": 5, "zip": None, "n": 2.5, "day": None, "tag": {"q": [1]}},
        {"id": None, "text": "123", "zip": None, "n": None, "day": None, "tag": None},
    ]
    with pytest.raises(InvalidInputError, match="column 'id' has values of several types"):
        read_jsonl([str(tmp_path)])
    assert read_jsonl([str(tmp_path)], columns=["zip", "n"]).columns() == ["zip", "n"]


def test_half_characters_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"id": "a", "text": "\\ud83d"}\n{"id": "\\ud83d", "text": "x"}\n{"id": "b", "text": "\\ud83d\\ude00"}'
    )
    ds = read_jsonl([str(tmp_path / "a.jsonl")], ("id", "text"))
    result = write_lancedb(ds, tmp_path, "docs", embedding_function=MLXEmbeddings.create(**MOCK))
    assert dict(result.rejected) == {"text with an unpaired surrogate": 1, "id with an unpaired surrogate": 1}
    assert {line["id"] for line in read_lines(Path("docs.rejected.jsonl"))} == {"a", "\\ud83d"}
    assert lancedb.connect(tmp_path).open_table("docs").to_arrow()["text"].to_pylist() == ["\U0001f600"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"id": "a"}\n{"id":\n', r"line 2 is not JSON: Expecting value[^\n]*$"),
        ('{"id": "a"}\n[1]\n', "line 2 is not a JSON object but list$"),
        ("\n", "no rows"),
    ],
)
def test_bad_json_lines_are_named(lines: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines)
    with pytest.raises(InvalidInputError, match=message), typed_errors("the input"):
        read_jsonl([str(tmp_path / "a.jsonl")])


@pytest.mark.parametrize(
    "open_target",
    [
        lambda folder, port: BulkTable(str(folder), "a b", function=MLXEmbeddings.create(**MOCK)),
        lambda folder, port: BulkCollection(Server("127.0.0.1", port), "ab", function=MLXEmbeddingFunction(**MOCK)),
    ],
)
def test_names_that_a_database_refuses_are_refused_first(open_target: Any, tmp_path: Path, chroma_port: int) -> None:
    with pytest.raises(InvalidInputError, match=r"is not a .*'s name"):
        open_target(tmp_path, chroma_port)


@pytest.mark.parametrize(
    ("has", "given", "fits"),
    [
        (pa.int64(), pa.int32(), True),
        (pa.float64(), pa.int64(), True),
        (pa.int64(), pa.float64(), False),
        (pa.int64(), pa.string(), False),
        (pa.string(), pa.large_string(), True),
        (pa.string(), pa.null(), True),
        (pa.bool_(), pa.list_(pa.int64()), False),
    ],
)
def test_columns_of_another_type_are_refused_before_a_row_is_read(
    has: pa.DataType, given: pa.DataType, fits: bool, tmp_path: Path
) -> None:
    create_table(lancedb.connect(tmp_path), "docs", MLXEmbeddings.create(**MOCK), schema=pa.schema([("y", has)]))
    store = BulkTable(str(tmp_path), "docs")
    with ExitStack() as expected:
        if not fits:
            expected.enter_context(pytest.raises(InvalidInputError, match="in column 'y', and the rows have"))
        store.check_columns({"id": pa.string(), "text": pa.string(), "y": given})
