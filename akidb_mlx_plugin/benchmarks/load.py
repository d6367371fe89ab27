"""Open-loop load: requests are sent on schedule, whether or not earlier ones have been answered.

A client that waits for each answer before sending the next request slows down with the service and hides its worst
latencies. Here latency counts from the time a request was due, so that a stall affects every request due meanwhile,
and the generator's own delay is reported too.
Source: Gil Tene, "How NOT to Measure Latency", on coordinated omission.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

from akidb_mlx_plugin.errors import EmbeddingError

_DRAIN_S = 30.0
_DRAIN_INTERRUPTED_S = 5.0


@dataclass(frozen=True)
class LoadRecord:
    """The outcome of every request.

    Attributes:
        planned: requests planned.
        sent: requests sent.
        latency_ms: of answered requests, from the time each was due, in due order.
        due_s: when those were due, from the start.
        lag_ms: how late the generator sent each request.
        failures: count by error name, including rejections.
        unanswered: requests neither answered nor failed when the final wait ended.
        seconds: from the first request's due time to the last answer.
        interrupted: the user ended it early.
    """

    planned: int
    sent: int
    latency_ms: list[float]
    due_s: list[float]
    lag_ms: list[float]
    failures: dict[str, int]
    unanswered: int
    seconds: float
    interrupted: bool

    @property
    def answered(self) -> int:
        """Number of answered requests."""
        return len(self.latency_ms)

    @property
    def complete(self) -> bool:
        """Whether every request sent was answered."""
        return self.answered == self.sent


def uniform_arrivals(per_second: float, seconds: float) -> list[float]:
    """Return evenly spaced due times, in seconds from the start."""
    return [i / per_second for i in range(max(round(per_second * seconds), 1))]


def poisson_arrivals(per_second: float, seconds: float, *, seed: int = 0) -> list[float]:
    """Return due times of independent requests, as from many users, in seconds from the start."""
    generator = random.Random(seed)
    due_s: list[float] = []
    at = generator.expovariate(per_second)
    while at < seconds:
        due_s.append(at)
        at += generator.expovariate(per_second)
    return due_s or [0.0]


@dataclass
class _Tally:
    """Results recorded by callbacks, which may run on any thread, in any order, even before `submit` returns."""

    done_s: dict[int, float] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    settled: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def note(self, index: int, at_s: float, error: BaseException | None) -> None:
        with self.changed:
            self.settled += 1
            if error is None:
                self.done_s[index] = at_s
            else:
                self.failures[type(error).__name__] += 1
            self.changed.notify()


class OpenLoop:
    """Sends requests from the thread that runs it, which does nothing else."""

    def __init__(
        self,
        submit: Callable[[int], Future[Any]],
        due_s: Sequence[float],
        *,
        now: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
        drain_s: float = _DRAIN_S,
        on_sent: Callable[[], None] = lambda: None,
    ) -> None:
        """Plan a run.

        Args:
            submit: sends request i and returns at once; may raise EmbeddingError to reject it.
            due_s: when each is due, in seconds from the start, ascending.
            now: a clock in seconds.
            sleep: waits for a number of seconds.
            drain_s: longest wait for the last answers.
            on_sent: called after each request, for a progress bar.
        """
        self._submit = submit
        self._due_s = due_s
        self._now = now
        self._sleep = sleep
        self._drain_s = drain_s
        self._on_sent = on_sent
        self._tally = _Tally()
        self._lag_ms: list[float] = []

    def run(self) -> LoadRecord:
        """Send everything, wait for the answers, and account for each; an interrupt ends it early."""
        interrupted = False
        start = self._now()
        try:
            for index, due in enumerate(self._due_s):
                self._send(index, start + due)
            self._drain(self._drain_s)
        except KeyboardInterrupt:
            interrupted = True
            self._drain(min(self._drain_s, _DRAIN_INTERRUPTED_S))
        return self._account(start, interrupted)

    def _send(self, index: int, due: float) -> None:
        while (early := due - self._now()) > 0:
            self._sleep(early)
        self._lag_ms.append((self._now() - due) * 1e3)
        try:
            future = self._submit(index)
        except EmbeddingError as error:
            self._tally.note(index, self._now(), error)
        else:
            # Futures are not kept: thousands of answers would count as the service's memory.
            future.add_done_callback(lambda done: self._note(index, done))
        self._on_sent()

    def _note(self, index: int, done: Future[Any]) -> None:
        at = self._now()
        error = CancelledError() if done.cancelled() else done.exception()
        self._tally.note(index, at, error)

    def _drain(self, timeout_s: float) -> None:
        with self._tally.changed:
            self._tally.changed.wait_for(lambda: self._tally.settled >= len(self._lag_ms), timeout_s)

    def _account(self, start: float, interrupted: bool) -> LoadRecord:
        with self._tally.changed:
            done_s = sorted(self._tally.done_s.items())
            failures = dict(self._tally.failures)
            settled = self._tally.settled
        return LoadRecord(
            planned=len(self._due_s),
            sent=len(self._lag_ms),
            latency_ms=[(at - start - self._due_s[index]) * 1e3 for index, at in done_s],
            due_s=[self._due_s[index] for index, _ in done_s],
            lag_ms=list(self._lag_ms),
            failures=failures,
            unanswered=len(self._lag_ms) - settled,
            seconds=max((at for _, at in done_s), default=self._now()) - start,
            interrupted=interrupted,
        )
