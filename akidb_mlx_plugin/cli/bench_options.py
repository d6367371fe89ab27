"""Shared by the commands of `akidb-mlx bench`: options, and publishing a report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from akidb_mlx_plugin.cli.output import print_error, print_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.progress import Progress

    from akidb_mlx_plugin.benchmarks.report import Report
    from akidb_mlx_plugin.config import EmbeddingConfig

INTERRUPTED = 130
DEFAULT_OUTPUT = Path("bench-results")
DEFAULT_MODEL = "minilm-l6-v2"

ModelOption = Annotated[str, typer.Option(help="Short name, org/repo or checkpoint folder.")]
DeviceOption = Annotated[str | None, typer.Option(help="gpu, cpu or auto; default: as configured.")]
ThreadsOption = Annotated[int | None, typer.Option(help="Cores to run on (Linux); default: all.")]
BatchSizeOption = Annotated[int | None, typer.Option(help="Most texts in a batch; default: as configured.")]
TimeoutOption = Annotated[
    float | None, typer.Option(help="Longest that a running batch delays others; default: as configured.")
]
QpsOption = Annotated[float, typer.Option(min=0.1, help="Queries per second.")]
UrlOption = Annotated[
    str | None,
    typer.Option(metavar="URL", help="A server, http://HOST:PORT or unix:///PATH; default: in this process."),
]
CorpusOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="One text per line; default: the standard library's docstrings."),
]
OutputOption = Annotated[Path, typer.Option(metavar="DIR", help="Folder for the JSON and PNG files.")]

_Found = TypeVar("_Found")
_Number = TypeVar("_Number", int, float)


def prepare(
    model: str,
    device: str | None,
    threads: int | None,
    batch_size: int | None = None,
    batch_timeout_ms: float | None = None,
    *,
    download: bool = True,
) -> EmbeddingConfig:
    """Return the configuration to measure, after downloading its model and limiting this thread to its cores.

    Raises:
        InvalidInputError: an invalid option.
        DownloadError: the model could not be downloaded.
    """
    from akidb_mlx_plugin.benchmarks.subject import limit_cores
    from akidb_mlx_plugin.checkpoints.reader import check_settings
    from akidb_mlx_plugin.config import EmbeddingConfig
    from akidb_mlx_plugin.hub import ensure_model

    given = {"device": device, "batch_size": batch_size, "batch_timeout_ms": batch_timeout_ms}
    mlx = {"model": model, **{key: value for key, value in given.items() if value is not None}}
    config = EmbeddingConfig.load(overrides={"mlx": mlx})
    if config.mode == "mlx" and download and config.remote.url is None:
        ensure_model(model, cache_dir=config.mlx.cache_dir, show_progress=sys.stderr.isatty(), check=check_settings)
    if threads is not None:
        limit_cores(threads)
    return config


def describe_settings(config: EmbeddingConfig, threads: int | None, corpus: Path | None) -> dict[str, Any]:
    """Return the settings that every report includes."""
    return {
        "mode": config.mode,
        "model": config.mlx.model if config.mode == "mlx" else config.mode,
        "device": config.mlx.device,
        "batch_size": config.mlx.batch_size,
        "batch_timeout_ms": config.mlx.batch_timeout_ms,
        "threads": threads,
        "corpus": str(corpus or "docstrings of the standard library"),
    }


def measuring_bar() -> Progress:
    """Return a progress bar that redraws rarely, so as not to disturb the measurement."""
    from akidb_mlx_plugin.progress import make_progress

    return make_progress(transient=True, refresh_per_second=1)


def read_texts(corpus: Path | None) -> list[str]:
    """Return the corpus, showing a bar: reading the standard library takes some seconds."""
    from akidb_mlx_plugin.benchmarks.texts import read_corpus

    with measuring_bar() as bar:
        bar.add_task("reading the corpus", total=None)
        return read_corpus(corpus)


def parse_numbers(text: str, option: str, kind: type[_Number]) -> list[_Number]:
    """Return the numbers in a comma-separated list, each above 0 or, for kind float, at least 0.

    Raises:
        typer.BadParameter: the list has anything else.
    """
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 10,100", param_hint=option) from error
    if any(number < 0 or (number == 0 and kind is int) for number in numbers):
        raise typer.BadParameter(f"{text!r} has a number that is too small", param_hint=option)
    return numbers


def collect(results: Iterator[_Found], total: int) -> tuple[list[_Found], bool]:
    """Return a benchmark's results, showing a bar, and whether the user ended it early."""
    found: list[_Found] = []
    with measuring_bar() as bar:
        task = bar.add_task("measuring", total=total)
        try:
            for result in results:
                found.append(result)
                bar.advance(task)
        except KeyboardInterrupt:
            return found, True
    return found, False


def publish(report: Report, draw: Callable[[Figure, Report], None], folder: Path, as_json: bool) -> None:
    """Print a report and write its files; then exit with status 130 if it was interrupted."""
    from akidb_mlx_plugin.benchmarks.report import PLOT_REMEDY, write_json, write_plot

    written = [write_json(report, folder)]
    print_rows(report.results, as_json=as_json, title=f"{report.benchmark}: {report.settings['model']}")
    if report.results:
        plot = write_plot(report, draw, folder)
        written += [plot] if plot else []
        if plot is None:
            typer.echo(PLOT_REMEDY, err=True)
    typer.echo(f"written: {', '.join(str(file) for file in written)}", err=True)
    if report.interrupted:
        print_error("interrupted; results are partial")
        raise typer.Exit(INTERRUPTED)
