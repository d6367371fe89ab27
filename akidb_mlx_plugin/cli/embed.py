"""`akidb-mlx embed`: embed a file of texts into a file of vectors."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from akidb_mlx_plugin.cli.embed_input import TextSource
from akidb_mlx_plugin.cli.embed_output import VectorWriter, atomic_write, find_writer
from akidb_mlx_plugin.cli.model_options import OverflowOption, PoolingOption
from akidb_mlx_plugin.cli.output import JsonOption, print_rows
from akidb_mlx_plugin.types import Kind, Overflow

if TYPE_CHECKING:
    from akidb_mlx_plugin.service import EmbeddingService

_CHUNK = 512


@dataclass
class _Total:
    """Running totals."""

    texts: int = 0
    tokens: int = 0
    truncated: int = 0


def embed(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A file of texts, or - for standard input.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write: .npy, .jsonl or .parquet.")],
    model: Annotated[
        str | None, typer.Option(help="Short name, repository or checkpoint folder; default: as configured.")
    ] = None,
    kind: Annotated[Kind, typer.Option(help="Which of the model's prompts to prepend.")] = "document",
    dimension: Annotated[int | None, typer.Option(help="Length of the vectors; default: the model's.")] = None,
    pooling: PoolingOption = None,
    overflow: OverflowOption = None,
    text_column: Annotated[str, typer.Option(help="Column or field of the text in JSONL and Parquet.")] = "text",
    vector_column: Annotated[str, typer.Option(help="Column or field for the vector in JSONL and Parquet.")] = "vector",
    input_format: Annotated[
        Literal["lines", "jsonl", "parquet"] | None, typer.Option(help="Format of INPUT; default: from its name.")
    ] = None,
    as_json: JsonOption = False,
    text_field: Annotated[str | None, typer.Option(hidden=True, help="Earlier name of --text-column.")] = None,
    vector_field: Annotated[str | None, typer.Option(hidden=True, help="Earlier name of --vector-column.")] = None,
) -> None:
    """Embed each line of a file, or a column of each row of JSONL or Parquet.

    An .npy file holds only the vectors, (N, D) float32 in input order; JSONL and Parquet keep the rows and add a vector
    to each. An empty line is a text like any other. Memory use does not grow with the input. The output appears only
    when complete: an interrupted run leaves an existing file untouched.

    Example: akidb-mlx embed texts.txt --output vectors.npy --model minilm-l6-v2

    Example: akidb-mlx embed articles.jsonl --text-column body --output articles.parquet --model minilm-l6-v2

    Example: akidb-mlx embed - --kind query --output queries.jsonl --model minilm-l6-v2
    """
    make_writer = find_writer(output)
    text_column, vector_column = text_field or text_column, vector_field or vector_column
    begun = time.perf_counter()
    with (
        TextSource(source, input_format, text_column) as texts,
        _open_service(model, dimension, pooling, overflow) as service,
        atomic_write(output) as file,
        closing(make_writer(file, texts.schema, vector_column)) as writer,
    ):
        total = _embed_all(texts, service, kind, writer)
        width = service.model_info().dimension
        writer.finish(width)
    seconds = time.perf_counter() - begun
    row = {
        "output": str(output),
        "model": service.config.mlx.model if service.config.mode == "mlx" else service.config.mode,
        "dimension": width,
        "texts": total.texts,
        "tokens": total.tokens,
        "truncated": total.truncated,
        "seconds": round(seconds, 1),
        "texts/s": round(total.texts / seconds, 1),
    }
    print_rows([row], as_json=as_json)


def _embed_all(texts: TextSource, service: EmbeddingService, kind: Kind, writer: VectorWriter) -> _Total:
    total = _Total()
    from akidb_mlx_plugin.progress import make_progress

    with make_progress(transient=True) as bar:
        task = bar.add_task("embedding", total=texts.total)
        for rows in texts.read_chunks(_CHUNK):
            response = service.embed_batch([row[texts.text_column] for row in rows], kind=kind)
            writer.write(rows, response.embeddings)
            total.texts += len(rows)
            total.tokens += response.usage.total_tokens
            total.truncated += response.usage.truncated
            bar.advance(task, len(rows))
    return total


def _open_service(
    model: str | None, dimension: int | None, pooling: str | None, overflow: Overflow | None
) -> EmbeddingService:
    """Return a service whose model has been downloaded, so that the download has its own bar."""
    from akidb_mlx_plugin.checkpoints.reader import check_settings
    from akidb_mlx_plugin.hub import ensure_model
    from akidb_mlx_plugin.service import EmbeddingService

    service = EmbeddingService(model, dimension=dimension, pooling=pooling, overflow=overflow)
    mlx = service.config.mlx
    if service.config.mode == "mlx" and service.config.remote.url is None:
        ensure_model(mlx.model, cache_dir=mlx.cache_dir, show_progress=sys.stderr.isatty(), check=check_settings)
    return service
