"""What Ray costs beside embedding: docstrings in Parquet into LanceDB and a Chroma server, against the embedder alone.

    python tests/benchmarks/bulk.py                      # 20,000 docstrings, 1 and 2 workers; some twenty minutes
    python tests/benchmarks/bulk.py --texts 4000         # a few minutes

Each run starts with an empty table or collection. Afterwards a fresh process opens both by the ordinary adapters,
compares every vector with the embedder's own, and searches. Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from akidb_mlx_plugin import EmbeddingService
from akidb_mlx_plugin.benchmarks.texts import read_corpus, take_texts

_QUESTION = "how do I parse a date from a string"
_COSINE = 0.99999
_CHUNK = 1024
_PATIENCE_S = 60


def write_corpus(folder: Path, texts: list[str]) -> Path:
    """Write the texts as Parquet files of 2,000 rows, as a corpus comes; returns their folder."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for start in range(0, len(texts), 2000):
        part = texts[start : start + 2000]
        ids = [f"d{start + i}" for i in range(len(part))]
        pq.write_table(pa.table({"id": ids, "text": part}), corpus / f"part-{start:06}.parquet")
    return corpus


def embed_alone(model: str, texts: list[str]) -> tuple[np.ndarray, float]:
    """Return (N, D) vectors of the plain embedder, and its texts per second."""
    with EmbeddingService(model) as service:
        service.embed_batch(texts[:32])
        begun = time.perf_counter()
        parts = [service.embed_batch(texts[i : i + _CHUNK]).embeddings for i in range(0, len(texts), _CHUNK)]
        seconds = time.perf_counter() - begun
    return np.concatenate(parts), len(texts) / seconds


@contextlib.contextmanager
def chroma_server(folder: Path) -> Iterator[int]:
    """Run `chroma run` on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [Path(sys.executable).parent / "chroma", "run", "--path", folder / "chroma", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.2)
        yield port
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def watch_workers() -> Iterator[list[float]]:
    """Yield a list whose last entry is the most memory, in MB, that a worker has been seen to take."""
    peak, over = [0.0], threading.Event()

    def look() -> None:
        while not over.wait(1.0):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "TextEmbedder" in " ".join(process.cmdline()):
                        peak[-1] = max(peak[-1], process.memory_info().rss / 1e6)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def compare(folder: Path, port: int) -> None:
    """Hold every stored vector against the embedder's own, and search by text; runs in a process of its own."""
    import chromadb
    import lancedb
    from akidb_mlx_chroma import get_collection
    from akidb_mlx_lancedb import open_table

    expected = np.load(folder / "expected.npy")
    table = open_table(lancedb.connect(folder / "lance"), "docs")
    rows = table.to_arrow()
    collection = get_collection(chromadb.HttpClient("localhost", port), "docs")
    ids, vectors = [], []
    while page := collection.get(limit=_CHUNK, offset=len(ids), include=["embeddings"]):
        if not page["ids"]:
            break
        ids += page["ids"]
        vectors.append(page["embeddings"])
    stored = {
        "LanceDB": (rows["id"].to_pylist(), np.stack(rows["vector"].to_pylist())),
        "Chroma": (ids, np.concatenate(vectors)),
    }
    for host, (keys, found) in stored.items():
        order = np.array([int(key[1:]) for key in keys])
        once = len(order) == len(expected) == len(np.unique(order))
        cosine = float((found * expected[order]).sum(axis=1).min())
        print(f"{host}: {len(order):,} rows, every id once: {once}; worst cosine to the embedder's own {cosine:.7f}")
        assert once, host
        assert cosine >= _COSINE, host
    best = table.search(_QUESTION).limit(1).to_list()[0]
    print(f"LanceDB, {_QUESTION!r}: {best['id']} {best['text'][:60]!r}")
    answer: Any = collection.query(query_texts=[_QUESTION], n_results=1)
    print(f"Chroma,  {_QUESTION!r}: {answer['ids'][0][0]} {answer['documents'][0][0][:60]!r}")
    assert best["id"] == answer["ids"][0][0]


def measure(folder: Path, model: str, texts: list[str], worker_counts: list[int]) -> Table:
    """Embed the texts by every means; returns a table of rates."""
    import ray
    import ray.data
    from akidb_mlx_chroma import MLXEmbeddingFunction
    from akidb_mlx_lancedb import MLXEmbeddings
    from akidb_mlx_ray import BulkResult, write_chroma, write_lancedb

    corpus = write_corpus(folder, texts)
    table = Table(
        "",
        "texts/s",
        "of the embedder's",
        "time in the model",
        "MB a worker",
        title=f"{model}, {len(texts):,} docstrings",
    )
    vectors, before = embed_alone(model, texts)
    np.save(folder / "expected.npy", vectors)
    runs: list[tuple[str, BulkResult, float]] = []

    def note(name: str, result: BulkResult, megabytes: float) -> None:
        assert result.written == len(texts), result
        runs.append((name, result, megabytes))

    ray.init(
        "local", num_cpus=max(worker_counts) + 1, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        for workers in worker_counts:
            shutil.rmtree(folder / "lance", ignore_errors=True)
            ds, function = ray.data.read_parquet(str(corpus)), MLXEmbeddings.create(name=model)
            with watch_workers() as peak:
                result = write_lancedb(
                    ds, folder / "lance", "docs", embedding_function=function, concurrency=workers, num_cpus=1
                )
            note(f"into LanceDB, {workers} worker{'s' * (workers > 1)}", result, peak[-1])
        with chroma_server(folder) as port:
            ds, chroma_function = ray.data.read_parquet(str(corpus)), MLXEmbeddingFunction(model)
            with watch_workers() as peak:
                result = write_chroma(
                    ds, "localhost", port, "docs", embedding_function=chroma_function, concurrency=workers, num_cpus=1
                )
            note(f"into Chroma, {workers} workers", result, peak[-1])
            command = [sys.executable, __file__, "--compare", str(folder), str(port)]
            subprocess.run(command, check=True)
    finally:
        ray.shutdown()
    # Once more, because a machine's speed may change in so long a time.
    _, after = embed_alone(model, texts)
    alone = (before + after) / 2
    table.add_row("embedder alone, before", f"{before:.1f}", "", "", "")
    for name, result, megabytes in runs:
        rate = result.written / result.seconds
        table.add_row(name, f"{rate:.1f}", f"{rate / alone:.0%}", f"{result.embedding_share:.0%}", f"{megabytes:.0f}")
    table.add_row("embedder alone, after", f"{after:.1f}", "", "", "")
    return table


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm-l6-v2")
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--compare", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compare:
        compare(Path(arguments.compare[0]), int(arguments.compare[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        texts = take_texts(read_corpus(), arguments.texts)
        Console().print(measure(Path(name), arguments.model, texts, arguments.workers))


if __name__ == "__main__":
    main()
