"""Upserts that end midway, and what their errors say."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from memory_store import DIMENSION, PATIENCE_S, CountingProvider, MemoryStore, texts

from akidb_mlx_plugin import DimensionMismatchError, Document, InvalidInputError, UpsertError
from akidb_mlx_plugin.stores.upsert import Upsert


class TestFailures:
    def test_a_failed_write_says_what_is_in(self, store: MemoryStore, provider: CountingProvider) -> None:
        def fail(number: int) -> None:
            if number == 3:
                raise OSError("disk full")

        store.before_write = fail
        documents = texts(500)
        with pytest.raises(UpsertError, match="300 documents are in, 200 are not, from 'd300' on: disk full") as raised:
            Upsert(store, documents, batch_size=100).run()
        assert raised.value.written == [d.id for d in documents[:300]]
        assert raised.value.not_written == [d.id for d in documents[300:]]
        assert raised.value.written_count == 300
        assert isinstance(raised.value.__cause__, OSError)

        store.before_write = lambda number: None
        before = len(provider.texts)
        response = Upsert(store, documents, batch_size=100, skip_unchanged=True).run()
        assert (response.inserted, response.skipped, response.embeddings_generated) == (200, 300, 200)
        assert sorted(provider.texts[before:]) == sorted(f"text {i}" for i in range(300, 500))
        assert len(store.rows) == 500

    def test_part_of_a_chunk_may_be_in(self, store: MemoryStore) -> None:
        def fail(number: int) -> None:
            if number == 1:
                raise OSError("disk full")

        store.max_rows = 4
        store.before_write = fail
        with pytest.raises(UpsertError) as raised:
            Upsert(store, texts(10)).run()
        assert raised.value.written == ["d0", "d1", "d2", "d3"]
        assert raised.value.not_written == [f"d{i}" for i in range(4, 10)]

    def test_a_model_that_fails_midway(self, store: MemoryStore, provider: CountingProvider) -> None:
        def fail(batch: int) -> None:
            if batch == 2:
                raise MemoryError("no memory for this batch")

        provider.before = fail
        with pytest.raises(UpsertError, match="no memory for this batch") as raised:
            Upsert(store, texts(500), batch_size=100).run()
        assert set(raised.value.written) == set(store.rows)
        assert set(raised.value.written) | set(raised.value.not_written) == {d.id for d in texts(500)}

    def test_a_model_that_cannot_be_had_is_told_as_it_is(self, store: MemoryStore, provider: CountingProvider) -> None:
        def fail(batch: int) -> None:
            raise InvalidInputError("no such model")

        provider.before = fail
        with pytest.raises(InvalidInputError, match="no such model"):
            Upsert(store, texts(5)).run()

    def test_a_stream_that_breaks(self, store: MemoryStore) -> None:
        def stream() -> Iterator[Document]:
            yield from texts(300)
            raise ConnectionError("the feed broke")

        with pytest.raises(UpsertError, match="the feed broke") as raised:
            Upsert(store, stream(), batch_size=100).run()
        assert set(raised.value.written) == set(store.rows)
        assert set(raised.value.written) | set(raised.value.not_written) >= {d.id for d in texts(300)}

    @pytest.mark.slow
    def test_a_chunk_of_a_stream_may_be_longer_than_what_is_remembered(self, store: MemoryStore) -> None:
        def fail(number: int) -> None:
            if number == 3:
                raise OSError("disk full")

        store.max_rows = 5000
        store.before_write = fail
        stream = (Document(f"d{i}", vector=[1.0] * DIMENSION) for i in range(18_000))
        with pytest.raises(UpsertError, match=r"15000 documents are in, .* from 'd15000' on") as raised:
            Upsert(store, stream, batch_size=18_000).run()
        assert raised.value.not_written == [f"d{i}" for i in range(15_000, 18_000)]
        assert raised.value.written == [f"d{i}" for i in range(5_000, 15_000)]
        assert raised.value.written_count == 15_000

    def test_a_later_document_of_a_stream_that_is_not_in_yet(self, store: MemoryStore) -> None:
        def fail(number: int) -> None:
            if number == 1:
                raise OSError("disk full")

        store.before_write = fail
        with pytest.raises(UpsertError) as raised:
            Upsert(store, iter([*texts(2), Document("d1", "newer"), *texts(1, start=2)]), batch_size=2).run()
        assert (raised.value.written, raised.value.not_written) == (["d0"], ["d1", "d2"])

    @pytest.mark.parametrize("batch_size", [1, 10])
    def test_a_cancel_just_before_the_model_is_asked(self, store: MemoryStore, batch_size: int) -> None:
        upsert = Upsert(store, texts(10), batch_size=batch_size)
        service = store.service
        assert service is not None
        submit = service.submit_when_room

        def cancelled_meanwhile(request: Any, **options: Any) -> Any:
            upsert.cancel()
            return submit(request, **options)

        service.submit_when_room = cancelled_meanwhile  # type: ignore[method-assign]
        with pytest.raises(UpsertError, match=r"0 documents are in, 10 are not.*cancelled\. Running it again is safe"):
            upsert.run()
        assert store.rows == {}

    def test_a_cancel_while_the_last_batch_is_embedded(self, store: MemoryStore, provider: CountingProvider) -> None:
        upsert = Upsert(store, texts(10))
        provider.before = lambda batch: upsert.cancel()
        with pytest.raises(UpsertError, match="was cancelled"):
            upsert.run()
        assert store.rows == {}

    @pytest.mark.slow
    def test_an_interrupt_waits_for_the_write(self, store: MemoryStore) -> None:
        writing = threading.Event()
        finish = threading.Event()

        def slow(number: int) -> None:
            writing.set()
            finish.wait(0.2)

        def stream() -> Iterator[Document]:
            yield from texts(20)
            assert writing.wait(PATIENCE_S)
            raise KeyboardInterrupt

        store.before_write = slow
        with pytest.raises(KeyboardInterrupt):
            Upsert(store, stream(), batch_size=5).run()
        assert len(store.rows) >= 5


@pytest.mark.parametrize(
    "error",
    [
        DimensionMismatchError("other", expected=3, actual=4),
        UpsertError("midway", written=["a"], not_written=["b"], written_count=1),
    ],
)
def test_errors_travel_between_processes(error: Exception) -> None:
    there = pickle.loads(pickle.dumps(error))
    assert (type(there), str(there), vars(there)) == (type(error), str(error), vars(error))
