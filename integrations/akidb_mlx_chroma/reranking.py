"""Sort what Chroma has found by how well each document answers the query."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from akidb_mlx_plugin.cross_encoder import CrossEncoder, shared_cross_encoder
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.validation import list_inputs

# A QueryResult, which is a dict, or a SearchResult, which is a subclass of one.
Results = TypeVar("Results", bound=Mapping[str, Any])
# The scores' key in what `rerank` returns.
SCORES = "rerank_scores"
# Fields of a result that hold something for every record.
_FIELDS = ("ids", "documents", "metadatas", "embeddings", "distances", "uris", "data", "scores")


def rerank(
    results: Results,
    query_texts: str | Sequence[str],
    reranker: CrossEncoder | str | Path = "ms-marco-minilm-l6",
    n_results: int | None = None,
) -> Results:
    """Sort the records of each query by a cross-encoder, the best first.

        found = collection.query(query_texts=["how do I parse a date"], n_results=50)
        best = rerank(found, ["how do I parse a date"], n_results=5)

    Args:
        results: from `query` or `search`, with documents.
        query_texts: the question of each list of records; a string for one.
        reranker: a `CrossEncoder`, or the name or folder of its model, which is then loaded once per process.
        n_results: keep only so many records per query. Defaults to all.
    Returns:
        Results of the same type with every included field in the new order, and under "rerank_scores" the score of
        each record: None for a record without a document, which comes last.
    Raises:
        InvalidInputError: results without documents, a number of queries that does not fit them, an empty query, or
            `n_results` is not a positive integer; nothing was computed.
        ModelNotFoundError, DownloadError: the model is not a reranker, or could not be loaded.
    """
    queries = [query_texts] if isinstance(query_texts, str) else list_inputs(query_texts)
    documents = _check(results, queries, n_results)
    encoder = shared_cross_encoder(reranker)
    scores = _score(encoder, queries, documents)
    orders = [_order(found, n_results) for found in scores]
    sorted_results: Any = copy(results)
    for field in _FIELDS:
        columns = results.get(field)
        if columns is not None:
            sorted_results[field] = [_take(column, order) for column, order in zip(columns, orders, strict=True)]
    sorted_results[SCORES] = [_take(found, order) for found, order in zip(scores, orders, strict=True)]
    return sorted_results  # type: ignore[no-any-return]


async def arerank(
    results: Results,
    query_texts: str | Sequence[str],
    reranker: CrossEncoder | str | Path = "ms-marco-minilm-l6",
    n_results: int | None = None,
) -> Results:
    """Sort results without blocking the event loop; arguments and errors as for `rerank`."""
    return await asyncio.to_thread(rerank, results, query_texts, reranker, n_results)


def _check(results: Mapping[str, Any], queries: Sequence[str], n_results: int | None) -> list[list[str | None]]:
    """Return the documents of each query."""
    if not isinstance(results, Mapping) or "ids" not in results:
        raise InvalidInputError(
            f"results must be those of a collection's query or search, got {type(results).__name__}"
        )
    ids, columns = results["ids"], results.get("documents")
    if len(queries) != len(ids):
        raise InvalidInputError(
            f"there are results of {len(ids)} queries, but {len(queries)} query texts; pass one each"
        )
    for i, query in enumerate(queries):
        if not isinstance(query, str) or not query.strip():
            raise InvalidInputError(f"query {i} must be a text to compare documents with, got {query!r}")
    if n_results is not None and (isinstance(n_results, bool) or not isinstance(n_results, int) or n_results < 1):
        raise InvalidInputError(f"n_results must be a positive integer, got {n_results!r}")
    documents = columns if columns is not None else [None] * len(ids)
    if any(found and column is None for found, column in zip(ids, documents, strict=True)):
        raise InvalidInputError(
            "the results hold no documents to compare with the queries: add 'documents' to include= in query, or "
            "select(K.DOCUMENT) in search"
        )
    return [list(column or ()) for column in documents]


def _score(
    encoder: CrossEncoder, queries: Sequence[str], documents: Sequence[Sequence[str | None]]
) -> list[list[float | None]]:
    """Return each document's score; None for one without text."""
    scores: list[list[float | None]] = [[None] * len(column) for column in documents]
    places = [
        (q, i)
        for q, column in enumerate(documents)
        for i, text in enumerate(column)
        if text is not None and text.strip()
    ]
    found = encoder.predict([(queries[q], str(documents[q][i])) for q, i in places])
    if found.ndim > 1:
        raise InvalidInputError(
            f"{encoder!r} gives {found.shape[1]} scores per pair, so that documents have no one order"
        )
    for (q, i), score in zip(places, found.tolist(), strict=True):
        scores[q][i] = score
    return scores


def _order(scores: Sequence[float | None], n_results: int | None) -> list[int]:
    """Return places by score, the highest first, those without one last, equal ones as they were."""
    numbers = np.array([-np.inf if score is None else score for score in scores])
    order: list[int] = np.argsort(-numbers, kind="stable")[:n_results].tolist()
    return order


def _take(column: Any, order: Sequence[int]) -> Any:
    """Return a query's column in the new order; None and numpy arrays stay what they are."""
    if column is None:
        return None
    return column[list(order)] if isinstance(column, np.ndarray) else [column[i] for i in order]
