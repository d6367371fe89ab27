"""Search results by document: the pieces that were found of each, the best document first."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.stores.split import PARENT


@dataclass(frozen=True)
class DocumentHits:
    """What a search found of one document.

    Attributes:
        id: of the document; of one that was not split, its own.
        pieces: what was found of it, the best first.
    """

    id: str
    pieces: list[dict[str, Any]]


def group_hits(hits: Iterable[Mapping[str, Any]], *, on: str = "id", limit: int | None = None) -> list[DocumentHits]:
    """Group hits by document.

    Args:
        hits: the best first; each with an id and, of a piece, `parent_id` beside it or in its `metadata`.
        on: key of the id.
        limit: return only so many documents.
    Returns:
        In the order of each document's best piece.
    Raises:
        InvalidInputError: a hit has no id, or an unusable limit.
    """
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise InvalidInputError(f"limit must be a positive number of documents, got {limit!r}")
    groups: dict[str, DocumentHits] = {}
    for hit in hits:
        if on not in hit:
            raise InvalidInputError(f"a hit has no {on!r}, only {', '.join(map(str, hit))}; select the column too")
        parent = _parent(hit)
        id_ = str(hit[on]) if parent is None else parent
        groups.setdefault(id_, DocumentHits(id_, [])).pieces.append(dict(hit))
    return list(groups.values())[:limit]


def _parent(hit: Mapping[str, Any]) -> str | None:
    """Return the id of the document that a hit is a piece of."""
    found, inner = hit.get(PARENT), hit.get("metadata")
    if isinstance(found, str):
        return found
    if isinstance(inner, str):
        # A JSON column, as LanceDB returns it.
        try:
            inner = json.loads(inner)
        except ValueError:
            return None
    return _parent(inner) if isinstance(inner, Mapping) else None
