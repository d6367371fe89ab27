"""Splitters of other packages as the callable of `upsert(split=…)`, over both databases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import akidb_mlx_chroma
import akidb_mlx_lancedb
import chromadb
import lancedb
import pytest
from host_helpers import MINILM

from akidb_mlx_plugin import Document

# Two subjects, with words enough for several pieces of each.
BREAD = "Knead the dough for ten minutes. Let it rise until it has doubled. Bake it at 220 degrees until it is brown. "
CLOCKS = "A pendulum keeps the time. The escapement lets one tooth of the wheel pass. Wind the spring once a week. "
TEXT = f"{BREAD * 6}\n\n{CLOCKS * 6}"


def langchain() -> Callable[[str], Iterable[Any]]:
    splitters = pytest.importorskip("langchain_text_splitters")
    split: Callable[[str], Iterable[Any]] = splitters.RecursiveCharacterTextSplitter(
        chunk_size=300, chunk_overlap=40
    ).split_text
    return split


def semchunk() -> Callable[[str], Iterable[Any]]:
    made: Callable[[str], Iterable[Any]] = pytest.importorskip("semchunk").chunkerify(
        lambda text: len(text.split()), 40
    )
    return made


def chonkie() -> Callable[[str], Iterable[Any]]:
    made: Callable[[str], Iterable[Any]] = pytest.importorskip("chonkie").SentenceChunker(
        tokenizer="character", chunk_size=300, chunk_overlap=40
    )
    return made


@pytest.fixture(params=["chroma", "lancedb"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Callable[[str], list[dict[str, Any]]]]:
    """A collection or table, and a search in it that returns the pieces it finds."""
    if request.param == "chroma":
        client = chromadb.PersistentClient(tmp_path)
        docs = akidb_mlx_chroma.create_collection(client, "docs", akidb_mlx_chroma.MLXEmbeddingFunction(model=MINILM))

        def search(question: str) -> list[dict[str, Any]]:
            (groups,) = akidb_mlx_chroma.group_by_parent(docs.query(query_texts=[question], n_results=3))
            return [{**piece["metadata"], "text": piece["text"]} for piece in groups[0].pieces]

        return docs, search
    function = akidb_mlx_lancedb.MLXEmbeddings.create(name=MINILM)
    table = akidb_mlx_lancedb.create_table(lancedb.connect(tmp_path), "docs", function)

    def search_table(question: str) -> list[dict[str, Any]]:
        hits = akidb_mlx_lancedb.group_by_parent(table.search(question).limit(3).to_list())[0].pieces
        return [{**json.loads(hit["metadata"]), "text": hit["text"]} for hit in hits]

    return table, search_table


@pytest.mark.slow
@pytest.mark.parametrize("make", [langchain, semchunk, chonkie])
def test_pieces_are_found_where_they_are(make: Callable[[], Any], place: Any) -> None:
    docs, search = place
    upsert = akidb_mlx_chroma.upsert if hasattr(docs, "query") and hasattr(docs, "peek") else akidb_mlx_lancedb.upsert
    report = upsert(docs, [Document("guide", TEXT), Document("short", "Nothing to split.")], split=make())
    assert report.inserted > 4
    for question, word in (("how long is a loaf in the oven", "Bake"), ("what keeps a clock going", "spring")):
        pieces = search(question)
        assert word in pieces[0]["text"]
        for piece in pieces:
            assert piece["parent_id"] == "guide"
            assert TEXT[piece["start"] : piece["end"]] == piece["text"]
