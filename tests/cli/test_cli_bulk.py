"""`akidb-mlx bulk` on the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from host_helpers import PATIENCE_S, run_python
from ray_fixtures import RunningCluster
from typer.testing import CliRunner

from akidb_mlx_plugin.cli import app
from akidb_mlx_plugin.cli.bulk_target import ChromaTarget, LanceTarget, parse_target
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError

pytest_plugins = ("host_fixtures", "ray_fixtures")

# Ray starts processes for each run.
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _not_connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command connects to a cluster, or starts its own, and disconnects."""
    ray.shutdown()
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> list[dict[str, object]]:
    for _ in range(3):
        done = CliRunner().invoke(app, ["bulk", *arguments, "--json"])
        # The cluster starts a process for each client, which occasionally fails.
        if "Starting Ray client server failed" not in str(done.exception):
            break
    if done.exception is not None:
        raise done.exception
    shown: list[dict[str, object]] = json.loads(done.stdout)
    return shown


def test_dry_run_on_a_cluster_then_run_on_this_machine_then_search(
    tmp_path: Path, minilm_dir: Path, cluster: RunningCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["parse a date from a string", "open a file", "boil the pasta", None]
    for part in range(2):
        ids = [4 * part + i for i in range(4)]
        rows = {"id": ids, "body": [text and f"{text} {part}" for text in texts], "lang": ["en"] * 4, "n": [1] * 4}
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(pa.table(rows), tmp_path / "data" / f"{part}.parquet")
    # A pattern expanded by the shell leaves the other files as arguments.
    common = ["--input", "data/0.parquet", "data/1.parquet", "--to", "lancedb://db/docs", "--text-column", "body"]
    common += ["--columns", "lang", "--model", "minilm-l6-v2"]
    (planned,) = run(*common, "--dry-run", "--address", cluster.address, "--workers", "2")
    assert (planned["rows"], planned["to write"], planned["rejected"]) == (8, 6, "2 no text")
    assert planned["tokens"]
    assert not list(tmp_path.glob("db/*"))
    # With this, Ray would find and use a running cluster.
    monkeypatch.setenv("RAY_TMPDIR", str(cluster.temp_dir))
    whole, worker = run(*common)
    assert (whole["rows"], whole["written"], worker["texts"]) == (8, 6, 6)
    assert len((tmp_path / "docs.rejected.jsonl").read_text().splitlines()) == 2
    table = lancedb.connect("db").open_table("docs")
    assert set(table.schema.names) == {"id", "body", "vector", "lang"}
    found = CliRunner().invoke(app, ["search", "cooking noodles", "db/docs", "--json"])
    assert "pasta" in json.loads(found.stdout)[0]["text"]
    assert not ray.is_initialized()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_run_into_a_chroma_server_is_searched_by_text_elsewhere(
    tmp_path: Path, minilm_dir: Path, chroma_port: int, name: str, cluster: RunningCluster
) -> None:
    texts = {"date": "parse a date from a string", "file": "open a file", "pasta": "boil the pasta", "none": None}
    write_lines(tmp_path / "docs.jsonl", [{"id": id_, "text": text, "words": 3} for id_, text in texts.items()])
    target = f"chroma://127.0.0.1:{chroma_port}/{name}"
    arguments = [
        "--input",
        "docs.jsonl",
        "--to",
        target,
        "--model",
        "minilm-l6-v2",
        "--address",
        cluster.client_address,
    ]
    whole, worker = run(*arguments)
    assert (whole["rows"], whole["written"], whole["rejected"], worker["texts"]) == (4, 3, "1 no text", 3)
    assert whole["rejected rows"] == f"{name}.rejected.jsonl"
    assert json.loads((tmp_path / f"{name}.rejected.jsonl").read_text())["id"] == "none"
    found = run_python(
        """
        import json, sys, chromadb
        from akidb_mlx_chroma import get_collection
        collection = get_collection(chromadb.HttpClient("127.0.0.1", int(sys.argv[1])), sys.argv[2])
        print(json.dumps(collection.query(query_texts=["cooking noodles"], n_results=1)))
        """,
        chroma_port,
        name,
    )
    best = json.loads(found.splitlines()[-1])
    assert (best["ids"], best["documents"]) == ([["pasta"]], [["boil the pasta"]])
    assert best["metadatas"] == [[{"words": 3}]]


def test_what_a_cluster_refuses_is_refused_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: RunningCluster
) -> None:
    monkeypatch.setenv("AKIDB_EMBEDDING__MODE", "mock")
    write_lines(tmp_path / "docs.jsonl", [{"id": id_, "text": "one"} for id_ in "abb"])
    arguments = ["--input", "docs.jsonl", "--to", "lancedb://db/docs", "--rejects", "bad.jsonl"]
    arguments += ["--address", cluster.client_address]
    with pytest.raises(InvalidInputError, match=r"cannot write nowhere/bad\.jsonl, the file of rejected rows"):
        run(*arguments, "--rejects", "nowhere/bad.jsonl")
    with pytest.raises(InvalidInputError, match="--columns nosuch: the rows have id, text"):
        run(*arguments, "--columns", "nosuch")
    with pytest.raises(InvalidInputError, match=r"1 row cannot be embedded \(1 duplicate id\); see bad\.jsonl\."):
        run(*arguments, "--strict")
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 1
    # Folders are relative to the command's working directory, and settings come from its environment.
    whole, _ = run(*arguments)
    assert whole["written"] == 2
    assert lancedb.connect("db").open_table("docs").count_rows() == 2


