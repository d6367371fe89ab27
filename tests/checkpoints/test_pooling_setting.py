"""The setting `pooling`: from every place where it can be set to the vectors, and to the settings in both databases."""

# No postponed annotations here: LanceDB reads the vector column's width from the class annotations.

import json
import shutil
from pathlib import Path
from typing import Any

import akidb_mlx_chroma
import akidb_mlx_lancedb
import chromadb
import lancedb
import numpy as np
import pyarrow as pa
import pytest
import typer
from akidb_mlx_chroma import MLXEmbeddingFunction
from akidb_mlx_lancedb import MLXEmbeddings
from akidb_mlx_lancedb.schema import FUNCTIONS_KEY
from chromadb.api import ClientAPI
from chromadb.config import Settings
from host_helpers import count_loads, vector_of
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector
from typer.testing import CliRunner

from akidb_mlx_plugin import (
    DimensionMismatchError,
    Document,
    EmbeddingConfig,
    EmbeddingService,
    InvalidInputError,
)
from akidb_mlx_plugin.checkpoints.options import LoadOptions
from akidb_mlx_plugin.cli.embed import embed
from akidb_mlx_plugin.cli.reembed import reembed
from akidb_mlx_plugin.cli.search import search
from akidb_mlx_plugin.inference.embedder import Embedder
from akidb_mlx_plugin.inference.shared import acquire_embedder, release_model
from akidb_mlx_plugin.pooling_names import POOLING_MODES

pytest_plugins = ("host_fixtures",)

TEXTS = ["a stone", "the paper and the river of the city"]
VARIABLE = "AKIDB_EMBEDDING__MLX__POOLING"


def vectors(model: Path, **settings: Any) -> Any:
    with EmbeddingService(model, **settings) as service:
        return service.embed_batch(TEXTS).embeddings


@pytest.fixture
def cls_vectors(tiny_dir: Path, tmp_path: Path) -> Any:
    """The tiny BERT's vectors if its own folder sets cls pooling, with unit length."""
    return vectors(folder_with(tiny_dir, tmp_path / "says-cls", "cls"))


@pytest.fixture
def mean_vectors(tiny_dir: Path) -> Any:
    """The tiny BERT's vectors with its own settings."""
    return vectors(tiny_dir)


def folder_with(model: Path, copy: Path, mode: str) -> Path:
    """Copy a model with another pooling in its own configuration."""
    shutil.copytree(model, copy)
    file = copy / "1_Pooling" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pooling_mode": mode}))
    return copy


