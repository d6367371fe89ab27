"""Rerankers: one model that scores how well texts answer a query, for many callers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from akidb_mlx_plugin.argument_names import named_arguments
from akidb_mlx_plugin.config import Device, Dtype, EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.model_queue import close_queue, close_when_forgotten, open_queue
from akidb_mlx_plugin.providers.cross_encoder import CrossEncoderProvider, RerankSettings
from akidb_mlx_plugin.types import BatchEmbeddingResponse, ModelInfo, PairRequest, Vector
from akidb_mlx_plugin.validation import list_inputs, list_pairs

# Pairs of several callers that are merged into one batch, as in LanceDB's rerankers.
DEFAULT_BATCH_SIZE = 32


class RankedText(TypedDict):
    """A text in the order of its score; `corpus_id` is its position among the texts that were ranked."""

    corpus_id: int
    score: float
    text: str


class CrossEncoder:
    """Scores pairs of texts for any number of threads and coroutines; the names are sentence-transformers'.

    Creating one is free: the model loads with the first pair, once per process. Usable as a context manager. One that
    is never closed closes itself when it is garbage-collected, or when the interpreter exits.
    """

    @named_arguments
    def __init__(
        self,
        model: str | Path,
        *,
        device: Device | None = None,
        dtype: Dtype | None = None,
        activation: str | None = None,
        instruction: str | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        cache_dir: str | Path | None = None,
        offline: bool | None = None,
        keep_alive: str | float | None = None,
        trusted: bool = True,
    ) -> None:
        """Make a reranker; loads nothing.

        Args:
            model: a short name such as "ms-marco-minilm-l6", a Hugging Face repository, or a checkpoint folder.
            device: "auto", "gpu" or "cpu".
            dtype: dtype of the weights. Defaults to "auto": float32 on a CPU, bfloat16 or the stored one on a GPU.
            activation: "sigmoid", "identity", "tanh" or "softmax", applied to the logits. Defaults to the checkpoint's,
                else sigmoid for a single score per pair, identity for several.
            instruction: what Qwen3-Reranker is to look for. Defaults to that of its model card.
            batch_size: most pairs of several callers that are merged into one batch; it does not change the scores.
            cache_dir: folder of downloaded models. Defaults to the configuration's.
            offline: True to never download. Defaults to HF_HUB_OFFLINE.
            keep_alive: how long idle weights stay in memory, such as "5m". Defaults to the configuration's.
            trusted: False if the model's name comes from stored data; see `MLXProvider`.
        Raises:
            InvalidInputError: an invalid value.
        """
        given: dict[str, object] = {
            "model": model,
            "device": device,
            "dtype": dtype,
            "cache_dir": cache_dir,
            "batch_size": batch_size,
            "keep_alive": keep_alive,
        }
        mlx = {key: value for key, value in given.items() if value is not None}
        self._config = EmbeddingConfig.load(overrides={"mode": "mlx", "mlx": mlx})
        settings = RerankSettings(activation, instruction, offline)
        self._provider = CrossEncoderProvider(self._config.mlx, settings, trusted=trusted)
        self._queue = open_queue(self._provider, self._config, self._config.mlx.model)
        self._when_forgotten = close_when_forgotten(self, self._queue, self._provider)

    def __enter__(self) -> CrossEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CrossEncoder({self._config.mlx.model!r}, {'closed' if self.closed else 'open'})"

    @property
    def closed(self) -> bool:
        """Whether it has stopped accepting pairs."""
        return self._queue.closed

    @named_arguments
    def predict(self, pairs: Iterable[Sequence[str]], *, deadline_ms: float | None = None) -> Vector:
        """Score pairs of texts and wait for the scores.

        Args:
            pairs: (query, text) each, neither of them empty.
            deadline_ms: longest wait. Defaults to the configuration's.
        Returns:
            (N,) float32 in the order of the pairs, the higher the better; (N, K) for a model with K scores per pair.
        Raises:
            InvalidInputError: not pairs of two strings with text; nothing was computed.
            ServiceUnavailableError: closed, full, past the deadline, or forked.
            ModelNotFoundError, DownloadError: the model is not a reranker or could not be loaded; the next call tries
                again.
        """
        request, places = _distinct_pairs(pairs)
        if request is None:
            return np.empty(0, dtype=np.float32)
        return _scores(self._queue.embed(request, deadline_ms=deadline_ms))[places]

    async def apredict(self, pairs: Iterable[Sequence[str]], *, deadline_ms: float | None = None) -> Vector:
        """Score pairs of texts without blocking the event loop; as `predict`. Canceling the task withdraws them."""
        request, places = _distinct_pairs(pairs)
        if request is None:
            return np.empty(0, dtype=np.float32)
        return _scores(await self._queue.aembed(request, deadline_ms=deadline_ms))[places]

    @named_arguments
    def rank(
        self, query: str, documents: Iterable[str], top_k: int | None = None, *, deadline_ms: float | None = None
    ) -> list[RankedText]:
        """Score texts by a query and sort them, the best first; texts of equal scores keep their order.

        Args:
            query: what is asked.
            documents: the texts, none of them empty.
            top_k: return only so many. Defaults to all.
            deadline_ms: longest wait. Defaults to the configuration's.
        Raises:
            InvalidInputError: as for `predict`, or the model gives several scores per pair.
            ServiceUnavailableError, ModelNotFoundError, DownloadError: as for `predict`.
        """
        texts = _check_ranking(documents, top_k)
        return _sort(texts, self.predict([(query, text) for text in texts], deadline_ms=deadline_ms), top_k)

    async def arank(
        self, query: str, documents: Iterable[str], top_k: int | None = None, *, deadline_ms: float | None = None
    ) -> list[RankedText]:
        """Sort texts without blocking the event loop; as `rank`."""
        texts = _check_ranking(documents, top_k)
        return _sort(texts, await self.apredict([(query, text) for text in texts], deadline_ms=deadline_ms), top_k)

    def model_info(self) -> ModelInfo:
        """Describe the model; loads no weights, but downloads the model if necessary.

        `dimension` is the number of scores per pair, `similarity` the activation that gives them.
        """
        return self._provider.model_info()

    def health_check(self) -> None:
        """Check that pairs can be scored; loads nothing.

        Raises:
            ServiceUnavailableError: as for `EmbeddingService.health_check`.
        """
        self._queue.health_check()
        self._provider.health_check()

    def close(self, *, drain: bool = True, timeout_s: float = 30.0) -> None:
        """Stop accepting pairs, stop the threads and release the model; as `EmbeddingService.close`."""
        self._when_forgotten.detach()
        close_queue(self._queue, self._provider, drain=drain, timeout_s=timeout_s)


def _distinct_pairs(pairs: Iterable[Sequence[str]]) -> tuple[PairRequest | None, list[int]]:
    """Return a request for every distinct pair, or None for none, and each given pair's place in it.

    Equal pairs thereby have equal scores to the last bit, which two rows of a batch need not have.
    """
    given = list(zip(*list_pairs(pairs), strict=True))
    if not given:
        return None, []
    place = {pair: i for i, pair in enumerate(dict.fromkeys(given))}
    queries, texts = zip(*place, strict=True)
    return PairRequest(list(texts), queries=list(queries)), [place[pair] for pair in given]


def _scores(response: BatchEmbeddingResponse) -> Vector:
    scores = response.embeddings
    return scores[:, 0] if scores.shape[1] == 1 else scores


def _check_ranking(documents: Iterable[str], top_k: int | None) -> list[str]:
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise InvalidInputError(f"top_k must be a positive integer, got {top_k!r}")
    return list_inputs(documents)


def _sort(texts: Sequence[str], scores: Vector, top_k: int | None) -> list[RankedText]:
    if scores.ndim > 1:
        raise InvalidInputError(
            f"this model gives {scores.shape[1]} scores per pair, so that texts have no one order; use predict"
        )
    order = np.argsort(-scores, kind="stable")[:top_k].tolist()
    return [RankedText(corpus_id=i, score=float(scores[i]), text=texts[i]) for i in order]


def shared_cross_encoder(
    model: str | Path | CrossEncoder,
    *,
    device: Device | None = None,
    instruction: str | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    offline: bool | None = None,
) -> CrossEncoder:
    """Return this process's only reranker with these settings, or the caller's own; loads nothing.

    For the adapters' functions, which are made anew for a search. It need not be closed.
    """
    if isinstance(model, CrossEncoder):
        return model
    key = (str(model), isinstance(model, Path), device, instruction, batch_size, offline)
    reranker = _shared.get(key)
    if reranker is None or reranker.closed:
        # No lock, as in `service.shared_service`.
        _shared.pop(key, None)
        made = CrossEncoder(model, device=device, instruction=instruction, batch_size=batch_size, offline=offline)
        reranker = _shared.setdefault(key, made)
    return reranker


_shared: dict[tuple[object, ...], CrossEncoder] = {}
