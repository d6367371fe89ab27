"""The bars that need no peer: growth, loading, importing, memory, and a steady load."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bars import BARS, Outcome
from contenders import Contender, peer_environment
from pairs import Ratio
from setting import Setting

_IMPORT = """
import sys, time
begun = time.perf_counter()
import chromadb
between = time.perf_counter()
import akidb_mlx_chroma
print(between - begun, time.perf_counter() - between)
"""
_BENCH = "from akidb_mlx_plugin.cli.bench import app; app()"
_EMBED = """
import sys
from akidb_mlx_plugin.benchmarks.process import peak_bytes
from akidb_mlx_plugin.cli import app
app(["embed", *sys.argv[1:]], standalone_mode=False)
print(peak_bytes())
"""
_DEVICE = "from akidb_mlx_plugin.runtime.devices import choose_device; print(choose_device('auto'))"


def measure_scaling(setting: Setting) -> Outcome:
    """Ten times the texts, and a tenth of them with the same mix of lengths, in turns."""
    many = setting.docstrings(setting.choose(4000, 500))
    few = sorted(many, key=len)[5::10]
    random.Random(0).shuffle(few)
    files = [setting.write_texts(texts, f"scaling-{len(texts)}") for texts in (few, many)]
    rates: list[list[float]] = [[], []]
    with setting.start(_ours(setting.minilm)) as worker:
        worker.embed(files[0])
        for i in range(setting.choose(3, 1)):
            setting.say(f"scaling: round {i + 1}")
            for rate, file, texts in zip(rates, files, (few, many), strict=True):
                rate.append(len(texts) / sum(worker.embed(file).seconds))
    return Outcome(
        BARS["scaling"],
        ours=f"{statistics.median(rates[1]):.1f} texts/s of {len(many):,}",
        peer=f"{statistics.median(rates[0]):.1f} texts/s of {len(few):,}",
        figure=Ratio.of(rates[1], rates[0]),
        note=f"{len(rates[0])} rounds, both with the same mix of lengths",
        raw={"few_texts_per_s": rates[0], "many_texts_per_s": rates[1]},
    )


def measure_load(setting: Setting) -> Outcome:
    """A new process each time, from its start to the first vector; from the second on the weights are cached."""
    quantized, _ = setting.full_shape("qwen3-0.6b-4bit")
    text = setting.write_texts(["hello"], "hello")
    seconds = []
    for _ in range(setting.choose(5, 2)):
        begun = time.perf_counter()
        with setting.start(_ours(quantized)) as worker:
            worker.embed(text)
            seconds.append(time.perf_counter() - begun)
    return Outcome(
        BARS["load"],
        ours=f"{statistics.median(seconds):.2f} s",
        figure=_spread(seconds),
        note=f"{len(seconds)} new processes",
        raw={"seconds": seconds},
    )


def measure_import(setting: Setting) -> Outcome:
    """Chroma first, then the adapter, in a new process each time."""
    chroma_s, beyond_s = [], []
    for _ in range(setting.choose(10, 2)):
        printed = _run(setting, ["-c", _IMPORT])
        first, second = map(float, printed.split())
        chroma_s.append(first)
        beyond_s.append(second)
    return Outcome(
        BARS["import"],
        ours=f"{statistics.median(beyond_s) * 1e3:.1f} ms",
        peer=f"{statistics.median(chroma_s) * 1e3:.0f} ms, chromadb",
        figure=_spread([second * 1e3 for second in beyond_s]),
        note=f"{len(beyond_s)} new processes",
        raw={"chromadb_s": chroma_s, "beyond_s": beyond_s},
    )


def measure_memory(setting: Setting) -> Outcome:
    """One call in a new process each, with all texts and all vectors in memory."""
    counts = _memory_counts(setting)
    peaks = []
    for count in counts:
        texts = setting.write_texts(setting.docstrings(count), f"memory-{count}")
        with setting.start(_ours(setting.minilm)) as worker:
            setting.say(f"memory: {count:,} docstrings")
            peaks.append(worker.embed(texts).peak_bytes)
    held = (counts[1] - counts[0]) * 384 * 4 / 1e6
    return _compare_peaks("memory", counts, peaks, f"the vectors returned are {held:.0f} MB of the difference")


def measure_memory_streamed(setting: Setting) -> Outcome:
    """The command in a new process each, a chunk of texts and vectors in memory at a time."""
    counts = _memory_counts(setting)
    peaks = []
    for count in counts:
        setting.say(f"memory: {count:,} docstrings from file to file")
        source, vectors = setting.scratch / f"{count}.jsonl", setting.scratch / f"{count}.npy"
        source.write_text("".join(json.dumps(text) + "\n" for text in setting.docstrings(count)), encoding="utf-8")
        arguments = [str(source), "--output", str(vectors), "--model", str(setting.minilm)]
        peaks.append(int(_run(setting, ["-c", _EMBED, *arguments]).splitlines()[-1]))
    return _compare_peaks("memory-streamed", counts, peaks, "one run each")


def measure_qps(setting: Setting) -> Outcome:
    """MiniLM under the load that `akidb-mlx bench load` makes."""
    return _measure_p95(setting, "qps", setting.minilm)


def measure_qwen3_qps(setting: Setting) -> Outcome:
    """Qwen3 in 4 bits, where there is a GPU to run it; a CPU cannot keep up with 50 a second."""
    if _run(setting, ["-c", _DEVICE]).strip() != "gpu":
        return Outcome(BARS["qwen3-qps"], note="needs a GPU, and MLX finds none here")
    return _measure_p95(setting, "qwen3-qps", setting.full_shape("qwen3-0.6b-4bit")[0])


ALONE: dict[str, Callable[[Setting], Outcome]] = {
    "scaling": measure_scaling,
    "load": measure_load,
    "import": measure_import,
    "memory": measure_memory,
    "memory-streamed": measure_memory_streamed,
    "qps": measure_qps,
    "qwen3-qps": measure_qwen3_qps,
}


def _memory_counts(setting: Setting) -> tuple[int, int]:
    return setting.choose(1000, 200), setting.choose(20_000, 1000)


def _compare_peaks(key: str, counts: tuple[int, int], peaks: list[int], note: str) -> Outcome:
    return Outcome(
        BARS[key],
        ours=f"{peaks[1] / 1e6:.0f} MB for {counts[1]:,}",
        peer=f"{peaks[0] / 1e6:.0f} MB for {counts[0]:,}",
        figure=Ratio.of([peaks[1]], [peaks[0]]),
        note=note,
        raw={"texts": counts, "peak_bytes": peaks},
    )


def _measure_p95(setting: Setting, key: str, checkpoint: Path) -> Outcome:
    seconds = setting.choose(60, 3)
    setting.say(f"50 queries per second for {seconds} seconds")
    arguments = ["load", "--qps", "50", "--seconds", str(seconds), "--model", str(checkpoint)]
    _run(setting, ["-c", _BENCH, *arguments, "--output", str(setting.scratch)])
    report = json.loads((setting.scratch / "load.json").read_text())
    (row,) = report["results"]
    return Outcome(
        BARS[key],
        ours=f"P50 {row['p50_ms']} ms, P99 {row['p99_ms']} ms",
        figure=Ratio(row["p95_ms"], row["p95_ms"], row["p95_ms"]),
        note=f"{row['answered']} of {row['sent']} answered; the longer run is akidb-mlx bench load --seconds 600",
        raw=row,
    )


def _run(setting: Setting, arguments: list[str]) -> str:
    """Run this package's interpreter and return what it prints."""
    command = [setting.interpreters.of("ours"), *arguments]
    result = subprocess.run(command, env=peer_environment("ours"), capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr.strip().splitlines()[-1] if result.stderr.strip() else "no output")
    return result.stdout


def _spread(values: list[float]) -> Ratio:
    return Ratio(statistics.median(values), min(values), max(values))


def _ours(folder: Path) -> Contender:
    return Contender("akidb-mlx", "ours", folder)
