"""A loaded model on its threads: token rows in, pooled vectors out."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypeVar

import mlx.core as mx
import numpy as np

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.loading import LoadedModel, load_model
from akidb_mlx_plugin.errors import EmbeddingError, ServiceUnavailableError
from akidb_mlx_plugin.inference.packing import pack_exact, pack_padded
from akidb_mlx_plugin.inference.prompts import Ids, PromptStore, Start
from akidb_mlx_plugin.inference.warmth import Warmth
from akidb_mlx_plugin.nn.batch import TokenBatch, Tokens
from akidb_mlx_plugin.nn.layout import in_cpu_layout
from akidb_mlx_plugin.nn.pooling import pick_tokens, pool
from akidb_mlx_plugin.runtime.cores import core_count
from akidb_mlx_plugin.runtime.default_device import start_evaluating
from akidb_mlx_plugin.runtime.devices import pass_tokens
from akidb_mlx_plugin.runtime.memory import check_batch
from akidb_mlx_plugin.runtime.workers import WorkerPool
from akidb_mlx_plugin.types import Vector

# Tokens of one forward pass on a CPU: activations should about fit the cache. A GPU's are `pass_tokens`.
_CPU_TOKENS = 1024
# Tokens of a slice of a large request on a CPU: about a second of MiniLM on two cores.
_CPU_SLICE_TOKENS = 4096
# Multiplications of the largest product of a pass up to which a second BLAS thread gains nothing: with 7 million
# (12 tokens, MiniLM) two threads took as long as one, and a third more processor time; with 38 million (12 tokens,
# Qwen3-0.6B) three quarters as long.
_ONE_THREAD = 16_000_000
# Tokens of a typical query.
_QUERY_TOKENS = 12
# Most threads on a CPU: with more, the memory bus is the bottleneck, not the cores.
_MAX_CPU_WORKERS = 8

# Devices whose first passes are slow: a GPU compiles and loads each kernel when it first needs it.
_WARMED_DEVICES = ("gpu",)
# Tokens of one text each: as many as queries, chunks and long texts have, so that each kind of kernel is needed.
_WARM_UP_LENGTHS = (2, 16, 128, 512)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ForwardPass:
    """A running forward pass.

    Attributes:
        rows: which of the given rows it computes, in the order of its vectors.
        batch: their tokens, without those of the cached prompt.
        start: how they begin.
        vectors: (N, D) float32, before truncation and normalization.
    """

    rows: Sequence[int]
    batch: TokenBatch
    start: Start
    vectors: Future[Vector]


Chunk = TypeVar("Chunk")


def compute_ahead(
    chunks: Iterable[Chunk],
    start: Callable[[Chunk], list[ForwardPass]],
    finish: Callable[[Chunk, list[ForwardPass]], None],
) -> None:
    """Start and finish chunks of work in order, one ahead: a chunk is tokenized while the previous one is computed.

    What was started and not finished because of an error is canceled.
    """
    under_way: deque[tuple[Chunk, list[ForwardPass]]] = deque()
    try:
        for chunk in chunks:
            under_way.append((chunk, start(chunk)))
            if len(under_way) > 1:
                finish(*under_way.popleft())
        while under_way:
            finish(*under_way.popleft())
    finally:
        for _, passes in under_way:
            for waiting in passes:
                waiting.vectors.cancel()


class Engine:
    """The model's forward passes, on its own threads."""

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: str) -> None:
        """Load the weights.

        Args:
            checkpoint: what to load.
            device: "cpu" or "gpu".
            dtype: as for `load_model`.
        Raises:
            As `load_model`.
        """
        self._checkpoint = checkpoint
        self.device = device
        if in_cpu_layout(device):
            self.workers = WorkerPool(device, min(core_count(), _MAX_CPU_WORKERS))
        else:
            self.workers = WorkerPool(device, 1, ahead=1)
        try:
            self.model: LoadedModel | None = self.workers.submit(lambda: self._load(dtype)).result()
        except BaseException:
            self.workers.close()
            raise
        self.dtype, self.parameters = self.model.dtype, self.model.parameters
        self.prompts = PromptStore(self.model.encoder, checkpoint.pooling, pool_prompt=checkpoint.pool_prompt)
        self._may_overflow = dtype == "auto" and self.dtype.startswith("float16")
        self._reloading = threading.Lock()
        self._warming: list[Future[Vector]] = []
        self._warmth = Warmth(lambda: self.warm_up(_WARM_UP_LENGTHS[:1]))

    @property
    def slice_tokens(self) -> int:
        """Tokens to compute at once of a request that others may have to wait for."""
        return _CPU_SLICE_TOKENS if in_cpu_layout(self.device) else pass_tokens()

    @property
    def concurrency(self) -> int:
        """How many queries to compute at the same time.

        One on each core where a query's products are too small for several; otherwise they would only share the cores
        and read the weights once each.
        """
        alone = in_cpu_layout(self.device) and self._is_small(_QUERY_TOKENS)
        return self.workers.size if alone else 1

    def close(self) -> None:
        """Finish pending work, stop the threads and free the weights; safe to call twice."""
        self._warmth.close()
        for future in self._warming:
            future.cancel()
        self.workers.close()
        self.prompts.clear()
        self.model = None

    def warm_up(self, lengths: Sequence[int] = _WARM_UP_LENGTHS) -> None:
        """Start to compute a few texts on a GPU, behind whatever callers want; returns at once."""
        if self.device not in _WARMED_DEVICES:
            return
        longest = min(self._checkpoint.max_tokens, pass_tokens())
        for length in dict.fromkeys(min(length, longest) for length in lengths):
            (batch,) = pack_padded([[0] * length], length)
            # Nobody waits: what fails here fails again, and is reported, with a text.
            self._warming = [future for future in self._warming if not future.done()]
            self._warming.append(self._submit(batch, Start((), 0, 0), short=False))

    def keep_warm(self, seconds: float) -> None:
        """Keep a GPU awake for so many seconds after each text."""
        if self.device in _WARMED_DEVICES:
            self._warmth.extend(seconds)

    def start(
        self,
        rows: Sequence[list[int]],
        prompts: Sequence[Ids],
        *,
        short: bool,
        seconds: Sequence[int] | None = None,
    ) -> list[ForwardPass]:
        """Pack rows and submit them to the threads.

        Args:
            rows: token ids of each text, including its prompt.
            prompts: token ids of the prompt alone.
            short: whether it goes ahead of all work that is not short.
            seconds: for pairs of texts, where in each row the second begins.
        """
        self._warmth.use()
        passes = []
        for start, chosen in self.prompts.group(prompts, rows).items():
            own = [rows[i][start.known :] for i in chosen]
            for batch in self._pack(own, seconds and [seconds[i] for i in chosen]):
                places = [chosen[i] for i in batch.order]
                passes.append(ForwardPass(places, batch, start, self._submit(batch, start, short=short)))
        return passes

    def finish(self, under_way: ForwardPass) -> Vector:
        """Wait for a pass and return (N, D) float32, one row per text.

        Raises:
            EmbeddingError: the model gave a vector that is not finite.
            ServiceUnavailableError: the device could not compute it.
        """
        vectors = self._wait(under_way)
        if not np.isfinite(vectors).all() and self._leave_float16():
            again = self._submit(under_way.batch, under_way.start, short=True)
            vectors = self._wait(replace(under_way, vectors=again))
        if not np.isfinite(vectors).all():
            raise EmbeddingError(
                f"{self._checkpoint.name} gave a vector that is not finite; the weights may be damaged: "
                f"akidb-mlx models verify {self._checkpoint.name}"
            )
        return vectors

    def _load(self, dtype: str) -> LoadedModel:
        return load_model(self._checkpoint, device=self.device, dtype=dtype)

    def _pack(
        self, rows: list[list[int]], seconds: Sequence[int] | None = None, *, parts: int = 1
    ) -> Iterator[TokenBatch]:
        """Lay rows out for the device, in at least `parts` passes if there are that many rows."""
        for batch in self._pack_ids(rows, parts):
            yield replace(batch, seconds=tuple(seconds[i] for i in batch.order)) if seconds else batch

    def _pack_ids(self, rows: list[list[int]], parts: int) -> Iterator[TokenBatch]:
        total = -(-sum(map(len, rows)) // parts)
        if not in_cpu_layout(self.device):
            return pack_padded(rows, min(pass_tokens(), total))
        # Enough batches for every thread to get one, unless they would be too small to be worth it.
        return pack_exact(rows, min(total, max(min(_CPU_TOKENS, -(-total // self.workers.size)), 128)))

    def _submit(self, batch: TokenBatch, start: Start, *, short: bool) -> Future[Vector]:
        small = self._is_small(len(batch.ids))
        return self.workers.submit(lambda: self._forward(batch, start), collect=np.array, short=short, small=small)

    def _is_small(self, tokens: int) -> bool:
        """Return whether the products of so many tokens are too small for several threads."""
        # The widest layer usually has four times the others' width.
        return bool(tokens * self._checkpoint.widest_layer**2 // 4 <= _ONE_THREAD)

    def _forward(self, batch: TokenBatch, start: Start) -> mx.array:
        """Start computing (N, D) float32 pooled vectors, rows in the order of the batch's blocks; runs on a worker."""
        assert self.model is not None, "workers end before the model is freed"
        check_batch(len(batch.ids), self._checkpoint.widest_layer, self._checkpoint.name)
        prefix = self.prompts.prefix(self.model.encoder, start)
        tokens = Tokens.from_batch(batch, prefix)
        pick = pick_tokens(batch.blocks, self._checkpoint.pooling, start.skip)
        if pick is not None:
            pooled = self.model.encoder.picked_vectors(tokens, pick).astype(mx.float32)
        else:
            pooled = pool(self.model.encoder(tokens), batch.blocks, self._checkpoint.pooling, start.skip)
        for layer in self.model.dense:
            pooled = layer(pooled)
        pooled = pooled.astype(mx.float32)
        start_evaluating(pooled)
        return pooled

    def _wait(self, under_way: ForwardPass) -> Vector:
        """Return a pass's vectors; retry once, in halves, a pass that MLX could not compute.

        A GPU aborts work that takes too long or too much memory; either condition may be temporary.
        """
        try:
            return under_way.vectors.result()
        except EmbeddingError:
            raise
        except RuntimeError as error:
            logger.warning("a pass of %d tokens failed and is tried in halves: %s", len(under_way.batch.ids), error)
            try:
                return self._compute_in_halves(under_way)
            except EmbeddingError:
                raise
            except RuntimeError as again:
                raise ServiceUnavailableError(
                    f"the {self.device} could not compute {len(under_way.rows)} texts, nor half of them at a time: "
                    f"{again}; close other programs that use it, or lower batch_size"
                ) from error

    def _compute_in_halves(self, under_way: ForwardPass) -> Vector:
        rows = under_way.batch.rows()
        vectors = np.empty((len(rows), self._checkpoint.native_dimension), dtype=np.float32)
        for batch in self._pack(rows, under_way.batch.seconds, parts=2):
            vectors[list(batch.order)] = self._submit(batch, under_way.start, short=True).result()
        return vectors

    def _leave_float16(self) -> bool:
        """Reload the model in bfloat16, which has float32's range; return whether that changes anything.

        Only if the dtype was chosen automatically. The model keeps it from then on.
        """
        with self._reloading:
            if not self._may_overflow:
                return False
            if self.dtype.startswith("float16"):
                logger.warning("%s overflows float16; it is computed in bfloat16 from now on", self._checkpoint.name)
                self.workers.submit(self._reload).result()
            return True

    def _reload(self) -> None:
        # Freed first: both may not fit.
        self.model = None
        self.prompts.clear()
        self.model = self._load("bfloat16")
        self.dtype = self.model.dtype
