"""`akidb-mlx bulk`: embed a corpus into a table or collection, with many workers."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from akidb_mlx_plugin.cli.bulk_signals import StopSignals
from akidb_mlx_plugin.cli.bulk_target import parse_target
from akidb_mlx_plugin.cli.model_options import PoolingOption
from akidb_mlx_plugin.cli.output import JsonOption, print_error, print_rows
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError
from akidb_mlx_plugin.installation import install_command

if TYPE_CHECKING:
    from akidb_mlx_ray.estimate import Estimate
    from akidb_mlx_ray.results import BulkResult

    from akidb_mlx_plugin.cli.bulk_job import BulkJob

_PATIENCE_S = 10.0


def bulk(
    to: Annotated[
        str,
        typer.Option(
            help="lancedb://FOLDER/TABLE, lancedb://s3://bucket/path/TABLE, chroma://HOST:PORT/COLLECTION, or "
            "FOLDER/TABLE of an existing LanceDB."
        ),
    ],
    source: Annotated[
        list[str], typer.Option("--input", help="Parquet or JSONL: a file, a pattern, a folder, or s3://bucket/path.")
    ],
    more: Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", help="More input.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes, each with its own copy of the model.")] = 1,
    address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS",
            help="Ray cluster: ray://HOST:10001, or auto on one of its nodes; default: this machine.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Short name, repository or checkpoint folder; default: the target's, else as configured."),
    ] = None,
    dimension: Annotated[int | None, typer.Option(help="Length of the vectors; default: the model's.")] = None,
    pooling: PoolingOption = None,
    on: Annotated[str, typer.Option(help="The key column.")] = "id",
    text_column: Annotated[str, typer.Option(help="The column to embed.")] = "text",
    vector_column: Annotated[str, typer.Option(help="The column for the vectors.")] = "vector",
    columns: Annotated[
        str | None, typer.Option(help="Other columns to keep, comma-separated; default: all of them.")
    ] = None,
    cpus: Annotated[float | None, typer.Option(min=0, help="CPUs, and therefore threads, per worker.")] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs per worker.")] = 0.0,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at rows that cannot be embedded.")] = False,
    rejects: Annotated[
        Path | None,
        typer.Option(help="File for rows that cannot be embedded; default: NAME.rejected.jsonl in the current folder."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count the rows, embed a sample and estimate time and disk space.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Embed a corpus with many workers, on this machine or a Ray cluster, into a LanceDB table or a Chroma server.

    A run that was interrupted goes on when it is started again: rows whose ids the target has are not embedded again.
    Rows without id or text, and all but the first of those with one id, go to a side file.

    Example: akidb-mlx bulk --input 'data/*.parquet' --to lancedb://lancedb/docs --workers 2 --model minilm-l6-v2

    Example: akidb-mlx bulk --input docs.jsonl --to chroma://localhost:8000/docs --dry-run
    """
    target = parse_target(to)
    try:
        import ray
        from akidb_mlx_ray.dataset import Workers
        from akidb_mlx_ray.estimate import Estimate

        from akidb_mlx_plugin.cli.bulk_job import BulkJob, run_through_client
    except ImportError as error:
        raise EmbeddingError(f"this needs Ray ({error}): {install_command('ray')}") from error
    paths = _find_files([*source, *(more or [])])
    job = BulkJob(
        paths=paths,
        is_jsonl=_format_of(paths[0]) == "jsonl",
        target=target,
        model=model,
        dimension=dimension,
        pooling=pooling,
        on=on,
        text_column=text_column,
        vector_column=vector_column,
        columns=[on, text_column, vector_column, *(name.strip() for name in columns.split(","))] if columns else None,
        workers=Workers(workers, cpus, gpus),
        strict=strict,
        rejects=_check_apart(rejects or Path(f"{target.name}.rejected.jsonl"), paths),
        dry_run=dry_run,
    )
    # Ray writes to standard output too, which is for the result.
    with redirect_stdout(sys.stderr), StopSignals() as signals:
        try:
            _start_ray(address, workers, cpus, signals)
            signals.release()
            made = run_through_client(job) if (address or "").startswith("ray://") else job.run()
            # An interrupt may be lost in a callback of Ray's.
            signals.release()
        except BaseException:
            # Whatever error it caused in Ray.
            if signals.number is None:
                raise
            print_error(f"{_describe_stop(signals.number)}; {_describe_rest(job, to)}")
            raise typer.Exit(128 + signals.number) from None
        finally:
            signals.hold()
            ray.shutdown()
    rows = [_describe_estimate(made, workers)] if isinstance(made, Estimate) else _describe_result(made, to)
    print_rows(rows, as_json=as_json)


