"""One loaded model: texts in, float32 vectors out, from any thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.lookup import Found, find_checkpoint
from akidb_mlx_plugin.checkpoints.options import LoadOptions
from akidb_mlx_plugin.errors import EmbeddingError, ModelNotFoundError
from akidb_mlx_plugin.hub.locks import mark_in_use
from akidb_mlx_plugin.inference.engine import Engine, ForwardPass, compute_ahead
from akidb_mlx_plugin.inference.job import EmbeddingJob, Place
from akidb_mlx_plugin.inference.lengths import refuse_cut
from akidb_mlx_plugin.inference.prompts import Ids
from akidb_mlx_plugin.inference.splitting import TextSplitter
from akidb_mlx_plugin.inference.tokenizer import TextTokenizer, TokenRows, load_text_tokenizer
from akidb_mlx_plugin.runtime.devices import choose_device
from akidb_mlx_plugin.types import (
    BatchEmbeddingRequest,
    BatchEmbeddingResponse,
    Kind,
    ModelInfo,
    ResolvedRequest,
    StartedBatch,
)
from akidb_mlx_plugin.validation import check_request, list_inputs

# Texts tokenized and packed at a time: enough that rows of one length meet, few enough to bound memory.
_CHUNK = 1024
# Texts tokenized at a time until there are enough tokens for a forward pass.
_GROUP = 64

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Started:
    """A `StartedBatch`."""

    texts: Sequence[int]
    result: Callable[[], list[BatchEmbeddingResponse]]


class Embedder:
    """A model in memory, with the threads it runs on.

    Get one from `Embedder.load`, or the process-wide one from `inference.shared.acquire_embedder`. Usable as a context
    manager; `close` frees the weights.
    """

    def __init__(self, checkpoint: Checkpoint, tokenizer: TextTokenizer, engine: Engine, resources: ExitStack) -> None:
        """Store the parts, which `load` makes."""
        self._checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._engine = engine
        self._resources = resources
        self._warned_of_truncation = False
        self.load_seconds = 0.0

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        cache_dir: Path | None = None,
        max_cache_gb: float | None = None,
        trusted: bool = True,
        offline: bool | None = None,
        pooling: str | Sequence[str] | None = None,
    ) -> Embedder:
        """Load a model, downloading it first if needed.

        Args:
            model: a short name, "org/repo", or a checkpoint folder.
            device, dtype, cache_dir, max_cache_gb, trusted, offline, pooling: as the attributes of `LoadOptions`.
        Raises:
            ModelNotFoundError: no such model, or a checkpoint that cannot be loaded.
            DownloadError: it could not be fetched.
            InvalidInputError: no such device or pooling, or a name that is not allowed.
        """
        options = LoadOptions(device, dtype, cache_dir, max_cache_gb, trusted, offline, pooling)
        return cls.open(model, options)

    @classmethod
    def open(cls, model: str | Path, options: LoadOptions) -> Embedder:
        """Load a model, downloading it first if needed; errors as for `load`."""
        begun = time.perf_counter()
        device = choose_device(options.device)
        with ExitStack() as parts:
            checkpoint, in_use = find_for_use(lambda: find_checkpoint(model, options))
            parts.callback(in_use.close)
            tokenizer = load_text_tokenizer(checkpoint)
            engine = Engine(checkpoint, device, options.dtype)
            parts.callback(engine.close)
            engine.warm_up()
            embedder = cls(checkpoint, tokenizer, engine, parts.pop_all())
        embedder.load_seconds = time.perf_counter() - begun
        logger.info("loaded %s on %s in %.2f s", checkpoint.name, device, embedder.load_seconds)
        return embedder

    def __enter__(self) -> Embedder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish pending work, stop the threads and free the weights; safe to call twice.

        The cache may evict the model again.
        """
        self._resources.close()

    def keep_warm(self, seconds: float) -> None:
        """Keep a GPU awake for at least so many seconds after each text; it makes no difference on a CPU."""
        self._engine.keep_warm(seconds)

    def info(self, *, dimension: int | None = None, normalize: bool | None = None) -> ModelInfo:
        """Describe the model and the vectors that these settings give."""
        return self._checkpoint.info(
            dimension=dimension,
            normalize=normalize,
            device=self._engine.device,
            dtype=self._engine.dtype,
            parameters=self._engine.parameters,
        )

    def embed(
        self,
        texts: Sequence[str],
        *,
        kind: Kind = "document",
        normalize: bool | None = None,
        dimension: int | None = None,
        prompt: str | None = None,
    ) -> BatchEmbeddingResponse:
        """Embed texts; the arguments are those of `BatchEmbeddingRequest`.

        Returns:
            (N, D) float32 in the order of the texts, with their cost.
        Raises:
            InvalidInputError: a text, the dimension or the kind cannot be used; nothing was computed.
            EmbeddingError: the model gave a vector that is not finite.
        """
        return self.embed_requests([BatchEmbeddingRequest(list_inputs(texts), kind, normalize, dimension, prompt)])[0]

    def resolve(self, request: BatchEmbeddingRequest) -> ResolvedRequest:
        """Check a request against the model and fill in its defaults; computes nothing.

        Raises:
            InvalidInputError: a text, the dimension, the kind or the task cannot be used.
        """
        if isinstance(request, ResolvedRequest):
            return request
        check_request(request)
        checkpoint = self._checkpoint
        return ResolvedRequest(
            request.inputs,
            request.kind,
            normalize=checkpoint.normalize if request.normalize is None else request.normalize,
            dimension=checkpoint.check_dimension(request.dimension),
            prompt=checkpoint.prompt_for(request.task or request.kind) if request.prompt is None else request.prompt,
            overflow=request.overflow or "truncate",
            positions=request.positions,
        )

    def check_lengths(self, request: BatchEmbeddingRequest, names: Sequence[str] | None = None) -> None:
        """Check that no text of a request would be cut, if it refuses that; computes nothing.

        Args:
            request: with any number of texts.
            names: what to call each text in the message; default to its position.
        Raises:
            InvalidInputError: one would be cut, or cannot be used.
        """
        resolved = self.resolve(request)
        if resolved.overflow != "error":
            return
        for first in range(0, len(resolved.inputs), _GROUP):
            encoded = self._tokenizer.encode([resolved.prompt + t for t in resolved.inputs[first : first + _GROUP]])
            refuse_cut(self._tokenizer, self._checkpoint.name, resolved, encoded.cut, first=first, names=names)

    def splitter(self, *, prompt: str | None = None, task: str | None = None) -> TextSplitter:
        """Return what splits long texts for this model; arguments as for `BatchEmbeddingRequest`."""
        return _make_splitter(self._checkpoint, self._tokenizer, prompt, task)

    def embed_requests(self, requests: Sequence[BatchEmbeddingRequest]) -> list[BatchEmbeddingResponse]:
        """Embed several requests, each with its own settings, as if they were one.

        Args:
            requests: at least one text each.
        Returns:
            One response per request, in order; each duration is that of the whole call.
        Raises:
            As `embed`; an InvalidInputError means that nothing was computed for any of them.
        """
        begun = time.perf_counter()
        resolved = [self.resolve(request) for request in requests]
        job = EmbeddingJob(resolved)
        if job.texts > _CHUNK:
            # Later chunks are tokenized while earlier ones are computed.
            for request in resolved:
                self.check_lengths(request)
        short = job.texts <= _CHUNK // 8
        compute_ahead(job.chunks(_CHUNK), partial(self._start, job, short=short), partial(self._finish, job))
        return job.responses(self._checkpoint.name, (time.perf_counter() - begun) * 1000)

    @property
    def concurrency(self) -> int:
        """How many queries it computes at the same time: one on each core where a query cannot use several."""
        return self._engine.concurrency

    def begin(self, requests: Sequence[BatchEmbeddingRequest]) -> StartedBatch:
        """Start to compute as many first texts of some requests as a forward pass takes, and at least one of each.

        Each request gives about as many tokens as the others.

        Raises:
            InvalidInputError: as for `embed`.
        """
        begun = time.perf_counter()
        rows: list[TokenRows] = []
        parts: list[ResolvedRequest] = []
        left = self._engine.slice_tokens
        for i, request in enumerate(requests):
            resolved = self.resolve(request)
            encoded = self._encode_within(resolved, left // (len(requests) - i))
            refuse_cut(self._tokenizer, self._checkpoint.name, resolved, encoded.cut)
            left = max(0, left - sum(map(len, encoded.ids)))
            rows.append(encoded)
            parts.append(replace(resolved, inputs=resolved.inputs[: len(encoded.ids)]))
        job = EmbeddingJob(parts)
        (places,) = job.chunks(job.texts)
        prompts = [ids for r, encoded in enumerate(rows) for ids in self._note(job, r, parts[r].prompt, encoded)]
        passes = self._engine.start([ids for encoded in rows for ids in encoded.ids], prompts, short=False)

        def finish() -> list[BatchEmbeddingResponse]:
            self._finish(job, places, passes)
            return job.responses(self._checkpoint.name, (time.perf_counter() - begun) * 1000)

        return _Started([len(part.inputs) for part in parts], finish)

    def _encode_within(self, request: ResolvedRequest, most: int) -> TokenRows:
        """Tokenize a request's first texts, until the next one would exceed a number of tokens; at least one."""
        found = TokenRows([], [])
        for start in range(0, len(request.inputs), _GROUP):
            texts = [request.prompt + text for text in request.inputs[start : start + _GROUP]]
            encoded = self._tokenizer.encode(texts)
            found = TokenRows(found.ids + encoded.ids, found.cut + encoded.cut)
            if sum(map(len, found.ids)) > most:
                return found.within(most)
        return found

    def _start(self, job: EmbeddingJob, chunk: Sequence[Place], *, short: bool) -> list[ForwardPass]:
        """Tokenize and pack texts and submit them to the threads."""
        rows: list[list[int]] = []
        prompts: list[Ids] = []
        for r, first, texts in job.texts_of(chunk):
            request = job.request(r)
            encoded = self._tokenizer.encode(texts)
            refuse_cut(self._tokenizer, self._checkpoint.name, request, encoded.cut, first=first)
            prompts += self._note(job, r, request.prompt, encoded)
            rows += encoded.ids
        return self._engine.start(rows, prompts, short=short)

    def _note(self, job: EmbeddingJob, r: int, prompt: str, encoded: TokenRows) -> list[Ids]:
        """Check and count a request's token rows; return the ids of each row's prompt."""
        check_ids(encoded.ids, self._checkpoint)
        job.count(r, tokens=sum(map(len, encoded.ids)), truncated=encoded.truncated)
        if encoded.truncated:
            self._warn_of_truncation()
        return [tuple(self._tokenizer.prompt_ids(prompt))] * len(encoded.ids)

    def _finish(self, job: EmbeddingJob, chunk: Sequence[Place], passes: Sequence[ForwardPass]) -> None:
        """Wait for a chunk's passes and fill in their vectors."""
        for under_way in passes:
            vectors = self._engine.finish(under_way)
            job.fill([chunk[i] for i in under_way.rows], vectors)

    def _warn_of_truncation(self) -> None:
        if not self._warned_of_truncation:
            self._warned_of_truncation = True
            logger.warning(
                "texts longer than %d tokens are cut by %s; usage.truncated counts them. upsert(..., split=True) "
                "writes them as pieces, overflow='error' refuses them",
                self._checkpoint.max_tokens,
                self._checkpoint.name,
            )


def load_splitter(
    model: str | Path, options: LoadOptions, *, prompt: str | None = None, task: str | None = None
) -> TextSplitter:
    """Load a model's tokenizer alone, to split long texts; arguments and errors as for `Embedder.open`."""
    checkpoint, in_use = find_for_use(lambda: find_checkpoint(model, options))
    with in_use:
        return _make_splitter(checkpoint, load_text_tokenizer(checkpoint), prompt, task)


def _make_splitter(
    checkpoint: Checkpoint, tokenizer: TextTokenizer, prompt: str | None, task: str | None
) -> TextSplitter:
    whole = checkpoint.prompt_for(task or "document") if prompt is None else prompt
    return TextSplitter(tokenizer, whole, checkpoint.name)


def find_for_use(find: Callable[[], Found]) -> tuple[Found, ExitStack]:
    """Find a checkpoint and shield it from eviction by any process until the handle is closed."""
    for last in (False, True):
        checkpoint = find()
        try:
            return checkpoint, mark_in_use(checkpoint.folder)
        except ModelNotFoundError:
            # Another process evicted it between the two calls: fetch it again, but only once.
            if last:
                raise
    raise AssertionError("unreachable")


def check_ids(rows: Sequence[Sequence[int]], checkpoint: Checkpoint) -> None:
    """Refuse an id that the tokenizer should never give: MLX would read past the end of the table.

    Raises:
        EmbeddingError: there is one.
    """
    table = checkpoint.config.get("vocab_size")
    highest = max(map(max, rows))
    if table is not None and highest >= table:
        raise EmbeddingError(
            f"a text has the token id {highest}, and {checkpoint.name} has embeddings for {table}; its "
            "tokenizer.json belongs to another model"
        )
