"""Reranking what a command has found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from akidb_mlx_plugin.cross_encoder import CrossEncoder

RerankOption = Annotated[
    str | None,
    typer.Option("--rerank", metavar="NAME", help="Sort the results by this reranker, such as ms-marco-minilm-l6."),
]
# Candidates for each result that is printed: the right one is among them, and the reranker reads no more.
_CANDIDATES_PER_RESULT, _LEAST_CANDIDATES = 10, 50


def count_candidates(limit: int, reranker: CrossEncoder | None) -> int:
    """Return how many results to search for, with a reranker or None."""
    return limit if reranker is None else max(_CANDIDATES_PER_RESULT * limit, _LEAST_CANDIDATES)


def sort_rows(
    rows: Sequence[Mapping[str, Any]], question: str, encoder: CrossEncoder, limit: int
) -> list[dict[str, Any]]:
    """Return the best rows by a reranker, each with its score first; rows without text come last.

    Args:
        rows: with a "text".
        question: what the texts are compared with.
        encoder: the reranker.
        limit: how many to keep.
    """
    with_text = [i for i, row in enumerate(rows) if (row["text"] or "").strip()]
    ranked = encoder.rank(question, [str(rows[i]["text"]) for i in with_text])
    order: Iterable[tuple[int, float | None]] = [(with_text[each["corpus_id"]], each["score"]) for each in ranked]
    rest = [(i, None) for i in range(len(rows)) if i not in set(with_text)]
    best = [*order, *rest][:limit]
    return [{"rerank_score": None if score is None else round(score, 4), **rows[i]} for i, score in best]
