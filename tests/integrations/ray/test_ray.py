"""The embedder on Ray Data: real Ray with two workers, a real LanceDB, a real Chroma server, the real MiniLM."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chromadb
import lancedb
import mlx.core as mx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.data
from akidb_mlx_chroma import MLXEmbeddingFunction, get_collection
from akidb_mlx_lancedb import MLXEmbeddings, create_table, open_table, validate_table
from akidb_mlx_ray import TextEmbedder, embed_dataset, write_chroma, write_lancedb
from akidb_mlx_ray.chroma import BulkCollection, Server, connect
from akidb_mlx_ray.dataset import Workers, embedder_arguments
from akidb_mlx_ray.estimate import estimate
from akidb_mlx_ray.jsonl import read_jsonl
from akidb_mlx_ray.lancedb import BulkTable
from akidb_mlx_ray.pipeline import BulkStore, typed_errors
from akidb_mlx_ray.results import Failure, Tally
from chromadb.config import Settings
from host_helpers import MINILM, run_python
from ray_fixtures import RunningCluster

from akidb_mlx_plugin import (
    DimensionMismatchError,
    DownloadError,
    EmbeddingConfig,
    EmbeddingError,
    EmbeddingService,
    InvalidInputError,
    ModelNotFoundError,
    ServiceUnavailableError,
)
from akidb_mlx_plugin.benchmarks.corpus import all_docstrings
from akidb_mlx_plugin.providers import EmbeddingProvider
from akidb_mlx_plugin.providers.mock import MockProvider
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse

pytest_plugins = ("host_fixtures", "ray_fixtures")

TEXTS = [text for text, _ in zip(all_docstrings(), range(300), strict=False)]
MOCK = {"mode": "mock", "dimension": 8}


@pytest.fixture(scope="module", autouse=True)
def _connected(cluster: RunningCluster) -> Iterator[None]:
    ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def _in_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def corpus(count: int = len(TEXTS)) -> Any:
    rows = pa.table({"id": [f"d{i}" for i in range(count)], "text": TEXTS[:count], "year": list(range(count))})
    return ray.data.from_arrow(rows)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_same_vectors(ids: list[str], vectors: Any, service: EmbeddingService) -> None:
    wanted = service.embed_batch([TEXTS[int(id_[1:])] for id_ in ids]).embeddings
    assert (np.asarray(vectors, dtype=np.float32) * wanted).sum(axis=1).min() > 0.99999


def test_lancedb_table_gets_every_row_and_embeds_text_afterwards(tmp_path: Path, minilm: EmbeddingService) -> None:
    result = write_lancedb(
        corpus(), tmp_path, "docs", embedding_function=MLXEmbeddings.create(name=MINILM), concurrency=2, batch_size=64
    )
    assert (result.rows, result.written, result.already_there, result.rejected) == (300, 300, 0, {})
    assert sum(worker.texts for worker in result.workers) == 300
    assert len(result.workers) == 2
    assert result.total_tokens == minilm.embed_batch(TEXTS).usage.total_tokens
    table = open_table(lancedb.connect(tmp_path), "docs")
    validate_table(table)
    rows = table.to_arrow()
    assert sorted(rows["id"].to_pylist()) == sorted(f"d{i}" for i in range(300))
    assert rows["year"].to_pylist() == [int(id_[1:]) for id_ in rows["id"].to_pylist()]
    assert_same_vectors(rows["id"].to_pylist(), rows["vector"].to_pylist(), minilm)
    table.add([{"id": "new", "text": "boil the pasta in salted water"}])
    found = run_python(
        """
        import sys, lancedb, akidb_mlx_lancedb
        table = lancedb.connect(sys.argv[1]).open_table("docs")
        print([row["id"] for row in table.search("cooking noodles").limit(1).to_list()])
        """,
        tmp_path,
    )
    assert "new" in found


def test_chroma_collection_gets_every_row_and_embeds_text_afterwards(
    chroma_port: int, tmp_path: Path, minilm: EmbeddingService
) -> None:
    name = f"bulk-{tmp_path.name[-20:]}"
    result = write_chroma(
        corpus(),
        "127.0.0.1",
        chroma_port,
        name,
        embedding_function=MLXEmbeddingFunction(MINILM),
        concurrency=2,
        batch_size=64,
    )
    assert (result.rows, result.written) == (300, 300)
    collection = get_collection(
        chromadb.HttpClient("127.0.0.1", chroma_port, settings=Settings(anonymized_telemetry=False)), name
    )
    found = collection.get(include=["embeddings", "metadatas", "documents"])
    assert sorted(found["ids"]) == sorted(f"d{i}" for i in range(300))
    assert [row["year"] for row in found["metadatas"]] == [int(id_[1:]) for id_ in found["ids"]]
    assert_same_vectors(found["ids"], found["embeddings"], minilm)
    assert collection.query(query_texts=[TEXTS[7]], n_results=1)["ids"] == [["d7"]]
    again = write_chroma(corpus(), "127.0.0.1", chroma_port, name)
    assert (again.written, again.already_there, again.total_tokens) == (0, 300, 0)


def test_second_run_embeds_only_what_is_missing(tmp_path: Path) -> None:
    function = MLXEmbeddings.create(**MOCK)
    first = write_lancedb(corpus(100), tmp_path, "docs", embedding_function=function)
    second = write_lancedb(corpus(130), tmp_path, "docs", embedding_function=function)
    assert (first.written, second.written, second.already_there) == (100, 30, 100)
    assert sum(worker.texts for worker in second.workers) == 30
    ids = lancedb.connect(tmp_path).open_table("docs").to_arrow()["id"].to_pylist()
    assert sorted(ids) == sorted(f"d{i}" for i in range(130))


@pytest.mark.parametrize(("cpus", "each"), [(1.0, 0.0), (2.0, 0.5), (8.0, 1.0)])
def test_workers_leave_a_processor_to_read_with(cpus: float, each: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": cpus})
    assert Workers(2).cpus_each() == each


def test_workers_that_leave_none_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert Workers(2, 1.0).cpus_each() == 1.0
    assert not caplog.messages
    assert Workers(3, 1.0).cpus_each() == 1.0
    assert "3 processors, and 3 x 1 for workers leave less than one" in caplog.text


class AtOnce:
    """Rows that stages are applied to here and now, as often as in one worker."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows

    def map_batches(self, stage: Any, *, fn_kwargs: dict[str, Any], **_: Any) -> AtOnce:
        return AtOnce(stage(self.rows, **fn_kwargs))

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        yield self.rows


