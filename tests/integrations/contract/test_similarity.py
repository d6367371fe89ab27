"""Vectors with lengths of their own: normalization left to the checkpoint, and what databases compare them by."""

# No postponed annotations here: LanceDB reads the vector column's width from the class as it is written.

import json
import logging
from pathlib import Path
from typing import Any

import akidb_mlx_chroma
import akidb_mlx_lancedb
import lancedb
import numpy as np
import pytest
import typer
from akidb_mlx_chroma import MLXEmbeddingFunction
from akidb_mlx_lancedb import MLXEmbeddings
from akidb_mlx_lancedb.schema import FUNCTIONS_KEY
from chromadb.api import ClientAPI
from dot_products import QUESTION, TEXTS, lengths, make_raw, space_of
from host_helpers import TINY, count_loads, run_python, vector_of
from lancedb.pydantic import LanceModel, Vector
from loopback_hub import Hub
from typer.testing import CliRunner

from akidb_mlx_plugin import DimensionMismatchError, Document, EmbeddingService, InvalidInputError
from akidb_mlx_plugin.checkpoints.lookup import find_similarity
from akidb_mlx_plugin.cli.search import search

pytest_plugins = ("host_fixtures", "hub_fixtures")


class TestNormalization:
    def test_is_left_to_the_checkpoint(self, dot_dir: Path, raw: dict[str, Any]) -> None:
        with EmbeddingService(dot_dir) as service:
            vectors = service.embed_batch(list(TEXTS.values())).embeddings
            assert not service.model_info().normalize
        np.testing.assert_allclose(vectors, [raw[key] for key in TEXTS], atol=1e-5)
        with EmbeddingService(TINY) as service:
            np.testing.assert_allclose(lengths(service.embed_batch(["a"]).embeddings), 1, atol=1e-6)

    @pytest.mark.parametrize("variable", [None, "true"])
    def test_is_the_callers_where_there_is_one(
        self, variable: str | None, dot_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if variable:
            monkeypatch.setenv("AKIDB_EMBEDDING__MLX__NORMALIZE", variable)
        with EmbeddingService(dot_dir, normalize=None if variable else True) as service:
            assert service.model_info().normalize
            np.testing.assert_allclose(lengths(service.embed_batch(["a"]).embeddings), 1, atol=1e-6)


class TestChroma:
    @pytest.mark.slow
    def test_a_plain_collection_ranks_by_dot_products(
        self, client: ClientAPI, dot_dir: Path, raw: dict[str, Any], by_product: list[str]
    ) -> None:
        docs = client.create_collection("docs", embedding_function=MLXEmbeddingFunction(dot_dir))
        docs.add(ids=list(TEXTS), documents=list(TEXTS.values()))
        assert space_of(docs) == "ip"
        again = client.get_collection("docs")
        np.testing.assert_allclose(vector_of(again, "b"), raw["b"], rtol=1e-4, atol=1e-5)
        found = again.query(query_texts=[QUESTION], n_results=len(TEXTS))
        assert found["ids"] == [by_product]
        products = [float(raw["question"] @ raw[key]) for key in by_product]
        assert found["distances"] is not None
        np.testing.assert_allclose(found["distances"][0], 1 - np.array(products), rtol=1e-4)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("similarity", "normalize", "expected"),
        [
            ("cosine", None, "cosine"),
            ("dot", None, "ip"),
            ("dot", False, "ip"),
            ("dot", True, "cosine"),
            ("euclidean", None, "l2"),
            ("manhattan", None, "l2"),
        ],
    )
    def test_the_space_is_that_of_the_vectors(
        self, similarity: str, normalize: bool | None, expected: str, tiny_dir: Path, client: ClientAPI
    ) -> None:
        make_raw(tiny_dir, similarity)
        function = MLXEmbeddingFunction(tiny_dir, normalize=normalize)
        assert function.default_space() == expected
        assert space_of(client.create_collection("plain", embedding_function=function)) == expected
        assert space_of(akidb_mlx_chroma.create_collection(client, "made", function)) == expected

    def test_vectors_of_unit_length_are_compared_by_cosine(self, tiny_dir: Path) -> None:
        file = tiny_dir / "config_sentence_transformers.json"
        file.write_text(json.dumps({"similarity_fn_name": "dot"}))
        assert MLXEmbeddingFunction(tiny_dir).default_space() == "cosine"
        assert MLXEmbeddingFunction(tiny_dir, normalize=False).default_space() == "ip"

    def test_a_space_that_is_named_counts(self, client: ClientAPI, dot_dir: Path) -> None:
        docs = akidb_mlx_chroma.create_collection(
            client, "docs", MLXEmbeddingFunction(dot_dir), configuration={"hnsw": {"space": "cosine"}}
        )
        assert space_of(docs) == "cosine"

    def test_asking_for_it_loads_and_fetches_nothing(
        self, hub: Hub, cache_dir: Path, dot_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded = count_loads(monkeypatch)
        models = ["org/tiny", "minilm-l6-v2", "qwen3-0.6b-4bit", dot_dir]
        spaces = [MLXEmbeddingFunction(model).default_space() for model in models]
        assert spaces == ["cosine", "cosine", "cosine", "ip"]
        assert MLXEmbeddingFunction("minilm-l6-v2", normalize=False).default_space() == "cosine"
        assert MLXEmbeddingFunction(mode="mock", dimension=3).default_space() == "cosine"
        assert (loaded, hub.requests, cache_dir.exists()) == ([], [], False)

    @pytest.mark.parametrize("model", ["~nobody-of-that-name/m", "a\0b", "/" + "x" * 5000, "no such", "/nothing/here"])
    def test_what_cannot_be_read_is_no_error_yet(self, model: str) -> None:
        """Chroma takes any exception for a function of the old kind, and stores the collection without one."""
        assert find_similarity(model) is None
        assert MLXEmbeddingFunction.build_from_config({"model": model}).default_space() == "cosine"

    def test_a_damaged_folder_is_no_error_yet(self, dot_dir: Path) -> None:
        (dot_dir / "config.json").write_text("{")
        assert MLXEmbeddingFunction(dot_dir).default_space() == "cosine"


@pytest.fixture
def dot_repo(hub: Hub, cache_dir: Path, dot_dir: Path) -> str:
    """The same model as a repository that is not on this machine yet."""
    hub.add(
        "org/dot",
        {file.relative_to(dot_dir).as_posix(): file.read_bytes() for file in dot_dir.rglob("*.*") if file.is_file()},
    )
    return "org/dot"


class TestBeforeTheDownload:
    @pytest.mark.slow
    def test_the_helper_looks_first(self, client: ClientAPI, dot_repo: str, caplog: pytest.LogCaptureFixture) -> None:
        docs = akidb_mlx_chroma.create_collection(client, "docs", MLXEmbeddingFunction(dot_repo))
        docs.add(ids=["a"], documents=["a stone"])
        assert space_of(docs) == "ip"
        assert "compared by" not in caplog.text

    @pytest.mark.slow
    def test_a_plain_collection_is_told_once_when_the_model_is_there(
        self, client: ClientAPI, dot_repo: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        docs = client.create_collection("docs", embedding_function=MLXEmbeddingFunction(dot_repo))
        assert space_of(docs) == "cosine"
        with caplog.at_level(logging.WARNING):
            for key, text in TEXTS.items():
                docs.add(ids=[key], documents=[text])
        assert caplog.text.count("org/dot was not available locally") == 1
        assert "{'hnsw': {'space': 'ip'}}" in caplog.text
        # What it says to do.
        client.delete_collection("docs")
        again = client.create_collection("docs", embedding_function=MLXEmbeddingFunction(dot_repo))
        assert space_of(again) == "ip"

    @pytest.mark.slow
    def test_nothing_is_said_of_a_model_for_the_cosine(
        self, client: ClientAPI, hub: Hub, cache_dir: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        hub.add(
            "org/usual",
            {file.relative_to(TINY).as_posix(): file.read_bytes() for file in TINY.rglob("*.*") if file.is_file()},
        )
        docs = client.create_collection("docs", embedding_function=MLXEmbeddingFunction("org/usual"))
        docs.add(ids=["a"], documents=["a stone"])
        assert "was not available locally" not in caplog.text


class TestStored:
    @pytest.mark.slow
    def test_a_collection_of_unit_vectors_stays_one(self, client: ClientAPI, dot_dir: Path) -> None:
        """Unit length was the default once, and was stored with every collection."""
        once = MLXEmbeddingFunction(dot_dir, normalize=True)
        akidb_mlx_chroma.create_collection(client, "docs", once)
        again = akidb_mlx_chroma.get_collection(client, "docs")
        again.add(ids=["a"], documents=["a stone"])
        assert (again.configuration_json["embedding_function"]["config"]["normalize"], space_of(again)) == (
            True,
            "cosine",
        )
        np.testing.assert_allclose(np.linalg.norm(vector_of(again, "a")), 1, atol=1e-5)
        with pytest.raises(DimensionMismatchError, match="cannot be compared"):
            akidb_mlx_chroma.get_collection(client, "docs", MLXEmbeddingFunction(dot_dir))

    def test_a_table_of_unit_vectors_stays_one(self, tmp_path: Path, dot_dir: Path) -> None:
        db = lancedb.connect(tmp_path)
        akidb_mlx_lancedb.create_table(db, "notes", MLXEmbeddings.create(name=dot_dir, normalize=True))
        table = akidb_mlx_lancedb.open_table(db, "notes")
        table.add([{"id": "a", "text": "a stone"}])
        np.testing.assert_allclose(np.linalg.norm(table.search().to_list()[0]["vector"]), 1, atol=1e-5)
        with pytest.raises(DimensionMismatchError, match="cannot be compared"):
            akidb_mlx_lancedb.open_table(db, "notes", MLXEmbeddings.create(name=dot_dir))

    def test_unit_length_spelled_out_is_what_the_checkpoint_says(self, client: ClientAPI, tiny_dir: Path) -> None:
        spelled, unsaid = MLXEmbeddingFunction(tiny_dir, normalize=True), MLXEmbeddingFunction(tiny_dir)
        docs: Any = client.create_collection("docs", embedding_function=spelled)
        akidb_mlx_chroma.get_collection(client, "docs", unsaid)
        docs.modify(configuration={"embedding_function": unsaid})
        client.get_collection("docs").modify(configuration={"embedding_function": spelled})  # type: ignore[typeddict-item]

    def test_where_it_is_not_a_change_is_refused(self, client: ClientAPI, dot_dir: Path) -> None:
        docs: Any = client.create_collection("docs", embedding_function=MLXEmbeddingFunction(dot_dir, normalize=True))
        with pytest.raises(InvalidInputError, match="normalize: True -> None"):
            docs.modify(configuration={"embedding_function": MLXEmbeddingFunction(dot_dir)})

    @pytest.mark.slow
    def test_a_checkpoint_that_changes_its_mind_is_refused(
        self, client: ClientAPI, tmp_path: Path, tiny_dir: Path
    ) -> None:
        akidb_mlx_chroma.create_collection(client, "docs", MLXEmbeddingFunction(tiny_dir))
        db = lancedb.connect(tmp_path / "lancedb")
        akidb_mlx_lancedb.create_table(db, "notes", MLXEmbeddings.create(name=tiny_dir))
        make_raw(tiny_dir, "dot")
        # This process has described the model already; one that starts later reads it anew.
        printed = run_python(
            """
            import sys, akidb_mlx_chroma, akidb_mlx_lancedb, chromadb, lancedb
            from chromadb.config import Settings
            from akidb_mlx_plugin import DimensionMismatchError

            client = chromadb.PersistentClient(sys.argv[1], settings=Settings(anonymized_telemetry=False))
            db = lancedb.connect(sys.argv[2])
            for host, place, name in ((akidb_mlx_chroma.get_collection, client, "docs"),
                                      (akidb_mlx_lancedb.open_table, db, "notes")):
                try:
                    host(place, name)
                except DimensionMismatchError as error:
                    print(error)
            """,
            tmp_path / "chroma",
            tmp_path / "lancedb",
        )
        assert printed.count("cannot be compared") == 2


class TestLanceDB:
    @pytest.mark.parametrize(
        ("similarity", "normalize", "expected"),
        [("cosine", None, "cosine"), ("dot", None, "dot"), ("dot", True, "cosine"), ("euclidean", None, "l2")],
    )
    def test_the_metric_is_that_of_the_vectors(
        self,
        similarity: str,
        normalize: bool | None,
        expected: str,
        tiny_dir: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        make_raw(tiny_dir, similarity)
        function = MLXEmbeddings.create(name=tiny_dir, normalize=normalize)
        assert function.distance_type() == expected
        # Right as it is: vectors of unit length, and l2.
        is_default = normalize is True or expected == "l2"
        for _ in range(2):
            assert function.ndims() == 32
        assert caplog.text.count(f"distance_type({expected!r})") == (not is_default)

    def test_a_plain_table_ranks_by_dot_products(
        self, tmp_path: Path, dot_dir: Path, raw: dict[str, Any], by_product: list[str]
    ) -> None:
        function = MLXEmbeddings.create(name=dot_dir)

        class Note(LanceModel):
            key: str
            text: str = function.SourceField()
            vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

        table: Any = lancedb.connect(tmp_path).create_table("notes", schema=Note)
        table.add([{"key": key, "text": text} for key, text in TEXTS.items()])
        (entry,) = json.loads(table.schema.metadata[FUNCTIONS_KEY])
        assert entry["model"]["normalize"] is None
        found = table.search(QUESTION).distance_type(function.distance_type()).to_list()
        assert [row["key"] for row in found] == by_product
        np.testing.assert_allclose(found[0]["vector"], raw[by_product[0]], rtol=1e-4, atol=1e-5)


def ask(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(search)
    result = CliRunner().invoke(app, [QUESTION, *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.slow
def test_the_command_ranks_and_scores_by_dot_products_in_both(
    client: ClientAPI, tmp_path: Path, dot_dir: Path, raw: dict[str, Any], by_product: list[str]
) -> None:
    documents = [Document(key, text=text) for key, text in TEXTS.items()]
    docs = akidb_mlx_chroma.create_collection(client, "docs", MLXEmbeddingFunction(dot_dir))
    akidb_mlx_chroma.upsert(docs, documents)
    db = lancedb.connect(tmp_path / "lancedb")
    notes = akidb_mlx_lancedb.create_table(db, "notes", MLXEmbeddings.create(name=dot_dir))
    akidb_mlx_lancedb.upsert(notes, documents)
    for place in (
        (tmp_path / "chroma" / "docs",),
        (tmp_path / "lancedb" / "notes",),
    ):
        rows = ask(*place)
        assert [row["id"] for row in rows] == by_product
        products = [float(raw["question"] @ raw[key]) for key in by_product]
        np.testing.assert_allclose([row["score"] for row in rows], products, rtol=1e-3)
