"""What a server costs and saves: client processes on one model, against as many copies of it.

    python tests/benchmarks/serving.py                        # vectors, memory, throughput, latency; two minutes
    python tests/benchmarks/serving.py --load 600             # then 50 queries per second over HTTP for ten minutes
    python tests/benchmarks/serving.py --soak 60              # then an hour of mixed traffic

Everything runs on this machine, over a Unix socket but for --load. The exit status is 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from serving_client import Client, resources_of

from akidb_mlx_plugin import EmbeddingConfig, EmbeddingService
from akidb_mlx_plugin.benchmarks.drift import Sample, measure_drift
from akidb_mlx_plugin.benchmarks.soak import Traffic
from akidb_mlx_plugin.benchmarks.texts import first_lines, read_corpus, take_texts

_COSINE_BAR, _ADDED_MS_BAR, _SHARE_BAR, _P95_MS_BAR = 0.999999, 1.0, 0.90, 25.0
_SAMPLE_S = 5.0


@contextmanager
def run_server(model: str, folder: Path) -> Iterator[tuple[str, str, int]]:
    """Run a server; yield its Unix socket's address, its HTTP address and its process's number."""
    path = folder / "socket"
    command = [sys.executable, "-m", "akidb_mlx_plugin", "serve", "--model", model]
    process = subprocess.Popen([*command, "--uds", str(path), "--port", "0"], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        if "http://" not in line:
            sys.exit(f"the server did not start: {line}")
        yield f"unix://{path}", f"http://{line.partition('http://')[2].split()[0]}", process.pid
    finally:
        process.terminate()
        process.wait()


def open_remote(model: str, url: str) -> EmbeddingService:
    """Return a service whose vectors come from the server."""
    return EmbeddingService(EmbeddingConfig.load(overrides={"mlx": {"model": model}, "remote": {"url": url}}))


@contextmanager
def run_clients(count: int, model: str, url: str) -> Iterator[list[Client]]:
    """Run client processes that have embedded a text; without an address, each with a copy of the model."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(model, url)) for _ in range(count)]
        for client in clients:
            client.wait()
        yield clients


def embed_by_all(clients: Sequence[Client], texts: Sequence[str]) -> tuple[float, np.ndarray]:
    """Return the seconds until every client has embedded its share of the texts, and all vectors in order."""
    size = -(-len(texts) // len(clients))
    begun = time.perf_counter()
    for i, client in enumerate(clients):
        client.embed(texts[i * size : (i + 1) * size])
    answers = [client.wait() for client in clients]
    seconds = time.perf_counter() - begun
    return seconds, np.concatenate([client.read_vectors() for client, _ in zip(clients, answers, strict=True)])


def compare_throughput(local: EmbeddingService, clients: Sequence[Client], texts: list[str], rounds: int) -> bool:
    """Compare rates and vectors of the clients together with those of one process; return whether the bars are met."""
    shares, least = [], 1.0
    for _ in range(rounds):
        begun = time.perf_counter()
        expected = local.embed_batch(texts).embeddings
        alone_s = time.perf_counter() - begun
        together_s, vectors = embed_by_all(clients, texts)
        shares.append(alone_s / together_s)
        least = min(least, float((vectors.astype(np.float64) * expected).sum(axis=1).min()))
        rates = len(texts) / alone_s, len(texts) / together_s
        print(f"one process {rates[0]:.0f} texts/s, {len(clients)} clients {rates[1]:.0f}", flush=True)
    share = statistics.median(shares)
    print(f"clients: {share:.0%} of one process (bar {_SHARE_BAR:.0%}); least cosine {least:.7f} (bar {_COSINE_BAR})")
    return share >= _SHARE_BAR and least >= _COSINE_BAR


def compare_latency(local: EmbeddingService, remote: EmbeddingService, questions: list[str], count: int) -> bool:
    """Compare a lone caller's latencies through the two queues, in turns; return whether the bar is met."""
    latencies: dict[str, list[float]] = {"local": [], "remote": []}
    for i in range(count):
        ways = [("local", local), ("remote", remote)]
        for name, service in ways if i % 2 else ways[::-1]:
            begun = time.perf_counter()
            service.embed_batch([questions[i % len(questions)]], kind="query")
            latencies[name].append((time.perf_counter() - begun) * 1e3)
    here, there = (statistics.median(latencies[name]) for name in ("local", "remote"))
    added = there - here
    print(
        f"lone query, median of {count}: {here:.2f} ms here, {there:.2f} ms by the server; adds {added:.2f} ms (bar 1)"
    )
    return added < _ADDED_MS_BAR


def compare_memory(model: str, clients: Sequence[Client], server: int) -> None:
    """Print the memory of server and clients, and of as many processes with a copy each."""
    shared = sum(resources_of(pid).resident_bytes for pid in (server, *(client.pid for client in clients)))
    with run_clients(len(clients), model, "") as copies:
        apart = sum(resources_of(client.pid).resident_bytes for client in copies)
    print(
        f"memory: server and {len(clients)} clients {shared / 1e6:.0f} MB, {len(clients)} copies {apart / 1e6:.0f} MB "
        f"({shared / apart:.0%})"
    )


def run_load(model: str, url: str, seconds: float, folder: Path) -> bool:
    """Send 50 queries per second over HTTP, and return whether the bar is met."""
    command = [sys.executable, "-m", "akidb_mlx_plugin", "bench", "load", "--url", url, "--model", model, "--json"]
    done = subprocess.run(
        [*command, "--qps", "50", "--seconds", str(seconds), "--output", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    (row,) = json.loads(done.stdout)
    print(f"load over HTTP, 50 queries/s for {seconds:g} s: {row} (bar: P95 {_P95_MS_BAR:g} ms)")
    return bool(row["p95_ms"] < _P95_MS_BAR)


def run_soak(remote: EmbeddingService, server: int, corpus: list[str], minutes: float) -> bool:
    """Send mixed traffic, and return whether the server's memory, threads and descriptors stay."""
    info = remote.model_info()
    traffic = Traffic(remote, corpus, info.dimensions or (info.dimension,))
    samples: list[Sample] = []
    begun = time.perf_counter()
    traffic.start()
    while (at_s := time.perf_counter() - begun) < minutes * 60:
        samples.append(resources_of(server, at_s))
        time.sleep(min(_SAMPLE_S, minutes))
    traffic.stop()
    requests, failures = traffic.counts()
    drift = measure_drift(samples, minutes * 60)
    print(f"soak of {minutes:g} minutes: {requests}, failures {failures}, {drift}")
    return drift is not None and not drift.violations and not failures


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm-l6-v2")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--texts", type=int, default=1600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--load", type=float, metavar="SECONDS")
    parser.add_argument("--soak", type=float, metavar="MINUTES")
    options = parser.parse_args()
    corpus = read_corpus()
    texts = take_texts(corpus, options.texts)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url, http_url, pid = stack.enter_context(run_server(options.model, folder))
        remote = stack.enter_context(open_remote(options.model, url))
        remote.embed_batch(texts[:64])
        met = []
        with EmbeddingService(options.model) as local, run_clients(options.clients, options.model, url) as clients:
            local.embed_batch(texts[:64])
            met.append(compare_throughput(local, clients, texts, options.rounds))
            met.append(compare_latency(local, remote, first_lines(corpus)[:30], options.queries))
            compare_memory(options.model, clients, pid)
        if options.load:
            met.append(run_load(options.model, http_url, options.load, folder))
        if options.soak:
            met.append(run_soak(remote, pid, corpus, options.soak))
    sys.exit(not all(met))


if __name__ == "__main__":
    main()