def find_missing(store: BulkStore, ids: list[str]) -> list[str]:
    found: Any = store.drop_present(AtOnce(pa.table({"id": ids})))  # type: ignore[arg-type]
    return found.rows["id"].to_pylist()


def test_table_that_was_made_anew_is_looked_up_as_it_is_now(tmp_path: Path) -> None:
    db = lancedb.connect(tmp_path)
    function = MLXEmbeddings.create(**MOCK)
    versions, missing = set(), []
    for present in ("a", "b"):
        create_table(db, "docs", function).add([{"id": present, "text": present}])
        store = BulkTable(str(tmp_path), "docs", function=function)
        missing += find_missing(store, ["a", "b"])
        versions.add(db.open_table("docs").version)
        db.drop_table("docs")
    assert missing == ["b", "a"]
    assert len(versions) == 1


def test_collection_that_was_made_anew_is_looked_up_and_written_to(chroma_port: int, name: str) -> None:
    server = Server("127.0.0.1", chroma_port)
    for present in ("a", "b"):
        store = BulkCollection(server, name, function=MLXEmbeddingFunction(**MOCK))
        store.make({})
        vector = pa.array([[1.0] * 8], pa.list_(pa.float32(), 8))
        rows: Any = AtOnce(pa.table({"id": [present], "text": [present], "vector": vector}))
        assert store.write(rows, 1) == 1
        assert find_missing(store, ["a", "b"]) == [id_ for id_ in ("a", "b") if id_ != present]
        connect(server).delete_collection(name)


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


def test_another_model_is_refused_before_a_row_is_read(tmp_path: Path) -> None:
    create_table(lancedb.connect(tmp_path), "docs", MLXEmbeddings.create(mode="mock", dimension=16))
    unread = ray.data.range(10).map_batches(lambda batch: pytest.fail("a row was read"))
    with pytest.raises(DimensionMismatchError, match=r"16 dimensions.* 8"):
        write_lancedb(unread, tmp_path, "docs", embedding_function=MLXEmbeddings.create(**MOCK))


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


def test_ray_client_is_refused(cluster: RunningCluster) -> None:
    found = run_python(
        """
        import sys, ray, ray.data, akidb_mlx_ray
        for _ in range(3):
            try:
                ray.init(sys.argv[1], logging_level="ERROR")
                break
            except ConnectionAbortedError as error:  # the cluster starts a process for each client, which may fail
                print(error)
        try:
            akidb_mlx_ray.embed_dataset(ray.data.range(3), "minilm-l6-v2")
        except ValueError as error:
            print(error)
        """,
        cluster.client_address,
    )
    assert "Ray Data does not work through ray://; run this on a node" in found


