"""`akidb-mlx reembed`: embed a collection or table again with another model."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from akidb_mlx_plugin.cli.addresses import (
    ADDRESS_HELP,
    Address,
    ChromaAddress,
    CollectionOption,
    TableOption,
    choose_address,
    parse_address,
)
from akidb_mlx_plugin.cli.databases import host_errors, open_chroma, open_lancedb
from akidb_mlx_plugin.cli.model_options import PoolingOption
from akidb_mlx_plugin.cli.output import JsonOption, print_rows
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import EmbeddingError
from akidb_mlx_plugin.installation import install_command
from akidb_mlx_plugin.types import UpsertResponse


def reembed(
    address: Annotated[str, typer.Argument(help=f"What to read: {ADDRESS_HELP}")],
    model: Annotated[str, typer.Option(help="The new model: short name, repository or checkpoint folder.")],
    name: Annotated[
        str | None,
        typer.Option(help="Name of the new collection or table; default: the old name with the model's appended."),
    ] = None,
    dimension: Annotated[int | None, typer.Option(help="Length of the new vectors; default: the model's.")] = None,
    pooling: PoolingOption = None,
    on: Annotated[str, typer.Option(help="The table's key column.")] = "id",
    batch_size: Annotated[int | None, typer.Option(help="Documents to embed and write per batch.")] = None,
    as_json: JsonOption = False,
    collection: CollectionOption = None,
    table: TableOption = None,
) -> None:
    """Embed a collection or table again with another model, into a new one.

    The old one is left unchanged. After an interruption, the same command continues.

    Example: akidb-mlx reembed ./chroma/docs --model qwen3-0.6b-4bit

    Example: akidb-mlx reembed chroma://localhost:8000/docs --model qwen3-0.6b-4bit --name docs-2
    """
    place = _choose(address, collection, table)
    config = EmbeddingConfig.from_arguments(model, dimension=dimension, pooling=pooling)
    if isinstance(place, ChromaAddress):
        made, response = _reembed_collection(place.source, place.name, config, name, batch_size)
    else:
        made, response = _reembed_table(place.source, place.name, config, name, batch_size, on)
    row = {
        "from": place.name,
        "to": made,
        "documents": response.inserted + response.skipped,
        "embedded": response.embeddings_generated,
        "already there": response.skipped,
        "tokens": response.total_tokens,
        "truncated": response.truncated,
        "seconds": round(response.duration_ms / 1e3, 1),
    }
    print_rows([row], as_json=as_json)


def _choose(address: str, collection: str | None, table: str | None) -> Address:
    if collection is None and table is None:
        return parse_address(address)
    # In earlier versions the argument was the database, and these options named what is in it.
    chroma, lancedb = (address if name is not None else None for name in (collection, table))
    return choose_address(None, chroma=chroma, collection=collection, lancedb=lancedb, table=table)


def _reembed_collection(
    source: str, collection: str, config: EmbeddingConfig, name: str | None, batch_size: int | None
) -> tuple[str, UpsertResponse]:
    try:
        from akidb_mlx_chroma import MLXEmbeddingFunction
        from akidb_mlx_chroma.reembedding import reembed_collection
    except ImportError as error:
        raise EmbeddingError(f"this needs Chroma ({error}): {install_command('chroma')}") from error
    client = open_chroma(source)
    with host_errors(source):
        found = client.get_collection(collection)
        made, response = reembed_collection(
            found,
            MLXEmbeddingFunction.from_config(config),
            name=name,
            show_progress=sys.stderr.isatty(),
            batch_size=batch_size,
        )
    return made.name, response


def _reembed_table(
    source: str, table: str, config: EmbeddingConfig, name: str | None, batch_size: int | None, on: str
) -> tuple[str, UpsertResponse]:
    try:
        from akidb_mlx_lancedb import MLXEmbeddings
        from akidb_mlx_lancedb.reembedding import reembed_table
    except ImportError as error:
        raise EmbeddingError(f"this needs LanceDB ({error}): {install_command('lancedb')}") from error
    db = open_lancedb(source, table)
    with host_errors(source):
        made, response = reembed_table(
            db.open_table(table),
            MLXEmbeddings.from_config(config),
            name=name,
            show_progress=sys.stderr.isatty(),
            batch_size=batch_size,
            on=on,
        )
    return made.name, response
