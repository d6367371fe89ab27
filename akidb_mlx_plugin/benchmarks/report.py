"""What a benchmark leaves behind: a JSON file with everything it saw, and a picture of it."""

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
    """Everything one benchmark found.

    Attributes:
        benchmark: its name, and that of its files.
        settings: what was asked for.
        results: rows for a table.
        raw: what they were computed from.
        summary: what the rows say together.
        interrupted: the user ended it early, and this is what there was by then.
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
    """Draw a report and return the file; None where matplotlib is not installed.

    Args:
        report: has at least one row.
        draw: one of `plots`.
        folder: exists.
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
