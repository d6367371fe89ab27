"""`akidb-mlx search`: search an existing collection or table."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Annotated, Any

import typer

from akidb_mlx_plugin.cli.addresses import (
    ADDRESS_HELP,
    ChromaAddress,
    ChromaOption,
    CollectionOption,
    LancedbOption,
    TableOption,
    choose_address,
)
from akidb_mlx_plugin.cli.databases import host_errors, open_chroma, open_lancedb
from akidb_mlx_plugin.cli.model_options import PoolingOption
from akidb_mlx_plugin.cli.output import JsonOption, print_rows
from akidb_mlx_plugin.cli.rerank import RerankOption, count_candidates, sort_rows
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.cross_encoder import CrossEncoder

# Enough characters to recognize a text; --json prints all of it.
_SHOWN = 120
# Pieces to look for per document.
_PIECES = 10


def search(
    text: Annotated[str, typer.Argument(help="The search text.")],
    address: Annotated[str | None, typer.Argument(metavar="ADDRESS", help=ADDRESS_HELP)] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Number of results.")] = 5,
    model: Annotated[
        str | None, typer.Option(help="The model its vectors come from, if it does not store one.")
    ] = None,
    pooling: PoolingOption = None,
    where: Annotated[
        str | None, typer.Option(help="Search only what fits: Chroma's filter as JSON, LanceDB's as SQL.")
    ] = None,
    rerank: RerankOption = None,
    group: Annotated[
        bool, typer.Option("--group", help="One result per document whose pieces were found: its best piece.")
    ] = False,
    as_json: JsonOption = False,
    chroma: ChromaOption = None,
    collection: CollectionOption = None,
    lancedb: LancedbOption = None,
    table: TableOption = None,
) -> None:
    """Search a Chroma collection or a LanceDB table; the query is embedded with the same model as its documents.

    Scores are cosine similarities: 1 is the same meaning, near 0 is unrelated. For the few models trained for it, they
    are dot products.

    With --rerank the best 50 candidates, or ten for each result, are scored again by a reranker, which reads the query
    and each text together.

    With --group the pieces of long documents are grouped: a result is the best piece of a document, with the document's
    id and the number of pieces found.

    Example: akidb-mlx search 'parse a date' ./chroma/docs

    Example: akidb-mlx search 'parse a date' lancedb://./lancedb/docs --limit 3 --json

    Example: akidb-mlx search 'parse a date' ./chroma/docs --where '{"year": {"$gte": 2020}}'

    Example: akidb-mlx search 'parse a date' ./lancedb/docs --where 'year >= 2020'

    Example: akidb-mlx search 'parse a date' ./chroma/docs --rerank ms-marco-minilm-l6
    """
    place = choose_address(address, chroma=chroma, collection=collection, lancedb=lancedb, table=table)
    with CrossEncoder(rerank) if rerank else nullcontext() as encoder:
        if encoder:
            # Downloads it, or refuses it, before anything is searched.
            encoder.model_info()
        count = count_candidates(limit, encoder)
        if group:
            count = max(count, _PIECES * limit)
        search_in = _search_collection if isinstance(place, ChromaAddress) else _search_table
        rows = search_in(place.source, place.name, text, count, model, pooling, where)
        if encoder and rows:
            rows = sort_rows(rows, text, encoder, count if group else limit)
        if group:
            rows = _group(rows, limit)
    if not as_json:
        rows = [{**row, "text": _shorten(row["text"]), "metadata": _plain(row["metadata"])} for row in rows]
    print_rows(rows, as_json=as_json)
    if not rows and not as_json:
        typer.echo("it is empty" if where is None else "nothing fits --where, or it is empty", err=True)


def _group(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Return the best row of each document, with the document's id."""
    from akidb_mlx_plugin.stores.grouping import group_hits

    found = group_hits(rows, limit=limit)
    return [{**group.pieces[0], "id": group.id, "pieces": len(group.pieces)} for group in found]


