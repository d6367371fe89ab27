"""Asynchronous upserts into either database."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from hosts import D, Host

from akidb_mlx_plugin import BatchEmbeddingResponse, DimensionMismatchError, Document, InvalidInputError, UpsertError
from akidb_mlx_plugin.providers.mock import MockProvider

pytest_plugins = ("host_fixtures",)
# Chroma's asynchronous client needs a server.
pytestmark = pytest.mark.parametrize("host", ["chroma-server", "lancedb"], indirect=True)


@pytest.mark.slow
async def test_texts_vectors_and_both(host: Host, name: str, mock: Any) -> None:
    remote = await host.connect(name, mock)
    documents = [
        Document("a", "a text", metadata={"x": 1}),
        Document("b", vector=[1.0] * D),
        Document("c", "a text", vector=[2.0] * D),
    ]
    response = await host.module.aupsert(remote, documents)
    assert (response.inserted, response.embeddings_generated) == (3, 1)
    assert (await host.module.aupsert(remote, documents, skip_unchanged=True)).skipped == 3
    again = await host.module.aupsert(remote, [Document("a", "a text")], skip_unchanged=True)
    assert (again.inserted, again.embeddings_generated) == (1, 0)
    assert await host.count_async(remote) == 3
    assert await host.search_async(remote, "a text") == "a"


@pytest.mark.slow
async def test_the_same_refusals(host: Host, name: str, mock: Any) -> None:
    remote = await host.connect(name, mock)
    with pytest.raises(DimensionMismatchError, match="holds 8"):
        await host.module.aupsert(remote, [Document("a", "a", vector=[1.0] * D), Document("c", vector=[1.0])])
    assert await host.count_async(remote) == 0
    await host.module.aupsert(remote, [Document("a", "a")])
    with pytest.raises(DimensionMismatchError, match="holds 8"):
        await host.module.aupsert(remote, [Document("b", "b"), Document("c", vector=[1.0])])
    assert await host.count_async(remote) == 1


@pytest.mark.slow
async def test_many_at_once(host: Host, name: str, mock: Any) -> None:
    remote = await host.connect(name, mock)
    jobs = [host.module.aupsert(remote, [Document(f"{job}-{i}", f"{job} {i}") for i in range(150)]) for job in range(4)]
    assert sum(response.inserted for response in await asyncio.gather(*jobs)) == 600
    assert await host.count_async(remote) == 600


@pytest.mark.slow
async def test_a_synchronous_collection(host: Host, docs: Any) -> None:
    stream = (Document(f"d{i}", f"{i}") for i in range(10))
    assert (await host.module.aupsert(docs, stream)).inserted == 10


@pytest.mark.slow
async def test_a_cancelled_task_ends_after_a_write(host: Host, name: str, mock: Any) -> None:
    remote = await host.connect(name, mock)
    documents = [Document(f"d{i}", f"{i}") for i in range(20_000)]
    task = asyncio.create_task(host.module.aupsert(remote, documents, batch_size=100))
    while not await host.count_async(remote):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as raised:
        await task
    error = raised.value.__cause__
    assert isinstance(error, UpsertError)
    assert await host.count_async(remote) == error.written_count < 20_000


async def test_synchronous_functions_refuse_asynchronous_collections(host: Host, name: str, mock: Any) -> None:
    remote = await host.connect(name, mock)
    with pytest.raises(InvalidInputError, match="await aupsert"):
        host.module.upsert(remote, [Document("a", "a")])


@pytest.mark.slow
async def test_nothing_is_embedded_on_the_event_loop(
    host: Host, name: str, mock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = await host.connect(name, mock)
    threads: set[threading.Thread] = set()
    embed_batch = MockProvider.embed_batch

    def record(self: MockProvider, request: Any) -> BatchEmbeddingResponse:
        threads.add(threading.current_thread())
        return embed_batch(self, request)

    def stream() -> Any:
        threads.add(threading.current_thread())
        yield Document("a", "a text")

    monkeypatch.setattr(MockProvider, "embed_batch", record)
    await host.module.aupsert(remote, stream())
    assert threads
    assert threading.current_thread() not in threads
