"""What the tests of collections and tables share: documents of each kind, kills, a heartbeat."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import numpy as np
from host_helpers import run_python

from akidb_mlx_plugin import Document

# What a web server's other requests may have to wait.
LONGEST_STALL_S = 0.05

# Ends the process for good 3 ms into the given write.
DIE_IN_WRITE = """
import os, signal, threading

def die_in_write(store, number):
    write, calls = store.write, []

    def dying(self, documents, vectors):
        calls.append(documents)
        if len(calls) == number:
            threading.Timer(0.003, os.kill, (os.getpid(), signal.SIGKILL)).start()
        write(self, documents, vectors)

    store.write = dying
"""


def run_killed(code: str, *arguments: object) -> None:
    """Run code that ends its process by SIGKILL."""
    run_python(DIE_IN_WRITE + code, *arguments, status=-signal.SIGKILL)


def mixed_documents(count: int, dimension: int) -> list[Document]:
    """Return documents of which one in 28 has a text, the next text and vector, and all others a vector."""
    vectors = np.random.default_rng(0).standard_normal((count, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kinds = (
        lambda i: Document(id=f"d{i}", text=f"note {i}: how to write a {_THINGS[i // 28 % len(_THINGS)]}"),
        lambda i: Document(id=f"d{i}", text=f"text {i} of another model", vector=vectors[i], metadata={"n": i}),
    )
    return [
        kinds[i % 28](i) if i % 28 < 2 else Document(id=f"d{i}", vector=vectors[i], metadata={"n": i})
        for i in range(count)
    ]


_THINGS = ("poem", "parser", "letter to the mayor", "shopping list", "symphony", "unit test", "cooking recipe")


class EmbeddedByMock(list[str]):
    """The texts that the stand-in model has embedded."""


async def stall_s(work: Awaitable[Any]) -> float:
    """Return the longest time that the event loop stood still for while work was done.

    A task beats every millisecond. Time in which the loop could have run and the machine gave its core to another
    program does not count, where the system tells it.
    """
    # Python's first full collection stops every thread for as long as all that was imported takes to walk through.
    gc.collect()
    stalls: list[float] = []

    async def beat() -> None:
        last, waited = time.perf_counter(), _waited_for_a_core_s()
        while True:
            await asyncio.sleep(0.001)
            now, waited_now = time.perf_counter(), _waited_for_a_core_s()
            stalls.append(now - last - (waited_now - waited))
            last, waited = now, waited_now

    heart = asyncio.create_task(beat())
    try:
        await work
    finally:
        heart.cancel()
    assert len(stalls) > 10
    return max(stalls)


def _waited_for_a_core_s() -> float:
    """Return how long this thread was ready to run and did not; 0 where the system does not tell."""
    try:
        schedule = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text()
    except OSError:
        return 0.0
    return int(schedule.split()[1]) / 1e9
