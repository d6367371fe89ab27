"""Put the figures of a run of compare.py into README, docs and chart.

    python tests/benchmarks/publish.py bench-results/compare.json
    python tests/benchmarks/publish.py    # again from the figures that are published

Needs matplotlib. A quick, partial or interrupted run is refused.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import chart
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
FIGURES = Path(__file__).parent / "results" / "compare.json"
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
CHART = ROOT / "docs" / "images" / "texts_per_second.svg"
_COLUMNS = {"what": "what", "ours": "this package", "peer": "beside it", "result": "result"}


def main() -> None:
    if len(sys.argv) > 1:
        FIGURES.write_text(json.dumps(adopt(json.loads(Path(sys.argv[1]).read_text("utf-8"))), indent=1) + "\n", "utf-8")
    report = json.loads(FIGURES.read_text("utf-8"))
    draw(report)
    for page in PAGES:
        page.write_text(insert(page.read_text("utf-8"), report), "utf-8")
    print("written:", FIGURES, CHART, *PAGES)


def adopt(report: dict[str, Any]) -> dict[str, Any]:
    """Return what is published of a report: everything but the raw measurements."""
    settings = report["settings"]
    if report["interrupted"] or settings["quick"] or settings["only"]:
        raise SystemExit("only a whole run is published: python tests/benchmarks/compare.py, without --quick and --only")
    # A BLAS is described with the path of its file, which is of no use elsewhere.
    blas = re.sub(r" \(/[^)]*\)", "", report["machine"].get("blas", ""))
    published = {key: report[key] for key in ("package", "when", "machine", "results")}
    return published | {"machine": {**report["machine"], "blas": blas}}


def machine(report: dict[str, Any]) -> str:
    """Return the machine in a line."""
    facts = report["machine"]
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gb']} GB, {facts['system']}, "
        f"MLX {facts['mlx']}, BLAS {facts['blas']}"
    )


def insert(page: str, report: dict[str, Any]) -> str:
    """Return a page with the parts that show figures made anew."""
    for name, content in (("table", table(report)), ("caption", f"Measured on {machine(report)}.")):
        begin, end = (f"<!-- made by tests/benchmarks/publish.py: {name} {word} -->" for word in ("begin", "end"))
        page = re.sub(f"{begin}.*?{end}", lambda _, b=begin, c=content, e=end: f"{b}\n{c}\n{e}", page, flags=re.DOTALL)
    return page


def table(report: dict[str, Any]) -> str:
    """Return the rows that were measured as Markdown, with the machine above."""
    lines = [f"| {' | '.join(_COLUMNS.values())} |", "|" + "---|" * len(_COLUMNS)]
    measured = [row for row in report["results"] if row["result"] != "not measured"]
    lines += [f"| {' | '.join(row[key] for key in _COLUMNS)} |" for row in measured]
    return "\n".join([f"Measured on {machine(report)}.", "", *lines])


def draw(report: dict[str, Any]) -> None:
    """Draw the chart, with the same bytes for the same figures."""
    with rc_context({"svg.hashsalt": "akidb-mlx", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(layout="constrained")
        FigureCanvasSVG(figure)
        chart.draw(figure, report["results"], machine(report))
        figure.savefig(CHART, metadata={"Date": None})


if __name__ == "__main__":
    main()
