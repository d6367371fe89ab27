"""LanceDB's results by document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from akidb_mlx_plugin.stores.grouping import DocumentHits, group_hits


def group_by_parent(
    results: Iterable[Mapping[str, Any]], limit: int | None = None, *, on: str = "id"
) -> list[DocumentHits]:
    """Group what a search found by the documents whose pieces were found.

    Args:
        results: `table.search(…).to_list()`.
        limit: most documents.
        on: the key column.
    Returns:
        Documents in the order of their best pieces, each with its rows.
    Raises:
        InvalidInputError: the rows have no such column.
    """
    return group_hits(results, on=on, limit=limit)
