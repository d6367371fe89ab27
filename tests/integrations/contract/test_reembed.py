"""A change of model in both databases: the same documents under another one, also after a kill; and the command."""

from __future__ import annotations

import json
from datetime import datetime
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
from collection_helpers import EmbeddedByMock, run_killed
from host_helpers import MINILM, TINY, nearest
from hosts import ChromaHost, Host, LanceHost
from typer.testing import CliRunner

from akidb_mlx_plugin import (
    DimensionMismatchError,
    Document,
    EmbeddingError,
    EmbeddingService,
    InvalidInputError,
    UpsertError,
)
from akidb_mlx_plugin.cli.reembed import reembed as reembed_command
from akidb_mlx_plugin.providers.mock import hash_texts

pytest_plugins = ("host_fixtures", "collection_fixtures")

DOCUMENTS = [Document(f"d{i}", f"text {i}", metadata={"n": i, "who": "it's me"}) for i in range(300)]


@pytest.fixture(params=[ChromaHost, LanceHost], ids=["chroma", "lancedb"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Host:
    made: Host = request.param(tmp_path / "db", 0)
    return made


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

    def test_the_second_run_embeds_what_is_new(self, host: Host, source: Any, new: Any, mocked: EmbeddedByMock) -> None:
        host.reembed(source, new, name="next", batch_size=50)
        host.upsert(source, [Document("d1", "changed"), Document("more", "more")])
        mocked.clear()
        made = host.reembed(source, new, name="next")
        assert sorted(mocked) == ["changed", "more"]
        assert len(host.read(made)) == 301

    def test_a_bar_is_drawn_when_asked_for(
        self, host: Host, source: Any, new: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        host.reembed(source, new)
        assert capsys.readouterr().err == ""
        host.reembed(source, new, show_progress=True)
        assert "300/300" in capsys.readouterr().err

    def test_nothing_to_embed_with_no_text(self, host: Host, source: Any, new: Any, mocked: EmbeddedByMock) -> None:
        host.upsert(source, [Document("v", vector=[1.0] * 8)])
        mocked.clear()
        with pytest.raises(InvalidInputError, match=r"'v' of .* has a vector and no text"):
            host.reembed(source, new)
        assert mocked == []

    def test_names_that_are_taken(self, host: Host, source: Any, old: Any, new: Any) -> None:
        with pytest.raises(InvalidInputError, match="needs another name than"):
            host.reembed(source, new, name="docs")
        host.create("taken", new)
        with pytest.raises(InvalidInputError, match="is not a re-embedding of this source"):
            host.reembed(source, new, name="taken")
        host.reembed(source, new, name="next")
        with pytest.raises(DimensionMismatchError, match="holds vectors of 16 dimensions"):
            host.reembed(source, host.make(mode="mock", dimension=4), name="next")

    def test_documents_that_are_gone_from_the_source_are_told(self, host: Host, source: Any, new: Any) -> None:
        host.reembed(source, new, name="next")
        host.delete(source, "d5")
        with pytest.raises(EmbeddingError, match=r"has 300 documents and .* 299: some were deleted"):
            host.reembed(source, new, name="next")

    def test_an_empty_source(self, host: Host, old: Any, new: Any) -> None:
        assert host.read(host.reembed(host.create("empty", old), new)) == {}

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


class TestChroma:
    def test_index_and_metadata_go_over(self, tmp_path: Path) -> None:
        client = chromadb.PersistentClient(tmp_path)
        configuration: Any = {"hnsw": {"space": "l2", "max_neighbors": 40, "ef_search": 77}}
        plain = client.create_collection("docs", metadata={"owner": "me"}, configuration=configuration)
        plain.add(ids=["a"], documents=["a"], embeddings=[[1.0, 2.0]])
        made = akidb_mlx_chroma.reembed(plain, akidb_mlx_chroma.MLXEmbeddingFunction(mode="mock", dimension=8))
        assert made.metadata["owner"] == "me"
        hnsw = client.get_collection(made.name).configuration_json["hnsw"]
        assert (hnsw["space"], hnsw["max_neighbors"], hnsw["ef_search"]) == ("cosine", 40, 77)
        assert nearest(client.get_collection(made.name), "a") == "a"

    def test_another_database(self, chroma_port: int, name: str) -> None:
        admin = chromadb.AdminClient(
            chromadb.Settings(
                chroma_api_impl="chromadb.api.fastapi.FastAPI",
                chroma_server_host="127.0.0.1",
                chroma_server_http_port=chroma_port,
            )
        )
        admin.create_database(name)
        client = chromadb.HttpClient("127.0.0.1", chroma_port, database=name)
        old = akidb_mlx_chroma.MLXEmbeddingFunction(mode="mock", dimension=8)
        source = akidb_mlx_chroma.create_collection(client, "docs", old)
        akidb_mlx_chroma.upsert(source, DOCUMENTS)
        akidb_mlx_chroma.reembed(source, akidb_mlx_chroma.MLXEmbeddingFunction(mode="mock", dimension=16))
        assert client.get_collection("docs-mock").count() == 300


class TestLanceDB:
    def test_every_column_goes_over(self, tmp_path: Path) -> None:
        db: Any = lancedb.connect(tmp_path)
        rows = pa.table(
            {
                "key": ["a", "b"],
                "body": ["first", "second"],
                "meaning": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
                "at": pa.array([datetime(2026, 1, 2), None], pa.timestamp("us")),
                "score": pa.array([0.1, 0.2], pa.float32()),
                "tags": [["x", None], None],
                "place": [{"lat": 1.5, "name": "here"}, None],
                "raw": pa.array([b"\x00\xff", None]),
                "other": pa.array([[1.0] * 4, None], pa.list_(pa.float32(), 4)),
            }
        )
        old = akidb_mlx_lancedb.MLXEmbeddings.create(mode="mock", dimension=2)
        entry = {
            "name": "akidb-mlx",
            "model": old.safe_model_dump(),
            "source_column": "body",
            "vector_column": "meaning",
        }
        schema = rows.schema.with_metadata({"embedding_functions": json.dumps([entry]), "mine": "kept"})
        table = db.create_table("docs", rows, schema=schema)
        new = akidb_mlx_lancedb.MLXEmbeddings.create(mode="mock", dimension=8)
        made = akidb_mlx_lancedb.reembed(table, new, on="key")
        assert made.schema.metadata[b"mine"] == b"kept"
        kept = [name for name in rows.schema.names if name != "meaning"]
        assert made.to_arrow().select(kept).sort_by("key") == rows.select(kept)
        assert made.search("second", vector_column_name="meaning").limit(1).to_list()[0]["key"] == "b"
        assert akidb_mlx_lancedb.reembed(table, new, on="key").count_rows() == 2

    def test_a_table_without_ids_says_how_to_get_some(self, tmp_path: Path) -> None:
        db: Any = lancedb.connect(tmp_path)
        table = db.create_table(
            "docs", pa.table({"text": ["a"], "vector": pa.array([[1.0]], pa.list_(pa.float32(), 1))})
        )
        new = akidb_mlx_lancedb.MLXEmbeddings.create(mode="mock", dimension=8)
        with pytest.raises(InvalidInputError, match=r"no key column 'id'.*add_columns\({'id': 'uuid\(\)'}\)"):
            akidb_mlx_lancedb.reembed(table, new)
        table.add_columns({"id": "uuid()"})
        assert akidb_mlx_lancedb.reembed(table, new).count_rows() == 1

    def test_what_is_not_a_number_goes_over_and_is_unchanged(self, tmp_path: Path, mocked: EmbeddedByMock) -> None:
        db: Any = lancedb.connect(tmp_path)
        make = akidb_mlx_lancedb.MLXEmbeddings.create
        place = pa.struct([pa.field("lat", pa.float64())])
        schema = pa.schema([("score", pa.float64()), ("scores", pa.list_(pa.float32())), ("place", place)])
        table = akidb_mlx_lancedb.create_table(db, "docs", make(mode="mock", dimension=8), schema=schema)
        nan = float("nan")
        documents = [
            Document("a", "a", metadata={"score": nan, "scores": [nan, 1.0], "place": {"lat": nan}}),
            Document("b", "b", metadata={"score": 1.0, "scores": [], "place": {"lat": None}}),
        ]
        akidb_mlx_lancedb.upsert(table, documents)
        mocked.clear()
        assert akidb_mlx_lancedb.upsert(table, documents, skip_unchanged=True).skipped == 2
        changed = [Document("a", "a", metadata={"score": nan, "scores": [nan, nan], "place": {"lat": nan}})]
        assert akidb_mlx_lancedb.upsert(table, changed, skip_unchanged=True).inserted == 1
        assert mocked == []
        for _ in range(2):
            assert akidb_mlx_lancedb.reembed(table, make(mode="mock", dimension=16)).count_rows() == 2
        assert sorted(mocked) == ["a", "b"]

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["d0", "d7", "d0"], r"2 ids of table 'docs' are in more than one row, 'd0' in 3 .* on=.*add_columns"),
            ([None], r"1 rows of table 'docs' have no 'id'.* on="),
        ],
    )
    def test_ids_that_do_not_tell_rows_apart(
        self, tmp_path: Path, mocked: EmbeddedByMock, more: list[Any], message: str
    ) -> None:
        db: Any = lancedb.connect(tmp_path)
        ids = [*(f"d{i}" for i in range(1500)), *more]
        vectors = pa.array([[1.0]] * len(ids), pa.list_(pa.float32(), 1))
        table = db.create_table("docs", pa.table({"id": ids, "text": [f"of {id_}" for id_ in ids], "vector": vectors}))
        new = akidb_mlx_lancedb.MLXEmbeddings.create(mode="mock", dimension=8)
        with pytest.raises(InvalidInputError, match=message):
            akidb_mlx_lancedb.reembed(table, new)
        assert mocked == []
        table.add_columns({"key": "uuid()"})
        assert akidb_mlx_lancedb.reembed(table, new, name="keyed", on="key").count_rows() == len(ids)