@pytest.mark.parametrize("source", ["docs.rejected.jsonl", "*.jsonl", "."])
def test_side_file_is_not_read_from(source: str, tmp_path: Path) -> None:
    (tmp_path / "docs.rejected.jsonl").write_text('{"id": "a", "text": "mended"}\n')
    with pytest.raises(InvalidInputError, match="and is also an input; name another with --rejects"):
        run("--input", source, "--to", "lancedb://db/docs")
    assert "mended" in (tmp_path / "docs.rejected.jsonl").read_text()


def test_strict_command_says_why_it_stops(tmp_path: Path, minilm_dir: Path) -> None:
    write_lines(tmp_path / "docs.jsonl", [{"id": "a", "text": "one"}, {"id": "a", "text": "two"}])
    command = [sys.executable, "-m", "akidb_mlx_plugin", "bulk", "--input", "docs.jsonl", "--strict"]
    command += ["--to", "lancedb://db/docs", "--model", "minilm-l6-v2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "1 row cannot be embedded (1 duplicate id); see docs.rejected.jsonl" in done.stderr
    assert "Nothing was written" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "docs.rejected.jsonl").read_text())["text"] == "two"
    assert not list(tmp_path.glob("db/*"))


def processes_marked(mark: str) -> list[str]:
    """Return the command lines of processes whose environment has a mark."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("number", "status", "moment"),
    [(signal.SIGINT, 130, "writing"), (signal.SIGTERM, 143, "writing"), (signal.SIGTERM, 143, "starting")],
)
def test_a_signal_ends_the_run_cleanly_and_the_next_run_goes_on(
    tmp_path: Path, number: signal.Signals, status: int, moment: str
) -> None:
    write_lines(tmp_path / "docs.jsonl", [{"id": f"d{i}", "text": f"text {i}"} for i in range(10_000)])
    mark = f"AKIDB_TEST_MARK={tmp_path}"
    env = {**environment(), "AKIDB_EMBEDDING__MODE": "mock", "AKIDB_TEST_MARK": str(tmp_path)}
    command = [sys.executable, "-m", "akidb_mlx_plugin", "bulk", "--input", "docs.jsonl", "--to", "lancedb://db/docs"]
    # A session of its own, whose group gets the signal as from a terminal.
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 3 * PATIENCE_S
    while time.monotonic() < deadline and running.poll() is None:
        started = any("raylet" in line or "gcs_server" in line for line in processes_marked(mark))
        if (tmp_path / "db" / "docs.lance").exists() or (moment == "starting" and started):
            break
        time.sleep(0.05)
    os.killpg(running.pid, number)
    _, errors = running.communicate(timeout=3 * PATIENCE_S)
    assert running.returncode == status, errors
    assert "Traceback" not in errors
    assert "***" not in errors
    word = "interrupted" if number == signal.SIGINT else "stopped by SIGTERM"
    assert f"akidb-mlx: {word}; what was written to lancedb://db/docs stays, and the same command goes on" in errors
    deadline = time.monotonic() + PATIENCE_S
    while (left := processes_marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    if number == signal.SIGINT:
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        ids = lancedb.connect(tmp_path / "db").open_table("docs").to_arrow()["id"].to_pylist()
        assert sorted(ids) == sorted(f"d{i}" for i in range(10_000))


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("lancedb://db/docs", LanceTarget("db", "docs")),
        ("lancedb:///data/db/docs", LanceTarget("/data/db", "docs")),
        ("lancedb://s3://bucket/db/docs", LanceTarget("s3://bucket/db", "docs")),
        ("chroma://localhost:8123/docs", ChromaTarget("localhost", 8123, "docs")),
        ("chroma://localhost/docs", ChromaTarget("localhost", 8000, "docs")),
    ],
)
def test_targets(address: str, target: object) -> None:
    assert parse_target(address) == target


@pytest.mark.parametrize(
    "address",
    [
        *("docs", "lancedb://docs", "chroma://localhost:8000", "chroma://h:x/docs", "s3://b/c"),
        *("https://host/docs", "chroma://./folder/docs"),
    ],
)
def test_what_is_no_target_is_refused(address: str) -> None:
    with pytest.raises(InvalidInputError, match="--to"):
        parse_target(address)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--input", "nothing*.parquet", "--to", "lancedb://db/docs"], InvalidInputError, "no file nothing"),
        (["--input", "s3://b/a.parquet", "s3://b/b.jsonl", "--to", "lancedb://db/docs"], InvalidInputError, "mixes"),
        (
            ["--input", "s3://b/a", "--to", "lancedb://d/t", "--address", "127.0.0.1:1"],
            EmbeddingError,
            "no Ray cluster",
        ),
    ],
)
def test_errors_come_before_any_work(arguments: list[str], error: type[EmbeddingError], message: str) -> None:
    with pytest.raises(error, match=message):
        CliRunner().invoke(app, ["bulk", *arguments], catch_exceptions=False)
