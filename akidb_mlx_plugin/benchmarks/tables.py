"""Turn each benchmark's results into rows for a table and figures for a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from akidb_mlx_plugin.benchmarks.drift import Drift, measure_drift
from akidb_mlx_plugin.benchmarks.latency import LatencyRun
from akidb_mlx_plugin.benchmarks.load import LoadRecord
from akidb_mlx_plugin.benchmarks.report import Report
from akidb_mlx_plugin.benchmarks.soak import SoakRecord
from akidb_mlx_plugin.benchmarks.summary import Latencies
from akidb_mlx_plugin.benchmarks.throughput import ThroughputRun, sum_up
from akidb_mlx_plugin.benchmarks.tune import Cell, recommend

Settings = Mapping[str, Any]


def report_throughput(found: Sequence[ThroughputRun], settings: Settings, interrupted: bool) -> Report:
    """Return one row per number of texts."""
    rows = [
        {
            "texts": result.texts,
            "tokens": result.tokens,
            "runs": result.runs,
            "texts_per_s": round(result.texts_per_second.median, 1),
            "low": round(result.texts_per_second.low, 1),
            "high": round(result.texts_per_second.high, 1),
            "tokens_per_s": round(result.tokens_per_second.median),
            "peak_mb": _megabytes(result.peak_bytes),
        }
        for result in sum_up(found)
    ]
    return Report("throughput", settings, rows, {"runs": [asdict(run) for run in found]}, interrupted=interrupted)


def report_latency(found: Sequence[LatencyRun], settings: Settings, interrupted: bool) -> Report:
    """Return one row per length and path."""
    rows = [
        {"tokens": run.actual_tokens, "way": way, "queries": len(values_ms), **_percentiles(values_ms)}
        for run in found
        for way, values_ms in (("direct", run.direct_ms), ("queued", run.queued_ms))
    ]
    return Report("latency", settings, rows, {"lengths": [asdict(run) for run in found]}, interrupted=interrupted)


def report_load(record: LoadRecord, settings: Settings, memory_bytes: Mapping[str, int]) -> Report:
    """Return one row that accounts for every request.

    Args:
        record: their outcomes.
        settings: the settings of the run.
        memory_bytes: resident memory by moment.
    """
    failed = sum(record.failures.values())
    row: dict[str, Any] = {
        "sent": record.sent,
        "answered": record.answered,
        "failed": failed,
        "unanswered": record.unanswered,
        **_percentiles(record.latency_ms),
        "generator_p99_ms": _percentiles(record.lag_ms)["p99_ms"],
        **{f"memory_{moment}_mb": _megabytes(size) for moment, size in memory_bytes.items()},
    }
    summary = {
        "planned": record.planned,
        "failures": record.failures,
        "seconds": round(record.seconds, 3),
        "answered_per_s": round(record.answered / record.seconds, 2) if record.seconds else None,
        "generator_ms": asdict(Latencies.of(record.lag_ms)),
    }
    raw = {
        "latency_ms": [round(value, 3) for value in record.latency_ms],
        "due_s": [round(value, 4) for value in record.due_s],
        "lag_ms": [round(value, 3) for value in record.lag_ms],
    }
    return Report("load", settings, [row], raw, summary, record.interrupted)


def report_soak(record: SoakRecord, settings: Settings, planned_s: float) -> tuple[Report, list[str]]:
    """Return one row per monitored quantity, and every violated limit in words."""
    drift = measure_drift(record.samples, planned_s)
    violations = drift.violations if drift else []
    violations = violations + [f"{count} requests failed: {name}" for name, count in record.failures.items()]
    rows = _drift_rows(drift) if drift else []
    rows += [
        {"what": f"requests: {name}", "settled": None, "end": n, "change": None} for name, n in record.requests.items()
    ]
    summary = {"requests": record.requests, "failures": record.failures, "violations": violations}
    summary |= asdict(drift) if drift else {}
    raw = {"samples": [asdict(sample) for sample in record.samples]}
    return Report("soak", settings, rows, raw, summary, record.interrupted), violations


def report_tune(cells: Sequence[Cell], settings: Settings, interrupted: bool) -> Report:
    """Return one row per pair; the summary names the recommended one."""
    rows = [
        {
            "batch_size": cell.batch_size,
            "batch_timeout_ms": cell.batch_timeout_ms,
            "p50_ms": _rounded(cell.latencies.p50_ms),
            "p95_ms": _rounded(cell.latencies.p95_ms),
            "p99_ms": _rounded(cell.latencies.p99_ms),
            "bulk_texts_per_s": _rounded(cell.bulk_texts_per_second),
            "keeps_up": cell.keeps_up,
        }
        for cell in cells
    ]
    best = recommend(cells)
    pair = {"batch_size": best.batch_size, "batch_timeout_ms": best.batch_timeout_ms} if best else None
    return Report("tune", settings, rows, {}, {"recommended": pair}, interrupted)


def _drift_rows(drift: Drift) -> list[dict[str, Any]]:
    return [
        {
            "what": "resident MB",
            "settled": _megabytes(drift.settled_bytes),
            "end": _megabytes(drift.final_bytes),
            "change": f"at most {drift.memory_drift:.1%}",
        },
        {
            "what": "threads",
            "settled": drift.settled_threads,
            "end": drift.final_threads,
            "change": drift.threads_gained,
        },
        {
            "what": "file descriptors",
            "settled": drift.settled_descriptors,
            "end": drift.final_descriptors,
            "change": drift.descriptors_gained,
        },
    ]


def _percentiles(values_ms: Sequence[float]) -> dict[str, float | None]:
    return {name: _rounded(value) for name, value in asdict(Latencies.of(values_ms)).items()}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _megabytes(size: int) -> float:
    return round(size / 1e6, 1)
