"""`akidb-mlx bench mac`: every figure that matters on Apple silicon, in one file and one picture to post."""

from __future__ import annotations

from typing import Annotated

import typer

from akidb_mlx_plugin.cli.bench_options import (
    DEFAULT_OUTPUT,
    CorpusOption,
    DeviceOption,
    OutputOption,
    QpsOption,
    collect,
    describe_settings,
    prepare,
    publish,
    read_texts,
)
from akidb_mlx_plugin.cli.output import JsonOption

_WARM_UP = 32


def mac(
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of queries, and of bulk texts.")] = 20.0,
    qps: QpsOption = 50.0,
    model: Annotated[str, typer.Option(help="Short name, org/repo or checkpoint folder.")] = "qwen3-0.6b-4bit",
    device: DeviceOption = None,
    corpus: CorpusOption = None,
    output: OutputOption = DEFAULT_OUTPUT,
    json: JsonOption = False,
) -> None:
    """Measure this Mac, and write one JSON file and one picture to post in an issue.

    Takes about a minute besides the download: the time to load the model, the speed of 4-bit products, the latency of
    a lone query and of queries at a rate, and the throughput of documents. Works on other machines too, and says so.

    Example: akidb-mlx bench mac
    """
    from akidb_mlx_plugin.benchmarks.mac import STAGES, describe_for_post, is_apple_silicon, measure_mac, report_mac
    from akidb_mlx_plugin.benchmarks.plots import draw_mac
    from akidb_mlx_plugin.benchmarks.subject import open_subject

    config = prepare(model, device, None)
    typer.echo(f"{'' if is_apple_silicon() else 'not a Mac with an Apple GPU: '}{describe_for_post()}", err=True)
    documents = read_texts(corpus)
    with open_subject(config, documents[:_WARM_UP]) as subject:
        measured = measure_mac(subject, documents, qps=qps, seconds=seconds)
        found, interrupted = collect(measured, STAGES)
    settings = describe_settings(config, None, corpus) | {"qps": qps, "seconds": seconds}
    publish(report_mac(found, settings, interrupted), draw_mac, output, json)
