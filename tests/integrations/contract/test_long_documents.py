"""Long documents on either database: written as pieces, replaced as a whole, found by document."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import akidb_mlx_chroma
import akidb_mlx_lancedb
import pyarrow as pa
import pytest
from akidb_mlx_chroma.store import ChromaStore
from akidb_mlx_lancedb.store import LanceStore
from host_helpers import TINY
from hosts import ChromaHost, D, Host, LanceHost

from akidb_mlx_plugin import Document
from akidb_mlx_plugin.errors import InvalidInputError, UpsertError

pytest_plugins = ("host_fixtures", "collection_fixtures")


def by_bar(text: str) -> list[str]:
    """Split after each bar."""
    return [f"{part}|" for part in text.split("|") if part]


def ids(host: Host, docs: Any) -> list[str]:
    return sorted(host.read(docs))


@pytest.mark.slow
def test_pieces_say_where_they_are_from(host: Host, docs: Any) -> None:
    response = host.upsert(docs, [Document("a", "one|two|", metadata={"year": 2020})], split=by_bar)
    assert response.inserted == response.embeddings_generated == 2
    assert {id_: row[:2] for id_, row in host.read(docs).items()} == {
        "a#0": ("one|", {"year": 2020, "parent_id": "a", "start": 0, "end": 4}),
        "a#1": ("two|", {"year": 2020, "parent_id": "a", "start": 4, "end": 8}),
    }


@pytest.mark.slow
def test_a_document_is_replaced_as_a_whole(host: Host, docs: Any) -> None:
    host.upsert(docs, [Document("a", "one|two|three|"), Document("a#x", "mine", metadata={"parent_id": "a"})])
    host.upsert(docs, [Document("a", "one|two|three|"), Document("b", "b|")], split=by_bar)
    assert ids(host, docs) == ["a#0", "a#1", "a#2", "a#x", "b#0"]
    assert host.upsert(docs, [Document("a", "one|two|")], split=by_bar, skip_unchanged=True).skipped == 2
    assert ids(host, docs) == ["a#0", "a#1", "a#x", "b#0"]
    host.upsert(docs, [Document("a", "whole now|")], split=False)
    assert ids(host, docs) == ["a", "a#x", "b#0"]
    host.upsert(docs, [Document("b", "beside its pieces|")])
    assert ids(host, docs) == ["a", "a#x", "b", "b#0"]


@pytest.mark.slow
def test_only_changed_pieces_are_embedded(host: Host, docs: Any) -> None:
    host.upsert(docs, [Document("a", "one|two|three|")], split=by_bar)
    response = host.upsert(docs, [Document("a", "one|TWO|three|")], split=by_bar, skip_unchanged=True)
    assert (response.inserted, response.embeddings_generated, response.skipped) == (1, 1, 2)


@pytest.mark.slow
def test_documents_with_vectors_stay_whole(host: Host, docs: Any) -> None:
    host.upsert(docs, [Document("a", "one|two|")], split=by_bar)
    host.upsert(docs, [Document("a", "one|two|", [1.0] * D), Document("b", vector=[1.0] * D)], split=by_bar)
    assert ids(host, docs) == ["a", "b"]


@pytest.mark.slow
def test_a_stream_of_rows_is_split(host: Host, docs: Any) -> None:
    rows = ({"id": i, "text": "one|two|"} for i in range(3))
    host.upsert(docs, rows, split=by_bar, batch_size=1)
    assert ids(host, docs) == ["0#0", "0#1", "1#0", "1#1", "2#0", "2#1"]


@pytest.mark.slow
def test_the_model_splits(host: Host, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AKIDB_EMBEDDING__MLX__OVERFLOW", "error")
    docs = host.create(name, host.make(TINY))
    text = "The first sentence. " * 40
    with pytest.raises(InvalidInputError, match=r"text of document 'a' has \d+ tokens .* split it"):
        host.upsert(docs, [Document("b", "short"), Document("a", text)], batch_size=1)
    assert ids(host, docs) == []
    response = host.upsert(docs, [Document("a", text)], split=True)
    assert response.truncated == 0
    rows = host.read(docs)
    assert len(rows) > 3
    assert "".join(rows[f"a#{number}"][0] or "" for number in range(len(rows))) == text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("document", "split", "message"),
    [
        (Document("a", "x", metadata={"start": 1}), by_bar, "'start'"),
        (Document("a", "x"), lambda text: ["other"], "is not a part of its text"),
        (Document("a", "x"), lambda text: "x", "gave str"),
        (Document("a", "x"), lambda text: [1], "is int"),
        (Document("a", "x"), lambda text: [], "gave no piece"),
        (Document("a", "x"), "yes", "must be True, False or a function"),
        (Document("a", "x"), True, "no tokenizer"),
    ],
    ids=["metadata", "other-text", "string", "number", "nothing", "wrong-argument", "mock"],
)
def test_what_cannot_be_split_is_refused(host: Host, docs: Any, document: Document, split: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        host.upsert(docs, [Document("first", "first|"), document], split=split)
    assert ids(host, docs) == []


@pytest.mark.slow
def test_results_are_grouped_by_document(host: Host, docs: Any) -> None:
    host.upsert(docs, [Document("a", "one|two|three|"), Document("b", "four|five|")], split=by_bar)
    host.upsert(docs, [Document("c", "whole")])
    if isinstance(host, ChromaHost):
        found = docs.query(query_texts=["five|", "whole"], n_results=6)
        groups, others = akidb_mlx_chroma.group_by_parent(found)
        assert akidb_mlx_chroma.group_by_parent(found, limit=1) == [groups[:1], others[:1]]
        assert others[0].id == "c"
        assert groups[0].pieces[0]["text"] == "five|"
    else:
        groups = akidb_mlx_lancedb.group_by_parent(docs.search("five|").limit(6).to_list())
    assert [groups[0].id, groups[0].pieces[0]["id"]] == ["b", "b#1"]
    assert {group.id: len(group.pieces) for group in groups} == {"a": 3, "b": 2, "c": 1}


def test_a_table_needs_columns_for_pieces(name: str, tmp_path: Any) -> None:
    host = LanceHost(tmp_path / "db", 0)
    function = host.make(mode="mock", dimension=D)
    docs = akidb_mlx_lancedb.create_table(host.db, name, function, schema=pa.schema([pa.field("year", pa.int32())]))
    with pytest.raises(InvalidInputError, match="'parent_id' or 'start' or 'end', which pieces"):
        akidb_mlx_lancedb.upsert(docs, [Document("a", "one|two|")], split=by_bar)
    types = {"parent_id": "string", "start": "bigint", "end": "bigint"}
    docs.add_columns({name: f"cast(null as {kind})" for name, kind in types.items()})
    for text in ("one|two|", "one|"):
        akidb_mlx_lancedb.upsert(docs, [Document("a", text)], split=by_bar)
    (row,) = docs.search().to_list()
    assert (row["id"], row["parent_id"], row["start"], row["end"]) == ("a#0", "a", 0, 4)


@dataclass
class Chunk:
    """A piece as chonkie gives it."""

    text: str
    start_index: int
    end_index: int


@pytest.mark.slow
def test_places_are_taken_from_the_splitter_or_found(folder_host: Host, name: str) -> None:
    docs = folder_host.create(name, folder_host.make(mode="mock", dimension=D))
    text = "ha ha ha ha, he"
    folder_host.upsert(docs, [Document("a", text)], split=lambda text: ["ha ha", "ha ha", ", he"])
    folder_host.upsert(docs, [Document("b", text)], split=lambda text: [Chunk("title: ha", 3, 5)])
    folder_host.upsert(docs, [Document("c", text)], split=lambda text: ["ha ha", "ha, he"])
    places = {id_: (row[1]["start"], row[1]["end"]) for id_, row in folder_host.read(docs).items()}
    assert places == {"a#0": (0, 5), "a#1": (6, 11), "a#2": (11, 15), "b#0": (3, 5), "c#0": (0, 5), "c#1": (9, 15)}


@pytest.mark.slow
def test_nothing_is_lost_when_it_ends_midway(folder_host: Host, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = folder_host.create(name, folder_host.make(mode="mock", dimension=D))
    folder_host.upsert(docs, [Document("a", "one|two|three|")], split=by_bar)
    with monkeypatch.context() as patched:
        for store in (ChromaStore, LanceStore):
            patched.setattr(store, "delete", lambda *_: 1 / 0)
        with pytest.raises(UpsertError, match="division"):
            folder_host.upsert(docs, [Document("a", "1|2|")], split=by_bar)
    assert {id_: row[0] for id_, row in folder_host.read(docs).items()} == {"a#0": "1|", "a#1": "2|", "a#2": "three|"}
    folder_host.upsert(docs, [Document("a", "1|2|")], split=by_bar, skip_unchanged=True)
    assert ids(folder_host, docs) == ["a#0", "a#1"]


@pytest.mark.slow
def test_asynchronous_upserts_split(host: Host, name: str) -> None:
    async def run() -> int:
        collection = await host.connect(name, host.make(mode="mock", dimension=D))
        module = akidb_mlx_lancedb if isinstance(host, LanceHost) else akidb_mlx_chroma
        for text in ("one|two|three|", "one|two|"):
            await module.aupsert(collection, [Document("a", text)], split=by_bar)
        return await host.count_async(collection)

    assert asyncio.run(run()) == 2
