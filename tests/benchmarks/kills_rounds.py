"""SIGKILL at random moments of something that processes do in a folder: what every kind of kills.py shares."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

PATIENCE_S = 300.0
# Rounds that end before their kill do not count; so many times the kills are tried.
_TRIES = 5
_WORKER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import importlib
work = importlib.import_module(sys.argv[3])
work.warm_up()
print("ready", flush=True)
sys.stdin.readline()
work.work(Path(sys.argv[4]))
"""


class Work(Protocol):
    """A module that says what is done, and what has to be there afterwards."""

    WHAT: str

    def setting(self) -> AbstractContextManager[None]:
        """Hold what all rounds share, such as a server."""

    def prepare(self, folder: Path) -> None:
        """Make what is there before the work."""

    def warm_up(self) -> None:
        """Import what the work needs, so that kills hit the work."""

    def work(self, folder: Path) -> None:
        """Do the work, in a process that may be killed."""

    def look(self, folder: Path) -> str:
        """Return how much is done, "all" or something else; raise AssertionError where anything is not as it should."""

    def finish(self, folder: Path) -> None:
        """End what `prepare` has begun."""


@dataclass
class Tally:
    """What became of some kills.

    Attributes:
        what: was killed.
        processes: that worked at the same time.
        kills: that hit a process at work.
        found: after them, in words, and how often.
        faults: what was lost, doubled, mixed, or half and taken for whole, in words.
    """

    what: str
    processes: int
    kills: int = 0
    found: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return one line, and a line for each of the first faults."""
        found = ", ".join(f"{count} {state}" for state, count in sorted(self.found.items()))
        line = f"{self.what}, {self.processes} at once: {self.kills} kills; found {found}; {len(self.faults)} faults"
        return "\n    ".join([line, *self.faults[:5]])


def measure_work(work: Work, kills: int, seed: int) -> Iterator[Tally]:
    """Kill one process at work so many times, and then one or both of two; yield what became of it."""
    for processes in (1, 2):
        yield kill_some(work, processes, kills, random.Random(f"{seed} {work.WHAT} {processes}"))


def kill_some(work: Work, processes: int, kills: int, chance: random.Random) -> Tally:
    """Kill so many processes at work, and return what became of it."""
    tally = Tally(work.WHAT, processes)
    with work.setting():
        longest_s = _run_round(work, processes, None, chance, Tally("", processes))
        for _ in range(_TRIES * kills):
            if tally.kills >= kills:
                break
            _run_round(work, processes, chance.uniform(0, longest_s), chance, tally)
    return tally


def _run_round(work: Work, processes: int, delay_s: float | None, chance: random.Random, tally: Tally) -> float:
    """Let processes work and kill one or all after a while, look, let one work once more; return how long it took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work.prepare(folder)
        try:
            children = [_start(work, folder) for _ in range(processes)]
            begun = time.perf_counter()
            for child in children:
                _tell(child)
            if delay_s is not None:
                time.sleep(delay_s)
                for child in children[: chance.randint(1, processes)]:
                    child.send_signal(signal.SIGKILL)
            tally.kills += [child.wait(PATIENCE_S) for child in children].count(-signal.SIGKILL)
            took_s = time.perf_counter() - begun
            _judge(work, folder, children, tally)
        finally:
            work.finish(folder)
    return took_s


def _judge(work: Work, folder: Path, children: list[subprocess.Popen[str]], tally: Tally) -> None:
    """Note what is there after the kills, and after the same work once more."""
    statuses = [child.returncode for child in children]
    try:
        for child, status in zip(children, statuses, strict=True):
            assert status in (0, -signal.SIGKILL), f"a process that was not killed failed: {_last_words(child)}"
        state = work.look(folder)
        if -signal.SIGKILL in statuses:
            tally.found[state] += 1
        assert state == "all" or 0 not in statuses, f"a process has finished, but there is {state}"
        again = _start(work, folder)
        _tell(again)
        assert again.wait(PATIENCE_S) == 0, f"the same work once more failed: {_last_words(again)}"
        state = work.look(folder)
        assert state == "all", f"after the same work once more there is {state}"
    except AssertionError as error:
        tally.faults.append(str(error))


def _start(work: Work, folder: Path) -> subprocess.Popen[str]:
    """Start a process, and wait until it has imported what it needs."""
    here = Path(__file__).parent
    module = work.__name__  # type: ignore[attr-defined]
    child = subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(here), str(here.parent), module, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def _tell(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


def _last_words(child: subprocess.Popen[str]) -> str:
    assert child.stderr is not None
    return (child.stderr.read().strip().splitlines() or ["nothing was said"])[-1]
