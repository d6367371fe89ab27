"""The output of a benchmark: a JSON file with all measurements, and a plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akidb_mlx_plugin._version import __version__
from akidb_mlx_plugin.benchmarks.machine import describe_machine
from akidb_mlx_plugin.errors import EmbeddingError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOT_REMEDY = "no plot without matplotlib: pip install matplotlib"


@dataclass(frozen=True)
class Report:
    """The results of one benchmark.

    Attributes:
        benchmark: its name, also used for its files.
        settings: the settings it ran with.
        results: rows for a table.
        raw: the measurements behind the rows.
        summary: conclusions from all rows.
        interrupted: the user ended it early, and these are partial results.
    """

    benchmark: str
    settings: Mapping[str, Any]
    results: list[dict[str, Any]]
    raw: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    interrupted: bool = False


def write_json(report: Report, folder: Path) -> Path:
    """Write a report, with the machine and the time, and return the file.

    Raises:
        EmbeddingError: the folder cannot be written.
    """
    document = {
        "benchmark": report.benchmark,
        "package": __version__,
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "settings": dict(report.settings),
        "interrupted": report.interrupted,
        "summary": dict(report.summary),
        "results": report.results,
        "raw": dict(report.raw),
    }
    file = folder / f"{report.benchmark}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document, indent=1, default=str, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise EmbeddingError(f"cannot write results to {folder}: {error}; name another folder with --output") from error
    return file


def write_plot(report: Report, draw: Callable[[Figure, Report], None], folder: Path) -> Path | None:
    """Plot a report and return the file; None if matplotlib is not installed.

    Args:
        report: with at least one row.
        draw: a function of `plots`.
        folder: an existing folder.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, report)
    file = folder / f"{report.benchmark}.png"
    figure.savefig(file, dpi=120)
    return file
