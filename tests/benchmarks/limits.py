"""How near a model on this CPU is to the speed of its matrix products alone.

    python tests/benchmarks/limits.py                                    # MiniLM; a minute
    python tests/benchmarks/limits.py --model FOLDER --texts 100
    python tests/benchmarks/limits.py --torch PYTHON                     # the same products by torch, too

First the products of its linear layers, with the weights as they lie in memory, on every core at the same time; then
whole documents. What the products alone reach is the most that any way of computing the rest could give. The same for
one query, on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import wait
from itertools import cycle
from pathlib import Path

import mlx.core as mx
import numpy as np

from akidb_mlx_plugin.benchmarks.texts import first_lines, read_corpus, take_texts
from akidb_mlx_plugin.hub import ensure_model
from akidb_mlx_plugin.inference.embedder import Embedder
from akidb_mlx_plugin.nn.cpu_layers import CPULinear
from akidb_mlx_plugin.runtime.workers import WorkerPool

_DOCUMENT_TOKENS, _QUERY_TOKENS = 512, 12
_SECONDS = 4.0


def find_layers(embedder: Embedder) -> list[CPULinear]:
    """Return the linear layers of the encoder, in the layout that they are computed in."""
    assert embedder._engine.model is not None
    layers = [module for module in embedder._engine.model.encoder.modules() if isinstance(module, CPULinear)]
    if not layers:
        sys.exit("the model has no float32 layers for a CPU: nothing to measure")
    return layers


def median_seconds(work: Callable[[], object], seconds: float = _SECONDS) -> float:
    """Return the median time of a piece of work that is repeated for so many seconds."""
    times = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def time_products(layers: list[CPULinear], tokens: int) -> float:
    """Return the seconds that the products of all layers take; on a worker's thread."""
    inputs = {width: mx.random.normal((tokens, width)) for width in {layer.weight.shape[1] for layer in layers}}
    mx.eval(inputs)

    def multiply() -> None:
        for layer in layers:
            mx.eval(inputs[layer.weight.shape[1]] @ layer.weight.T)

    return median_seconds(multiply)


def on_workers(pool: WorkerPool, count: int, work: Callable[[], float]) -> list[float]:
    """Run the same work on so many threads at the same time."""
    # Small: one BLAS thread each, as their passes have.
    futures = [pool.submit(work, small=True) for _ in range(count)]
    wait(futures)
    return [future.result() for future in futures]


def time_read(layers: list[CPULinear]) -> float:
    """Return the seconds that reading all weights once takes; on a worker's thread."""
    weights = [np.array(layer.weight, copy=False) for layer in layers]
    return median_seconds(lambda: [weight.sum() for weight in weights])


def best_rate(embedder: Embedder, texts: list[str]) -> float:
    """Return the tokens per second of documents, the median of some calls."""
    tokens = embedder.embed(texts).usage.total_tokens
    return tokens / median_seconds(lambda: embedder.embed(texts), 3 * _SECONDS)


def query_ms(embedder: Embedder, questions: list[str]) -> float:
    """Return the median latency of questions of about `_QUERY_TOKENS` tokens."""
    following = cycle(questions)
    return median_seconds(lambda: embedder.embed([next(following)])) * 1e3


_BY_TORCH = """
import json, statistics, sys, time, torch
shapes, tokens, threads, seconds = json.loads(sys.argv[1])
torch.set_num_threads(threads)
layers = [torch.nn.Linear(inputs, outputs, bias=False) for outputs, inputs in shapes]
x = {layer.in_features: torch.rand(tokens, layer.in_features) for layer in layers}
times, until = [], time.perf_counter() + seconds
with torch.inference_mode():
    while time.perf_counter() < until:
        begun = time.perf_counter()
        for layer in layers:
            layer(x[layer.in_features])
        times.append(time.perf_counter() - begun)
print(statistics.median(times))
"""


def time_torch(python: Path, layers: list[CPULinear], tokens: int, threads: int) -> float:
    """Return the seconds that the same products take torch."""
    job = json.dumps([[layer.weight.shape for layer in layers], tokens, threads, _SECONDS])
    done = subprocess.run([python, "-c", _BY_TORCH, job], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm-l6-v2")
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--torch", type=Path, metavar="PYTHON")
    options = parser.parse_args()
    corpus = read_corpus()
    folder = Path(options.model)
    with Embedder.load(folder if folder.is_dir() else ensure_model(options.model).folder, device="cpu") as embedder:
        layers, pool = find_layers(embedder), embedder._engine.workers
        operations = 2 * sum(layer.weight.size for layer in layers)
        alone = on_workers(pool, pool.size, lambda: time_products(layers, _DOCUMENT_TOKENS))
        most = sum(_DOCUMENT_TOKENS * operations / seconds for seconds in alone) / 1e9
        reached = best_rate(embedder, take_texts(corpus, options.texts)) * operations / 1e9
        print(f"documents: {reached:.0f} of {most:.0f} GFLOP/s that the products alone reach ({reached / most:.0%})")
        few, read = (
            on_workers(pool, 1, work)[0] * 1e3
            for work in (lambda: time_products(layers, _QUERY_TOKENS), lambda: time_read(layers))
        )
        whole = query_ms(embedder, [line for line in first_lines(corpus)[:60] if 7 <= len(line.split()) <= 9][:10])
        print(f"a query: {whole:.1f} ms, of which products {few:.1f} ms; reading the weights once takes {read:.1f} ms")
        if options.torch:
            theirs = (
                _DOCUMENT_TOKENS * operations / time_torch(options.torch, layers, _DOCUMENT_TOKENS, pool.size) / 1e9
            )
            few_ms = [time_torch(options.torch, layers, _QUERY_TOKENS, n) * 1e3 for n in (1, pool.size)]
            print(
                f"torch: {theirs:.0f} GFLOP/s; a query's products {few_ms[0]:.1f} ms, on all cores {few_ms[1]:.1f} ms"
            )


if __name__ == "__main__":
    main()
