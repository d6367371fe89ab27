"""The embedder as a callable class for `Dataset.map_batches`: one model per actor."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.util.metrics import Counter

from akidb_mlx_plugin.config import Device, EmbeddingConfig, Mode
from akidb_mlx_plugin.errors import (
    DownloadError,
    EmbeddingError,
    InvalidInputError,
    ModelNotFoundError,
    ServiceUnavailableError,
)
from akidb_mlx_plugin.service import EmbeddingService
from akidb_mlx_plugin.stores.settings import config_from_stored
from akidb_mlx_plugin.types import BatchEmbeddingResponse, Kind, Vector
from akidb_mlx_ray.results import Failure, Tally

# Errors of the model itself, which any text would cause.
_WITHOUT_MODEL = (ModelNotFoundError, DownloadError, ServiceUnavailableError)
_WARM_UP = "warm"


class TextEmbedder:
    """Adds a column of vectors to batches of rows.

        ds.map_batches(TextEmbedder, fn_constructor_kwargs={"model": "minilm-l6-v2"}, batch_format="pyarrow",
                       compute=ray.data.ActorPoolStrategy(size=4), batch_size=1024)

    `embed_dataset` does just that. The model is loaded with the first batch. On a CPU it uses as many threads as the
    actor has processors (`num_cpus`).
    """

    def __init__(
        self,
        model: str | Path | None = None,
        text_column: str = "text",
        vector_column: str = "vector",
        kind: Kind = "document",
        *,
        mode: Mode | None = None,
        dimension: int | None = None,
        normalize: bool | None = None,
        pooling: str | Sequence[str] | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        query_task: str | None = None,
        document_task: str | None = None,
        device: Device | None = None,
        cache_dir: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        trusted: bool = True,
        id_column: str | None = None,
        tally: Tally | None = None,
    ) -> None:
        """Choose a model; None stands for the value in the worker's environment, else the default.

        Args:
            model: a short name, "org/repo", or a folder that every node has.
            text_column: the text to embed.
            vector_column: where vectors go. If the rows already have it, its vectors are kept and its nulls filled.
            kind: which of the model's prompts precedes each text.
            mode, dimension, normalize, pooling, device, cache_dir and the prompts: as for `MLXEmbeddingFunction`.
            settings: all that determines the vectors, as a collection stores it. If given, it overrides the model, its
                options and the worker's environment.
            trusted: False if the model's name comes from a stored collection; see `hub.ensure_model`.
            id_column: names rows in messages.
            tally: counts the work. With it, a row whose text the model fails on is recorded there and left out;
                without it, that is an error.
        Raises:
            InvalidInputError: an unusable value.
        """
        self._text_column, self._vector_column, self._id_column = text_column, vector_column, id_column
        self._kind: Kind = kind
        self._tally = tally
        config = EmbeddingConfig.from_arguments(
            model,
            mode=mode,
            dimension=dimension,
            normalize=normalize,
            pooling=pooling,
            device=device,
            cache_dir=cache_dir,
            query_prompt=query_prompt,
            document_prompt=document_prompt,
            query_task=query_task,
            document_task=document_task,
        )
        if settings is not None:
            stored = config_from_stored(settings)
            mlx = stored.mlx.model_copy(update={"device": config.mlx.device, "cache_dir": config.mlx.cache_dir})
            config = stored.model_copy(update={"mlx": mlx})
        self._service = EmbeddingService(config, trusted=trusted)
        self._loaded = False
        self._worker = ray.get_runtime_context().get_actor_id() or "driver"
        self._counters = _Counters()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Embed the rows of a batch that have no vector yet.

        Args:
            batch: N rows in Arrow (`batch_format="pyarrow"`).
        Returns:
            The rows with (D,) float32 lists of fixed size in the vector column.
        Raises:
            InvalidInputError: a row without text.
            EmbeddingError: the model fails on a text, and there is no tally.
            ModelNotFoundError, DownloadError, ServiceUnavailableError: the model could not be loaded, or cannot answer.
        """
        given = batch[self._vector_column] if self._vector_column in batch.column_names else None
        missing = np.arange(batch.num_rows) if given is None else np.flatnonzero(pc.is_null(given).to_numpy())
        dimension = self._service.model_info().dimension
        vectors = np.full((batch.num_rows, dimension), np.nan, dtype=np.float32)
        if given is not None and len(missing) < batch.num_rows:
            vectors[pc.is_valid(given).to_numpy()] = self._given_vectors(given, dimension)
        failed = self._embed(batch, missing, vectors) if len(missing) else []
        made = _with_vectors(batch, self._vector_column, vectors)
        if not failed:
            return made
        kept = np.ones(batch.num_rows, dtype=bool)
        kept[failed] = False
        return made.filter(pa.array(kept))

    def _embed(self, batch: pa.Table, rows: np.ndarray, vectors: Vector) -> list[int]:
        """Fill in these rows' vectors; return the rows that the model failed on."""
        texts = self._texts(batch, rows)
        self._load()
        begun = time.perf_counter()
        failed: list[int] = []
        try:
            response = self._service.embed_batch(texts, kind=self._kind)
            vectors[rows] = response.embeddings
            self._count(response, len(texts), begun)
        except _WITHOUT_MODEL:
            raise
        except EmbeddingError:
            if self._tally is None:
                raise
            failed = self._embed_one_by_one(batch, rows, texts, vectors)
        return failed

    def _load(self) -> None:
        """Load the model with an uncounted text, so that no text is blamed for a failure and no time is counted."""
        if not self._loaded:
            self._service.embed_batch([_WARM_UP], kind=self._kind)
            self._loaded = True

    def _embed_one_by_one(self, batch: pa.Table, rows: np.ndarray, texts: Sequence[str], vectors: Vector) -> list[int]:
        """Find the texts that the model fails on, record them, and embed the others."""
        failures, failed = [], []
        for row, text in zip(rows.tolist(), texts, strict=True):
            begun = time.perf_counter()
            try:
                response = self._service.embed_batch([text], kind=self._kind)
                vectors[row] = response.embeddings[0]
                self._count(response, 1, begun)
            except _WITHOUT_MODEL:
                raise
            except EmbeddingError as error:
                failed.append(row)
                failures.append(Failure(self._name(batch, row), text, str(error)))
        if self._tally is not None and failures:
            self._counters.failures.inc(len(failures))
            self._tally.fail(failures)
        return failed

    def _texts(self, batch: pa.Table, rows: np.ndarray) -> list[str]:
        if self._text_column not in batch.column_names:
            raise InvalidInputError(
                f"the rows have no column {self._text_column!r}; they have {', '.join(batch.column_names)}"
            )
        texts: list[str] = batch[self._text_column].take(pa.array(rows)).to_pylist()
        for row, text in zip(rows.tolist(), texts, strict=True):
            if not isinstance(text, str):
                raise InvalidInputError(
                    f"row {self._name(batch, row)} has {type(text).__name__} as its text; drop such rows first, as "
                    "write_lancedb and write_chroma do"
                )
        return texts

    def _given_vectors(self, given: pa.ChunkedArray, dimension: int) -> Vector:
        vectors = [np.asarray(vector, dtype=np.float32) for vector in given.drop_null().to_pylist()]
        if wrong := {len(vector) for vector in vectors} - {dimension}:
            raise InvalidInputError(
                f"column {self._vector_column!r} has vectors of {min(wrong)} dimensions; the model makes {dimension}"
            )
        return np.stack(vectors)

    def _name(self, batch: pa.Table, row: int) -> str:
        return str(batch[self._id_column][row]) if self._id_column else str(row)

    def _count(self, response: BatchEmbeddingResponse, texts: int, begun: float) -> None:
        usage = response.usage
        self._counters.texts.inc(texts)
        self._counters.tokens.inc(usage.total_tokens)
        if self._tally is not None:
            self._tally.add(
                self._worker,
                texts=texts,
                tokens=usage.total_tokens,
                truncated=usage.truncated,
                seconds=time.perf_counter() - begun,
            )


class _Counters:
    """The plugin's counters among Ray's own metrics, one series per worker."""

    def __init__(self) -> None:
        self.texts = Counter("akidb_mlx_texts", "Texts embedded")
        self.tokens = Counter("akidb_mlx_tokens", "Tokens embedded")
        self.failures = Counter("akidb_mlx_failures", "Texts that the model failed on")


def _with_vectors(batch: pa.Table, column: str, vectors: Vector) -> pa.Table:
    # Lists of fixed size: a numpy column would become Ray's tensor type, which LanceDB cannot search.
    array = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    if column in batch.column_names:
        return batch.set_column(batch.column_names.index(column), column, array)
    return batch.append_column(column, array)
