"""`akidb-mlx bench`: how fast this machine embeds, how it performs under load, and which settings suit it."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from akidb_mlx_plugin.cli.bench_mac import mac
from akidb_mlx_plugin.cli.bench_options import (
    DEFAULT_MODEL,
    DEFAULT_OUTPUT,
    BatchSizeOption,
    CorpusOption,
    DeviceOption,
    ModelOption,
    OutputOption,
    QpsOption,
    ThreadsOption,
    TimeoutOption,
    UrlOption,
    collect,
    describe_settings,
    measuring_bar,
    parse_numbers,
    prepare,
    publish,
    read_texts,
)
from akidb_mlx_plugin.cli.output import JsonOption, print_error

app = typer.Typer(no_args_is_help=True)
app.command()(mac)
_WARM_UP = 32


@app.callback()
def _group() -> None:
    """Benchmark this machine with real text: the standard library's docstrings, or your own file.

    Every command writes its results as JSON and a plot as PNG to --output. Ctrl-C stops it and keeps partial results.

    Example: akidb-mlx bench throughput --texts 100,1000
    """


@app.command()
def throughput(
    texts: Annotated[str, typer.Option(help="Numbers of texts, comma-separated.")] = "100,300,1000,3000,10000",
    runs: Annotated[int, typer.Option(min=1, help="Runs per number of texts.")] = 3,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Texts per call; default: all.")] = None,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    corpus: CorpusOption = None,
    output: OutputOption = DEFAULT_OUTPUT,
    json: JsonOption = False,
) -> None:
    """Measure texts and tokens per second, and peak memory, by number of texts.

    Example: akidb-mlx bench throughput --texts 100,1000,10000 --runs 5
    """
    from akidb_mlx_plugin.benchmarks.plots import draw_throughput
    from akidb_mlx_plugin.benchmarks.subject import open_subject
    from akidb_mlx_plugin.benchmarks.tables import report_throughput
    from akidb_mlx_plugin.benchmarks.throughput import measure_throughput

    sizes = parse_numbers(texts, "--texts", int)
    config = prepare(model, device, threads)
    documents = read_texts(corpus)
    with open_subject(config, documents[:_WARM_UP]) as subject:
        measured = measure_throughput(subject.provider, documents, sizes, runs=runs, per_call=batch_size)
        found, interrupted = collect(measured, len(sizes) * runs)
    settings = describe_settings(config, threads, corpus) | {"texts": sizes, "runs": runs, "batch_size": batch_size}
    publish(report_throughput(found, settings, interrupted), draw_throughput, output, json)


@app.command()
def latency(
    tokens: Annotated[str, typer.Option(help="Query lengths in tokens, comma-separated.")] = "8,12,16,32,64,128",
    repeats: Annotated[int, typer.Option(min=1, help="Queries per length.")] = 200,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    corpus: CorpusOption = None,
    output: OutputOption = DEFAULT_OUTPUT,
    json: JsonOption = False,
) -> None:
    """Measure single-query latency by length: directly on the model, and through the service's queue.

    Example: akidb-mlx bench latency --tokens 8,12,64 --repeats 500
    """
    from akidb_mlx_plugin.benchmarks.latency import measure_latency
    from akidb_mlx_plugin.benchmarks.plots import draw_latency
    from akidb_mlx_plugin.benchmarks.subject import open_subject
    from akidb_mlx_plugin.benchmarks.tables import report_latency

    lengths = parse_numbers(tokens, "--tokens", int)
    config = prepare(model, device, threads)
    documents = read_texts(corpus)
    with open_subject(config, documents[:_WARM_UP]) as subject:
        measured = measure_latency(subject, documents, lengths, repeats=repeats)
        found, interrupted = collect(measured, len(lengths))
    settings = describe_settings(config, threads, corpus) | {"tokens": lengths, "repeats": repeats}
    publish(report_latency(found, settings, interrupted), draw_latency, output, json)


@app.command()
def load(
    qps: QpsOption = 50.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of load.")] = 60.0,
    arrivals: Annotated[
        Literal["uniform", "poisson"], typer.Option(help="Evenly spaced, or independent of each other.")
    ] = "uniform",
    whole: Annotated[bool, typer.Option("--whole", help="Send whole texts instead of first lines.")] = False,
    url: UrlOption = None,
    batch_size: BatchSizeOption = None,
    batch_timeout_ms: TimeoutOption = None,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    corpus: CorpusOption = None,
    output: OutputOption = DEFAULT_OUTPUT,
    json: JsonOption = False,
) -> None:
    """Send single queries at a fixed rate, however long the answers take; latency counts from when each was due.

    With --url to a server (token: AKIDB_SERVE_TOKEN). Exits with status 1 if a request was not answered.

    Example: akidb-mlx bench load --qps 50 --seconds 600
    """
    from akidb_mlx_plugin.benchmarks.load import OpenLoop, poisson_arrivals, uniform_arrivals
    from akidb_mlx_plugin.benchmarks.load_target import open_target
    from akidb_mlx_plugin.benchmarks.plots import draw_load
    from akidb_mlx_plugin.benchmarks.tables import report_load
    from akidb_mlx_plugin.benchmarks.texts import first_lines

    if url is not None and any(value is not None for value in (device, batch_size, batch_timeout_ms)):
        raise typer.BadParameter("--device, --batch-size and --batch-timeout-ms are the server's", param_hint="--url")
    config = prepare(model, device, threads, batch_size, batch_timeout_ms, download=url is None)
    documents = read_texts(corpus)
    queries = documents if whole else first_lines(documents)
    due_s = (uniform_arrivals if arrivals == "uniform" else poisson_arrivals)(qps, seconds)
    with open_target(config, url, queries[:_WARM_UP]) as target, measuring_bar() as bar:
        task = bar.add_task("load", total=len(due_s))
        memory_bytes = {"start": target.resident_bytes()}
        record = OpenLoop(
            lambda i: target.submit(queries[i % len(queries)]), due_s, on_sent=lambda: bar.advance(task)
        ).run()
        memory_bytes["end"] = target.resident_bytes()
        # The system updates its own peak only approximately.
        memory_bytes["peak"] = max(target.peak_bytes(), *memory_bytes.values())
    settings = describe_settings(config, threads, corpus)
    settings |= {"qps": qps, "seconds": seconds, "arrivals": arrivals, "whole": whole, "url": url}
    publish(report_load(record, settings, memory_bytes), draw_load, output, json)
    if not record.complete:
        print_error(f"{record.sent - record.answered} of {record.sent} requests were not answered: {record.failures}")
        raise typer.Exit(1)


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(min=0.01, help="Minutes to run.")] = 20.0,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    corpus: CorpusOption = None,
    output: OutputOption = DEFAULT_OUTPUT,
    json: JsonOption = False,
) -> None:
    """Check for leaks of memory, threads and file descriptors under mixed load from many callers.

    Sends queries, small and large batches and cancelled requests, of several kinds and dimensions. After the first five
    minutes, or the first quarter of a shorter run, memory must stay within 5 %, and no threads or descriptors may be
    gained. Exits with status 1 if this does not hold or a request failed.

    Example: akidb-mlx bench soak --minutes 20
    """
    from akidb_mlx_plugin.benchmarks.plots import draw_soak
    from akidb_mlx_plugin.benchmarks.soak import run_soak
    from akidb_mlx_plugin.benchmarks.subject import open_subject
    from akidb_mlx_plugin.benchmarks.tables import report_soak

    config = prepare(model, device, threads)
    documents = read_texts(corpus)
    with open_subject(config, documents[:_WARM_UP]) as subject, measuring_bar() as bar:
        task = bar.add_task("soak", total=round(minutes * 60))
        record = run_soak(
            subject.service,
            documents,
            seconds=minutes * 60,
            on_sample=lambda sample: bar.update(task, completed=round(sample.at_s)),
        )
    settings = describe_settings(config, threads, corpus) | {"minutes": minutes}
    report, violations = report_soak(record, settings, minutes * 60)
    publish(report, draw_soak, output, json)
    if violations:
        print_error("; ".join(violations))
        raise typer.Exit(1)


@app.command()
def tune(
    qps: QpsOption = 20.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds per pair.")] = 5.0,
    bulk: Annotated[int, typer.Option(min=0, help="Texts in each concurrent large request; 0 for none.")] = 100,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes, comma-separated.")] = "1,5,10,20,50,100",
    timeouts_ms: Annotated[str, typer.Option(help="Batch timeouts, comma-separated.")] = "0,10,25,50,100",
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    corpus: CorpusOption = None,
    output: OutputOption = DEFAULT_OUTPUT,
    json: JsonOption = False,
) -> None:
    """Try every batch_size with every batch_timeout_ms, and recommend a pair.

    Queries arrive at the given rate while large requests run one after another. The recommended pair has the lowest
    query P95 among those that keep up with the rate; of equals, the smaller.

    Example: akidb-mlx bench tune --qps 20
    """
    from akidb_mlx_plugin.benchmarks.plots import draw_tune
    from akidb_mlx_plugin.benchmarks.subject import open_subject
    from akidb_mlx_plugin.benchmarks.tables import report_tune
    from akidb_mlx_plugin.benchmarks.texts import first_lines, take_texts
    from akidb_mlx_plugin.benchmarks.tune import Workload, sweep

    sizes = parse_numbers(batch_sizes, "--batch-sizes", int)
    waits_ms = parse_numbers(timeouts_ms, "--timeouts-ms", float)
    config = prepare(model, device, threads)
    documents = read_texts(corpus)
    arriving = Workload(first_lines(documents), take_texts(documents, bulk), qps, seconds)
    with open_subject(config, documents[:_WARM_UP]):
        measured = sweep(config, arriving, batch_sizes=sizes, timeouts_ms=waits_ms)
        found, interrupted = collect(measured, len(sizes) * len(waits_ms))
    settings = describe_settings(config, threads, corpus) | {"qps": qps, "seconds": seconds, "bulk": bulk}
    settings |= {"batch_size": sizes, "batch_timeout_ms": waits_ms}
    report = report_tune(found, settings, interrupted)
    pair = report.summary["recommended"]
    if pair:
        typer.echo(
            f"recommended: batch_size {pair['batch_size']}, batch_timeout_ms {pair['batch_timeout_ms']:g}", err=True
        )
    else:
        print_error("no pair keeps up with this rate; try a lower --qps")
    publish(report, draw_tune, output, json)