def test_unknown_model_is_refused_at_once() -> None:
    with pytest.raises(ModelNotFoundError):
        embed_dataset(corpus(3), "no-such-model")


def test_dataset_gets_fixed_size_lists(minilm: EmbeddingService) -> None:
    rows = embed_dataset(corpus(20), MINILM, kind="query", concurrency=1).to_arrow_refs()
    table = pa.concat_tables(ray.get(rows))
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 384)
    assert_same_vectors(table["id"].to_pylist(), table["vector"].to_pylist(), minilm)


def test_weights_that_cannot_be_loaded_end_the_run(tmp_path: Path, tiny_dir: Path) -> None:
    weights = tiny_dir / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors is damaged"):
        write_lancedb(corpus(30), tmp_path, "docs", embedding_function=MLXEmbeddings.create(name=str(tiny_dir)))
    assert not Path("docs.rejected.jsonl").exists()


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


def test_what_ended_a_run_is_said(tmp_path: Path) -> None:
    def fail(batch: Any) -> Any:
        raise KeyError("the disk is gone")

    ds = corpus(3).map_batches(fail, batch_format="pyarrow")
    with pytest.raises(EmbeddingError, match=r"table 'docs': the run ended early: KeyError.*the disk is gone.*goes on"):
        write_lancedb(ds, tmp_path, "docs", embedding_function=MLXEmbeddings.create(**MOCK))


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


def test_a_workers_environment_has_no_say_in_what_a_collection_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = embedder_arguments(EmbeddingConfig.from_arguments(MINILM, dimension=128, device="cpu"))
    monkeypatch.setenv("AKIDB_EMBEDDING__MODE", "mock")
    monkeypatch.setenv("AKIDB_EMBEDDING__MLX__DOCUMENT_PROMPT", "passage: ")
    config = TextEmbedder(**arguments)._service.config
    assert (config.mode, config.mlx.model, config.mlx.dimension) == ("mlx", MINILM, 128)
    assert (config.mlx.document_prompt, config.mlx.device) == (None, "cpu")


