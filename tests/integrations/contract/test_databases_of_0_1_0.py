"""Databases that version 0.1.0 has written: they open, embed, search and take documents as they did."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosts import HOSTS, ChromaHost, Host

from akidb_mlx_plugin import DimensionMismatchError, Document, EmbeddingService

pytest_plugins = ("host_fixtures",)

ARCHIVE = Path(__file__).with_name("databases_of_0.1.0.tar.xz")
TEXTS = ["the stone bridge", "a river in winter", "how to parse a date", "bread and butter"]
# Written by `upsert` into "docs"; "plain" was made, and filled with two texts, by the databases' own functions.
DOCUMENTS = [
    *(Document(f"d{i}", text, metadata={"n": i}) for i, text in enumerate(TEXTS)),
    Document("own", vector=np.ones(384, dtype=np.float32), metadata={"n": 9}),
]


@pytest.fixture(params=["chroma", "lancedb"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return HOSTS[request.param](tmp_path / request.param, 0)


def test_every_document_is_there(old: Host, minilm: EmbeddingService) -> None:
    found = old.read(old.get("docs"))
    assert {id_: row[:2] for id_, row in found.items()} == {d.id: (d.text, d.metadata) for d in DOCUMENTS}
    made = minilm.embed_batch(TEXTS).embeddings
    np.testing.assert_allclose([found[f"d{i}"][2] for i in range(len(TEXTS))], made, atol=1e-6)


@pytest.mark.slow
def test_it_is_searched_and_written_as_before(old: Host, minilm: EmbeddingService) -> None:
    docs = old.get("docs")
    assert old.search(docs, "parsing dates") == "d2"
    again = old.upsert(docs, DOCUMENTS, skip_unchanged=True)
    assert (again.inserted, again.skipped) == (0, len(DOCUMENTS))
    assert old.upsert(docs, [Document("new", "an old castle")]).embeddings_generated == 1
    assert old.search(docs, "a castle") == "new"


def test_another_model_is_still_refused(old: Host) -> None:
    for name in ("docs", "plain"):
        with pytest.raises(DimensionMismatchError, match="holds vectors of 384 dimensions"):
            old.get(name, old.make(mode="mock", dimension=8))


def test_what_the_databases_made_themselves_is_embedded_into(old: Host, minilm: EmbeddingService) -> None:
    plain: Any = old.get("plain")
    if isinstance(old, ChromaHost):
        plain.upsert(ids=["c"], documents=["a third one"])
        assert plain.query(query_texts=["one text"], n_results=1)["documents"] == [["one text"]]
    else:
        plain.add([{"text": "a third one"}])
        assert plain.search("one text").limit(1).to_list()[0]["text"] == "one text"
