"""Which requests the engine gets next, and how they become batches. No threads, no locks.

Small requests are merged in the order they came. A request of more than `batch_size` texts goes in slices, longest
texts first, so that the texts of a slice are of similar length and pack well. Slices and batches of small requests
alternate, and so do the large requests among themselves.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from akidb_mlx_plugin.batching.requests import PendingRequest, RequestSlice

# Limits of a slice while no small request is waiting: enough to keep a GPU busy, about a second of MiniLM on two cores.
# Fixed, not timed, so that the same large request is cut, and therefore rounded, the same way every time.
SLICE_TEXTS = 512
SLICE_CHARACTERS = 16_384
# Once a small request had to wait for a slice, slices are kept short for this long: more may follow.
_SHORT_SLICES_S = 10.0


@dataclass
class _Backlog:
    """Requests of one size class.

    Attributes:
        requests: those that wait for the engine, next first.
        texts: how many texts of theirs have not gone to the engine.
        line: those that wait for room here, first come first.
    """

    requests: deque[PendingRequest] = field(default_factory=deque)
    texts: int = 0
    line: deque[PendingRequest] = field(default_factory=deque)


class Scheduler:
    """The requests that wait. Not thread-safe: the queue holds its lock."""

    def __init__(self, batch_size: int, batch_timeout_s: float, max_texts: int) -> None:
        """Start empty.

        Args:
            batch_size: most texts of small requests in a batch; a larger request goes in slices.
            batch_timeout_s: about how long a slice takes while small requests arrive.
            max_texts: most texts that wait, of small requests and of large ones each.
        """
        self._batch_size = batch_size
        self._batch_timeout_s = batch_timeout_s
        self._max_texts = max_texts
        self._small = _Backlog()
        self._large = _Backlog()
        self._small_goes_next = True
        self._slice_runs = False
        self._last_held_up = -math.inf
        self._characters_per_s: float | None = None

    @property
    def waiting_texts(self) -> int:
        """Number of texts that have not gone to the engine yet, without those that wait for room."""
        return self._small.texts + self._large.texts

    def has_room(self, pending: PendingRequest) -> bool:
        """Return whether a new request could enter at once; large requests take no room from small ones."""
        backlog = self._backlog_of(pending)
        return not backlog.line and self._fits(backlog, pending)

    def add(self, pending: PendingRequest) -> None:
        """Put a request at the end of the line for room; `admit` does the rest."""
        self._backlog_of(pending).line.append(pending)

    def admit(self, now: float) -> list[PendingRequest]:
        """Let those enter for whom there is room, and return them."""
        admitted: list[PendingRequest] = []
        for backlog in (self._small, self._large):
            while backlog.line and self._fits(backlog, backlog.line[0]):
                pending = backlog.line.popleft()
                if backlog is self._small and (self._slice_runs or self._large.requests):
                    self._last_held_up = now
                backlog.requests.append(pending)
                backlog.texts += pending.waiting
                pending.enter(now)
                admitted.append(pending)
        return admitted

    def remove(self, pending: PendingRequest) -> None:
        """Drop what of a request is waiting; one that has gone to the engine entirely is not here any more."""
        if not pending.waiting:
            return
        backlog = self._backlog_of(pending)
        if pending in backlog.line:
            backlog.line.remove(pending)
        else:
            backlog.requests.remove(pending)
            backlog.texts -= pending.waiting

    def next_batch(self, now: float) -> list[RequestSlice]:
        """Return what goes to the engine next; empty if nothing waits."""
        from_small = bool(self._small.requests) and (self._small_goes_next or not self._large.requests)
        self._small_goes_next = not from_small
        slices = self._merge_small() if from_small else self._cut_large(now)
        self._slice_runs = bool(slices) and not from_small
        return slices

    def finish(self, slices: list[RequestSlice], seconds: float) -> None:
        """Learn from a batch that has come back how many characters the engine embeds in a second."""
        if self._slice_runs and seconds > 0:
            self._characters_per_s = sum(len(text) for part in slices for text in part.request.inputs) / seconds
        self._slice_runs = False

    def _merge_small(self) -> list[RequestSlice]:
        slices: list[RequestSlice] = []
        backlog, room = self._small, self._batch_size
        while backlog.requests and backlog.requests[0].waiting <= room:
            part = backlog.requests.popleft().whole()
            room -= len(part.request.inputs)
            slices.append(part)
        backlog.texts -= self._batch_size - room
        return slices

    def _cut_large(self, now: float) -> list[RequestSlice]:
        backlog = self._large
        if not backlog.requests:
            return []
        pending = backlog.requests.popleft()
        part = pending.cut(*self._slice_limits(now))
        backlog.texts -= len(part.request.inputs)
        if pending.waiting:
            backlog.requests.append(pending)
        return [part]

    def _backlog_of(self, pending: PendingRequest) -> _Backlog:
        return self._large if len(pending.request.inputs) > self._batch_size else self._small

    def _fits(self, backlog: _Backlog, pending: PendingRequest) -> bool:
        """A request that is larger than the limit fits where no other one waits."""
        return not backlog.texts or backlog.texts + pending.waiting <= self._max_texts

    def _slice_limits(self, now: float) -> tuple[float, int]:
        """Return the most characters and the most texts of a slice."""
        if now - self._last_held_up > _SHORT_SLICES_S:
            return SLICE_CHARACTERS, SLICE_TEXTS
        if self._characters_per_s is None:
            return SLICE_CHARACTERS, self._batch_size
        return min(SLICE_CHARACTERS, self._characters_per_s * self._batch_timeout_s), SLICE_TEXTS