class FailingProvider(MockProvider):
    """Fails on texts that hold one of these words, with its error."""

    def __init__(self, errors: dict[str, Exception]) -> None:
        super().__init__(8)
        self.errors = errors
        self.asked: list[list[str]] = []

    def embed_batch(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResponse:
        self.asked.append(list(request.inputs))
        for text in request.inputs:
            for word in text.split():
                if word in self.errors:
                    raise self.errors[word]
        return super().embed_batch(request)


def embedder_with(provider: EmbeddingProvider) -> tuple[TextEmbedder, Tally]:
    tally = Tally()
    embedder = TextEmbedder(**MOCK, id_column="id", tally=tally)
    embedder._service = EmbeddingService(provider=provider)
    return embedder, tally


def test_a_text_that_the_model_fails_on_is_noted_and_the_others_are_embedded() -> None:
    errors = {"bad": InvalidInputError("text 0 is bad"), "huge": EmbeddingError("a vector that is not finite")}
    embedder, tally = embedder_with(FailingProvider(errors))
    made = embedder(pa.table({"id": ["a", "b", "c", "d"], "text": ["x", "a bad one", "a huge one", "y"]}))
    assert made["id"].to_pylist() == ["a", "d"]
    wanted = EmbeddingService(**MOCK).embed_batch(["x", "y"]).embeddings
    np.testing.assert_array_equal(made["vector"].to_pylist(), wanted)
    (report,), failures = tally.read()
    assert report.texts == 2
    assert failures == [
        Failure("b", "a bad one", "text 0 is bad"),
        Failure("c", "a huge one", "a vector that is not finite"),
    ]


@pytest.mark.parametrize(
    "error", [ModelNotFoundError("damaged"), DownloadError("no network"), ServiceUnavailableError("no memory")]
)
def test_an_error_of_the_model_is_no_texts(error: EmbeddingError) -> None:
    provider = FailingProvider({"x": error})
    embedder, tally = embedder_with(provider)
    with pytest.raises(type(error), match=str(error)):
        embedder(pa.table({"id": ["a", "b"], "text": ["x", "y"]}))
    assert provider.asked[1:] == [["x", "y"]]
    assert tally.read() == ((), [])


def test_a_setting_that_keeps_the_model_from_loading_is_no_texts_error() -> None:
    provider = FailingProvider(dict.fromkeys(["warm", "x"], InvalidInputError("no such dtype")))
    embedder, tally = embedder_with(provider)
    with pytest.raises(InvalidInputError, match="no such dtype"):
        embedder(pa.table({"id": ["a"], "text": ["x"]}))
    assert (len(provider.asked), tally.read()) == (1, ((), []))


class SlowProvider(MockProvider):
    """Takes an hour to load, and then a second for a text, on a clock of its own."""

    def __init__(self) -> None:
        super().__init__(8)
        self.now_s = 0.0
        self.loaded = False

    def embed_batch(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResponse:
        self.now_s += len(request.inputs) + (0 if self.loaded else 3600)
        self.loaded = True
        return super().embed_batch(request)


def test_loading_is_not_counted_as_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = SlowProvider()
    monkeypatch.setattr("akidb_mlx_ray.embedder.time", SimpleNamespace(perf_counter=lambda: provider.now_s))
    embedder, tally = embedder_with(provider)
    embedder(pa.table({"id": ["a", "b"], "text": ["x", "y"]}))
    embedder(pa.table({"id": ["c"], "text": ["z"]}))
    (report,), _ = tally.read()
    assert (report.texts, report.tokens, report.seconds, report.texts_per_second) == (3, 3, 3.0, 1.0)


def poison(folder: Path, word: str) -> None:
    """Make every text with a word give a vector that is not finite."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    file = str(folder / "model.safetensors")
    weights = dict(mx.load(file))
    (table,) = (name for name in weights if name.endswith("word_embeddings.weight"))
    poisoned = np.array(weights[table])
    poisoned[vocabulary[word]] = np.nan
    mx.save_safetensors(file, weights | {table: mx.array(poisoned)})


@pytest.mark.parametrize("strict", [False, True])
def test_texts_that_the_model_fails_on_go_to_the_side_file(tmp_path: Path, tiny_dir: Path, strict: bool) -> None:
    poison(tiny_dir, "ocean")
    rows = pa.table({"id": ["a", "b", "c"], "text": ["the river", "the ocean", "the forest"]})
    function = MLXEmbeddings.create(name=str(tiny_dir))
    with ExitStack() as expected:
        if strict:
            expected.enter_context(pytest.raises(EmbeddingError, match="the model failed on 1 text, in"))
        result = write_lancedb(ray.data.from_arrow(rows), tmp_path, "docs", embedding_function=function, strict=strict)
        assert (result.rows, result.written, result.already_there) == (3, 2, 0)
        assert sum(result.rejected.values()) == 1
    (line,) = read_lines(Path("docs.rejected.jsonl"))
    assert (line["id"], line["text"]) == ("b", "the ocean")
    assert "not finite" in line["reason"]
    assert sorted(lancedb.connect(tmp_path).open_table("docs").to_arrow()["id"].to_pylist()) == ["a", "c"]


def test_a_worker_imports_neither_database() -> None:
    found = run_python(
        "import sys, akidb_mlx_ray; akidb_mlx_ray.TextEmbedder, akidb_mlx_ray.embed_dataset\n"
        "print([name for name in ('chromadb', 'lance', 'lancedb', 'mlx') if name in sys.modules])"
    )
    assert found == "[]\n"


def test_embedder_alone_names_the_row_without_text() -> None:
    embedder = TextEmbedder(**MOCK, id_column="id")
    with pytest.raises(InvalidInputError, match="row b has NoneType as its text"):
        embedder(pa.table({"id": ["a", "b"], "text": ["x", None]}))


def test_plan_counts_and_writes_nothing(tmp_path: Path) -> None:
    store = BulkTable(str(tmp_path), "docs", function=MLXEmbeddings.create(name=MINILM))
    made = estimate(corpus(), store, Workers(2), Path("docs.rejected.jsonl"))
    assert (made.rows, made.to_write, made.already_there, made.rejected) == (300, 300, 0, {})
    assert made.sample >= 100
    assert made.tokens == pytest.approx(EmbeddingService(MINILM).embed_batch(TEXTS).usage.total_tokens, rel=0.3)
    assert made.disk_bytes == pytest.approx(300 * (384 * 4 + 8) + sum(map(len, TEXTS)), rel=0.3)
    assert made.seconds == pytest.approx(300 / made.texts_per_second)
    assert "docs" not in lancedb.connect(tmp_path)


def test_large_table_gets_an_index_of_ids_by_a_run_and_not_by_its_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("akidb_mlx_ray.lancedb._INDEXED_ROWS", 3)
    function = MLXEmbeddings.create(**MOCK)
    table = create_table(lancedb.connect(tmp_path), "docs", function, schema=pa.schema([("year", pa.int64())]))
    table.add([{"id": f"d{i}", "text": TEXTS[i], "year": i} for i in range(4)])
    before = table.version
    made = estimate(corpus(6), BulkTable(str(tmp_path), "docs"), Workers(), Path("docs.rejected.jsonl"))
    table.checkout_latest()
    assert (made.to_write, made.already_there) == (2, 4)
    assert (table.version, table.list_indices()) == (before, [])
    result = write_lancedb(corpus(6), tmp_path, "docs", embedding_function=function)
    assert (result.written, result.already_there) == (2, 4)
    table.checkout_latest()
    assert [(index.index_type, index.columns) for index in table.list_indices()] == [("BTree", ["id"])]


def test_large_index_of_ids_learns_of_new_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("akidb_mlx_ray.lancedb._INDEXED_ROWS", 3)
    table = create_table(lancedb.connect(tmp_path), "docs", MLXEmbeddings.create(**MOCK))
    for start in (0, 4):
        table.add([{"id": f"d{i}", "text": TEXTS[i]} for i in range(start, start + 4)])
        store = BulkTable(str(tmp_path), "docs")
        store.make({})
        table.checkout_latest()
        (index,) = table.list_indices()
        assert table.index_stats(index.name).num_indexed_rows == start + 4
        assert find_missing(store, [f"d{i}" for i in range(start + 6)]) == [f"d{start + 4}", f"d{start + 5}"]


def write_parquet(path: Path, count: int) -> None:
    rows = {"id": [f"d{i}" for i in range(count)], "text": [f"{i} {TEXTS[i % 300][:400]}" for i in range(count)]}
    pq.write_table(pa.table(rows), path)


RUN = """
    import os, sys, ray, ray.data
    from akidb_mlx_lancedb import MLXEmbeddings
    from akidb_mlx_ray import write_lancedb
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    result = write_lancedb(
        ray.data.read_parquet(sys.argv[1]), sys.argv[2], "docs",
        embedding_function=MLXEmbeddings.create(name="minilm-l6-v2"),
        concurrency=2, batch_size=64, commit_rows=128,
    )
    # On a line of its own: Ray writes to standard output too.
    print("\\ncounted", result.written, result.already_there, sum(w.texts for w in result.workers), flush=True)
"""


def wait_for_rows(folder: Path, count: int) -> int:
    """Return the number of rows once there are so many."""
    for _ in range(2400):
        db = lancedb.connect(folder)
        if "docs" in db and (rows := db.open_table("docs").count_rows()) >= count:
            return int(rows)
        time.sleep(0.1)
    pytest.fail(f"no {count} rows after four minutes")


def find_workers(parent: int) -> list[int]:
    """Return the processes of a Ray cluster that embed."""
    return [
        process.pid
        for process in psutil.Process(parent).children(recursive=True)
        if "TextEmbedder" in " ".join(process.cmdline())
    ]


def assert_each_once(folder: Path, count: int) -> None:
    rows = lancedb.connect(folder).open_table("docs").to_arrow()
    assert sorted(rows["id"].to_pylist()) == sorted(f"d{i}" for i in range(count))
    assert rows["vector"].null_count == 0


@pytest.mark.slow
def test_killed_worker_and_killed_run_leave_every_id_once(tmp_path: Path) -> None:
    write_parquet(tmp_path / "docs.parquet", 1000)
    arguments = [sys.executable, "-c", textwrap.dedent(RUN), str(tmp_path / "docs.parquet"), str(tmp_path / "db")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    killed = subprocess.Popen(arguments, env=environment, start_new_session=True)
    try:
        before = wait_for_rows(tmp_path / "db", 128)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    assert before < 1000
    run = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)
    at = wait_for_rows(tmp_path / "db", before + 128)
    os.kill(find_workers(run.pid)[0], signal.SIGKILL)
    output, _ = run.communicate(timeout=240)
    assert run.returncode == 0
    assert at < 1000
    counted = next(line for line in output.splitlines() if line.startswith("counted "))
    written, already_there, embedded = map(int, counted.split()[1:])
    assert written + already_there == 1000
    assert already_there >= before
    # What the killed worker had not handed over is embedded again, and nothing else.
    assert written <= embedded < written + 400
    assert_each_once(tmp_path / "db", 1000)
