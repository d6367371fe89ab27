"""Choose which requests the engine gets next, and form batches of them. No threads, no locks.

Small requests are merged in order of arrival. Requests of more than `batch_size` texts, or of long ones, are cut,
longest texts first, and a batch has a slice of each of them, so that its texts are of similar length and pack well, and
none has to wait for another. Such batches alternate with those of small requests. How many tokens a slice has only the
engine knows: what is above a forward pass comes back by `shorten`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from akidb_mlx_plugin.batching.requests import PendingRequest, RequestSlice

# Limits of a batch of slices while no small request is waiting: enough to keep a GPU busy, about a second of MiniLM on
# two cores. Fixed, not timed, so that a lone large request is always cut, and therefore rounded, the same way.
SLICE_TEXTS = 512
SLICE_CHARACTERS = 16_384
# Once a small request has had to wait for slices, these stay short for this long: more may follow.
_SHORT_SLICES_S = 10.0


@dataclass
class _Backlog:
    """Requests of one size class.

    Attributes:
        requests: those that wait for the engine, next first.
        texts: how many of their texts have not been sent to the engine.
        line: those that wait for room, in order of arrival.
    """

    requests: deque[PendingRequest] = field(default_factory=deque)
    texts: int = 0
    line: deque[PendingRequest] = field(default_factory=deque)


class Scheduler:
    """Waiting requests. Not thread-safe: the queue holds its lock."""

    def __init__(self, batch_size: int, batch_timeout_s: float, max_texts: int) -> None:
        """Start empty.

        Args:
            batch_size: most texts of small requests in a batch; a larger request is cut into slices.
            batch_timeout_s: about how long a batch of slices takes while small requests arrive.
            max_texts: most texts that may wait, counted separately for small and large requests.
        """
        self._batch_size = batch_size
        self._batch_timeout_s = batch_timeout_s
        self._max_texts = max_texts
        self._small = _Backlog()
        self._large = _Backlog()
        self._small_goes_next = True
        self._slices_run = False
        self._last_held_up = -math.inf
        self._characters_per_s: float | None = None
        self._ahead: list[RequestSlice] = []

    @property
    def waiting_texts(self) -> int:
        """Number of texts not yet sent to the engine, except those that wait for room."""
        return self._small.texts + self._large.texts

    def has_room(self, pending: PendingRequest) -> bool:
        """Return whether a new request could enter at once; large requests take no room from small ones."""
        backlog = self._backlog_of(pending)
        return not backlog.line and self._fits(backlog, pending)

    def add(self, pending: PendingRequest) -> None:
        """Append a request to the line for room; `admit` does the rest."""
        self._backlog_of(pending).line.append(pending)

    def admit(self, now: float) -> list[PendingRequest]:
        """Admit the requests that there is room for, and return them."""
        admitted: list[PendingRequest] = []
        for backlog in (self._small, self._large):
            while backlog.line and self._fits(backlog, backlog.line[0]):
                pending = backlog.line.popleft()
                if backlog is self._small and (self._slices_run or self._large.requests):
                    self._last_held_up = now
                backlog.requests.append(pending)
                backlog.texts += pending.waiting
                pending.enter(now)
                admitted.append(pending)
        return admitted

    def remove(self, pending: PendingRequest) -> None:
        """Drop the waiting part of a request; one sent entirely to the engine is no longer here."""
        if not pending.waiting:
            return
        backlog = self._backlog_of(pending)
        if pending in backlog.line:
            backlog.line.remove(pending)
        else:
            backlog.requests.remove(pending)
            backlog.texts -= pending.waiting

    def next_batch(self, now: float) -> list[RequestSlice]:
        """Return the next batch for the engine; empty if nothing waits, or nothing that may run beside what runs.

        One batch of slices runs at a time, beside any number of small requests.
        """
        any_large = not self._slices_run and (self._large.requests or self._ahead)
        if self._small.requests and (self._small_goes_next or not any_large):
            self._small_goes_next = False
            return self._merge_small()
        if not any_large:
            self._small_goes_next = True
            return []
        self._small_goes_next = True
        self._slices_run = True
        return self.drop_ahead() or self._cut_large(now)

    def look_ahead(self, now: float) -> list[RequestSlice]:
        """Return the slices that will be the next batch, to be begun while another one runs; empty if there is none.

        They would delay small requests, so there are none while these arrive.
        """
        if self._ahead or self._small.requests or self._small_arrive(now):
            return []
        self._ahead = self._cut_large(now)
        return self._ahead

    def drop_ahead(self) -> list[RequestSlice]:
        """Forget the slices that were begun ahead, and return them, if any."""
        ahead, self._ahead = self._ahead, []
        return ahead

    def shorten(self, part: RequestSlice, texts: int, *, wanted: bool) -> None:
        """Keep only the first texts of a slice just cut; the others wait again.

        Args:
            part: a slice of a large request.
            texts: how many to keep, at least one.
            wanted: whether anybody still waits for the request.
        """
        backlog, pending = self._large, part.pending
        more = len(part.request.inputs) - texts
        if not more:
            return
        if wanted and not pending.waiting:
            backlog.requests.append(pending)
        part.keep(texts)
        if wanted:
            backlog.texts += more

    def allow_slices(self) -> None:
        """Allow the next batch of slices: the last one has ended."""
        self._slices_run = False

    def are_of_large(self, slices: list[RequestSlice]) -> bool:
        """Return whether a batch is of slices of large requests."""
        return slices[0].pending.is_large(self._batch_size)

    def note_speed(self, slices: list[RequestSlice], seconds: float) -> None:
        """Learn from a batch of slices how many characters the engine computes per second."""
        if seconds > 0:
            self._characters_per_s = sum(len(text) for part in slices for text in part.request.inputs) / seconds

    def _merge_small(self) -> list[RequestSlice]:
        slices: list[RequestSlice] = []
        backlog, room, characters = self._small, self._batch_size, SLICE_CHARACTERS
        while backlog.requests and (first := backlog.requests[0]).waiting <= room and first.characters <= characters:
            backlog.requests.popleft()
            room -= first.waiting
            characters -= first.characters
            slices.append(first.whole())
        backlog.texts -= self._batch_size - room
        return slices

    def _cut_large(self, now: float) -> list[RequestSlice]:
        """Cut a slice of each large request, of about as many characters, as long as there is room for its next text.

        Requests that come away with nothing are the first in the next batch.
        """
        slices: list[RequestSlice] = []
        backlog = self._large
        characters, texts = self._slice_limits(now)
        for left in range(len(backlog.requests), 0, -1):
            pending = backlog.requests[0]
            if slices and (texts < 1 or pending.next_length > characters):
                break
            backlog.requests.popleft()
            part = pending.cut(characters / left, -(-texts // left))
            cut = part.request.inputs
            characters, texts = characters - sum(map(len, cut)), texts - len(cut)
            backlog.texts -= len(cut)
            if pending.waiting:
                backlog.requests.append(pending)
            slices.append(part)
        return slices

    def _backlog_of(self, pending: PendingRequest) -> _Backlog:
        return self._large if pending.is_large(self._batch_size) else self._small

    def _fits(self, backlog: _Backlog, pending: PendingRequest) -> bool:
        """Return whether a request fits; one larger than the limit fits if no other one waits."""
        return not backlog.texts or backlog.texts + pending.waiting <= self._max_texts

    def _small_arrive(self, now: float) -> bool:
        """Return whether a small request was held up by slices lately, so that more may follow."""
        return now - self._last_held_up <= _SHORT_SLICES_S

    def _slice_limits(self, now: float) -> tuple[float, int]:
        """Return the most characters and the most texts of a batch of slices."""
        if not self._small_arrive(now):
            return SLICE_CHARACTERS, SLICE_TEXTS
        if self._characters_per_s is None:
            return SLICE_CHARACTERS, self._batch_size
        return min(SLICE_CHARACTERS, self._characters_per_s * self._batch_timeout_s), SLICE_TEXTS
