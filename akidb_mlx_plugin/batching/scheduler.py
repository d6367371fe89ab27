"""Who goes next: requests that wait for the engine, and how they become batches. No threads, no locks.

Small requests are merged, in the order they came. A request of more than `batch_size` texts has a lane of its own and
goes in slices, longest texts first, so that a slice holds texts of like length and packs well; the two lanes take
turns, and so do the large requests among themselves.
"""

from __future__ import annotations

import math
from collections import deque

from akidb_mlx_plugin.batching.requests import Part, Ticket

# Bounds of a slice while no small request is about: enough to keep a GPU busy, about a second of MiniLM on two cores.
# Fixed, not timed, so that the same large request is cut, and so rounded, the same way every time.
SLICE_TEXTS = 512
SLICE_CHARACTERS = 16_384
# Once a small request had to wait for a slice, slices are kept short for this long: more may follow.
_COMPANY_S = 10.0


class Lanes:
    """The requests that wait. Not safe for threads: the queue holds its lock."""

    def __init__(self, batch_size: int, batch_timeout_s: float) -> None:
        self._batch_size = batch_size
        self._batch_timeout_s = batch_timeout_s
        self._small: deque[Ticket] = deque()
        self._large: deque[Ticket] = deque()
        self._small_texts = 0
        self._large_texts = 0
        self._small_goes_next = True
        self._slice_runs = False
        self._last_held_up = -math.inf
        self._characters_per_s: float | None = None

    @property
    def waiting_texts(self) -> int:
        """Texts that have not gone to the engine yet."""
        return self._small_texts + self._large_texts

    def waiting_like(self, ticket: Ticket) -> int:
        """Return how many texts wait in a request's own lane: a large one must not shut the small ones out."""
        return self._large_texts if self._is_large(ticket) else self._small_texts

    def add(self, ticket: Ticket) -> None:
        """Let a request wait."""
        if self._is_large(ticket):
            self._large.append(ticket)
            self._large_texts += ticket.waiting
            return
        if self._slice_runs or self._large:
            self._last_held_up = ticket.submitted
        self._small.append(ticket)
        self._small_texts += ticket.waiting

    def remove(self, ticket: Ticket) -> None:
        """Forget a request, if any of it still waits."""
        if not ticket.waiting:
            return
        if self._is_large(ticket):
            self._large.remove(ticket)
            self._large_texts -= ticket.waiting
        else:
            self._small.remove(ticket)
            self._small_texts -= ticket.waiting

    def take(self, now: float) -> list[Part]:
        """Return the next batch; empty if nobody waits."""
        from_small = bool(self._small) and (self._small_goes_next or not self._large)
        self._small_goes_next = not from_small
        parts = self._take_small() if from_small else self._take_slice(now)
        self._slice_runs = bool(parts) and not from_small
        return parts

    def finish(self, parts: list[Part], seconds: float) -> None:
        """Learn from a batch that has come back how much the engine does in a second."""
        if self._slice_runs and seconds > 0:
            self._characters_per_s = sum(len(text) for part in parts for text in part.request.inputs) / seconds
        self._slice_runs = False

    def _take_small(self) -> list[Part]:
        parts: list[Part] = []
        room = self._batch_size
        while self._small and len(self._small[0].request.inputs) <= room:
            part = self._small.popleft().whole()
            room -= len(part.request.inputs)
            parts.append(part)
        self._small_texts -= self._batch_size - room
        return parts

    def _take_slice(self, now: float) -> list[Part]:
        if not self._large:
            return []
        ticket = self._large.popleft()
        part = ticket.cut(*self._slice_limits(now))
        self._large_texts -= len(part.request.inputs)
        if ticket.waiting:
            self._large.append(ticket)
        return [part]

    def _is_large(self, ticket: Ticket) -> bool:
        return len(ticket.request.inputs) > self._batch_size

    def _slice_limits(self, now: float) -> tuple[float, int]:
        """Return the most characters and the most texts of a slice."""
        if now - self._last_held_up > _COMPANY_S:
            return SLICE_CHARACTERS, SLICE_TEXTS
        if self._characters_per_s is None:
            return SLICE_CHARACTERS, self._batch_size
        return min(SLICE_CHARACTERS, self._characters_per_s * self._batch_timeout_s), SLICE_TEXTS
