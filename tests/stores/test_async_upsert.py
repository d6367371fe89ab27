"""Upserts that leave the event loop free."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from memory_store import PATIENCE_S, CountingProvider, MemoryStore, texts

from akidb_mlx_plugin import Document, EmbeddingService, InvalidInputError, UpsertError
from akidb_mlx_plugin.stores.async_upsert import run_in_background
from akidb_mlx_plugin.stores.upsert import Upsert


class TestBackground:
    async def test_cancelling_ends_it_after_the_write(self, store: MemoryStore, provider: CountingProvider) -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        release = threading.Event()

        def hold(batch: int) -> None:
            loop.call_soon_threadsafe(begun.set)
            release.wait(PATIENCE_S)

        provider.before = hold
        task = asyncio.create_task(run_in_background(lambda: Upsert(store, texts(100), batch_size=10)))
        await begun.wait()
        task.cancel()
        loop.call_later(0.05, release.set)
        with pytest.raises(asyncio.CancelledError):
            await task
        writes = len(store.writes)
        await asyncio.sleep(0.1)
        assert len(store.writes) == writes <= 1

    @pytest.mark.slow
    async def test_a_cancelled_task_tells_what_is_in(
        self, store: MemoryStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        written = asyncio.Event()
        loop = asyncio.get_running_loop()
        release = threading.Event()

        def hold(number: int) -> None:
            if number == 2:
                # By then the next chunk is embedded and waits to be written.
                time.sleep(0.3)
                loop.call_soon_threadsafe(written.set)
                release.wait(PATIENCE_S)

        store.before_write = hold
        caplog.set_level("INFO", "akidb_mlx_plugin.stores.async_upsert")
        documents = texts(100)
        task = asyncio.create_task(run_in_background(lambda: Upsert(store, documents, batch_size=10)))
        await written.wait()
        task.cancel()
        loop.call_later(0.05, release.set)
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        cause = raised.value.__cause__
        assert isinstance(cause, UpsertError)
        assert cause.written == list(store.rows) == [document.id for document in documents[:30]]
        assert cause.not_written == [document.id for document in documents[30:]]
        assert [record.getMessage() for record in caplog.records] == [
            "an upsert was cancelled: 30 documents are in, not all"
        ]

    async def test_a_task_cancelled_in_its_last_write_tells_that_all_is_in(
        self, store: MemoryStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        writing = asyncio.Event()
        loop = asyncio.get_running_loop()
        release = threading.Event()

        def hold(number: int) -> None:
            loop.call_soon_threadsafe(writing.set)
            release.wait(PATIENCE_S)

        store.before_write = hold
        caplog.set_level("INFO", "akidb_mlx_plugin.stores.async_upsert")
        task = asyncio.create_task(run_in_background(lambda: Upsert(store, texts(10))))
        await writing.wait()
        task.cancel()
        loop.call_later(0.05, release.set)
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        assert raised.value.__cause__ is None
        assert len(store.rows) == 10
        assert [record.getMessage() for record in caplog.records] == [
            "an upsert was cancelled: 10 documents are in, all"
        ]

    async def test_errors_come_as_they_are(self, store: MemoryStore) -> None:
        with pytest.raises(InvalidInputError, match="neither text nor vector"):
            await run_in_background(lambda: Upsert(store, [Document(id="x")]))

    async def test_several_at_once(self, service: EmbeddingService) -> None:
        stores = [MemoryStore(service) for _ in range(8)]
        jobs = [run_in_background(lambda store=store: Upsert(store, texts(50))) for store in stores]
        assert [response.inserted for response in await asyncio.gather(*jobs)] == [50] * 8
