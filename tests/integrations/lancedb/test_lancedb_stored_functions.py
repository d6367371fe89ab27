"""What tables store of functions, and what functions take that is not stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from akidb_mlx_lancedb import MLXEmbeddings, create_table, open_table, upsert, validate_table
from host_helpers import TINY
from lancedb.pydantic import LanceModel, Vector

from akidb_mlx_plugin import DimensionMismatchError, Document, InvalidInputError, ModelNotFoundError

pytest_plugins = ("collection_fixtures",)


D = 8


class TestStrangers:
    @pytest.mark.parametrize(
        ("stored", "message"),
        [
            ({"model": "a string"}, "stores 'a string' as the settings"),
            ({"model": 5}, "stores 5 as the settings"),
            ({"model": ["name", "x"]}, "as the settings"),
            ({"vector_column": ["vector"]}, "no column"),
            ({"source_column": {}}, "no column"),
            ({"model": {"name": {"a": 1}}}, "no folder|unknown model|model"),
            ({"model": {"dimension": "many", "name": "minilm-l6-v2"}}, "dimension"),
            ({"model": {"name": 17}}, "model"),
        ],
    )
    def test_settings_of_other_types(self, db: Any, stored: dict[str, Any], message: str) -> None:
        entry = {"name": "akidb-mlx", "model": {}, "source_column": "text", "vector_column": "vector", **stored}
        self.check(db, json.dumps([entry]), InvalidInputError | ModelNotFoundError, message)

    @pytest.mark.parametrize("stored", ["[" * 100_000, '{"a": 1}', "[1]"])
    def test_what_is_no_list_of_functions(self, db: Any, stored: Any) -> None:
        self.check(db, stored, InvalidInputError, "stores")

    def test_homes_of_other_users(self, db: Any) -> None:
        entry = {"name": "akidb-mlx", "source_column": "text", "vector_column": "vector"}
        self.check(db, json.dumps([{**entry, "model": {"name": "~nosuch/x"}}]), ModelNotFoundError, "~nosuch/x")

    def check(self, db: Any, stored: Any, kind: Any, message: str) -> None:
        schema = pa.schema({"id": pa.string(), "text": pa.string(), "vector": pa.list_(pa.float32(), D)})
        table = db.create_table("docs", schema=schema.with_metadata({"embedding_functions": stored}))
        for refused in (lambda: open_table(db, "docs"), lambda: upsert(table, [Document("a", "a")])):
            with pytest.raises(kind.__args__ if hasattr(kind, "__args__") else kind, match=message):
                refused()


class TestMovedFolder:
    @pytest.mark.parametrize("is_stamped", [True, False])
    def test_the_same_weights_elsewhere(self, db: Any, tmp_path: Path, is_stamped: bool) -> None:
        old, new = tmp_path / "old" / "model", tmp_path / "new" / "model"
        shutil.copytree(TINY, old)
        function = MLXEmbeddings.create(name=str(old))

        class Note(LanceModel):
            id: str
            text: str = function.SourceField()
            vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

        table = create_table(db, "docs", function) if is_stamped else db.create_table("docs", schema=Note)
        new.parent.mkdir()
        old.rename(new)
        moved = MLXEmbeddings.create(name=str(new))
        validate_table(table, moved)
        assert upsert(table, [Document("a", "a")], embedding_function=moved).inserted == 1
        other = MLXEmbeddings.create(name=str(new), document_prompt="passage: ")
        with pytest.raises(DimensionMismatchError, match="cannot be compared"):
            validate_table(table, other)


class TestArguments:
    def test_what_belongs_to_the_machine_is_taken_and_not_stored(self, db: Any, tmp_path: Path) -> None:
        function = MLXEmbeddings.create(name=str(TINY), device="cpu", cache_dir=tmp_path / "models")
        config = function.service.config.mlx
        assert (config.device, config.cache_dir) == ("cpu", tmp_path / "models")
        table = create_table(db, "docs", function)
        assert not {"device", "cache_dir"} & set(json.loads(table.schema.metadata[b"embedding_functions"])[0]["model"])
        validate_table(open_table(db, "docs"), function)

    @pytest.mark.parametrize(
        ("arguments", "kind", "message"),
        [
            ({"nmae": "x"}, InvalidInputError, "no argument 'nmae'; did you mean name="),
            ({"dimensions": 8}, InvalidInputError, "no argument 'dimensions'; it is dimension="),
            ({"model_name": "x"}, InvalidInputError, "no argument 'model_name'; it is name="),
            ({"model": "x"}, InvalidInputError, "no argument 'model'; it is name="),
            ({"zzz": 1}, InvalidInputError, "no argument 'zzz'; the arguments are .*device"),
            ({"device": "tpu"}, InvalidInputError, "device = 'tpu'"),
            ({"name": "minilm-l6-v3"}, ModelNotFoundError, "did you mean 'minilm-l6-v2'"),
        ],
    )
    def test_typos(self, arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message):
            MLXEmbeddings.create(**arguments)
