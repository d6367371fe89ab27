"""One loaded reranker: pairs of texts in, float32 scores out, from any thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from akidb_mlx_plugin.checkpoints.cross_encoder import CrossEncoderCheckpoint
from akidb_mlx_plugin.checkpoints.lookup import find_cross_encoder
from akidb_mlx_plugin.checkpoints.options import LoadOptions
from akidb_mlx_plugin.inference.embedder import check_ids, find_for_use
from akidb_mlx_plugin.inference.engine import Engine, ForwardPass, compute_ahead
from akidb_mlx_plugin.inference.pair_tokenizer import Pair, PairTokenizer, find_words, load_pair_tokenizer
from akidb_mlx_plugin.runtime.devices import choose_device
from akidb_mlx_plugin.types import BatchEmbeddingResponse, PairRequest, Usage, Vector

# Pairs tokenized and packed at a time, as in the embedder.
_CHUNK = 1024

logger = logging.getLogger(__name__)


class _Job:
    """Requests scored as if they were one.

    Attributes:
        logits: (N, L) float32 of all pairs, request by request.
        tokens, truncated: the usage of each request.
    """

    def __init__(self, requests: Sequence[PairRequest], width: int) -> None:
        self._requests = requests
        self._stops = np.cumsum([len(request.inputs) for request in requests]).tolist()
        self.logits: Vector = np.empty((self._stops[-1], width), dtype=np.float32)
        self.tokens = [0] * len(requests)
        self.truncated = [0] * len(requests)

    def pairs_of(self, first: int, stop: int) -> Iterator[tuple[int, list[Pair]]]:
        """Yield the index of each request with pairs in a range of all pairs, and these pairs."""
        start = 0
        for r, (request, end) in enumerate(zip(self._requests, self._stops, strict=True)):
            own = slice(max(first - start, 0), max(min(stop, end) - start, 0))
            if pairs := list(zip(request.queries[own], request.inputs[own], strict=True)):
                yield r, pairs
            start = end

    def responses(self, scores: Vector, model: str, duration_ms: float) -> list[BatchEmbeddingResponse]:
        """Return one response per request, in order, with its rows of (N, K) scores."""
        parts = np.split(scores, self._stops[:-1])
        return [
            BatchEmbeddingResponse(part, model, Usage(self.tokens[r], duration_ms, self.truncated[r]))
            for r, part in enumerate(parts)
        ]


class Reranker:
    """A reranker in memory, with the threads it runs on; `inference.shared` has the process-wide one."""

    def __init__(
        self, checkpoint: CrossEncoderCheckpoint, tokenizer: PairTokenizer, engine: Engine, resources: ExitStack
    ) -> None:
        """Store the parts, which `open` makes."""
        self.checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._engine = engine
        self._resources = resources
        self._warned_of_truncation = False
        self.load_seconds = 0.0

    @classmethod
    def open(
        cls,
        model: str | Path,
        options: LoadOptions,
        *,
        activation: str | None = None,
        instruction: str | None = None,
    ) -> Reranker:
        """Load a reranker, downloading it first if needed.

        Args:
            model: a short name, "org/repo", or a checkpoint folder.
            options: how it is found and loaded; its pooling is not used.
            activation: what turns logits into scores. Defaults to the checkpoint's.
            instruction: for a language model, what to look for. Defaults to that of its card.
        Raises:
            ModelNotFoundError: no such model, not a reranker, or one that cannot be loaded.
            DownloadError: it could not be fetched.
            InvalidInputError: no such device or activation, or an instruction for a model that takes none.
        """
        begun = time.perf_counter()
        device = choose_device(options.device)
        with ExitStack() as parts:
            found, in_use = find_for_use(lambda: find_cross_encoder(model, options, activation=activation))
            parts.callback(in_use.close)
            tokenizer = load_pair_tokenizer(found, instruction)
            checkpoint = found.with_words(found.word_ids or find_words(found)) if found.asks else found
            engine = Engine(checkpoint, device, options.dtype)
            parts.callback(engine.close)
            reranker = cls(checkpoint, tokenizer, engine, parts.pop_all())
        reranker.load_seconds = time.perf_counter() - begun
        logger.info("loaded %s on %s in %.2f s", checkpoint.name, device, reranker.load_seconds)
        return reranker

    @property
    def device(self) -> str:
        """ "cpu" or "gpu"."""
        return self._engine.device

    @property
    def dtype(self) -> str:
        """Dtype it computes in."""
        return str(self._engine.dtype)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return int(self._engine.parameters)

    def close(self) -> None:
        """Finish pending work, stop the threads and free the weights; safe to call twice."""
        self._resources.close()

    def score_requests(self, requests: Sequence[PairRequest]) -> list[BatchEmbeddingResponse]:
        """Score the pairs of several requests as if they were one.

        Args:
            requests: at least one pair each.
        Returns:
            One response per request, in order, with (N, K) float32 scores in place of vectors.
        Raises:
            InvalidInputError: a text cannot be read by the tokenizer; nothing was computed.
            EmbeddingError: the model gave a score that is not finite.
        """
        begun = time.perf_counter()
        job = _Job(requests, self.checkpoint.native_dimension)
        short = len(job.logits) <= _CHUNK // 8
        firsts = range(0, len(job.logits), _CHUNK)
        compute_ahead(firsts, partial(self._start, job, short=short), partial(self._finish, job))
        scores = self._to_scores(job.logits)
        return job.responses(scores, self.checkpoint.name, (time.perf_counter() - begun) * 1000)

    def _start(self, job: _Job, first: int, *, short: bool) -> list[ForwardPass]:
        """Tokenize and pack a chunk of pairs and submit it to the threads."""
        ids: list[list[int]] = []
        beginnings: list[tuple[int, ...]] = []
        seconds: list[int] = []
        for r, pairs in job.pairs_of(first, first + _CHUNK):
            rows = self._tokenizer.encode(pairs)
            check_ids(rows.ids, self.checkpoint)
            ids += rows.ids
            beginnings += rows.beginnings
            seconds += rows.seconds or []
            job.tokens[r] += sum(map(len, rows.ids))
            job.truncated[r] += rows.truncated
            if rows.truncated:
                self._warn_of_truncation()
        return self._engine.start(ids, beginnings, short=short, seconds=seconds or None)

    def _finish(self, job: _Job, first: int, passes: Sequence[ForwardPass]) -> None:
        """Wait for a chunk's passes and fill in their logits."""
        for under_way in passes:
            job.logits[[first + i for i in under_way.rows]] = self._engine.finish(under_way)

    def _warn_of_truncation(self) -> None:
        if not self._warned_of_truncation:
            self._warned_of_truncation = True
            logger.warning(
                "pairs longer than %d tokens are cut by %s, the longer text first; the metric "
                "embedding_truncated_texts_total counts them",
                self.checkpoint.max_tokens,
                self.checkpoint.name,
            )

    def _to_scores(self, logits: Vector) -> Vector:
        """Return (N, K) scores for (N, L) logits."""
        if self.checkpoint.asks and logits.shape[1] == 2:
            # Of the answers no and yes: their softmax is the sigmoid of the difference.
            logits = logits[:, 1:] - logits[:, :1]
        return activate(logits, self.checkpoint.activation)


def activate(logits: Vector, activation: str) -> Vector:
    """Apply one of `checkpoints.cross_encoder.ACTIVATIONS` to (N, K) logits."""
    if activation == "sigmoid":
        # Small scores keep their order: 1 / (1 + exp(-x)) alone would overflow, and tanh would round them.
        small = np.exp(-np.abs(logits))
        return np.asarray(np.where(logits < 0, small, 1) / (1 + small), dtype=np.float32)
    if activation == "tanh":
        return np.tanh(logits)
    if activation == "softmax":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)
    return logits
