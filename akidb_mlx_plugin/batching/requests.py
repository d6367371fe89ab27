"""A request on its way through the queue: what of it has gone to the engine, and what has come back."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np

from akidb_mlx_plugin.errors import EmbeddingError
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, Usage, Vector


# Neither shows its texts where it is logged.
@dataclass(eq=False, repr=False)
class Ticket:
    """One request on its way through the queue.

    Attributes:
        request: what is to be embedded.
        submitted: when it came, in seconds of the queue's clock.
        expires: when its caller stops waiting.
        future: where the caller waits.
        started: when its first text went to the engine.
        sent: how many of its texts went to the engine.
    """

    request: BatchEmbeddingRequest
    submitted: float
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
        """Texts that have not gone to the engine yet."""
        return len(self.request.inputs) - self.sent

    def start(self, now: float) -> float:
        """Note that its first text goes to the engine; return how long it has waited."""
        self.started = now
        return now - self.submitted

    def cut(self, characters: float, texts: int) -> Part:
        """Take the next slice: its longest texts, up to so many, and at least one."""
        inputs = self.request.inputs
        if not self._order:
            if len(inputs) <= texts and sum(map(len, inputs)) <= characters:
                return self.whole()
            self._order = sorted(range(len(inputs)), key=lambda index: -len(inputs[index]))
        stop = self.sent
        while stop < len(inputs) and stop - self.sent < texts:
            characters -= len(inputs[self._order[stop]])
            if characters < 0 and stop > self.sent:
                break
            stop += 1
        indexes = self._order[self.sent : stop]
        self.sent = stop
        return Part(self, replace(self.request, inputs=[inputs[index] for index in indexes]), indexes)

    def whole(self) -> Part:
        """Take all of it."""
        self.sent = len(self.request.inputs)
        return Part(self, self.request, None)

    def receive(self, part: Part, response: BatchEmbeddingResponse, now: float) -> BatchEmbeddingResponse | None:
        """Put a slice's vectors in their places.

        Returns:
            The response to the whole request, once nothing is missing.
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


@dataclass(frozen=True, eq=False, repr=False)
class Part:
    """What of a request goes into one batch.

    Attributes:
        ticket: whose it is.
        request: the texts of this part, embedded as the whole is.
        indexes: their places in the whole request; None: it is the whole.
    """

    ticket: Ticket
    request: BatchEmbeddingRequest
    indexes: list[int] | None
