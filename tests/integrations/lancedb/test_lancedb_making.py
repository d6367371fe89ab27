"""Functions that are made, with settings good and bad, and models that fail."""

import logging
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from akidb_mlx_lancedb import MLXEmbeddings
from host_helpers import MINILM, count_loads
from lancedb_notes import make, note_of

from akidb_mlx_plugin import InvalidInputError, ModelNotFoundError, ServiceUnavailableError
from akidb_mlx_plugin.inference.embedder import Embedder

pytest_plugins = ("host_fixtures",)


class TestMaking:
    @pytest.mark.slow
    def test_a_thousand_functions_load_nothing(
        self, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded = count_loads(monkeypatch)
        for i in range(1000):
            function = make(name=tiny_dir, dimension=32, query_prompt=f"{i}: ")
        table = lancedb.connect(tmp_path).create_table("thousand", schema=note_of(function))
        table.add([{"key": "given", "vector": [0.5] * 32}])
        assert loaded == []
        table.add([{"key": "text", "text": "a text"}])
        assert len(loaded) == 1

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"name": MINILM, "dimension": 0}, "dimension"),
            ({"name": MINILM, "dimension": "384"}, "dimension"),
            ({"name": MINILM, "mode": "pickle"}, "mode"),
            ({"name": MINILM, "trust_remote_code": True}, "trust_remote_code"),
            ({"model": MINILM}, "name="),
            ({"name": "$var:model"}, "variables"),
            ({"name": MINILM, "query_prompt": "$var:prompt:query: "}, "variables"),
        ],
    )
    def test_unusable_settings_are_typed_errors(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            make(**settings)

    def test_an_unknown_model_is_refused_before_there_is_a_table(self) -> None:
        with pytest.raises(ModelNotFoundError, match="did you mean 'minilm-l6-v2'"):
            note_of(make(name="minilm-l6-v3"))

    def test_equal_ones_are_equal(self) -> None:
        assert make(name=MINILM) == make(name=MINILM)
        assert hash(make(name=MINILM)) == hash(make(name=MINILM))
        assert make(name=MINILM) != make(name=MINILM, normalize=False)

    def test_direct_construction_embeds_the_same(self, function: MLXEmbeddings) -> None:
        direct, created = (made.generate_embeddings(["soup"])[0] for made in (MLXEmbeddings(name=MINILM), function))
        assert direct is not None
        np.testing.assert_array_equal(direct, created)

    def test_user_provided_mode_takes_vectors_and_refuses_texts(self, tmp_path: Path) -> None:
        function = make(mode="user_provided", name="theirs", dimension=2)
        table = lancedb.connect(tmp_path).create_table("theirs", schema=note_of(function))
        table.add([{"key": "a", "text": "a text", "vector": [1.0, 0.0]}])
        with pytest.raises(InvalidInputError, match="provide a vector"):
            table.search("a text")

    def test_user_provided_mode_needs_a_width_for_a_column(self) -> None:
        with pytest.raises(InvalidInputError, match="dimension="):
            make(mode="user_provided").ndims()


class TestErrors:
    @pytest.fixture
    def broken(self, notes: lancedb.table.Table, monkeypatch: pytest.MonkeyPatch) -> list[object]:
        """Break the model; the list gets an entry for each time it is asked."""
        calls: list[object] = []

        def fail(self: Embedder, requests: Any) -> Any:
            calls.append(requests)
            raise ServiceUnavailableError("out of order")

        monkeypatch.setattr(Embedder, "embed_requests", fail)
        return calls

    def test_search_raises_it_as_it_is_and_once(self, notes: lancedb.table.Table, broken: list[object]) -> None:
        with pytest.raises(ServiceUnavailableError, match=r"^out of order$"):
            notes.search("spaghetti")
        assert len(broken) == 1

    async def test_so_does_async_search(self, notes: lancedb.table.Table, broken: list[object], tmp_path: Path) -> None:
        table = await (await lancedb.connect_async(tmp_path)).open_table("notes")
        with pytest.raises(ServiceUnavailableError, match=r"^out of order$"):
            await table.search("spaghetti")
        assert len(broken) == 1

    @pytest.mark.parametrize("way", ["add", "merge_insert", "create_table"])
    def test_a_write_names_it_asks_once_and_writes_nothing(
        self,
        notes: lancedb.table.Table,
        broken: list[object],
        way: str,
        tmp_path: Path,
        function: MLXEmbeddings,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """LanceDB pulls a write's rows through Arrow's C interface, which keeps of an exception its text alone."""
        rows = [{"key": "x", "text": "x"}]
        writes = {
            "add": lambda: notes.add(rows),
            "merge_insert": lambda: notes.merge_insert("key").when_not_matched_insert_all().execute(rows),
            "create_table": lambda: lancedb.connect(tmp_path).create_table("x", schema=note_of(function), data=rows),
        }
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(RuntimeError, match=r"(?s)out of order.*akidb_mlx_plugin\.errors\.ServiceUnavailableError"),
        ):
            writes[way]()
        assert len(broken) == 1
        assert "Retrying" not in caplog.text
        assert notes.count_rows() == 3
