"""Documents that are written to either database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from collection_helpers import EmbeddedByMock, mixed_documents, run_killed
from host_helpers import MINILM, Embedded, run_python
from hosts import D, Host

from akidb_mlx_plugin import DimensionMismatchError, Document, EmbeddingService, InvalidInputError

pytest_plugins = ("host_fixtures", "collection_fixtures")


@pytest.mark.slow
@pytest.mark.parametrize("host", ["chroma-server", "lancedb"], indirect=True)
def test_the_whole_story(host: Host, name: str, minilm: EmbeddingService, embedded: Embedded) -> None:
    documents = mixed_documents(5600, 384)
    made = host.create(name, host.make(MINILM))
    # More than Chroma takes at once.
    response = host.upsert(made, documents, batch_size=10_000)
    assert (response.inserted, response.embeddings_generated) == (5600, 200)
    assert response.total_tokens > 2000

    code = host.script + (
        "import json, sys\n"
        'asked = ["compose music for an orchestra", "cook something"]\n'
        "print(json.dumps([ask(get(sys.argv[1]), text) for text in asked]))\n"
    )
    music, food = json.loads(run_python(code, name))
    assert all("symphony" in text for text in music)
    assert all("recipe" in text for text in food)

    np.testing.assert_allclose(host.read(made)["d1"][2], documents[1].vector, atol=1e-6)
    reopened = host.get(name)
    moon = Document(id="d0", text="the moon rises over the sea")
    host.upsert(reopened, [moon])
    assert host.search(reopened, "night sky above the ocean") == "d0"
    embedded.clear()
    again = host.upsert(reopened, [moon, *documents[1:]], skip_unchanged=True)
    assert (again.inserted, again.skipped, embedded) == (0, 5600, [])

    good = [Document(id=f"new{i}", text=f"new {i}") for i in range(1000)]
    good.insert(700, Document(id="bad", vector=[0.5] * 768))
    with pytest.raises(DimensionMismatchError, match=r"'bad' has a vector of 768 .* holds 384"):
        host.upsert(reopened, good)
    assert (len(host.read(reopened)), embedded) == (5600, [])


@pytest.mark.slow
def test_a_document_replaces_the_whole_of_the_old_one(host: Host, docs: Any) -> None:
    old = [
        Document("a", "old text", metadata={"x": 1, "y": [1, 2]}),
        Document("b", "old text", metadata={"x": 1}),
        Document("c", vector=[1.0] * D),
    ]
    new = [
        Document("a", "new text", metadata={"z": 3}),
        Document("b", vector=[1.0] * D),
        Document("c", "text", metadata={"x": None}),
    ]
    host.upsert(docs, old)
    host.upsert(docs, new)
    found = {id_: row[:2] for id_, row in host.read(docs).items()}
    assert found == {"a": ("new text", {"z": 3}), "b": (None, {}), "c": ("text", {})}
    assert host.upsert(docs, new, skip_unchanged=True).skipped == 3


@pytest.mark.slow
@pytest.mark.parametrize("value", [object(), float("nan"), b"bytes", 2**70, "\ud800"])
def test_metadata_that_would_not_come_back_are_refused_before_embedding(
    host: Host, docs: Any, mocked: EmbeddedByMock, value: object
) -> None:
    with pytest.raises(InvalidInputError, match="metadata of document 'b' cannot be"):
        host.upsert(docs, [Document("a", "a"), Document("b", "b", metadata={"x": value})])
    assert (host.read(docs), mocked) == ({}, [])


@pytest.mark.slow
def test_unchanged_texts_are_known_after_the_hosts_own_writes(host: Host, docs: Any, mocked: EmbeddedByMock) -> None:
    documents = [Document(f"d{i}", f"text {i}", metadata={"n": i}) for i in range(5)]
    host.upsert(docs, documents)
    host.change_text(docs, "d1", "changed by the host")
    host.delete(docs, "d3")
    mocked.clear()
    response = host.upsert(docs, documents, skip_unchanged=True)
    assert (response.inserted, response.skipped) == (2, 3)
    assert sorted(mocked) == ["text 1", "text 3"]


@pytest.mark.slow
def test_a_stream_larger_than_one_write(host: Host, docs: Any) -> None:
    def stream() -> Iterator[Document]:
        for i in range(6_000):
            yield Document(f"d{i}", vector=[1.0 + i] * D)

    assert host.upsert(docs, stream(), batch_size=5_800).inserted == 6_000
    assert len(host.read(docs)) == 6_000


@pytest.mark.slow
def test_vectors_of_a_users_own_model(host: Host, name: str) -> None:
    theirs = host.make("theirs", mode="user_provided", dimension=3)
    assert host.upsert(host.create(name, theirs), [Document("a", "a text", vector=[1, 2, 3])]).inserted == 1
    opened = host.get(name)
    with pytest.raises(DimensionMismatchError, match=r"2 dimensions, and .* holds 3"):
        host.upsert(opened, [Document("b", vector=[1, 2])])
    with pytest.raises(InvalidInputError, match="'c' has a text and no vector"):
        host.upsert(opened, [Document("b", vector=[1, 2, 3]), Document("c", "c")])
    assert set(host.read(opened)) == {"a"}
    with pytest.raises(DimensionMismatchError, match=r"3 dimensions \(theirs\), and mock makes 8"):
        host.get(name, host.make(mode="mock", dimension=8))


@pytest.mark.slow
def test_a_second_run_finishes_what_a_killed_one_began(host: Host, name: str, mocked: EmbeddedByMock) -> None:
    run_killed(
        host.script
        + """
import sys
from akidb_mlx_plugin import Document
die_in_write(store, 6)
documents = [Document(f"d{i}", f"text {i}", metadata={"n": i}) for i in range(1000)]
upsert(create(sys.argv[1], 8), documents, batch_size=100)
""",
        name,
    )
    collection = host.get(name)
    there = set(host.read(collection))
    assert 500 <= len(there) < 1000
    documents = [Document(f"d{i}", f"text {i}", metadata={"n": i}) for i in range(1000)]
    response = host.upsert(collection, documents, skip_unchanged=True)
    assert sorted(mocked) == sorted(d.text or "" for d in documents if d.id not in there)
    assert response.skipped == len(there)
    found = {id_: row[:2] for id_, row in host.read(collection).items()}
    assert found == {d.id: (d.text, d.metadata) for d in documents}
    assert host.search(collection, "text 432") == "d432"
