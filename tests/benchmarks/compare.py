"""This package beside its peers, on this machine, on the same texts, in turns: which bars are met.

    pip install -e '.[all,bench]'
    python tests/benchmarks/compare.py

A peer that is not installed is left out, and the table says so. One that lives in another environment is named with
--python, for all of them (`peers=PATH`) or one (`sentence_transformers_cpu=PATH`). Everything takes about an hour on
two cores, 10 GB of memory and 5 GB of disk; --quick takes minutes and shows that it works, its figures mean little.
Nothing else should run meanwhile: what shares the cores slows the peers more, whose threads wait for each other.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import chart
from alone import ALONE
from bars import BARS, Outcome
from contenders import Interpreters
from matches import MATCHES, play
from rich.console import Console
from rich.table import Table
from setting import Setting

from akidb_mlx_plugin.benchmarks.machine import describe_machine
from akidb_mlx_plugin.benchmarks.report import PLOT_REMEDY, Report, write_json, write_plot
from akidb_mlx_plugin.hub.cache import default_cache_dir

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def main() -> None:
    options = parse_options()
    wanted = options.only.split(",") if options.only else list(BARS)
    if unknown := set(wanted) - set(BARS):
        raise SystemExit(f"--only knows no {', '.join(sorted(unknown))}; there are {', '.join(BARS)}")
    errors = Console(stderr=True)
    outcomes: list[Outcome] = []
    interrupted = False
    with tempfile.TemporaryDirectory() as scratch, errors.status("starting") as status:
        setting = Setting(
            Interpreters.parse(options.python),
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            options.work,
            Path(scratch),
            options.quick,
            options.gemma,
            status.update,
        )
        try:
            for outcome in measure_all(setting, wanted):
                outcomes.append(outcome)
                errors.print(f"{outcome.bar.key}: {outcome.row()['result']}", highlight=False)
        except KeyboardInterrupt:
            interrupted = True
    publish(outcomes, options, interrupted)
    sys.exit(130 if interrupted else 0)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="rows, comma-separated: " + ", ".join(BARS))
    parser.add_argument("--quick", action="store_true", help="few texts and rounds")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="interpreter of a contender")
    parser.add_argument("--gemma", type=Path, metavar="FOLDER", help="EmbeddingGemma with its real weights")
    parser.add_argument("--output", type=Path, default=Path("bench-results"), help="where JSON and PNG go")
    kept = default_cache_dir().parent / "benchmarks"
    parser.add_argument("--work", type=Path, default=kept, help="where checkpoints of several GB are kept")
    return parser.parse_args()


def measure_all(setting: Setting, wanted: list[str]) -> Iterator[Outcome]:
    """Measure what is wanted, and hand out each outcome as soon as it is known."""
    for keys in MATCHES:
        yield from play(setting, keys, wanted)
    for key, measure in ALONE.items():
        if key in wanted:
            try:
                yield measure(setting)
            except (RuntimeError, OSError) as error:
                yield Outcome(BARS[key], note=str(error))


def publish(outcomes: list[Outcome], options: argparse.Namespace, interrupted: bool) -> None:
    """Print the table and write the files."""
    # The machine's description names the BLAS and the device once MLX is loaded; by now that disturbs nothing.
    import akidb_mlx_plugin.inference.embedder  # noqa: F401

    order = list(BARS)
    outcomes = sorted(outcomes, key=lambda outcome: order.index(outcome.bar.key))
    settings = {"model": "all", "quick": options.quick, "only": options.only}
    results = [{"key": outcome.bar.key, **outcome.row()} for outcome in outcomes]
    raw = {outcome.bar.key: {"figure": outcome.figure and vars(outcome.figure), **outcome.raw} for outcome in outcomes}
    report = Report("compare", settings, results, raw, interrupted=interrupted)
    written = [write_json(report, options.output)]
    if chart.texts_per_second(results):
        plot = write_plot(report, draw, options.output)
        written += [plot] if plot else []
        if plot is None:
            print(PLOT_REMEDY, file=sys.stderr)
    print_table(outcomes, options.quick)
    print("written:", *written, file=sys.stderr)
    if interrupted:
        print("interrupted; this is what there was by then", file=sys.stderr)


def print_table(outcomes: list[Outcome], quick: bool) -> None:
    """Print the table: drawn on a terminal, as Markdown in a pipe, where it is on its way to a document."""
    rows = [outcome.row() for outcome in outcomes]
    if not rows:
        return
    title = f"Measured on {name_machine()}" + (", quickly: fewer texts than the bars are about" if quick else "")
    if not sys.stdout.isatty():
        print(f"{title}.\n")
        print("|", " | ".join(rows[0]), "|")
        print("|" + "---|" * len(rows[0]))
        for row in rows:
            print("|", " | ".join(row.values()), "|")
        return
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row.values(), style={"yes": "green", "no": "red", "": None}[row["met"]])
    Console().print(table)


def name_machine() -> str:
    """Return this machine in a few words."""
    machine = describe_machine()
    words = ("processor", "cores", "memory_gb", "system", "mlx", "blas", "device")
    units = {"cores": " cores", "memory_gb": " GB"}
    names = {"mlx": "MLX ", "blas": "BLAS ", "device": "device "}
    return ", ".join(f"{names.get(word, '')}{machine[word]}{units.get(word, '')}" for word in words if word in machine)


def draw(figure: Figure, report: Report) -> None:
    """Draw the chart of the README."""
    quick = ", quick run" if report.settings["quick"] else ""
    chart.draw(figure, report.results, name_machine() + quick)


if __name__ == "__main__":
    main()