def _search_collection(
    source: str, name: str, text: str, limit: int, model: str | None, pooling: str | None, where: str | None
) -> list[dict[str, Any]]:
    conditions = _parse_filter(where)
    client = open_chroma(source)
    from akidb_mlx_chroma import MLXEmbeddingFunction, get_collection

    with host_errors(source):
        own = MLXEmbeddingFunction(model=model, pooling=pooling) if model or pooling else None
        collection = get_collection(client, name, own)
        found = collection.query(query_texts=[text], n_results=limit, where=conditions)
    columns: list[Any] = [found["ids"], found["distances"], found["documents"], found["metadatas"]]
    space = _space(collection.configuration_json)
    return [
        {**_score(space, distance), "id": id_, "text": document, "metadata": dict(metadata or {})}
        for id_, distance, document, metadata in zip(*(column[0] for column in columns), strict=True)
    ]


def _parse_filter(where: str | None) -> dict[str, Any] | None:
    """Return Chroma's filter; raises typer.BadParameter if it is not a JSON object."""
    try:
        conditions = None if where is None else json.loads(where)
    except ValueError:
        conditions = where
    if conditions is None or isinstance(conditions, dict):
        return conditions
    raise typer.BadParameter(
        f'--where for Chroma is a JSON object, such as \'{{"year": 2020}}\' or \'{{"year": {{"$gte": 2020}}}}\', '
        f"got {where}"
    )


def _search_table(
    source: str, name: str, text: str, limit: int, model: str | None, pooling: str | None, where: str | None
) -> list[dict[str, Any]]:
    db = open_lancedb(source, name)
    from akidb_mlx_lancedb import MLXEmbeddings, open_table, validate_table
    from akidb_mlx_lancedb.store import open_table_schema, resolve_function

    with host_errors(source):
        own = None
        if model or pooling:
            own = MLXEmbeddings.from_config(EmbeddingConfig.from_arguments(model, pooling=pooling))
        # The search passes a vector, so that the table need not store a function.
        table = db.open_table(name) if own else open_table(db, name)
        validate_table(table, own)
        schema = open_table_schema(table, None)
        function = own or resolve_function(schema)
        assert function is not None, "open_table rejects a table without one"
        vector = function.compute_query_embeddings(text)[0]
        metric = function.distance_type()
        query = table.search(vector, vector_column_name=schema.vector).distance_type(metric).limit(limit)
        hits = (query if where is None else query.where(where)).to_list()
    own_columns = {schema.vector, schema.text, "id", "_distance"}
    return [
        {
            **_score(metric, hit["_distance"]),
            **({"id": hit["id"]} if "id" in hit else {}),
            "text": hit.get(schema.text) if schema.text else None,
            "metadata": {key: value for key, value in hit.items() if key not in own_columns},
        }
        for hit in hits
    ]


def _space(configuration: Mapping[str, Any]) -> str:
    index = configuration.get("hnsw") or configuration.get("spann") or {}
    return str(index.get("space", "l2"))


def _score(space: str, distance: float) -> dict[str, float]:
    """Return the first column of a row: the similarity if the distance gives one, else the distance."""
    if space in ("cosine", "ip", "dot"):
        return {"score": round(1 - distance, 4)}
    return {f"distance ({space})": round(distance, 4)}


def _shorten(text: str | None) -> str | None:
    if text is None:
        return None
    # A stored text may contain terminal control sequences.
    line = " ".join("".join(char if char.isprintable() or char.isspace() else "�" for char in text).split())
    return line if len(line) <= _SHOWN or not sys.stdout.isatty() else f"{line[: _SHOWN - 1]}…"


def _plain(metadata: Mapping[str, Any]) -> str:
    # Chroma returns the keys of each record in another order.
    return ", ".join(f"{key}={value}" for key, value in sorted(metadata.items()) if value is not None)
