"""Chroma's results by document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.stores.grouping import DocumentHits, group_hits

# A column of the result, and what a hit calls its value.
_COLUMNS = {
    "documents": "text",
    "metadatas": "metadata",
    "distances": "distance",
    "embeddings": "vector",
    "uris": "uri",
}


def group_by_parent(results: Mapping[str, Any], limit: int | None = None) -> list[list[DocumentHits]]:
    """Group what Chroma's `query` returned by the documents whose pieces were found.

    Args:
        results: with "metadatas", as by default.
        limit: most documents per query.
    Returns:
        For each query its documents, in the order of their best pieces; a piece has "id" and, as far as the query
        included them, "text", "metadata", "distance", "vector" and "uri".
    Raises:
        InvalidInputError: not the result of a query, or without metadata.
    """
    if "ids" not in results or results.get("metadatas") is None:
        raise InvalidInputError(
            "group_by_parent takes what collection.query returns, with its metadatas: add 'metadatas' to include="
        )
    columns = {name: results[key] for key, name in _COLUMNS.items() if results.get(key) is not None}
    return [
        group_hits(
            ({"id": id_, **{name: rows[query][i] for name, rows in columns.items()}} for i, id_ in enumerate(ids)),
            limit=limit,
        )
        for query, ids in enumerate(results["ids"])
    ]
