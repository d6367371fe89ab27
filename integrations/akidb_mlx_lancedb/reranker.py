"""A LanceDB reranker on MLX."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pyarrow as pa
from lancedb.rerankers import Reranker

from akidb_mlx_plugin.argument_names import named_arguments
from akidb_mlx_plugin.config import Device
from akidb_mlx_plugin.cross_encoder import DEFAULT_BATCH_SIZE, CrossEncoder, shared_cross_encoder
from akidb_mlx_plugin.errors import InvalidInputError

_SCORE = "_relevance_score"


class MLXReranker(Reranker):
    """Sorts what a search has found by how well a cross-encoder says each text answers the query.

        table.search("how do I parse a date", query_type="hybrid").rerank(reranker=MLXReranker())

    It ranks the results of vector, full-text and hybrid searches, and of several vector searches, of sync and async
    tables. Results get the column `_relevance_score`, the highest first; a row without text, null or blank, gets null
    and comes last. Making one is free: the model is loaded with the first search, once for the whole process.
    """

    @named_arguments
    def __init__(
        self,
        model: str | Path | CrossEncoder = "ms-marco-minilm-l6",
        column: str = "text",
        return_score: Literal["relevance", "all"] = "relevance",
        batch_size: int = DEFAULT_BATCH_SIZE,
        *,
        device: Device | None = None,
        instruction: str | None = None,
        offline: bool | None = None,
    ) -> None:
        """Make a reranker; loads nothing.

        Args:
            model: a short name (`akidb-mlx models list`), "org/repo", a checkpoint folder, or a `CrossEncoder`.
            column: the text column to compare with the query.
            return_score: "relevance" drops the scores of the searches; "all" keeps `_distance` and `_score`.
            batch_size, device, instruction, offline: as for `CrossEncoder`; a `CrossEncoder` has its own.
        Raises:
            InvalidInputError: an invalid value.
        """
        if return_score not in ("relevance", "all"):
            raise InvalidInputError(f"return_score must be 'relevance' or 'all', got {return_score!r}")
        if not isinstance(column, str) or not column:
            raise InvalidInputError(f"column must be the name of a text column, got {column!r}")
        super().__init__(return_score)
        self.column = column
        self._encoder = shared_cross_encoder(
            model, device=device, instruction=instruction, batch_size=batch_size, offline=offline
        )

    def __str__(self) -> str:
        return f"MLXReranker({self._encoder!r})"

    def rerank_hybrid(self, query: str, vector_results: pa.Table, fts_results: pa.Table) -> pa.Table:
        """Merge the results of a vector and a full-text search, each row once, and sort them."""
        return self._rerank(query, self._merge(vector_results, fts_results))

    def rerank_vector(self, query: str, vector_results: pa.Table) -> pa.Table:
        """Sort the results of a vector search."""
        return self._rerank(query, vector_results)

    def rerank_fts(self, query: str, fts_results: pa.Table) -> pa.Table:
        """Sort the results of a full-text search."""
        return self._rerank(query, fts_results)

    def _merge(self, vector_results: pa.Table, fts_results: pa.Table) -> pa.Table:
        # Without rows, a result may lack columns that the other one has.
        if not len(fts_results) or not len(vector_results):
            merged = vector_results if len(vector_results) else fts_results
        else:
            merged = self.merge_results(vector_results, fts_results)
        if self.score == "relevance" or "_score" not in merged.column_names:
            return merged
        # A row of both searches is the vector search's, which has no score.
        found = (
            {}
            if not len(fts_results)
            else dict(zip(fts_results["_rowid"].to_pylist(), fts_results["_score"].to_pylist(), strict=True))
        )
        scores = pa.array([found.get(row) for row in merged["_rowid"].to_pylist()], type=pa.float32())
        return merged.set_column(merged.column_names.index("_score"), "_score", scores)

    def _rerank(self, query: str, results: pa.Table) -> pa.Table:
        texts = self._texts(results)
        if not isinstance(query, str) or not query.strip():
            raise InvalidInputError(
                f"a reranker needs the question as text, got {query!r}; for a vector, pass query_string to rerank"
            )
        known = [i for i, text in enumerate(texts) if text is not None and text.strip()]
        scores: list[float | None] = [None] * len(texts)
        if known:
            found = self._encoder.predict([(query, str(texts[i])) for i in known])
            if found.ndim > 1:
                raise InvalidInputError(
                    f"{self._encoder!r} gives {found.shape[1]} scores per pair, so that texts have no one order"
                )
            for i, score in zip(known, found.tolist(), strict=True):
                scores[i] = score
        if self.score == "relevance":
            results = results.drop_columns([name for name in ("_distance", "_score") if name in results.column_names])
        scored = results.append_column(_SCORE, pa.array(scores, type=pa.float32()))
        # Null comes last, and rows of equal scores keep their order.
        return scored.sort_by([(_SCORE, "descending")])

    def _texts(self, results: pa.Table) -> list[str | None]:
        if self.column not in results.column_names:
            if not len(results):
                return []
            names = ", ".join(name for name in results.column_names if not name.startswith("_"))
            raise InvalidInputError(
                f"the results have no column {self.column!r} to compare with the query; they have {names}: pass "
                "column= to the reranker, or select it in the search"
            )
        texts = results[self.column]
        if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
            raise InvalidInputError(
                f"the column {self.column!r} holds {texts.type}, not text; pass column= to the reranker"
            )
        return list(texts.to_pylist())
