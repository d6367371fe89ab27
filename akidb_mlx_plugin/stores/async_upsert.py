"""Upserts that leave the event loop free."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from akidb_mlx_plugin.errors import UpsertError
from akidb_mlx_plugin.stores.upsert import Upsert
from akidb_mlx_plugin.types import UpsertResponse

logger = logging.getLogger(__name__)


async def run_in_background(make: Callable[[], Upsert]) -> UpsertResponse:
    """Make an upsert and run it on a separate thread, without blocking the event loop.

    Canceling the task ends the upsert after the current write. The CancelledError's `__cause__` is then the UpsertError
    that says which documents are in, or None if all of them are.
    """
    made: list[Upsert] = []
    cancelled = threading.Event()

    def run() -> UpsertResponse:
        upsert = make()
        made.append(upsert)
        if cancelled.is_set():
            upsert.cancel()
        return upsert.run()

    executor = ThreadPoolExecutor(1, thread_name_prefix="akidb-mlx-upsert")
    running = asyncio.get_running_loop().run_in_executor(executor, run)
    executor.shutdown(wait=False)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError as cancellation:
        cancelled.set()
        for upsert in made:
            upsert.cancel()
        await asyncio.wait([running])
        error = running.exception()
        count = running.result().inserted + running.result().skipped if error is None else 0
        if isinstance(error, UpsertError):
            count = error.written_count
        logger.info("an upsert was cancelled: %d documents are in, %s", count, "all" if error is None else "not all")
        raise cancellation from error
