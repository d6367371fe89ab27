"""What a table says is untrusted data; the same call of a user may have any model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from akidb_mlx_lancedb import MLXEmbeddings
from host_helpers import MINILM, TINY
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector
from loopback_hub import Hub

from akidb_mlx_plugin import InvalidInputError, ModelNotFoundError

pytest_plugins = ("host_fixtures", "hub_fixtures")


WIDTH = 384


VECTORS = pa.list_(pa.float32(), WIDTH)


GIVEN = np.eye(WIDTH, dtype=np.float32)[7]


class TestTrust:
    """What a table says is data from a stranger."""

    @pytest.fixture
    def planted(self, tmp_path: Path, hub: Hub, cache_dir: Path) -> Iterator[Any]:
        """Return a way to write a table with settings of one's choice, and see that nothing is asked of the hub."""

        def plant(**settings: Any) -> lancedb.table.Table:
            function = {"name": "akidb-mlx", "source_column": "text", "vector_column": "vector", "model": settings}
            fields = [pa.field("key", pa.string()), pa.field("text", pa.string()), pa.field("vector", VECTORS)]
            schema = pa.schema(fields, metadata={"embedding_functions": json.dumps([function])})
            return lancedb.connect(tmp_path / "db").create_table("planted", schema=schema)

        yield plant
        assert hub.requests == []

    def test_a_foreign_model_is_not_fetched(self, planted: Any) -> None:
        table = planted(name="org/foreign", dimension=WIDTH)
        with pytest.raises(InvalidInputError, match="AKIDB_ALLOWED_MODELS=org/foreign"):
            table.search("a text")
        with pytest.raises(RuntimeError, match="AKIDB_ALLOWED_MODELS=org/foreign"):
            table.add([{"key": "a", "text": "a text"}])
        merge = table.merge_insert("key").when_not_matched_insert_all()
        with pytest.raises(RuntimeError, match="AKIDB_ALLOWED_MODELS=org/foreign"):
            merge.execute([{"key": "a", "text": "a text"}])
        table.add([{"key": "a", "vector": GIVEN}])
        assert table.search(GIVEN).limit(1).to_list()[0]["key"] == "a"

    def test_nor_is_one_without_a_dimension(self, planted: Any) -> None:
        with pytest.raises(InvalidInputError, match="AKIDB_ALLOWED_MODELS=org/foreign"):
            planted(name="org/foreign").search("a text")

    def test_nor_where_a_subclass_stands_in_between(self, planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        class Wrapped(MLXEmbeddings):
            @classmethod
            def create(cls, **settings: Any) -> MLXEmbeddings:
                return super().create(**settings)

        monkeypatch.setitem(get_registry()._functions, "akidb-mlx", Wrapped)
        with pytest.raises(InvalidInputError, match="AKIDB_ALLOWED_MODELS=org/foreign"):
            planted(name="org/foreign").search("a text")

    async def test_nor_by_the_async_face(self, planted: Any, tmp_path: Path) -> None:
        planted(name="org/foreign", dimension=WIDTH)
        table = await (await lancedb.connect_async(tmp_path / "db")).open_table("planted")
        with pytest.raises(InvalidInputError, match="AKIDB_ALLOWED_MODELS=org/foreign"):
            await table.search("a text")

    def test_a_request_for_code_is_refused(self, planted: Any) -> None:
        table = planted(name=MINILM, trust_remote_code=True)
        with pytest.raises(InvalidInputError, match="trust_remote_code"):
            table.search("a text")

    def test_a_folder_is_read_where_it_is(self, planted: Any) -> None:
        vector = planted(name=str(TINY), dimension=32).embedding_functions["vector"].function.generate_embeddings(["a"])
        assert len(vector[0]) == 32

    def test_the_users_own_choice_is_fetched(self, hub: Hub, cache_dir: Path) -> None:
        with pytest.raises(ModelNotFoundError, match="org/mine"):
            get_registry().get("akidb-mlx").create(name="org/mine").ndims()
        assert hub.requests != []

    def test_an_allowed_one_is_fetched(
        self, tmp_path: Path, hub: Hub, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        function = MLXEmbeddings.create(name="org/foreign", dimension=WIDTH)

        class Note(LanceModel):
            text: str = function.SourceField()
            vector: Vector(WIDTH) = function.VectorField()  # type: ignore[valid-type]

        table = lancedb.connect(tmp_path / "db").create_table("allowed", schema=Note)
        monkeypatch.setenv("AKIDB_ALLOWED_MODELS", "org/*")
        with pytest.raises(ModelNotFoundError, match="org/foreign"):
            table.search("a text")
        assert hub.requests != []