def _describe_stop(number: int) -> str:
    return "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


def _describe_rest(job: BulkJob, to: str) -> str:
    if job.dry_run:
        return "a dry run writes nothing"
    return f"what was written to {to} stays, and the same command goes on from there"


def _start_ray(address: str | None, workers: int, cpus: float | None, signals: StopSignals) -> None:
    import logging

    import ray

    # Ray sends usage statistics to its makers unless told otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        # One more than the workers take, for reading and writing.
        needed = math.ceil(workers * (cpus or 1)) + 1
        quiet |= {"num_cpus": max(os.cpu_count() or 1, needed), "include_dashboard": False}
    else:
        _check_answers(address)
    try:
        # "local": otherwise Ray would join a cluster that somebody has started here.
        signals.finish(lambda: ray.init(address or "local", **quiet))
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        hint = "; if it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" if address else ""
        raise EmbeddingError(f"no Ray cluster at {address or 'this machine'}: {error}{hint}") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    # The command reports errors itself, in one line.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _check_answers(address: str) -> None:
    """Reject an address where nothing listens: Ray would retry for many minutes."""
    import socket

    server = urlsplit(address if "://" in address else f"ray://{address}")
    if server.hostname is None or server.port is None:
        return  # "auto" and the like, which Ray looks up itself
    try:
        socket.create_connection((server.hostname, server.port), timeout=_PATIENCE_S).close()
    except OSError as error:
        raise EmbeddingError(f"no Ray cluster at {address}: {error}; start one with: ray start --head") from error


def _find_files(patterns: list[str]) -> list[str]:
    """Return the files that match the patterns.

    Raises:
        InvalidInputError: there are none, or two formats.
    """
    paths = [path for pattern in patterns for path in _expand(pattern)]
    if len({_format_of(path) for path in paths}) > 1:
        raise InvalidInputError(f"the input mixes Parquet and JSONL: {', '.join(paths[:4])}; use one format per run")
    return paths


def _expand(pattern: str) -> list[str]:
    import glob

    if "://" in pattern:
        return [pattern]
    named = os.path.expanduser(pattern)
    found = [named] if os.path.exists(named) else sorted(glob.glob(named))
    if not found:
        raise InvalidInputError(f"no file {pattern}")
    return [os.path.abspath(path) for path in found]


def _format_of(path: str) -> str:
    from akidb_mlx_ray.jsonl import SUFFIXES

    if Path(path).is_dir():
        return "jsonl" if any(name.name.endswith(SUFFIXES) for name in Path(path).rglob("*")) else "parquet"
    return "jsonl" if path.endswith(SUFFIXES) else "parquet"


def _check_apart(rejects: Path, paths: list[str]) -> Path:
    """Reject a side file that is also an input."""
    place = rejects.resolve()
    for path in paths:
        if place == Path(path).resolve() or (place.exists() and Path(path).resolve() in place.parents):
            raise InvalidInputError(
                f"{rejects} is the file for rows that cannot be embedded, and is also an input; name another with "
                "--rejects, or leave it out of the input"
            )
    return rejects


def _describe_estimate(made: Estimate, workers: int) -> dict[str, Any]:
    return {
        "rows": made.rows,
        "rejected": _spell(made.rejected),
        "rejected rows": str(made.rejects or ""),
        "already there": made.already_there,
        "to write": made.to_write,
        "sample": made.sample,
        "tokens": made.tokens,
        "workers": workers,
        "texts/s": round(made.texts_per_second, 1),
        "seconds": round(made.seconds),
        "disk MB": round(made.disk_bytes / 1e6, 1),
    }


def _describe_result(result: BulkResult, to: str) -> list[dict[str, Any]]:
    whole = {
        "to": to,
        "worker": "all",
        "rows": result.rows,
        "written": result.written,
        "already there": result.already_there,
        "rejected": _spell(result.rejected),
        "rejected rows": str(result.rejects or ""),
        "texts": sum(worker.texts for worker in result.workers),
        "tokens": result.total_tokens,
        "truncated": result.truncated,
        "seconds": round(result.seconds, 1),
        "texts/s": round(result.written / result.seconds, 1) if result.seconds else 0.0,
        "embedding": f"{result.embedding_share:.0%}",
    }
    each = [
        dict.fromkeys(whole)
        | {
            "to": to,
            "worker": worker.worker[:8],
            "texts": worker.texts,
            "tokens": worker.tokens,
            "truncated": worker.truncated,
            "seconds": round(worker.seconds, 1),
            "texts/s": round(worker.texts_per_second, 1),
        }
        for worker in result.workers
    ]
    return [whole, *each]


def _spell(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())
