"""How long `aupsert` blocks the event loop: a task beats every millisecond while 1,000 texts are embedded and written.

    python tests/benchmarks/event_loop.py                        # LanceDB, three rounds; half a minute
    python tests/benchmarks/event_loop.py --chroma-port 8000     # and a Chroma server that `chroma run` has started

The exit status is 1 where every round of a database has a gap above the limit, which is what other requests of a web
server may have to wait. Gaps that are the machine's fault show only in some rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from akidb_mlx_plugin import Document

_MODEL = "minilm-l6-v2"
_LIMIT_MS = 50.0
_TEXTS = 1000
_Upsert = Callable[[Sequence[Document]], Awaitable[Any]]


async def longest_gap_ms(work: Awaitable[Any]) -> float:
    """Return the longest time between two beats, less the time for which another program had this thread's core."""
    # Python's first full collection stops every thread while it walks through all that was imported.
    gc.collect()
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        last, waited = time.perf_counter(), _waited_for_a_core_s()
        while True:
            await asyncio.sleep(0.001)
            now, waited_now = time.perf_counter(), _waited_for_a_core_s()
            longest = max(longest, now - last - (waited_now - waited))
            last, waited = now, waited_now

    beats = asyncio.create_task(beat())
    try:
        await work
    finally:
        beats.cancel()
    return longest * 1e3


def _waited_for_a_core_s() -> float:
    """Return how long this thread was ready to run but did not; 0 where the system does not say."""
    try:
        schedule = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text()
    except OSError:
        return 0.0
    return int(schedule.split()[1]) / 1e9


async def open_lancedb(folder: str) -> _Upsert:
    """Return the upsert of a new table on disk."""
    import lancedb
    from akidb_mlx_lancedb import MLXEmbeddings, aupsert, table_schema

    connection = await lancedb.connect_async(folder)
    table = await connection.create_table("docs", schema=table_schema(MLXEmbeddings.create(name=_MODEL)))
    return lambda documents: aupsert(table, documents)


async def open_chroma(port: int) -> _Upsert:
    """Return the upsert of a new collection on a server of this machine."""
    import chromadb
    from akidb_mlx_chroma import MLXEmbeddingFunction, aupsert

    client = await chromadb.AsyncHttpClient("127.0.0.1", port)
    function: Any = MLXEmbeddingFunction(_MODEL)
    collection = await client.create_collection(f"event-loop-{uuid.uuid4().hex}", embedding_function=function)
    return lambda documents: aupsert(collection, documents)


async def measure(name: str, upsert: _Upsert, rounds: int) -> bool:
    """Print the longest gap of each round, and return whether one of them is within the limit."""
    await upsert([Document("first", "loads the model")])
    gaps = []
    for turn in range(rounds):
        documents = [Document(f"{turn}-{i}", f"note {i} on how to parse dates") for i in range(_TEXTS)]
        gaps.append(await longest_gap_ms(upsert(documents)))
    print(f"{name}: longest gap of each round {', '.join(f'{gap:.1f}' for gap in gaps)} ms (limit {_LIMIT_MS:g} ms)")
    return min(gaps) < _LIMIT_MS


async def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chroma-port", type=int, help="of a Chroma server on this machine")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fine = [await measure("LanceDB", await open_lancedb(folder), options.rounds)]
    if options.chroma_port is not None:
        fine.append(await measure("Chroma", await open_chroma(options.chroma_port), options.rounds))
    sys.exit(not all(fine))


if __name__ == "__main__":
    asyncio.run(main())
