"""Documents that are refused before anything is embedded, and how they are split into chunks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_store import DIMENSION, CountingProvider, MemoryStore, texts

from akidb_mlx_plugin import (
    DimensionMismatchError,
    Document,
    EmbeddingService,
    InvalidInputError,
    UpsertError,
)
from akidb_mlx_plugin.stores.documents import CHUNK_CHARACTERS, ChunkSize, split_documents
from akidb_mlx_plugin.stores.upsert import Upsert


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
        self, store: MemoryStore, provider: CountingProvider, document: Any, message: str
    ) -> None:
        with pytest.raises(InvalidInputError if "holds 8" not in message else DimensionMismatchError, match=message):
            Upsert(store, [*texts(3), document, *texts(900, start=3)], batch_size=2).run()
        assert (provider.texts, store.rows) == ([], {})

    @pytest.mark.parametrize("documents", [None, 5, "text", b"text", Document(id="a", text="a")])
    def test_what_is_no_list_of_documents(self, store: MemoryStore, documents: Any) -> None:
        with pytest.raises(InvalidInputError, match="list or stream of Document"):
            Upsert(store, documents)

    @pytest.mark.parametrize("size", [0, -1, 2.5, True, "10"])
    def test_what_is_no_batch_size(self, store: MemoryStore, size: Any) -> None:
        with pytest.raises(InvalidInputError, match="batch_size"):
            Upsert(store, [], batch_size=size)

    def test_a_text_where_nothing_can_embed_it(self) -> None:
        for service in (None, EmbeddingService(mode="user_provided", dimension=DIMENSION)):
            store = MemoryStore(service)
            with pytest.raises(InvalidInputError, match="'b' has a text and no vector"):
                Upsert(store, [Document(id="a", vector=[1.0] * DIMENSION), Document(id="b", text="b")]).run()
            assert store.rows == {}
            assert Upsert(store, [Document(id="a", text="a", vector=[1.0] * DIMENSION)]).run().inserted == 1

    def test_a_bad_document_in_a_stream_stops_before_its_chunk(
        self, store: MemoryStore, provider: CountingProvider
    ) -> None:
        stream = iter([*texts(250), Document(id="bad", vector=[1.0]), *texts(50, start=250)])
        with pytest.raises(UpsertError, match="'bad' has a vector of 1 dimensions") as raised:
            Upsert(store, stream, batch_size=100).run()
        assert isinstance(raised.value.__cause__, DimensionMismatchError)
        assert "text 200" not in provider.texts
        assert set(raised.value.written) == set(store.rows)
        assert raised.value.written_count == len(store.rows)
        assert "bad" in raised.value.not_written

    def test_a_bad_document_at_the_head_of_a_stream(self, store: MemoryStore) -> None:
        with pytest.raises(InvalidInputError, match="neither text nor vector"):
            Upsert(store, iter([Document(id="x")])).run()


@given(
    sizes=st.lists(st.sampled_from([0, 5, CHUNK_CHARACTERS // 2, CHUNK_CHARACTERS + 1]), max_size=12),
    size=st.integers(1, 5),
)
def test_chunks_hold_everything_in_order_within_bounds(sizes: list[int], size: int) -> None:
    documents = [Document(id=str(i), text="x" * length) for i, length in enumerate(sizes)]
    chunks = list(split_documents(iter(documents), ChunkSize(size)))
    assert [document for chunk in chunks for document in chunk] == documents
    for chunk in chunks:
        assert 0 < len(chunk) <= size
        assert sum(len(document.text or "") for document in chunk[:-1]) < CHUNK_CHARACTERS
