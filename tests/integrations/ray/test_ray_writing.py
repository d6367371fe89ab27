"""Datasets into both databases: real Ray with two workers, a real LanceDB, a real Chroma server, the real MiniLM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import chromadb
import lancedb
import mlx.core as mx
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
from akidb_mlx_chroma import MLXEmbeddingFunction, get_collection
from akidb_mlx_lancedb import MLXEmbeddings, create_table, open_table, validate_table
from akidb_mlx_ray import embed_dataset, write_chroma, write_lancedb
from akidb_mlx_ray.chroma import BulkCollection, Server, connect
from akidb_mlx_ray.dataset import Workers
from akidb_mlx_ray.estimate import estimate
from akidb_mlx_ray.lancedb import BulkTable
from chromadb.config import Settings
from filelock import FileLock
from host_helpers import MINILM, run_python
from ray_corpus import MOCK, TEXTS, AtOnce, assert_same_vectors, corpus, find_missing, read_lines
from ray_fixtures import RunningCluster

from akidb_mlx_plugin import (
    DimensionMismatchError,
    EmbeddingError,
    EmbeddingService,
    InvalidInputError,
    ModelNotFoundError,
)

pytest_plugins = ("host_fixtures", "ray_fixtures")

# Ray starts processes for each run.
pytestmark = pytest.mark.slow


def test_a_second_run_into_a_table_at_the_same_time_is_refused(tmp_path: Path) -> None:
    running = FileLock(tmp_path / ".docs.bulk.lock")
    with running, pytest.raises(InvalidInputError, match=r"another run is writing to table 'docs'"):
        write_lancedb(corpus(), tmp_path, "docs", embedding_function=MLXEmbeddings.create(name=MINILM))
    assert not (tmp_path / "docs.lance").exists()


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert "3 CPUs, and 3 x 1 for workers leave less than one" in caplog.text


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


def test_another_model_is_refused_before_a_row_is_read(tmp_path: Path) -> None:
    create_table(lancedb.connect(tmp_path), "docs", MLXEmbeddings.create(mode="mock", dimension=16))
    unread = ray.data.range(10).map_batches(lambda batch: pytest.fail("a row was read"))
    with pytest.raises(DimensionMismatchError, match=r"16 dimensions.* 8"):
        write_lancedb(unread, tmp_path, "docs", embedding_function=MLXEmbeddings.create(**MOCK))


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


def test_weights_that_cannot_be_loaded_end_the_run(tmp_path: Path, tiny_dir: Path) -> None:
    weights = tiny_dir / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 1000)
    with pytest.raises(ModelNotFoundError, match=r"model\.safetensors is damaged"):
        write_lancedb(corpus(30), tmp_path, "docs", embedding_function=MLXEmbeddings.create(name=str(tiny_dir)))
    assert not Path("docs.rejected.jsonl").exists()


def test_what_ended_a_run_is_said(tmp_path: Path) -> None:
    def fail(batch: Any) -> Any:
        raise KeyError("the disk is gone")

    ds = corpus(3).map_batches(fail, batch_format="pyarrow")
    with pytest.raises(
        EmbeddingError, match=r"table 'docs': the run ended early: KeyError.*the disk is gone.*continues from there"
    ):
        write_lancedb(ds, tmp_path, "docs", embedding_function=MLXEmbeddings.create(**MOCK))


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
    rows = lancedb.connect(tmp_path / "db").open_table("docs").to_arrow()
    assert sorted(rows["id"].to_pylist()) == sorted(f"d{i}" for i in range(1000))
    assert rows["vector"].null_count == 0