class TestVectors:
    @pytest.mark.slow
    @pytest.mark.parametrize("mode", POOLING_MODES)
    def test_are_those_of_a_checkpoint_that_says_so(self, mode: str, tiny_dir: Path, tmp_path: Path) -> None:
        expected = vectors(folder_with(tiny_dir, tmp_path / "copy", mode))
        np.testing.assert_array_equal(vectors(tiny_dir, pooling=mode), expected)
        with Embedder.load(tiny_dir, pooling=mode) as embedder:
            np.testing.assert_array_equal(embedder.embed(TEXTS).embeddings, expected)
            assert embedder.info().pooling == mode

    def test_of_several_are_side_by_side_in_their_order(self, tiny_dir: Path) -> None:
        one, other = (vectors(tiny_dir, pooling=mode, normalize=False) for mode in ("lasttoken", "cls"))
        both = vectors(tiny_dir, pooling=["lasttoken", "cls"], normalize=False)
        np.testing.assert_allclose(both, np.hstack([one, other]), atol=1e-5)

    def test_are_those_of_the_environment_unless_an_argument_says_other(
        self, tiny_dir: Path, cls_vectors: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(VARIABLE, "cls")
        np.testing.assert_array_equal(vectors(tiny_dir), cls_vectors)
        assert not np.allclose(vectors(tiny_dir, pooling="max"), cls_vectors)


class TestService:
    def test_an_unknown_mode_is_refused_with_the_known_ones(self, tiny_dir: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"mlx.pooling = 'last' \(argument\).* cls, max, mean, .*lasttoken"):
            EmbeddingService(tiny_dir, pooling="last")
        for load in (Embedder.open, acquire_embedder):
            with pytest.raises(InvalidInputError, match=r"cls, max, mean, .*lasttoken"):
                load(tiny_dir, LoadOptions(pooling="last"))

    def test_goes_with_no_whole_configuration(self) -> None:
        with pytest.raises(InvalidInputError, match="pooling"):
            EmbeddingService(EmbeddingConfig(), pooling="cls")

    def test_each_pooling_is_a_model_of_its_own_in_the_process(
        self, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded = count_loads(monkeypatch)
        settings: list[Any] = [None, "cls", "cls+mean", ["cls", "mean"], ("cls", "mean"), "cls"]
        held = [acquire_embedder(tiny_dir, LoadOptions(pooling=pooling)) for pooling in settings]
        assert len(loaded) == 3
        assert [embedder.info().pooling for embedder in held] == ["mean", "cls", *["cls+mean"] * 3, "cls"]
        for embedder in held:
            release_model(embedder)


@pytest.fixture
def chroma_client(tmp_path: Path) -> ClientAPI:
    # The command line's settings: Chroma allows only one client per folder in a process.
    return chromadb.PersistentClient(tmp_path / "chroma", settings=Settings(anonymized_telemetry=False))


class TestChroma:
    def test_is_stored_and_comes_back(self, chroma_client: ClientAPI, tiny_dir: Path, cls_vectors: Any) -> None:
        function = MLXEmbeddingFunction(tiny_dir, pooling="cls")
        chroma_client.create_collection("docs", embedding_function=function).add(ids=["a", "b"], documents=TEXTS)
        again = chroma_client.get_collection("docs")
        assert again.configuration_json["embedding_function"]["config"]["pooling"] == "cls"
        np.testing.assert_allclose(vector_of(again, "a"), cls_vectors[0], atol=1e-6)
        found = again.query(query_texts=TEXTS, n_results=1)
        assert found["ids"] == [["a"], ["b"]]
        assert found["distances"] == [[pytest.approx(0, abs=1e-5)]] * 2

    def test_several_are_stored_in_one_spelling(self, chroma_client: ClientAPI, tiny_dir: Path) -> None:
        function = MLXEmbeddingFunction(tiny_dir, pooling=["cls", "mean"])
        collection = akidb_mlx_chroma.create_collection(chroma_client, "docs", function)
        akidb_mlx_chroma.upsert(collection, [Document("a", text=TEXTS[0])])
        again = akidb_mlx_chroma.get_collection(chroma_client, "docs")
        assert again.configuration_json["embedding_function"]["config"]["pooling"] == "cls+mean"
        assert vector_of(again, "a").shape == (64,)

    def test_another_is_another_space(self, chroma_client: ClientAPI, tiny_dir: Path) -> None:
        akidb_mlx_chroma.create_collection(chroma_client, "docs", MLXEmbeddingFunction(tiny_dir))
        other = MLXEmbeddingFunction(tiny_dir, pooling="cls")
        with pytest.raises(DimensionMismatchError, match=r"pooling is None there and 'cls' here.*cannot be compared"):
            akidb_mlx_chroma.get_collection(chroma_client, "docs", other)
        # A setting equal to the checkpoint's own is equivalent to none.
        akidb_mlx_chroma.get_collection(chroma_client, "docs", MLXEmbeddingFunction(tiny_dir, pooling="mean"))
        with pytest.raises(InvalidInputError, match="pooling: None -> 'cls'"):
            chroma_client.get_collection("docs").modify(configuration={"embedding_function": other})  # type: ignore[typeddict-item]

    def test_a_collection_from_before_the_setting_keeps_its_space(
        self, chroma_client: ClientAPI, tiny_dir: Path, mean_vectors: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        get_config = MLXEmbeddingFunction.get_config
        with monkeypatch.context() as earlier:
            earlier.setattr(
                MLXEmbeddingFunction,
                "get_config",
                lambda self: {key: value for key, value in get_config(self).items() if key != "pooling"},
            )
            docs = akidb_mlx_chroma.create_collection(chroma_client, "docs", MLXEmbeddingFunction(tiny_dir))
            docs.add(ids=["a"], documents=TEXTS[:1])
        assert "pooling" not in docs.configuration_json["embedding_function"]["config"]
        monkeypatch.setenv(VARIABLE, "cls")
        again = akidb_mlx_chroma.get_collection(chroma_client, "docs")
        akidb_mlx_chroma.upsert(again, [Document("b", text=TEXTS[1])])
        for key, expected in zip("ab", mean_vectors, strict=True):
            np.testing.assert_allclose(vector_of(again, key), expected, atol=1e-6)

    def test_a_stored_one_that_is_not_known_is_refused(self, tiny_dir: Path) -> None:
        settings = MLXEmbeddingFunction(tiny_dir).get_config() | {"pooling": "attention"}
        for read in (MLXEmbeddingFunction.validate_config, MLXEmbeddingFunction.build_from_config):
            with pytest.raises(InvalidInputError, match="pooling must be one of cls, max, mean"):
                read(settings)


class TestLanceDB:
    def test_is_stored_and_comes_back(self, tmp_path: Path, tiny_dir: Path, cls_vectors: Any) -> None:
        function = get_registry().get("akidb-mlx").create(name=tiny_dir, pooling="cls")

        class Note(LanceModel):
            text: str = function.SourceField()
            vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

        lancedb.connect(tmp_path).create_table("notes", schema=Note).add([{"text": text} for text in TEXTS])
        table = lancedb.connect(tmp_path).open_table("notes")
        stored = get_registry().parse_functions(table.schema.metadata)["vector"].function
        assert stored.pooling == "cls"
        for text, expected in zip(TEXTS, cls_vectors, strict=True):
            (found,) = table.search(text).limit(1).to_list()
            assert (found["text"], found["_distance"]) == (text, pytest.approx(0, abs=1e-5))
            np.testing.assert_allclose(found["vector"], expected, atol=1e-6)

    def test_several_are_stored_in_one_spelling(self, tiny_dir: Path) -> None:
        function = MLXEmbeddings.create(name=tiny_dir, pooling=["cls", "mean"])
        assert (function.pooling, function.safe_model_dump()["pooling"]) == ("cls+mean", "cls+mean")
        assert function.ndims() == 64

    def test_another_is_another_space(self, tmp_path: Path, tiny_dir: Path) -> None:
        db = lancedb.connect(tmp_path)
        akidb_mlx_lancedb.create_table(db, "notes", MLXEmbeddings.create(name=tiny_dir))
        akidb_mlx_lancedb.open_table(db, "notes", MLXEmbeddings.create(name=tiny_dir, pooling="mean"))
        with pytest.raises(DimensionMismatchError, match="cannot be compared"):
            akidb_mlx_lancedb.open_table(db, "notes", MLXEmbeddings.create(name=tiny_dir, pooling="cls"))

    def test_a_table_from_before_the_setting_keeps_its_space(
        self, tmp_path: Path, tiny_dir: Path, mean_vectors: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        schema = akidb_mlx_lancedb.table_schema(MLXEmbeddings.create(name=tiny_dir))
        (entry,) = json.loads(schema.metadata[FUNCTIONS_KEY])
        del entry["model"]["pooling"]
        older = pa.schema(list(schema), metadata={**schema.metadata, FUNCTIONS_KEY: json.dumps([entry])})
        db = lancedb.connect(tmp_path)
        db.create_table("notes", schema=older)
        monkeypatch.setenv(VARIABLE, "cls")
        table = akidb_mlx_lancedb.open_table(db, "notes")
        akidb_mlx_lancedb.upsert(table, [Document("a", text=TEXTS[0])])
        table.add([{"id": "b", "text": TEXTS[1]}])
        stored = {row["id"]: row["vector"] for row in table.search().to_list()}
        np.testing.assert_allclose([stored["a"], stored["b"]], mean_vectors, atol=1e-6)
        (found,) = table.search(TEXTS[1]).limit(1).to_list()
        assert (found["id"], found["_distance"]) == ("b", pytest.approx(0, abs=1e-5))

    def test_an_unknown_one_is_refused(self, tiny_dir: Path) -> None:
        with pytest.raises(InvalidInputError, match="pooling must be one of cls, max, mean"):
            MLXEmbeddings.create(name=tiny_dir, pooling="attention")


def run(command: Any, *arguments: object) -> Any:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


class TestCommands:
    def test_embed(self, tiny_dir: Path, tmp_path: Path, cls_vectors: Any) -> None:
        (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
        output = tmp_path / "vectors.npy"
        run(embed, tmp_path / "texts.txt", "--output", output, "--model", tiny_dir, "--pooling", "cls")
        np.testing.assert_allclose(np.load(output), cls_vectors, atol=1e-6)

    @pytest.mark.slow
    def test_reembed_and_search_in_chroma(
        self, chroma_client: ClientAPI, tiny_dir: Path, tmp_path: Path, cls_vectors: Any
    ) -> None:
        docs = chroma_client.create_collection("docs", embedding_function=MLXEmbeddingFunction(tiny_dir))
        docs.add(ids=["a", "b"], documents=TEXTS)
        place = (tmp_path / "chroma" / "docs", "--name", "again")
        run(reembed, *place, "--model", tiny_dir, "--pooling", "cls")
        np.testing.assert_allclose(vector_of(chroma_client.get_collection("again"), "b"), cls_vectors[1], atol=1e-6)
        asked = (TEXTS[1], tmp_path / "chroma" / "again", "--model", tiny_dir)
        assert run(search, *asked, "--pooling", "cls")[0]["score"] == pytest.approx(1, abs=1e-4)
        with pytest.raises(DimensionMismatchError, match="cannot be compared"):
            run(search, *asked, "--pooling", "mean")

    @pytest.mark.slow
    def test_reembed_and_search_in_lancedb(self, tiny_dir: Path, tmp_path: Path, cls_vectors: Any) -> None:
        db = lancedb.connect(tmp_path / "lancedb")
        notes = akidb_mlx_lancedb.create_table(db, "notes", MLXEmbeddings.create(name=tiny_dir))
        akidb_mlx_lancedb.upsert(notes, [Document("a", text=TEXTS[0]), Document("b", text=TEXTS[1])])
        place = (tmp_path / "lancedb" / "notes", "--name", "again")
        run(reembed, *place, "--model", tiny_dir, "--pooling", "cls")
        stored = {row["id"]: row["vector"] for row in db.open_table("again").search().to_list()}
        np.testing.assert_allclose([stored["a"], stored["b"]], cls_vectors, atol=1e-6)
        asked = (TEXTS[1], tmp_path / "lancedb" / "again", "--model", tiny_dir)
        assert run(search, *asked, "--pooling", "cls")[0]["score"] == pytest.approx(1, abs=1e-4)
        with pytest.raises(DimensionMismatchError, match="cannot be compared"):
            run(search, *asked, "--pooling", "mean")
