"""A change of model in both databases: the same documents under another one, also after a kill."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from collection_helpers import EmbeddedByMock, run_killed
from hosts import Host

from akidb_mlx_plugin import (
    DimensionMismatchError,
    Document,
    EmbeddingError,
    InvalidInputError,
    UpsertError,
)
from akidb_mlx_plugin.providers.mock import hash_texts

pytest_plugins = ("host_fixtures", "collection_fixtures")

DOCUMENTS = [Document(f"d{i}", f"text {i}", metadata={"n": i, "who": "it's me"}) for i in range(300)]


@pytest.fixture
def host(folder_host: Host) -> Host:
    return folder_host


@pytest.fixture
def old(host: Host) -> Any:
    return host.make(mode="mock", dimension=8)


@pytest.fixture
def new(host: Host) -> Any:
    return host.make(mode="mock", dimension=16)


@pytest.fixture
def source(host: Host, old: Any) -> Any:
    made = host.create("docs", old)
    host.upsert(made, DOCUMENTS)
    return made


class TestBothHosts:
    @pytest.mark.slow
    def test_the_same_documents_under_another_model(self, host: Host, source: Any, new: Any) -> None:
        before = host.read(source)
        made = host.reembed(source, new)
        assert made.name == "docs-mock"
        after = host.read(host.open("docs-mock"))
        assert {id_: row[:2] for id_, row in after.items()} == {d.id: (d.text, d.metadata) for d in DOCUMENTS}
        for document in DOCUMENTS[::50]:
            expected = hash_texts([document.text or ""], 16)[0]
            np.testing.assert_allclose(after[document.id][2], expected, atol=1e-6)
        unchanged = host.read(host.open("docs"))
        assert {id_: row[:2] for id_, row in unchanged.items()} == {id_: row[:2] for id_, row in before.items()}
        assert len(unchanged["d0"][2]) == 8
        # What was made is a collection like any other.
        assert host.upsert(made, [Document("more", "more")]).embeddings_generated == 1

    @pytest.mark.slow
    def test_the_second_run_embeds_what_is_new(self, host: Host, source: Any, new: Any, mocked: EmbeddedByMock) -> None:
        host.reembed(source, new, name="next", batch_size=50)
        host.upsert(source, [Document("d1", "changed"), Document("more", "more")])
        mocked.clear()
        made = host.reembed(source, new, name="next")
        assert sorted(mocked) == ["changed", "more"]
        assert len(host.read(made)) == 301

    @pytest.mark.slow
    def test_a_bar_is_drawn_when_asked_for(
        self, host: Host, source: Any, new: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        host.reembed(source, new)
        assert capsys.readouterr().err == ""
        host.reembed(source, new, show_progress=True)
        assert "300/300" in capsys.readouterr().err

    @pytest.mark.slow
    def test_nothing_to_embed_with_no_text(self, host: Host, source: Any, new: Any, mocked: EmbeddedByMock) -> None:
        host.upsert(source, [Document("v", vector=[1.0] * 8)])
        mocked.clear()
        with pytest.raises(InvalidInputError, match=r"'v' of .* has a vector and no text"):
            host.reembed(source, new)
        assert mocked == []

    @pytest.mark.slow
    def test_names_that_are_taken(self, host: Host, source: Any, old: Any, new: Any) -> None:
        with pytest.raises(InvalidInputError, match="needs another name than"):
            host.reembed(source, new, name="docs")
        host.create("taken", new)
        with pytest.raises(InvalidInputError, match="is not a re-embedding of this source"):
            host.reembed(source, new, name="taken")
        host.reembed(source, new, name="next")
        with pytest.raises(DimensionMismatchError, match="holds vectors of 16 dimensions"):
            host.reembed(source, host.make(mode="mock", dimension=4), name="next")

    @pytest.mark.slow
    def test_documents_that_are_gone_from_the_source_are_told(self, host: Host, source: Any, new: Any) -> None:
        host.reembed(source, new, name="next")
        host.delete(source, "d5")
        with pytest.raises(EmbeddingError, match=r"has 300 documents and .* 299: some were deleted"):
            host.reembed(source, new, name="next")

    @pytest.mark.slow
    def test_an_empty_source(self, host: Host, old: Any, new: Any) -> None:
        assert host.read(host.reembed(host.create("empty", old), new)) == {}

    @pytest.mark.slow
    def test_what_is_missing_at_the_end_is_told(
        self, host: Host, source: Any, new: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write: Any = host.store.write

        def lose(self: Any, documents: Any, vectors: Any) -> None:
            write(self, documents[:-2], vectors[:-2])

        monkeypatch.setattr(host.store, "write", lose)
        with pytest.raises(UpsertError, match="2 of 300 documents") as raised:
            host.reembed(source, new, batch_size=300)
        assert raised.value.not_written == ["d298", "d299"]
        monkeypatch.undo()
        assert len(host.read(host.reembed(source, new))) == 300


@pytest.mark.slow
def test_a_killed_run_is_finished_by_the_second(host: Host, mocked: EmbeddedByMock) -> None:
    run_killed(
        host.script
        + """
from akidb_mlx_plugin import Document
source = create("docs", 8)
upsert(source, [Document(f"d{i}", f"text {i}", metadata={"n": i}) for i in range(1000)])
die_in_write(store, 6)
reembed(source, new_function(16), name="next", batch_size=100)
"""
    )
    there = set(host.read(host.open("next")))
    assert 500 <= len(there) < 1000
    source = host.open("docs")
    made = host.reembed(source, host.make(mode="mock", dimension=16), name="next")
    assert sorted(mocked) == sorted(f"text {i}" for i in range(1000) if f"d{i}" not in there)
    after = host.read(made)
    assert {id_: row[:2] for id_, row in after.items()} == {f"d{i}": (f"text {i}", {"n": i}) for i in range(1000)}
    assert len(host.read(source)) == 1000
