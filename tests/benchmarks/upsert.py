"""What writing costs beside embedding: docstrings into Chroma and LanceDB, against the embedder alone, in one run.

    python tests/benchmarks/upsert.py                    # 10,000 docstrings, five rounds of 2,000; some six minutes
    python tests/benchmarks/upsert.py --memory           # peak memory at 10,000 and 50,000 documents; two minutes

A round embeds the same texts three times: by the embedder alone, by an upsert into Chroma, by one into LanceDB, in
turning order. Memory is taken in a process per figure, with the stand-in model, so that it is that of the upsert and
the database; beside it the database alone, given the same vectors in the same chunks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from akidb_mlx_plugin import Document, EmbeddingService
from akidb_mlx_plugin.benchmarks.texts import read_corpus, take_texts
from akidb_mlx_plugin.providers.mock import hash_texts
from akidb_mlx_plugin.stores.documents import LARGEST_CHUNK

_BAR = 0.85
_DIMENSION = 384
_COUNTS = (10_000, 50_000)
_HOSTS = ("chroma", "lancedb")
Upserter = Callable[[Iterable[Document]], Any]


def open_chroma(folder: Path, settings: dict[str, Any]) -> tuple[Any, Upserter]:
    """Return a new collection on disk and its upsert."""
    import chromadb
    from akidb_mlx_chroma import MLXEmbeddingFunction, create_collection, upsert

    client = chromadb.PersistentClient(folder / "chroma", settings=chromadb.Settings(anonymized_telemetry=False))
    collection = create_collection(client, "docs", MLXEmbeddingFunction(**settings))
    return collection, lambda documents: upsert(collection, documents)


def open_lancedb(folder: Path, settings: dict[str, Any]) -> tuple[Any, Upserter]:
    """Return a new table on disk and its upsert."""
    import lancedb
    from akidb_mlx_lancedb import MLXEmbeddings, create_table, upsert

    fields = {("name" if key == "model" else key): value for key, value in settings.items()}
    table = create_table(lancedb.connect(folder / "lance"), "docs", MLXEmbeddings.create(**fields))
    return table, lambda documents: upsert(table, documents)


_OPEN = {"chroma": open_chroma, "lancedb": open_lancedb}


def measure_speed(model: str, texts: list[str], rounds: int) -> list[dict[str, float]]:
    """Return texts per second of each contender in each round."""
    size = -(-len(texts) // rounds)
    figures: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name, EmbeddingService(model) as service:
        upserts = {host: _OPEN[host](Path(name), {"model": model})[1] for host in _HOSTS}
        numbers = itertools.count()

        def write(host: str, part: list[str]) -> None:
            upserts[host]([Document(id=f"d{next(numbers)}", text=text) for text in part])

        contenders: dict[str, Callable[[list[str]], Any]] = {
            "embedder": service.embed_batch,
            **{host: lambda part, host=host: write(host, part) for host in _HOSTS},
        }
        for warm_up in contenders.values():
            warm_up(texts[:32])
        for start in range(0, len(texts), size):
            part = texts[start : start + size]
            order = list(contenders)[len(figures) % 3 :] + list(contenders)[: len(figures) % 3]
            rates = {}
            for contender in order:
                begun = time.perf_counter()
                contenders[contender](part)
                rates[contender] = len(part) / (time.perf_counter() - begun)
            figures.append(rates)
            print("  ".join(f"{key} {rates[key]:.0f}" for key in contenders), "texts/s", flush=True)
    return figures


def make_documents(count: int) -> Iterator[Document]:
    """Yield documents one by one; nothing of them is kept here."""
    for i in range(count):
        yield Document(id=f"d{i}", text=f"document {i}: " + "words that fill a line " * 10, metadata={"n": i})


def fill_alone(host: str, opened: Any, count: int) -> None:
    """Write the same documents, vectors included, with the database's own means."""
    documents = make_documents(count)
    while chunk := list(itertools.islice(documents, LARGEST_CHUNK)):
        vectors = hash_texts([d.text or "" for d in chunk], _DIMENSION)
        if host == "chroma":
            opened.upsert(
                ids=[d.id for d in chunk],
                embeddings=list(vectors),
                documents=[d.text or "" for d in chunk],
                metadatas=[dict(d.metadata or {}) for d in chunk],
            )
        else:
            rows = [
                {"id": d.id, "text": d.text, "vector": vector, "metadata": json.dumps(d.metadata)}
                for d, vector in zip(chunk, vectors, strict=True)
            ]
            opened.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)


def print_peak(host: str, writer: str, count: int) -> None:
    """Fill a database and print this process's peak memory in MiB."""
    with tempfile.TemporaryDirectory() as name:
        opened, upsert = _OPEN[host](Path(name), {"mode": "mock", "dimension": _DIMENSION})
        if writer == "upsert":
            upsert(make_documents(count))
        else:
            fill_alone(host, opened, count)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    print(kilobytes / 1024)


def measure_peak(host: str, writer: str, count: int) -> float:
    """Return the peak memory of a process that fills a database, in MiB."""
    command = [sys.executable, __file__, "--peak", host, writer, str(count)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def report_memory() -> bool:
    """Print how peak memory grows with the documents, beside the database alone."""
    passed = True
    for host in _HOSTS:
        growth = {}
        for writer in ("alone", "upsert"):
            low, high = (measure_peak(host, writer, count) for count in _COUNTS)
            growth[writer] = high - low
            print(f"{host:8} {writer:7} {low:4.0f} MiB at {_COUNTS[0]:,}, {high:4.0f} at {_COUNTS[1]:,}", flush=True)
        # A tenth of the process is what two runs of the same may differ by.
        passed &= growth["upsert"] <= growth["alone"] + high / 10
    print("peak memory grows as the database's own does:", "yes" if passed else "NO")
    return passed


def report_speed(model: str, count: int, rounds: int) -> bool:
    """Print each host's rate as a share of the embedder's own."""
    texts = take_texts(read_corpus(), count)
    print(f"{model}, {len(texts):,} docstrings in {rounds} rounds")
    figures = measure_speed(model, texts, rounds)
    shares = {host: [rates[host] / rates["embedder"] for rates in figures] for host in _HOSTS}
    for host, values in shares.items():
        print(
            f"{host}: {statistics.median(values):.0%} of the embedder's own rate "
            f"({min(values):.0%} to {max(values):.0%}; bar {_BAR:.0%})"
        )
    return all(statistics.median(values) >= _BAR for values in shares.values())


def main() -> None:
    """Run what the command line asks for; the exit status is 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm-l6-v2")
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="peak memory in place of speed")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print_peak(arguments.peak[0], arguments.peak[1], int(arguments.peak[2]))
        return
    passed = report_memory() if arguments.memory else report_speed(arguments.model, arguments.texts, arguments.rounds)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
