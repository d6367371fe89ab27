"""Plots of the benchmarks; each function draws one report into an empty figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from akidb_mlx_plugin.benchmarks.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_throughput(figure: Figure, report: Report) -> None:
    """Plot texts per second and peak memory over the number of texts, each run as a dot."""
    axes = figure.add_subplot()
    rows = report.results
    sizes = [row["texts"] for row in rows]
    axes.plot(sizes, [row["texts_per_s"] for row in rows], label="texts per second, median")
    runs = report.raw["runs"]
    axes.plot([run["texts"] for run in runs], [run["texts"] / run["seconds"] for run in runs], ".", label="each run")
    axes.set(xscale="log", ylim=(0, None), xlabel="texts in one call", ylabel="texts per second")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    memory = axes.twinx()
    memory.plot(sizes, [row["peak_mb"] for row in rows], "--", color="gray", label="peak memory")
    memory.set(ylim=(0, None), ylabel="MB")
    axes.set_title(_title(report, "throughput"))
    figure.legend(loc="outside lower center", ncols=3)


def draw_latency(figure: Figure, report: Report) -> None:
    """Plot median to 95th percentile over query length, directly and through the queue."""
    axes = figure.add_subplot()
    for way in ("direct", "queued"):
        rows = [row for row in report.results if row["way"] == way]
        lengths = [row["tokens"] for row in rows]
        axes.plot(lengths, [row["p50_ms"] for row in rows], "o-", label=f"{way}, median")
        axes.fill_between(lengths, [row["p50_ms"] for row in rows], [row["p95_ms"] for row in rows], alpha=0.2)
    axes.set(xlabel="tokens of one query", ylabel="milliseconds (shaded up to P95)", ylim=(0, None))
    axes.set_title(_title(report, "latency of single queries"))
    axes.legend()


def draw_load(figure: Figure, report: Report) -> None:
    """Plot a histogram of the latencies with percentiles marked."""
    axes = figure.add_subplot()
    # Logarithmic, because the few very late ones matter most.
    axes.hist(report.raw["latency_ms"], bins=80, log=True)
    for name, color in (("p50_ms", "tab:green"), ("p95_ms", "tab:orange"), ("p99_ms", "tab:red")):
        value = report.results[0][name]
        if value is not None:
            axes.axvline(value, color=color, label=f"{name[:3].upper()} {value:.1f} ms")
    axes.set(xlabel="latency from the time a request was due, ms", ylabel="requests (logarithmic)")
    axes.set_title(_title(report, f"{report.settings['qps']:g} requests per second"))
    axes.legend()


def draw_soak(figure: Figure, report: Report) -> None:
    """Plot memory, threads and descriptors over time."""
    upper, lower = figure.subplots(2, 1, sharex=True)
    samples = report.raw["samples"]
    minutes = [sample["at_s"] / 60 for sample in samples]
    upper.plot(minutes, [sample["resident_bytes"] / 1e6 for sample in samples])
    upper.set(ylabel="resident memory, MB", ylim=(0, None))
    lower.plot(minutes, [sample["threads"] for sample in samples], label="threads")
    lower.plot(minutes, [sample["descriptors"] for sample in samples], label="file descriptors")
    lower.set(xlabel="minutes", ylim=(0, None))
    lower.legend()
    settled_s = report.summary.get("settled_s")
    if settled_s is not None:
        for axes in (upper, lower):
            axes.axvline(settled_s / 60, color="gray", linestyle=":")
    upper.set_title(_title(report, "mixed load"))


def draw_tune(figure: Figure, report: Report) -> None:
    """Plot every pair's P95 as a heat map; pairs that fall behind are in brackets, the recommended one is bold."""
    rows = report.results
    sizes = sorted({row["batch_size"] for row in rows})
    timeouts = sorted({row["batch_timeout_ms"] for row in rows})
    cells = {(row["batch_size"], row["batch_timeout_ms"]): row for row in rows}
    grid = [[_p95(cells.get((size, timeout))) for timeout in timeouts] for size in sizes]
    axes = figure.add_subplot()
    figure.colorbar(axes.imshow(grid, aspect="auto", cmap="YlOrRd"), label="P95, ms")
    for y, size in enumerate(sizes):
        for x, timeout in enumerate(timeouts):
            row = cells.get((size, timeout))
            if row is not None and row["p95_ms"] is not None:
                text = f"{row['p95_ms']:.1f}" if row["keeps_up"] else f"({row['p95_ms']:.0f})"
                axes.text(x, y, text, ha="center", va="center", weight=_weight(report, row))
    axes.set(xticks=range(len(timeouts)), xticklabels=[f"{timeout:g}" for timeout in timeouts])
    axes.set(yticks=range(len(sizes)), yticklabels=sizes, xlabel="batch_timeout_ms", ylabel="batch_size")
    axes.set_title(_title(report, f"P95 at {report.settings['qps']:g} queries per second"))


def draw_mac(figure: Figure, report: Report) -> None:
    """Write the machine and every figure on the left; on the right plot the latencies of queries at a rate."""
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    left.axis("off")
    model = report.summary["model"]
    lines = [", ".join(filter(None, (model.get("device"), model.get("dtype")))), ""]
    lines += [_line(row) for row in report.results]
    left.text(0, 1, "\n".join(lines), va="top", family="monospace", size=8)
    latencies = sorted(report.raw.get("load_ms", []))
    if latencies:
        shares = [100 * (i + 1) / len(latencies) for i in range(len(latencies))]
        right.plot(latencies, shares)
        right.axhline(95, color="gray", linestyle=":")
    right.set(xlabel="ms", ylabel="% of queries answered", ylim=(0, 100))
    right.set_title(f"{report.settings['qps']:g} queries per second", size=9)
    figure.suptitle(f"{_title(report, 'akidb-mlx bench mac')}\n{report.summary['machine']}", size=9)


def _line(row: dict[str, Any]) -> str:
    value = "-" if row["value"] is None else f"{row['value']:,g}"
    derived = "" if row["derived"] is None else f" (derived: {row['derived']:,g})"
    return f"{row['what']:<38} {value:>9} {row['unit']}{derived}"


def _p95(row: dict[str, Any] | None) -> float:
    return float("nan") if row is None or row["p95_ms"] is None else float(row["p95_ms"])


def _weight(report: Report, row: dict[str, Any]) -> str:
    recommended = report.summary.get("recommended") or {}
    return "bold" if all(row[key] == value for key, value in recommended.items()) and recommended else "normal"


def _title(report: Report, what: str) -> str:
    ending = ", interrupted" if report.interrupted else ""
    return f"{report.settings['model']}: {what}{ending}"
