"""What many vectors cost a database: time, disk and memory of LanceDB with its index, and of a Chroma server.

    python tests/benchmarks/targets.py                       # 250,000 vectors of 384 dimensions; some minutes
    python tests/benchmarks/targets.py --rows 1000000 --hosts lancedb

The vectors are random, the texts those of the corpus, so that nothing is embedded and only the database is measured. A
cluster is sized from these figures and the embedder's rate.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from bulk import chroma_server

from akidb_mlx_plugin.benchmarks.texts import read_corpus

_CHUNK = 5000


def make_rows(rows: int, dimension: int) -> Iterator[tuple[list[str], list[str], np.ndarray]]:
    """Yield ids, texts and (N, D) float32 unit vectors, a chunk at a time."""
    corpus, numbers = read_corpus(), np.random.default_rng(0)
    for start in range(0, rows, _CHUNK):
        count = min(_CHUNK, rows - start)
        vectors = numbers.standard_normal((count, dimension), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ids = [f"d{start + i}" for i in range(count)]
        yield ids, [corpus[(start + i) % len(corpus)] for i in range(count)], vectors


def bytes_under(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure_lancedb(folder: Path, rows: int, dimension: int) -> None:
    """Print what writing and indexing costs."""
    import lancedb
    from lancedb.index import BTree, IvfPq

    schema = pa.schema([("id", pa.string()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), dimension))])
    table = lancedb.connect(folder).create_table("docs", schema=schema)
    begun = time.perf_counter()

    def batches() -> Iterator[pa.RecordBatch]:
        for ids, texts, vectors in make_rows(rows, dimension):
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dimension)
            yield pa.record_batch([pa.array(ids), pa.array(texts), column], schema=schema)

    table.add(pa.RecordBatchReader.from_batches(schema, batches()))
    written, size = time.perf_counter() - begun, bytes_under(folder)
    print(
        f"LanceDB: {rows:,} rows in {written:.1f} s ({rows / written:,.0f}/s), {size / rows:,.0f} bytes each",
        flush=True,
    )
    begun = time.perf_counter()
    table.create_index("vector", config=IvfPq(distance_type="cosine"))
    indexed, grown = time.perf_counter() - begun, bytes_under(folder) - size
    peak = psutil.Process().memory_info().rss / 1e6
    print(f"LanceDB: vector index in {indexed:.1f} s, {grown / rows:,.0f} bytes a row more; process {peak:,.0f} MB")
    begun = time.perf_counter()
    table.create_index("id", config=BTree())
    print(f"LanceDB: id index in {time.perf_counter() - begun:.1f} s", flush=True)
    query = next(make_rows(1, dimension))[2][0]
    for _ in range(2):
        begun = time.perf_counter()
        table.search(query).limit(10).to_list()
    print(f"LanceDB: a search takes {(time.perf_counter() - begun) * 1000:.1f} ms", flush=True)


def measure_chroma(folder: Path, rows: int, dimension: int) -> None:
    """Print what writing costs a server, and its memory, as it grows."""
    import chromadb

    with chroma_server(folder) as port:
        client = chromadb.HttpClient("localhost", port)
        server = next(p for p in psutil.process_iter(["cmdline"]) if str(port) in (p.info["cmdline"] or []))
        collection = client.create_collection(
            "docs", configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )
        first, begun = server.memory_info().rss, time.perf_counter()
        done, step = 0, max(rows // 5, _CHUNK)
        for ids, texts, vectors in make_rows(rows, dimension):
            collection.upsert(ids=ids, embeddings=list(vectors), documents=texts)
            done += len(ids)
            if done % step < _CHUNK:
                seconds, memory = time.perf_counter() - begun, server.memory_info().rss - first
                print(f"Chroma: {done:,} rows in {seconds:.1f} s, server +{memory / 1e6:,.0f} MB", flush=True)
        collection.query(query_embeddings=[vectors[0]], n_results=10)
        begun = time.perf_counter()
        collection.query(query_embeddings=[vectors[0]], n_results=10)
        print(f"Chroma: a search takes {(time.perf_counter() - begun) * 1000:.1f} ms", flush=True)
        memory = server.memory_info().rss - first
        print(f"Chroma: {memory / rows:,.0f} bytes of memory a row, {bytes_under(folder) / rows:,.0f} of disk")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--hosts", nargs="+", default=["lancedb", "chroma"], choices=["lancedb", "chroma"])
    arguments = parser.parse_args()
    print(f"{arguments.rows:,} vectors of {arguments.dimension} dimensions, {os.cpu_count()} cores")
    measures = {"lancedb": measure_lancedb, "chroma": measure_chroma}
    for host in arguments.hosts:
        with tempfile.TemporaryDirectory() as name:
            measures[host](Path(name), arguments.rows, arguments.dimension)


if __name__ == "__main__":
    main()
