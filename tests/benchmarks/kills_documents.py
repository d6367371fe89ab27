"""Kills of writers to a database: every document is there once, old or new, and none is lost.

What belongs to a database is a module beside this one, with three functions on a folder: `make(folder)` writes the
documents of the run "old" to a collection "docs"; `write(folder, kind)` upserts those of the run "new" there, or embeds
"docs" again into "next"; `read(folder, name)` returns (id, text, run, number) of every record.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kills_rounds import Tally

from akidb_mlx_plugin import Document

KINDS = ("upsert", "reembed")
COUNT = 300
BATCH = 15
_PATIENCE_S = 120.0
_WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import importlib
host = importlib.import_module(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
host.write(Path(sys.argv[3]), sys.argv[4])
"""


def documents(run: str) -> list[Document]:
    """Return the documents of a run, "old" or "new": the same ids, and what says whose they are."""
    return [Document(f"d{n}", f"text {n} of {run}", metadata={"run": run, "n": n}) for n in range(COUNT)]


def run_round(host: Any, folder: Path, kind: str, *, writers: int, share: float) -> str:
    """Kill a process that writes, and check what is there.

    Args:
        host: a module as described above.
        folder: for the database; it is made.
        kind: "upsert" or "reembed".
        writers: 1, or 2 that write the same documents at the same time, of which one is killed.
        share: of the time that the work takes, from 0 to 1, the moment of the kill.
    Returns:
        What was there after the kill: "nothing new", "a part" or "all"; "ended before" where the kill came too late.
    Raises:
        AssertionError: a document is lost, there twice, or neither old nor new, or a second run does not finish.
    """
    took = _measure(host, folder / "measured", kind)
    place = folder / "killed"
    host.make(place)
    worker = _start(host, place, kind)
    beside = threading.Thread(target=host.write, args=(place, kind)) if writers > 1 else None
    assert worker.stdin is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()
    if beside is not None:
        beside.start()
    time.sleep(share * took)
    worker.send_signal(signal.SIGKILL)
    status = worker.wait(_PATIENCE_S)
    if beside is not None:
        beside.join(_PATIENCE_S)
        assert not beside.is_alive()
    state = _look(host, place, kind)
    # Nobody died beside it: what the other writer was to write is there.
    assert state == "all" or beside is None
    host.write(place, kind)
    assert _look(host, place, kind) == "all"
    assert status in (0, -signal.SIGKILL), status
    return state if status else "ended before"


def _measure(host: Any, folder: Path, kind: str) -> float:
    host.make(folder)
    begun = time.perf_counter()
    host.write(folder, kind)
    return time.perf_counter() - begun


def _start(host: Any, folder: Path, kind: str) -> subprocess.Popen[str]:
    """Start a process, and wait until it has imported what it needs."""
    here = str(Path(__file__).parent)
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER, here, host.__name__, str(folder), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    return worker


def _look(host: Any, folder: Path, kind: str) -> str:
    """Return how much of the work is there, after every record was checked."""
    found = host.read(folder, "docs")
    _check_records(found)
    assert len(found) == COUNT, f"{COUNT - len(found)} documents of the source are lost"
    if kind == "reembed":
        assert {run for _, _, run, _ in found} == {"old"}
        found = host.read(folder, "next")
        _check_records(found)
        done = len(found)
    else:
        done = sum(run == "new" for _, _, run, _ in found)
    return "all" if done == COUNT else "a part" if done else "nothing new"


def _check_records(found: list[tuple[str, str, str, int]]) -> None:
    twice = [id_ for id_, count in Counter(id_ for id_, *_ in found).items() if count > 1]
    assert not twice, f"{len(twice)} ids are there twice, {twice[0]!r} for one"
    for id_, text, run, number in found:
        assert (id_, text) == (f"d{number}", f"text {number} of {run}"), "parts of two records in one"


def measure_database(host: Any, kills: int, seed: int) -> Iterator[Tally]:
    """Kill writers of each kind so many times, alone and beside another; yield what became of it."""
    chance = random.Random(seed)
    for kind in KINDS:
        for writers in (1, 2):
            tally = Tally(f"{kind}, {host.WHAT}", writers)
            while tally.kills < kills:
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        state = run_round(host, Path(folder), kind, writers=writers, share=chance.random())
                    except AssertionError as error:
                        state = "a fault"
                        tally.faults.append(str(error))
                if state != "ended before":
                    tally.kills += 1
                    tally.found[state] += 1
            yield tally