app = typer.Typer()
app.command()(reembed_command)


class TestCommand:
    @pytest.fixture
    def real(self, host: Host, minilm: EmbeddingService) -> Any:
        made = host.create("docs", host.make(str(TINY)))
        host.upsert(made, [Document("date", "parse a date"), Document("pasta", "boil the pasta in water")])
        return made

    def test_another_model(self, host: Host, real: Any) -> None:
        arguments = [host.location, host.option, "docs", "--model", MINILM, "--json"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        row = json.loads(result.stdout)[0]
        assert (row["from"], row["to"], row["documents"], row["embedded"]) == ("docs", f"docs-{MINILM}", 2, 2)
        again = json.loads(CliRunner().invoke(app, arguments).stdout)[0]
        assert (again["documents"], again["embedded"], again["already there"]) == (2, 0, 2)
        made = host.open(f"docs-{MINILM}")
        if host.option == "--collection":
            assert nearest(made, "cook spaghetti") == "pasta"
        else:
            assert made.search("cook spaghetti").limit(1).to_list()[0]["id"] == "pasta"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["/nowhere", "--collection", "docs"], "no Chroma database at /nowhere"),
            (["/nowhere", "--table", "docs"], "no LanceDB database at /nowhere"),
            (["ftp://host", "--collection", "docs"], "http://host:port"),
            (["http://127.0.0.1:9", "--collection", "docs"], "127.0.0.1:9"),
        ],
    )
    def test_no_such_database(self, arguments: list[str], message: str, tmp_path: Path) -> None:
        result = CliRunner().invoke(app, [*arguments, "--model", MINILM])
        assert isinstance(result.exception, EmbeddingError)
        assert message in str(result.exception)
        assert not Path("/nowhere").exists()

    def test_no_such_collection_or_model(self, host: Host, source: Any) -> None:
        for arguments in (["nothing", "--model", MINILM], ["docs", "--model", "nothing"], ["docs", "--model", "./no"]):
            result = CliRunner().invoke(app, [host.location, host.option, *arguments])
            assert isinstance(result.exception, EmbeddingError), result.output
            assert "no" in str(result.exception)
        assert list(host.names()) == ["docs"]

    def test_a_folder_stays_what_it_is(self, tmp_path: Path) -> None:
        CliRunner().invoke(app, [str(tmp_path), "--collection", "docs", "--model", MINILM])
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("options", [[], ["--collection", "a", "--table", "b"]])
    def test_one_of_both(self, options: list[str], tmp_path: Path) -> None:
        result = CliRunner().invoke(app, [str(tmp_path), *options, "--model", MINILM])
        assert result.exit_code == 2
        assert "--collection" in result.output

    def test_a_server(self, chroma_port: int, name: str, minilm: EmbeddingService) -> None:
        client = chromadb.HttpClient("127.0.0.1", chroma_port)
        source = akidb_mlx_chroma.create_collection(client, name, akidb_mlx_chroma.MLXEmbeddingFunction(TINY))
        akidb_mlx_chroma.upsert(source, [Document("a", "a")])
        address = f"http://127.0.0.1:{chroma_port}"
        result = CliRunner().invoke(app, [address, "--collection", name, "--model", MINILM, "--name", f"{name}-new"])
        assert result.exit_code == 0, result.output
        assert client.get_collection(f"{name}-new").count() == 1

    def test_the_help_has_an_example(self) -> None:
        assert "akidb-mlx reembed ./chroma --collection docs" in " ".join(
            CliRunner().invoke(app, ["--help"]).output.split()
        )
