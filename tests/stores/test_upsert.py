"""Upserts into a dictionary instead of a database: filling, chunks, overlap, skipping."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from memory_store import DIMENSION, PATIENCE_S, CountingProvider, MemoryStore, counting_service, texts

from akidb_mlx_plugin import (
    BatchEmbeddingResponse,
    DimensionMismatchError,
    Document,
    EmbeddingService,
)
from akidb_mlx_plugin.errors import QueueFullError
from akidb_mlx_plugin.providers.mock import hash_texts
from akidb_mlx_plugin.stores.upsert import Upsert


def fill_queue(service: EmbeddingService) -> list[Future[BatchEmbeddingResponse]]:
    taken = []
    with contextlib.suppress(QueueFullError):
        while True:
            taken.append(service.submit(["busy"] * 50))
    return taken


class TestFilling:
    def test_texts_vectors_and_both(self, store: MemoryStore, provider: CountingProvider) -> None:
        given_vector = [float(i) for i in range(1, DIMENSION + 1)]
        documents = [
            Document(id="text", text="a text", metadata={"n": 1}),
            Document(id="vector", vector=given_vector),
            Document(id="both", text="another", vector=np.asarray(given_vector, dtype=np.float64)),
            Document(id="empty", text=""),
        ]
        response = Upsert(store, documents).run()
        assert (response.inserted, response.embeddings_generated, response.skipped) == (4, 2, 0)
        assert response.total_tokens == 3
        assert response.duration_ms > 0
        assert provider.texts == ["a text", ""]
        made = hash_texts(["a text", ""], DIMENSION)
        for id_, vector in [("text", made[0]), ("vector", given_vector), ("both", given_vector), ("empty", made[1])]:
            stored = store.rows[id_].vector
            assert stored is not None
            np.testing.assert_array_equal(stored, np.asarray(vector, dtype=np.float32))
        assert store.rows["both"].text == "another"
        assert store.rows["text"].metadata == {"n": 1}

    def test_no_documents(self, store: MemoryStore) -> None:
        assert Upsert(store, []).run().inserted == 0
        assert Upsert(store, iter([])).run().inserted == 0

    def test_writes_keep_to_the_limit_and_the_order(self, store: MemoryStore, provider: CountingProvider) -> None:
        store.max_rows = 30
        Upsert(store, texts(250), batch_size=100).run()
        assert [len(write.ids) for write in store.writes] == [30, 30, 30, 10, 30, 30, 30, 10, 30, 20]
        assert [id_ for write in store.writes for id_ in write.ids] == [d.id for d in texts(250)]
        assert len({write.thread for write in store.writes}) == 1
        assert provider.texts == [d.text for d in texts(250)]

    def test_the_first_vector_tells_the_dimension_where_nobody_does(self, store: MemoryStore) -> None:
        free = MemoryStore(None, dimension=0)
        with pytest.raises(DimensionMismatchError, match="'b' has a vector of 3 dimensions") as raised:
            Upsert(free, [Document(id="a", vector=[1, 2]), Document(id="b", vector=[1, 2, 3])]).run()
        assert (raised.value.expected, raised.value.actual) == (2, 3)
        assert Upsert(free, [Document(id="a", vector=[1, 2])]).run().inserted == 1

    @pytest.mark.slow
    def test_a_full_queue_is_waited_for(self, provider: CountingProvider) -> None:
        release = threading.Event()

        def hold(batch: int) -> None:
            release.wait(PATIENCE_S)

        provider.before = hold
        with counting_service(provider, queue_size=60) as service:
            others = fill_queue(service)
            upsert = threading.Thread(target=Upsert(MemoryStore(service), texts(55)).run)
            upsert.start()
            upsert.join(0.3)
            assert upsert.is_alive()
            release.set()
            upsert.join(PATIENCE_S)
            assert not upsert.is_alive()
            assert all(other.result().embeddings.shape == (50, DIMENSION) for other in others)
        assert provider.texts.count("text 54") == 1

    def test_a_bar_is_drawn_when_asked_for(self, store: MemoryStore, capsys: pytest.CaptureFixture[str]) -> None:
        Upsert(store, texts(5)).run()
        assert capsys.readouterr() == ("", "")
        Upsert(store, texts(50), show_progress=True).run()
        shown = capsys.readouterr().err
        assert "collection 'memory'" in shown
        assert "50/50" in shown


class TestChunks:
    @pytest.mark.slow
    @pytest.mark.parametrize(("texts_per_s", "expected"), [(1, 32), (20, 200), (1e6, 1024)])
    def test_last_ten_seconds_whatever_the_model(self, store: MemoryStore, texts_per_s: float, expected: int) -> None:
        service = store.service
        assert service is not None
        submit = service.submit_when_room

        def timed(request: Any, **options: Any) -> Any:
            response = submit(request, **options).result()
            taken = replace(response, usage=replace(response.usage, duration_ms=len(request) / texts_per_s * 1e3))
            future: Future[Any] = Future()
            future.set_result(taken)
            return future

        service.submit_when_room = timed  # type: ignore[method-assign]
        Upsert(store, texts(5000)).run()
        sizes = [len(write.ids) for write in store.writes]
        assert sizes[0] == 256
        assert set(sizes[2:-1]) == {expected}

    def test_a_size_that_is_given_stays(self, store: MemoryStore) -> None:
        Upsert(store, texts(100), batch_size=7).run()
        assert {len(write.ids) for write in store.writes[:-1]} == {7}


class TestOverlap:
    def test_a_chunk_is_embedded_while_the_one_before_is_written(
        self, store: MemoryStore, provider: CountingProvider
    ) -> None:
        embedding_second = threading.Event()
        provider.before = lambda batch: embedding_second.set() if batch == 1 else None
        together: list[bool] = []
        store.before_write = lambda number: together.append(embedding_second.wait(PATIENCE_S)) if not number else None
        Upsert(store, texts(30), batch_size=10).run()
        assert together == [True]

    def test_a_stream_is_taken_as_it_is_written(self, store: MemoryStore) -> None:
        taken = itertools.count()
        ahead: list[int] = []

        def stream() -> Iterator[Document]:
            for document in texts(2000):
                ahead.append(next(taken) - len(store.rows))
                yield document

        assert Upsert(store, stream(), batch_size=100).run().inserted == 2000
        # One chunk written, one embedded, one read, and the first document of the next.
        assert max(ahead) <= 400


class TestSkipping:
    @pytest.fixture
    def filled(self, store: MemoryStore, provider: CountingProvider) -> MemoryStore:
        documents = [Document(id=f"d{i}", text=f"text {i}", metadata={"n": i, "none": None}) for i in range(10)]
        Upsert(store, [*documents, Document(id="v", vector=[1.0] * DIMENSION)]).run()
        store.rows = {
            id_: type(row)(row.text, row.vector, {k: v for k, v in row.metadata.items() if v is not None})
            for id_, row in store.rows.items()
        }
        store.writes.clear()
        provider.batches.clear()
        return store

    @pytest.mark.parametrize(
        ("document", "embedded", "written"),
        [
            (Document(id="d1", text="text 1", metadata={"n": 1}), 0, 0),
            (Document(id="d1", text="text 1", metadata={"n": np.int64(1)}), 0, 0),
            (Document(id="d1", text="text 1", metadata={"n": 2}), 0, 1),
            (Document(id="d1", text="text 1"), 0, 1),
            (Document(id="d1", text="other", metadata={"n": 1}), 1, 1),
            (Document(id="new", text="text 1"), 1, 1),
            (Document(id="d1", text="text 1", metadata={"n": 1}, vector=[2.0] * DIMENSION), 0, 1),
            (Document(id="v", vector=[1.0] * DIMENSION), 0, 0),
            (Document(id="v", vector=[2.0] * DIMENSION), 0, 1),
            (Document(id="v", text="now with text"), 1, 1),
            (Document(id="d1", vector=[1.0] * DIMENSION), 0, 1),
        ],
    )
    def test_only_what_changed(
        self, filled: MemoryStore, provider: CountingProvider, document: Document, embedded: int, written: int
    ) -> None:
        response = Upsert(filled, [document], skip_unchanged=True).run()
        assert (response.embeddings_generated, len(provider.texts)) == (embedded, embedded)
        assert (response.inserted, response.skipped) == (written, 1 - written)
        stored = filled.rows[document.id]
        assert stored.text == document.text
        if document.vector is not None:
            np.testing.assert_array_equal(stored.vector, np.asarray(document.vector))
        elif document.text is not None:
            np.testing.assert_array_equal(stored.vector, hash_texts([document.text], DIMENSION)[0])

    def test_without_it_everything_is_written(self, filled: MemoryStore, provider: CountingProvider) -> None:
        assert Upsert(filled, texts(10)).run().embeddings_generated == 10

    def test_the_last_of_two_in_a_stream_counts(self, filled: MemoryStore) -> None:
        stored = Document(id="d1", text="text 1", metadata={"n": 1})
        stream = iter([Document(id="d1", text="other"), *texts(1, start=50), stored, *texts(3, start=51)])
        Upsert(filled, stream, batch_size=2, skip_unchanged=True).run()
        assert filled.rows["d1"].text == "text 1"

    def test_a_row_without_its_vector_is_embedded(self, filled: MemoryStore) -> None:
        filled.rows["d1"] = type(filled.rows["d1"])("text 1", None, {"n": 1})
        assert Upsert(filled, [Document("d1", "text 1", metadata={"n": 1})], skip_unchanged=True).run().inserted == 1
        assert filled.rows["d1"].vector is not None


def test_a_response_of_another_width_is_refused(store: MemoryStore, provider: CountingProvider) -> None:
    embed = provider.embed_batch

    def wider(request: Any) -> BatchEmbeddingResponse:
        response = embed(request)
        return BatchEmbeddingResponse(np.ones((len(request.inputs), 9), np.float32), "mock", response.usage)

    provider.embed_batch = wider  # type: ignore[method-assign]
    with pytest.raises(DimensionMismatchError):
        Upsert(store, texts(3)).run()
    assert store.rows == {}
