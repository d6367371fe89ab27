"""A request on its way through the queue: what was sent to the engine, and what has come back."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from akidb_mlx_plugin.errors import DeadlineExceededError, EmbeddingError
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, StartedBatch, Usage, Vector

# How a request ends: vectors, an error, or None if its caller canceled it.
Outcome = BatchEmbeddingResponse | Exception | None


# Requests of more characters are large, however few texts they have: half of what a batch of slices takes, and half a
# second of MiniLM on two cores.
_LARGE_CHARACTERS = 8_192


# The classes have no generated repr: it would put texts into logs.
@dataclass(eq=False, repr=False)
class PendingRequest:
    """One request on its way through the queue.

    Attributes:
        request: what to embed.
        submitted: when it entered the queue, after any wait for room, in seconds of the queue's clock.
        allowed_s: how long it may take from then on.
        bulk: whether it is large whatever its size.
        expires: when its caller stops waiting; infinite while it waits for room.
        future: where the caller waits.
        started: when its first text was sent to the engine.
        sent: how many of its texts were sent to the engine.
    """

    request: BatchEmbeddingRequest
    submitted: float
    allowed_s: float = math.inf
    bulk: bool = False
    expires: float = math.inf
    future: Future[BatchEmbeddingResponse] = field(default_factory=Future)
    started: float | None = None
    sent: int = 0
    _order: list[int] = field(default_factory=list)
    _embeddings: Vector | None = None
    _received: int = 0
    _tokens: int = 0
    _truncated: int = 0

    @property
    def waiting(self) -> int:
        """Number of texts not yet sent to the engine."""
        return len(self.request.inputs) - self.sent

    @cached_property
    def characters(self) -> int:
        """Number of characters of all its texts."""
        return sum(map(len, self.request.inputs))

    def is_large(self, batch_size: int) -> bool:
        """Return whether it is cut into slices: it has more texts than a batch, or would hold others up for long."""
        return self.bulk or len(self.request.inputs) > batch_size or self.characters > _LARGE_CHARACTERS

    def enter(self, now: float) -> None:
        """Record that it enters the queue now."""
        self.submitted = now
        self.expires = now + self.allowed_s

    def start(self, now: float) -> float:
        """Record that its first text is sent to the engine; return how long it has waited."""
        self.started = now
        return now - self.submitted

    @property
    def next_length(self) -> int:
        """Number of characters of the text that the next slice begins with."""
        self._sort()
        return len(self.request.inputs[self._order[self.sent]])

    def cut(self, characters: float, texts: int) -> RequestSlice:
        """Return the next slice: its longest texts within both limits, and at least one."""
        inputs = self.request.inputs
        if not self.sent and len(inputs) <= texts and self.characters <= characters:
            return self.whole()
        self._sort()
        stop = self.sent
        while stop < len(inputs) and stop - self.sent < texts:
            characters -= len(inputs[self._order[stop]])
            if characters < 0 and stop > self.sent:
                break
            stop += 1
        indexes = self._order[self.sent : stop]
        self.sent = stop
        return RequestSlice(self, self.request.select(indexes), indexes)

    def _sort(self) -> None:
        if not self._order:
            self.order_after(0)

    def order_after(self, texts: int) -> list[int]:
        """Order its texts, of which the first ones stay in their places, and return all indexes."""
        inputs = self.request.inputs
        rest = sorted(range(texts, len(inputs)), key=lambda index: -len(inputs[index]))
        self._order = [*range(texts), *rest]
        return self._order

    def whole(self) -> RequestSlice:
        """Return one slice with all of its texts."""
        self.sent = len(self.request.inputs)
        return RequestSlice(self, self.request, None)

    def deadline_error(self) -> DeadlineExceededError:
        """Return the error its caller gets when its time is up."""
        if self.started is None:
            where = "it was still waiting in the queue; send fewer at a time, or allow more by deadline_ms"
        else:
            where = "the model had not come back with it; allow more by deadline_ms, or use a smaller model"
        return DeadlineExceededError(f"not answered within {self.allowed_s:g} s: {where}")

    def receive(
        self, part: RequestSlice, response: BatchEmbeddingResponse, now: float
    ) -> BatchEmbeddingResponse | None:
        """Copy the vectors of a slice to their rows.

        Returns:
            The response to the whole request, once complete.
        Raises:
            EmbeddingError: not one vector per text.
        """
        rows, texts = len(response.embeddings), len(part.request.inputs)
        if rows != texts:
            raise EmbeddingError(f"{response.model} returned {rows} vectors for {texts} texts")
        self._tokens += response.usage.total_tokens
        self._truncated += response.usage.truncated
        self._received += rows
        if part.indexes is None:
            self._embeddings = response.embeddings
        else:
            if self._embeddings is None:
                shape = (len(self.request.inputs), response.embeddings.shape[1])
                self._embeddings = np.empty(shape, dtype=np.float32)
            self._embeddings[part.indexes] = response.embeddings
        if self._received < len(self.request.inputs):
            return None
        usage = Usage(self._tokens, (now - self.submitted) * 1e3, self._truncated)
        return BatchEmbeddingResponse(self._embeddings, response.model, usage)


@dataclass(eq=False, repr=False)
class RequestSlice:
    """The texts of a request that go into one batch.

    Attributes:
        pending: the request they belong to.
        request: these texts with the request's settings.
        indexes: their positions in the request; None for the whole request.
        started: the batch it is in, if the engine computes that in the background.
    """

    pending: PendingRequest
    request: BatchEmbeddingRequest
    indexes: list[int] | None
    started: StartedBatch | None = None

    def keep(self, texts: int) -> None:
        """Give the texts after the first ones back to the request, which must not have been cut again since."""
        if self.indexes is None:
            self.indexes = self.pending.order_after(texts)
        self.pending.sent -= len(self.indexes) - texts
        self.indexes = self.indexes[:texts]
        self.request = self.request.select(range(texts))
