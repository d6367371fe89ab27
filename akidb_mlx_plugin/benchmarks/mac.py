"""Measure in one go what Apple silicon is expected to do: a lone query, queries at a rate, bulk texts, the rest."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from akidb_mlx_plugin.benchmarks.latency import measure_latency
from akidb_mlx_plugin.benchmarks.load import OpenLoop, poisson_arrivals
from akidb_mlx_plugin.benchmarks.machine import describe_machine
from akidb_mlx_plugin.benchmarks.process import peak_bytes
from akidb_mlx_plugin.benchmarks.products import measure_plain_products, measure_products
from akidb_mlx_plugin.benchmarks.report import Report
from akidb_mlx_plugin.benchmarks.subject import Subject
from akidb_mlx_plugin.benchmarks.summary import Latencies
from akidb_mlx_plugin.benchmarks.texts import first_lines, take_texts
from akidb_mlx_plugin.runtime.workers import WorkerPool

STAGES = 4
_QUERY_TOKENS = 16
_QUERIES_PER_S = 5
_BULK_TEXTS = 256
_DERIVED_FOR = "qwen3-0.6b-4bit"
# What was derived for the default model from MLX's sources and published figures, by generation and size of the GPU:
# milliseconds for a query of 16 tokens, P95 at 50 queries a second, tokens a second through the queue.
_DERIVED: Mapping[tuple[int, str], tuple[float, float | None, float]] = {
    (14, "g"): (10.0, 35.0, 3_000.0),
    (15, "s"): (7.0, 9.0, 11_700.0),
    (17, "s"): (8.0, None, 49_000.0),
}


@dataclass(frozen=True)
class Stage:
    """Part of the results.

    Attributes:
        rows: what was measured, with value, unit and, where there is one, the derived figure.
        raw: the measurements behind them.
    """

    rows: list[dict[str, Any]]
    raw: Mapping[str, Any] = field(default_factory=dict)


def measure_mac(
    subject: Subject,
    corpus: Sequence[str],
    *,
    qps: float,
    seconds: float,
    now: Callable[[], float] = time.perf_counter,
) -> Iterator[Stage]:
    """Yield `STAGES` parts of the results: model and products, a lone query, queries at a rate, bulk texts.

    Args:
        subject: warmed up.
        corpus: texts to embed; queries are their first lines.
        qps: queries per second, which arrive independently of each other.
        seconds: of load, and of bulk texts.
        now: a clock in seconds.
    """
    query_ms, p95_ms, tokens_per_s = _derived(subject.config.mlx.model)
    yield _measure_model(subject)
    (run,) = measure_latency(subject, corpus, [_QUERY_TOKENS], repeats=max(5, round(_QUERIES_PER_S * seconds)))
    queued = Latencies.of(run.queued_ms)
    yield Stage(
        [
            _row(f"one query of {run.actual_tokens} tokens, median", queued.p50_ms, "ms", query_ms),
            _row("the same, P95", queued.p95_ms, "ms"),
            _row("the same without the queue, median", Latencies.of(run.direct_ms).p50_ms, "ms"),
        ],
        {"query": asdict(run)},
    )
    yield _measure_load(subject, first_lines(corpus), qps, seconds, p95_ms if qps == 50 else None)
    yield _measure_bulk(subject, take_texts(corpus, _BULK_TEXTS), seconds, now, tokens_per_s)


def report_mac(found: Sequence[Stage], settings: Mapping[str, Any], interrupted: bool) -> Report:
    """Return one row per figure; the summary describes the machine."""
    rows = [row for stage in found for row in stage.rows]
    raw = {name: values for stage in found for name, values in stage.raw.items()}
    summary = {"machine": describe_for_post(), "is_mac": is_apple_silicon(), "model": raw.pop("model", {})}
    return Report("mac", settings, rows, raw, summary, interrupted)


def is_apple_silicon() -> bool:
    """Return whether this is a Mac with an Apple GPU that MLX can use."""
    from akidb_mlx_plugin.runtime.devices import choose_device

    return sys.platform == "darwin" and choose_device("auto") == "gpu"


def describe_for_post() -> str:
    """Return the machine in one line, as a reader of the figures needs to know it."""
    from akidb_mlx_plugin.runtime.devices import find_apple_gpu

    machine = describe_machine()
    gpu = find_apple_gpu()
    system = f"macOS {platform.mac_ver()[0]}" if sys.platform == "darwin" else str(machine["system"])
    parts = [
        str(machine["processor"]),
        f"applegpu_g{gpu.generation}{gpu.size}" if gpu else "no Apple GPU",
        f"{machine['cores']} cores",
        f"{machine['memory_gb']} GB",
        system,
        f"mlx {machine.get('mlx', '?')}",
    ]
    return ", ".join(parts)


def _measure_model(subject: Subject) -> Stage:
    from akidb_mlx_plugin.runtime.devices import choose_device, pass_tokens

    info = subject.provider.model_info()
    device = choose_device(subject.config.mlx.device)
    pool = WorkerPool(device, 1)
    try:
        tflops = (measure_products if device == "gpu" else measure_plain_products)(pool)
    finally:
        pool.close()
    model = {"device": info.device, "dtype": info.dtype, "parameters": info.parameters, "fingerprint": info.fingerprint}
    if device == "gpu":
        model["pass_tokens"] = pass_tokens()
    load_s = subject.provider.load_seconds
    rows = [
        _row("model load", load_s, "s"),
        _row("4-bit products" if device == "gpu" else "float32 products", tflops, "TFLOP/s"),
    ]
    return Stage(rows, {"model": model})


def _measure_load(subject: Subject, queries: Sequence[str], qps: float, seconds: float, derived: float | None) -> Stage:
    record = OpenLoop(
        lambda i: subject.service.submit(queries[i % len(queries)], kind="query"), poisson_arrivals(qps, seconds)
    ).run()
    if record.interrupted:
        raise KeyboardInterrupt
    taken = Latencies.of(record.latency_ms)
    rows = [
        _row(f"{qps:g} queries a second, median", taken.p50_ms, "ms"),
        _row("the same, P95", taken.p95_ms, "ms", derived),
        _row("queries not answered", record.sent - record.answered, ""),
    ]
    return Stage(rows, {"load_ms": [round(value, 3) for value in record.latency_ms]})


def _measure_bulk(
    subject: Subject, texts: Sequence[str], seconds: float, now: Callable[[], float], derived: float | None
) -> Stage:
    """Embed large requests one after the other, until the time is up."""
    begun, tokens, count = now(), 0, 0
    while not count or now() - begun < seconds:
        tokens += subject.service.embed_batch(texts).usage.total_tokens
        count += len(texts)
    taken = now() - begun
    rows = [
        _row("documents through the queue", tokens / taken, "tokens/s", derived),
        _row("the same", count / taken, "texts/s"),
        _row("peak memory of the process", peak_bytes() / 1e6, "MB"),
    ]
    return Stage(rows, {"bulk": {"texts": count, "tokens": tokens, "seconds": taken}})


def _derived(model: str) -> tuple[float | None, float | None, float | None]:
    from akidb_mlx_plugin.runtime.devices import find_apple_gpu

    gpu = find_apple_gpu()
    if gpu is None or model != _DERIVED_FOR:
        return None, None, None
    return _DERIVED.get((gpu.generation, gpu.size), (None, None, None))


def _row(what: str, value: float | None, unit: str, derived: float | None = None) -> dict[str, Any]:
    return {"what": what, "value": None if value is None else _rounded(value), "unit": unit, "derived": derived}


def _rounded(value: float) -> float:
    """Return a number with three digits, or whole."""
    return float(f"{value:.3g}") if abs(value) < 1000 else round(value)
