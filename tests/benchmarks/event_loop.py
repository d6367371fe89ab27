"""How long `aupsert` holds up the event loop: what a web server's other requests may have to wait.

    python tests/benchmarks/event_loop.py                    # LanceDB in a temporary folder
    python tests/benchmarks/event_loop.py --port 8000        # and Chroma, behind a server that runs there

Prints the longest stall of each of a few upserts in milliseconds; the lowest is what the code does, the others show
what else the machine was doing. Above 50 ms, something is computed on the loop that should not be.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import threading
import time
import uuid
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import akidb_mlx_chroma
import akidb_mlx_lancedb
import chromadb
import lancedb

from akidb_mlx_plugin import Document

MODEL = "minilm-l6-v2"
ATTEMPTS, DOCUMENTS = 5, 1000


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
    return max(stalls)


def _waited_for_a_core_s() -> float:
    """Return how long this thread was ready to run and did not; 0 where the system does not tell."""
    try:
        schedule = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat").read_text()
    except OSError:
        return 0.0
    return int(schedule.split()[1]) / 1e9


async def measure(name: str, module: Any, collection: Any) -> None:
    await module.aupsert(collection, [Document("first", "loads the model")])
    stalls = []
    for attempt in range(ATTEMPTS):
        documents = [Document(f"{attempt}-{i}", f"note {i} on how to parse dates") for i in range(DOCUMENTS)]
        stalls.append(await stall_s(module.aupsert(collection, documents)))
    print(f"{name}: lowest {min(stalls) * 1e3:.0f} ms, all {', '.join(f'{stall * 1e3:.0f}' for stall in stalls)} ms")


async def main(port: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        connection = await lancedb.connect_async(folder)
        schema = akidb_mlx_lancedb.table_schema(akidb_mlx_lancedb.MLXEmbeddings.create(name=MODEL))
        await measure("LanceDB", akidb_mlx_lancedb, await connection.create_table("docs", schema=schema))
    if port is not None:
        client: Any = await chromadb.AsyncHttpClient("127.0.0.1", port)
        function: Any = akidb_mlx_chroma.MLXEmbeddingFunction(MODEL)
        collection = await client.create_collection(uuid.uuid4().hex, embedding_function=function)
        await measure("Chroma", akidb_mlx_chroma, collection)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, help="of a Chroma server on this machine")
    asyncio.run(main(parser.parse_args().port))
