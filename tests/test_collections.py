"""What both databases share: checks, chunks, filling, overlap, failures; on a dictionary in place of a database."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from collection_fakes import DIMENSION, CountingProvider, MemoryTarget, counting_service
from hypothesis import given
from hypothesis import strategies as st

from akidb_mlx_plugin import (
    BatchEmbeddingResponse,
    DimensionMismatchError,
    Document,
    DownloadError,
    EmbeddingService,
    InvalidInputError,
    ModelInfo,
    UpsertError,
)
from akidb_mlx_plugin.batching.queue import QueueFullError
from akidb_mlx_plugin.providers.mock import hash_texts
from akidb_mlx_plugin.stores.async_upsert import run_in_background
from akidb_mlx_plugin.stores.compatibility import (
    StoredSpace,
    as_vector,
    check_query_vector,
    check_space,
    make_stamp,
    without_stamp,
)
from akidb_mlx_plugin.stores.documents import CHUNK_CHARACTERS, split_documents
from akidb_mlx_plugin.stores.settings import settings_of
from akidb_mlx_plugin.stores.upsert import Upsert

PATIENCE_S = 30


def texts(count: int, start: int = 0) -> list[Document]:
    return [Document(id=f"d{i}", text=f"text {i}") for i in range(start, start + count)]


def fill_queue(service: EmbeddingService) -> list[Future[BatchEmbeddingResponse]]:
    taken = []
    with contextlib.suppress(QueueFullError):
        while True:
            taken.append(service.submit(["busy"] * 50))
    return taken


@pytest.fixture
def provider() -> CountingProvider:
    return CountingProvider()


@pytest.fixture
def service(provider: CountingProvider) -> Iterator[EmbeddingService]:
    with counting_service(provider) as service:
        yield service


@pytest.fixture
def target(service: EmbeddingService) -> MemoryTarget:
    return MemoryTarget(service)


class TestFilling:
    def test_texts_vectors_and_both(self, target: MemoryTarget, provider: CountingProvider) -> None:
        given_vector = [float(i) for i in range(1, DIMENSION + 1)]
        documents = [
            Document(id="text", text="a text", metadata={"n": 1}),
            Document(id="vector", vector=given_vector),
            Document(id="both", text="another", vector=np.asarray(given_vector, dtype=np.float64)),
            Document(id="empty", text=""),
        ]
        response = Upsert(target, documents).run()
        assert (response.inserted, response.embeddings_generated, response.skipped) == (4, 2, 0)
        assert response.total_tokens == 3
        assert response.duration_ms > 0
        assert provider.texts == ["a text", ""]
        made = hash_texts(["a text", ""], DIMENSION)
        for id_, vector in [("text", made[0]), ("vector", given_vector), ("both", given_vector), ("empty", made[1])]:
            stored = target.rows[id_].vector
            assert stored is not None
            np.testing.assert_array_equal(stored, np.asarray(vector, dtype=np.float32))
        assert target.rows["both"].text == "another"
        assert target.rows["text"].metadata == {"n": 1}

    def test_no_documents(self, target: MemoryTarget) -> None:
        assert Upsert(target, []).run().inserted == 0
        assert Upsert(target, iter([])).run().inserted == 0

    def test_writes_keep_to_the_limit_and_the_order(self, target: MemoryTarget, provider: CountingProvider) -> None:
        target.max_rows = 30
        Upsert(target, texts(250), batch_size=100).run()
        assert [len(write.ids) for write in target.writes] == [30, 30, 30, 10, 30, 30, 30, 10, 30, 20]
        assert [id_ for write in target.writes for id_ in write.ids] == [d.id for d in texts(250)]
        assert len({write.thread for write in target.writes}) == 1
        assert provider.texts == [d.text for d in texts(250)]

    def test_the_first_vector_tells_the_dimension_where_nobody_does(self, target: MemoryTarget) -> None:
        free = MemoryTarget(None, dimension=0)
        with pytest.raises(DimensionMismatchError, match="'b' has a vector of 3 dimensions") as raised:
            Upsert(free, [Document(id="a", vector=[1, 2]), Document(id="b", vector=[1, 2, 3])]).run()
        assert (raised.value.expected, raised.value.actual) == (2, 3)
        assert Upsert(free, [Document(id="a", vector=[1, 2])]).run().inserted == 1

    def test_a_full_queue_is_waited_for(self, provider: CountingProvider) -> None:
        release = threading.Event()

        def hold(batch: int) -> None:
            release.wait(PATIENCE_S)

        provider.before = hold
        with counting_service(provider, queue_size=60) as service:
            others = fill_queue(service)
            upsert = threading.Thread(target=Upsert(MemoryTarget(service), texts(55)).run)
            upsert.start()
            upsert.join(0.3)
            assert upsert.is_alive()
            release.set()
            upsert.join(PATIENCE_S)
            assert not upsert.is_alive()
            assert all(other.result().embeddings.shape == (50, DIMENSION) for other in others)
        assert provider.texts.count("text 54") == 1

    def test_a_bar_is_drawn_when_asked_for(self, target: MemoryTarget, capsys: pytest.CaptureFixture[str]) -> None:
        Upsert(target, texts(5)).run()
        assert capsys.readouterr() == ("", "")
        Upsert(target, texts(50), show_progress=True).run()
        shown = capsys.readouterr().err
        assert "collection 'memory'" in shown
        assert "50/50" in shown


class TestChunks:
    @pytest.mark.parametrize(("texts_per_s", "expected"), [(1, 32), (20, 200), (1e6, 1024)])
    def test_last_ten_seconds_whatever_the_model(self, target: MemoryTarget, texts_per_s: float, expected: int) -> None:
        service = target.service
        assert service is not None
        submit = service.submit

        def timed(request: Any, **options: Any) -> Any:
            response = submit(request, **options).result()
            taken = replace(response, usage=replace(response.usage, duration_ms=len(request) / texts_per_s * 1e3))
            future: Future[Any] = Future()
            future.set_result(taken)
            return future

        service.submit = timed  # type: ignore[method-assign]
        Upsert(target, texts(5000)).run()
        sizes = [len(write.ids) for write in target.writes]
        assert sizes[0] == 256
        assert set(sizes[2:-1]) == {expected}

    def test_a_size_that_is_given_stays(self, target: MemoryTarget) -> None:
        Upsert(target, texts(100), batch_size=7).run()
        assert {len(write.ids) for write in target.writes[:-1]} == {7}


class TestOverlap:
    def test_a_chunk_is_embedded_while_the_one_before_is_written(
        self, target: MemoryTarget, provider: CountingProvider
    ) -> None:
        embedding_second = threading.Event()
        provider.before = lambda batch: embedding_second.set() if batch == 1 else None
        together: list[bool] = []
        target.before_write = lambda number: together.append(embedding_second.wait(PATIENCE_S)) if not number else None
        Upsert(target, texts(30), batch_size=10).run()
        assert together == [True]

    def test_a_stream_is_taken_as_it_is_written(self, target: MemoryTarget) -> None:
        taken = itertools.count()
        ahead: list[int] = []

        def stream() -> Iterator[Document]:
            for document in texts(2000):
                ahead.append(next(taken) - len(target.rows))
                yield document

        assert Upsert(target, stream(), batch_size=100).run().inserted == 2000
        # One chunk written, one embedded, one read, and the first document of the next.
        assert max(ahead) <= 400


class TestRefusals:
    @pytest.mark.parametrize(
        ("document", "message"),
        [
            (Document(id="x"), "'x' has neither text nor vector"),
            (Document(id="", text="a"), "document 3 has the id ''"),
            (Document(id=5, text="a"), "document 3 has the id 5"),  # type: ignore[arg-type]
            (Document(id="x\ud800", text="a"), "id of document 3 holds a lone surrogate"),
            (Document(id="x", text=b"a"), "text of document 'x' is bytes"),  # type: ignore[arg-type]
            (Document(id="x", text="a\udfff"), "text of document 'x' holds a lone surrogate"),
            (Document(id="d1", text="again"), "'d1' occurs twice"),
            (Document(id="x", vector=[1.0]), "'x' has a vector of 1 dimensions, and collection 'memory' holds 8"),
            (Document(id="x", vector=[[1.0] * 8]), "shape"),  # type: ignore[list-item]
            (Document(id="x", vector=[]), "vector of document 'x' is empty"),
            (Document(id="x", vector=["1"] * 8), "not one row of numbers"),  # type: ignore[list-item]
            (Document(id="x", vector=[True] * 8), "not one row of numbers"),
            (Document(id="x", vector=[0.0] * 7 + [float("nan")]), "not a finite float32: nan at 7"),
            (Document(id="x", vector=[1e300] * 8), "not a finite float32: inf at 0"),
            (Document(id="x", vector=[[1.0], [1.0, 2.0]]), "not one row of numbers"),  # type: ignore[list-item]
            (Document(id="x", text="a", metadata=[1]), "metadata of document 'x'"),  # type: ignore[arg-type]
            (Document(id="x", text="a", metadata={1: 1}), "metadata of document 'x'"),  # type: ignore[dict-item]
            ({"id": "x"}, "document 3 is dict"),
        ],
    )
    def test_one_bad_document_stops_all(
        self, target: MemoryTarget, provider: CountingProvider, document: Any, message: str
    ) -> None:
        with pytest.raises(InvalidInputError if "holds 8" not in message else DimensionMismatchError, match=message):
            Upsert(target, [*texts(3), document, *texts(900, start=3)], batch_size=2).run()
        assert (provider.texts, target.rows) == ([], {})

    @pytest.mark.parametrize("documents", [None, 5, "text", b"text", Document(id="a", text="a")])
    def test_what_is_no_list_of_documents(self, target: MemoryTarget, documents: Any) -> None:
        with pytest.raises(InvalidInputError, match="list or stream of Document"):
            Upsert(target, documents)

    @pytest.mark.parametrize("size", [0, -1, 2.5, True, "10"])
    def test_what_is_no_batch_size(self, target: MemoryTarget, size: Any) -> None:
        with pytest.raises(InvalidInputError, match="batch_size"):
            Upsert(target, [], batch_size=size)

    def test_a_text_where_nothing_can_embed_it(self) -> None:
        for service in (None, EmbeddingService(mode="user_provided", dimension=DIMENSION)):
            target = MemoryTarget(service)
            with pytest.raises(InvalidInputError, match="'b' has a text and no vector"):
                Upsert(target, [Document(id="a", vector=[1.0] * DIMENSION), Document(id="b", text="b")]).run()
            assert target.rows == {}
            assert Upsert(target, [Document(id="a", text="a", vector=[1.0] * DIMENSION)]).run().inserted == 1

    def test_a_bad_document_in_a_stream_stops_before_its_chunk(
        self, target: MemoryTarget, provider: CountingProvider
    ) -> None:
        stream = iter([*texts(250), Document(id="bad", vector=[1.0]), *texts(50, start=250)])
        with pytest.raises(UpsertError, match="'bad' has a vector of 1 dimensions") as raised:
            Upsert(target, stream, batch_size=100).run()
        assert isinstance(raised.value.__cause__, DimensionMismatchError)
        assert "text 200" not in provider.texts
        assert set(raised.value.written) == set(target.rows)
        assert raised.value.written_count == len(target.rows)
        assert "bad" in raised.value.not_written

    def test_a_bad_document_at_the_head_of_a_stream(self, target: MemoryTarget) -> None:
        with pytest.raises(InvalidInputError, match="neither text nor vector"):
            Upsert(target, iter([Document(id="x")])).run()


class TestFailures:
    def test_a_failed_write_says_what_is_in(self, target: MemoryTarget, provider: CountingProvider) -> None:
        def fail(number: int) -> None:
            if number == 3:
                raise OSError("disk full")

        target.before_write = fail
        documents = texts(500)
        with pytest.raises(UpsertError, match="300 documents are in, 200 are not, from 'd300' on: disk full") as raised:
            Upsert(target, documents, batch_size=100).run()
        assert raised.value.written == [d.id for d in documents[:300]]
        assert raised.value.not_written == [d.id for d in documents[300:]]
        assert raised.value.written_count == 300
        assert isinstance(raised.value.__cause__, OSError)

        target.before_write = lambda number: None
        before = len(provider.texts)
        response = Upsert(target, documents, batch_size=100, skip_unchanged=True).run()
        assert (response.inserted, response.skipped, response.embeddings_generated) == (200, 300, 200)
        assert sorted(provider.texts[before:]) == sorted(f"text {i}" for i in range(300, 500))
        assert len(target.rows) == 500

    def test_part_of_a_chunk_may_be_in(self, target: MemoryTarget) -> None:
        def fail(number: int) -> None:
            if number == 1:
                raise OSError("disk full")

        target.max_rows = 4
        target.before_write = fail
        with pytest.raises(UpsertError) as raised:
            Upsert(target, texts(10)).run()
        assert raised.value.written == ["d0", "d1", "d2", "d3"]
        assert raised.value.not_written == [f"d{i}" for i in range(4, 10)]

    def test_a_model_that_fails_midway(self, target: MemoryTarget, provider: CountingProvider) -> None:
        def fail(batch: int) -> None:
            if batch == 2:
                raise MemoryError("no memory for this batch")

        provider.before = fail
        with pytest.raises(UpsertError, match="no memory for this batch") as raised:
            Upsert(target, texts(500), batch_size=100).run()
        assert set(raised.value.written) == set(target.rows)
        assert set(raised.value.written) | set(raised.value.not_written) == {d.id for d in texts(500)}

    def test_a_model_that_cannot_be_had_is_told_as_it_is(
        self, target: MemoryTarget, provider: CountingProvider
    ) -> None:
        def fail(batch: int) -> None:
            raise InvalidInputError("no such model")

        provider.before = fail
        with pytest.raises(InvalidInputError, match="no such model"):
            Upsert(target, texts(5)).run()

    def test_a_stream_that_breaks(self, target: MemoryTarget) -> None:
        def stream() -> Iterator[Document]:
            yield from texts(300)
            raise ConnectionError("the feed broke")

        with pytest.raises(UpsertError, match="the feed broke") as raised:
            Upsert(target, stream(), batch_size=100).run()
        assert set(raised.value.written) == set(target.rows)
        assert set(raised.value.written) | set(raised.value.not_written) >= {d.id for d in texts(300)}

    def test_a_chunk_of_a_stream_may_be_longer_than_what_is_remembered(self, target: MemoryTarget) -> None:
        def fail(number: int) -> None:
            if number == 3:
                raise OSError("disk full")

        target.max_rows = 5000
        target.before_write = fail
        stream = (Document(f"d{i}", vector=[1.0] * DIMENSION) for i in range(18_000))
        with pytest.raises(UpsertError, match=r"15000 documents are in, .* from 'd15000' on") as raised:
            Upsert(target, stream, batch_size=18_000).run()
        assert raised.value.not_written == [f"d{i}" for i in range(15_000, 18_000)]
        assert raised.value.written == [f"d{i}" for i in range(5_000, 15_000)]
        assert raised.value.written_count == 15_000

    def test_a_later_document_of_a_stream_that_is_not_in_yet(self, target: MemoryTarget) -> None:
        def fail(number: int) -> None:
            if number == 1:
                raise OSError("disk full")

        target.before_write = fail
        with pytest.raises(UpsertError) as raised:
            Upsert(target, iter([*texts(2), Document("d1", "newer"), *texts(1, start=2)]), batch_size=2).run()
        assert (raised.value.written, raised.value.not_written) == (["d0"], ["d1", "d2"])

    @pytest.mark.parametrize("batch_size", [1, 10])
    def test_a_cancel_just_before_the_model_is_asked(self, target: MemoryTarget, batch_size: int) -> None:
        upsert = Upsert(target, texts(10), batch_size=batch_size)
        service = target.service
        assert service is not None
        submit = service.submit

        def cancelled_meanwhile(request: Any, **options: Any) -> Any:
            upsert.cancel()
            return submit(request, **options)

        service.submit = cancelled_meanwhile  # type: ignore[method-assign]
        with pytest.raises(UpsertError, match=r"0 documents are in, 10 are not.*cancelled\. Running it again is safe"):
            upsert.run()
        assert target.rows == {}

    def test_a_cancel_while_the_last_batch_is_embedded(self, target: MemoryTarget, provider: CountingProvider) -> None:
        upsert = Upsert(target, texts(10))
        provider.before = lambda batch: upsert.cancel()
        with pytest.raises(UpsertError, match="was cancelled"):
            upsert.run()
        assert target.rows == {}

    def test_an_interrupt_waits_for_the_write(self, target: MemoryTarget) -> None:
        writing = threading.Event()
        finish = threading.Event()

        def slow(number: int) -> None:
            writing.set()
            finish.wait(0.2)

        def stream() -> Iterator[Document]:
            yield from texts(20)
            assert writing.wait(PATIENCE_S)
            raise KeyboardInterrupt

        target.before_write = slow
        with pytest.raises(KeyboardInterrupt):
            Upsert(target, stream(), batch_size=5).run()
        assert len(target.rows) >= 5


class TestSkipping:
    @pytest.fixture
    def filled(self, target: MemoryTarget, provider: CountingProvider) -> MemoryTarget:
        documents = [Document(id=f"d{i}", text=f"text {i}", metadata={"n": i, "none": None}) for i in range(10)]
        Upsert(target, [*documents, Document(id="v", vector=[1.0] * DIMENSION)]).run()
        target.rows = {
            id_: type(row)(row.text, row.vector, {k: v for k, v in row.metadata.items() if v is not None})
            for id_, row in target.rows.items()
        }
        target.writes.clear()
        provider.batches.clear()
        return target

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
        self, filled: MemoryTarget, provider: CountingProvider, document: Document, embedded: int, written: int
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

    def test_without_it_everything_is_written(self, filled: MemoryTarget, provider: CountingProvider) -> None:
        assert Upsert(filled, texts(10)).run().embeddings_generated == 10

    def test_the_last_of_two_in_a_stream_counts(self, filled: MemoryTarget) -> None:
        stored = Document(id="d1", text="text 1", metadata={"n": 1})
        stream = iter([Document(id="d1", text="other"), *texts(1, start=50), stored, *texts(3, start=51)])
        Upsert(filled, stream, batch_size=2, skip_unchanged=True).run()
        assert filled.rows["d1"].text == "text 1"

    def test_a_row_without_its_vector_is_embedded(self, filled: MemoryTarget) -> None:
        filled.rows["d1"] = type(filled.rows["d1"])("text 1", None, {"n": 1})
        assert Upsert(filled, [Document("d1", "text 1", metadata={"n": 1})], skip_unchanged=True).run().inserted == 1
        assert filled.rows["d1"].vector is not None


class TestBackground:
    async def test_cancelling_ends_it_after_the_write(self, target: MemoryTarget, provider: CountingProvider) -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        release = threading.Event()

        def hold(batch: int) -> None:
            loop.call_soon_threadsafe(begun.set)
            release.wait(PATIENCE_S)

        provider.before = hold
        task = asyncio.create_task(run_in_background(lambda: Upsert(target, texts(100), batch_size=10)))
        await begun.wait()
        task.cancel()
        loop.call_later(0.05, release.set)
        with pytest.raises(asyncio.CancelledError):
            await task
        writes = len(target.writes)
        await asyncio.sleep(0.1)
        assert len(target.writes) == writes <= 1

    async def test_a_cancelled_task_tells_what_is_in(
        self, target: MemoryTarget, caplog: pytest.LogCaptureFixture
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

        target.before_write = hold
        caplog.set_level("INFO", "akidb_mlx_plugin.stores.async_upsert")
        documents = texts(100)
        task = asyncio.create_task(run_in_background(lambda: Upsert(target, documents, batch_size=10)))
        await written.wait()
        task.cancel()
        loop.call_later(0.05, release.set)
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        cause = raised.value.__cause__
        assert isinstance(cause, UpsertError)
        assert cause.written == list(target.rows) == [document.id for document in documents[:30]]
        assert cause.not_written == [document.id for document in documents[30:]]
        assert [record.getMessage() for record in caplog.records] == [
            "an upsert was cancelled: 30 documents are in, not all"
        ]

    async def test_a_task_cancelled_in_its_last_write_tells_that_all_is_in(
        self, target: MemoryTarget, caplog: pytest.LogCaptureFixture
    ) -> None:
        writing = asyncio.Event()
        loop = asyncio.get_running_loop()
        release = threading.Event()

        def hold(number: int) -> None:
            loop.call_soon_threadsafe(writing.set)
            release.wait(PATIENCE_S)

        target.before_write = hold
        caplog.set_level("INFO", "akidb_mlx_plugin.stores.async_upsert")
        task = asyncio.create_task(run_in_background(lambda: Upsert(target, texts(10))))
        await writing.wait()
        task.cancel()
        loop.call_later(0.05, release.set)
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        assert raised.value.__cause__ is None
        assert len(target.rows) == 10
        assert [record.getMessage() for record in caplog.records] == [
            "an upsert was cancelled: 10 documents are in, all"
        ]

    async def test_errors_come_as_they_are(self, target: MemoryTarget) -> None:
        with pytest.raises(InvalidInputError, match="neither text nor vector"):
            await run_in_background(lambda: Upsert(target, [Document(id="x")]))

    async def test_several_at_once(self, service: EmbeddingService) -> None:
        targets = [MemoryTarget(service) for _ in range(8)]
        jobs = [run_in_background(lambda target=target: Upsert(target, texts(50))) for target in targets]
        assert [response.inserted for response in await asyncio.gather(*jobs)] == [50] * 8


@given(
    sizes=st.lists(st.sampled_from([0, 5, CHUNK_CHARACTERS // 2, CHUNK_CHARACTERS + 1]), max_size=12),
    size=st.integers(1, 5),
)
def test_chunks_hold_everything_in_order_within_bounds(sizes: list[int], size: int) -> None:
    documents = [Document(id=str(i), text="x" * length) for i, length in enumerate(sizes)]
    chunks = list(split_documents(iter(documents), lambda: size))
    assert [document for chunk in chunks for document in chunk] == documents
    for chunk in chunks:
        assert 0 < len(chunk) <= size
        assert sum(len(document.text or "") for document in chunk[:-1]) < CHUNK_CHARACTERS


class TestSpaces:
    INFO = ModelInfo(model="mock", dimension=8, max_tokens=1, fingerprint="mock:1:8")

    @pytest.fixture
    def mock(self) -> EmbeddingService:
        return EmbeddingService(mode="mock", dimension=8)

    def test_a_stamp_is_what_is_known(self) -> None:
        assert make_stamp(self.INFO) == {
            "akidb_mlx:model": "mock",
            "akidb_mlx:dimension": 8,
            "akidb_mlx:fingerprint": "mock:1:8",
        }
        unknown = ModelInfo(model="theirs", dimension=0, max_tokens=0)
        assert make_stamp(unknown) == {"akidb_mlx:model": "theirs"}
        assert without_stamp({**make_stamp(self.INFO), "owner": "me"}) == {"owner": "me"}

    @pytest.mark.parametrize("encode", [lambda value: value, str, lambda value: str(value).encode()])
    def test_a_function_that_fits(self, mock: EmbeddingService, encode: Callable[[Any], Any]) -> None:
        stamp = {key: encode(value) for key, value in make_stamp(self.INFO).items()}
        assert check_space(StoredSpace("c", stamp, dimension=8), mock) == 8
        assert check_space(StoredSpace("c", stamp), mock) == 8
        assert check_space(StoredSpace("c", stamp), None) == 8
        assert check_space(StoredSpace("c"), mock) == 8
        assert check_space(StoredSpace("c"), None) == 0

    @pytest.mark.parametrize(
        "stored",
        [
            StoredSpace("collection 'c'", dimension=16),
            StoredSpace("collection 'c'", {"akidb_mlx:model": "minilm-l6-v2", "akidb_mlx:dimension": 16}),
            StoredSpace("collection 'c'", {}, {"mode": "mock", "dimension": 16}, dimension=16),
        ],
    )
    def test_another_dimension(self, mock: EmbeddingService, stored: StoredSpace) -> None:
        with pytest.raises(
            DimensionMismatchError, match=r"holds vectors of 16 dimensions.* mock makes 8.*reembed"
        ) as e:
            check_space(stored, mock)
        assert (e.value.expected, e.value.actual) == (16, 8)

    def test_both_models_are_named(self, mock: EmbeddingService) -> None:
        stamp = {"akidb_mlx:model": "minilm-l6-v2", "akidb_mlx:dimension": 8, "akidb_mlx:fingerprint": "abc"}
        with pytest.raises(DimensionMismatchError, match=r"minilm-l6-v2 \(8 dimensions\).*mock \(8 dimensions\)"):
            check_space(StoredSpace("c", stamp, dimension=8), mock)

    def test_settings_tell_where_there_is_no_stamp(self, mock: EmbeddingService) -> None:
        same = settings_of(mock.config)
        assert check_space(StoredSpace("c", settings=same), mock) == 8
        # Another name for the same space, told by what it makes.
        assert check_space(StoredSpace("c", settings={**same, "normalize": False}), mock) == 8
        other = {"model": "minilm-l6-v2", "mode": "mlx", "dimension": 384}
        with pytest.raises(DimensionMismatchError, match="minilm-l6-v2"):
            check_space(StoredSpace("c", settings=other), mock)

    @pytest.mark.parametrize("is_stamped", [True, False])
    @pytest.mark.parametrize(
        ("made_with", "opened_with", "is_same"),
        [
            ({}, {"mode": "mock"}, False),
            ({"dimension": 8}, {"mode": "mock"}, False),
            ({"model": "theirs"}, {"mode": "mock"}, False),
            ({"model": "theirs", "dimension": 8}, {"mode": "mock"}, False),
            ({"mode": "mock"}, {}, False),
            ({"mode": "mock"}, {"dimension": 8}, False),
            ({"mode": "mock"}, {"model": "theirs"}, False),
            ({"mode": "mock"}, {"model": "theirs", "dimension": 8}, False),
            ({"mode": "mock"}, {"model": "mock"}, True),
            ({"mode": "mock"}, {"mode": "mock"}, True),
            ({}, {"dimension": 8}, True),
            ({"dimension": 8}, {}, True),
            ({}, {"model": "theirs", "dimension": 8}, True),
            ({"model": "theirs", "dimension": 8}, {}, True),
            ({"model": "theirs", "dimension": 8}, {"model": "theirs"}, True),
            ({"model": "theirs"}, {"model": "theirs", "dimension": 8}, True),
            ({"model": "theirs"}, {"model": "others"}, False),
            ({"model": "theirs", "dimension": 8}, {"model": "others"}, False),
        ],
    )
    def test_vectors_that_are_brought_are_no_models(
        self, made_with: dict[str, Any], opened_with: dict[str, Any], is_same: bool, is_stamped: bool
    ) -> None:
        def make(
            model: str | None = None, mode: Any = "user_provided", dimension: int | None = None
        ) -> EmbeddingService:
            return EmbeddingService(model, mode=mode, dimension=8 if mode == "mock" else dimension)

        maker = make(**made_with)
        stamp = make_stamp(maker.model_info()) if is_stamped else {}
        stored = StoredSpace("collection 'c'", stamp, settings_of(maker.config), dimension=8)
        if is_same:
            assert check_space(stored, make(**opened_with)) == 8
            return
        with pytest.raises(DimensionMismatchError, match="cannot be compared") as raised:
            check_space(stored, make(**opened_with))
        assert maker.model_info().model in str(raised.value)

    def test_a_model_that_is_not_here_is_another_model(self, mock: EmbeddingService) -> None:
        settings = {"model": "somebody/unknown-model", "mode": "mlx"}
        with pytest.raises(DimensionMismatchError, match=r"somebody/unknown-model.*mock"):
            check_space(StoredSpace("c", settings=settings), mock)

    def test_a_model_that_cannot_be_had_now(self, mock: EmbeddingService, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline() -> ModelInfo:
            raise DownloadError("no network")

        monkeypatch.setattr(mock, "model_info", offline)
        own = StoredSpace("c", settings=settings_of(mock.config), dimension=8)
        assert check_space(own, mock) == 8
        for stored in (replace(own, dimension=0), replace(own, settings={"mode": "mock", "dimension": 9})):
            with pytest.raises(DownloadError):
                check_space(stored, mock)

    def test_a_dimension_that_was_fixed_past_us(self, mock: EmbeddingService) -> None:
        with pytest.raises(DimensionMismatchError, match=r"made for vectors of 8 .*brought 3.*make a new one"):
            check_space(StoredSpace("c", make_stamp(self.INFO), dimension=3), mock)

    @pytest.mark.parametrize("dimension", ["many", -3, b"x", [8]])
    def test_a_stamp_that_is_no_stamp(self, mock: EmbeddingService, dimension: Any) -> None:
        with pytest.raises(InvalidInputError, match="akidb_mlx:dimension"):
            check_space(StoredSpace("c", {"akidb_mlx:dimension": dimension}), mock)

    def test_a_query_vector(self) -> None:
        check_query_vector("c", 3, [1, 2, 3])
        check_query_vector("c", 0, np.ones(5))
        with pytest.raises(DimensionMismatchError, match="c holds vectors of 3 dimensions, and the query vector has 2"):
            check_query_vector("c", 3, [1, 2])
        with pytest.raises(InvalidInputError, match="query vector"):
            check_query_vector("c", 3, "abc")

    @given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
    def test_numbers_stay_what_they_are(self, numbers: list[float]) -> None:
        assert as_vector(numbers, "v").tolist() == numbers
        assert as_vector(np.asarray(numbers, dtype=np.float64), "v").dtype == np.float32


def test_a_response_of_another_width_is_refused(target: MemoryTarget, provider: CountingProvider) -> None:
    embed = provider.embed_batch

    def wider(request: Any) -> BatchEmbeddingResponse:
        response = embed(request)
        return BatchEmbeddingResponse(np.ones((len(request.inputs), 9), np.float32), "mock", response.usage)

    provider.embed_batch = wider  # type: ignore[method-assign]
    with pytest.raises(DimensionMismatchError):
        Upsert(target, texts(3)).run()
    assert target.rows == {}


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
