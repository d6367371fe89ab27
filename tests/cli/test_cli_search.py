"""`akidb-mlx search`: a real Chroma, in a folder and on a server, and a real LanceDB."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import akidb_mlx_chroma
import akidb_mlx_lancedb
import chromadb
import lancedb
import pytest
import typer
from akidb_mlx_chroma import MLXEmbeddingFunction
from akidb_mlx_lancedb import MLXEmbeddings
from chromadb.config import Settings
from golden_rerankers import reranker_dir
from typer.testing import CliRunner

from akidb_mlx_plugin import CrossEncoder, Document
from akidb_mlx_plugin.cli.search import _shorten, search
from akidb_mlx_plugin.errors import EmbeddingError

pytest_plugins = ("host_fixtures",)

MINILM = "minilm-l6-v2"
QUESTION = "capital cities"
DOCUMENTS = [
    Document("water", text="Water boils at [/100] °C.", metadata={"year": 1}),
    Document("paris", text="Paris\tis in\nFrance.", metadata={"year": 2, "topic": "places"}),
    Document("cats", text="Cats sleep a lot.", metadata={"year": 3}),
]

app = typer.Typer()
app.command()(search)


@pytest.fixture(scope="module")
def chroma_folder(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("chroma")
    # The same settings as the command's: Chroma allows only one client per folder in a process.
    client = chromadb.PersistentClient(folder, settings=Settings(anonymized_telemetry=False))
    docs = akidb_mlx_chroma.create_collection(client, "docs", MLXEmbeddingFunction(model=MINILM))
    akidb_mlx_chroma.upsert(docs, DOCUMENTS)
    client.create_collection("empty", embedding_function=MLXEmbeddingFunction(model=MINILM))
    plain = client.create_collection("plain", embedding_function=None)
    plain.add(ids=["paris"], embeddings=docs.get(ids=["paris"], include=["embeddings"])["embeddings"])
    return folder


@pytest.fixture(scope="module")
def lancedb_folder(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("lancedb")
    table = akidb_mlx_lancedb.create_table(lancedb.connect(folder), "docs", MLXEmbeddings.create(name=MINILM))
    akidb_mlx_lancedb.upsert(table, DOCUMENTS)
    return folder


def ask(*arguments: str) -> list[dict[str, object]]:
    result = CliRunner().invoke(app, [QUESTION, "--json", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert isinstance(rows, list)
    return rows


def refuse(*arguments: str) -> str:
    result = CliRunner().invoke(app, [QUESTION, *arguments])
    assert isinstance(result.exception, EmbeddingError), result.output
    return str(result.exception)


@pytest.mark.slow
def test_both_databases_give_the_same_answer(chroma_folder: Path, lancedb_folder: Path) -> None:
    in_chroma = ask(
        f"{chroma_folder}/docs",
    )
    in_lancedb = ask(
        f"{lancedb_folder}/docs",
    )
    for rows in (in_chroma, in_lancedb):
        assert rows[0]["id"] == "paris"
        assert rows[0]["text"] == "Paris\tis in\nFrance."
        assert len(rows) == 3
    assert in_chroma[0]["metadata"] == {"year": 2, "topic": "places"}
    assert [row["score"] for row in in_chroma] == pytest.approx([row["score"] for row in in_lancedb], abs=2e-3)


@pytest.mark.slow
def test_limit(chroma_folder: Path, lancedb_folder: Path) -> None:
    assert len(ask(f"{chroma_folder}/docs", "--limit", "1")) == 1
    assert len(ask(f"{lancedb_folder}/docs", "-n", "2")) == 2


def test_only_what_fits_is_searched(chroma_folder: Path, lancedb_folder: Path) -> None:
    in_chroma = ask(f"{chroma_folder}/docs", "--where", '{"year": {"$gt": 2}}')
    in_lancedb = ask(f"{lancedb_folder}/docs", "--where", "json_get_int(metadata, 'year') > 2")
    assert [row["id"] for row in in_chroma] == [row["id"] for row in in_lancedb] == ["cats"]
    nothing = CliRunner().invoke(app, [QUESTION, f"{chroma_folder}/docs", "--where", '{"year": 9}'])
    assert "nothing fits --where" in nothing.output


def test_pieces_are_grouped_by_document(tmp_path: Path, minilm_dir: Path) -> None:
    client = chromadb.PersistentClient(tmp_path, settings=Settings(anonymized_telemetry=False))
    docs = akidb_mlx_chroma.create_collection(client, "docs", MLXEmbeddingFunction(model=MINILM))
    long = Document("europe", text="Paris is a capital. Rome is a capital. Cats sleep.")
    akidb_mlx_chroma.upsert(docs, [long, *DOCUMENTS], split=lambda text: text.split(". "))
    first, *others = ask(f"{tmp_path}/docs", "--group", "--limit", "3")
    assert (first["id"], first["pieces"]) == ("europe", 3)
    assert len(others) == 2
    assert {row["id"] for row in others} < {"water", "paris", "cats"}


def test_a_filter_that_is_not_chromas(chroma_folder: Path) -> None:
    result = CliRunner().invoke(app, [QUESTION, f"{chroma_folder}/docs", "--where", "year = 2"])
    assert result.exit_code == 2
    assert "for Chroma is a JSON object" in " ".join(result.output.split())


def test_a_pipe_gets_a_row_a_line(chroma_folder: Path) -> None:
    result = CliRunner().invoke(app, [QUESTION, f"{chroma_folder}/docs"])
    head, first, *rest = result.stdout.splitlines()
    assert head.split("\t") == ["score", "id", "text", "metadata"]
    assert first.split("\t")[1:3] == ["paris", "Paris is in France."]
    assert len(rest) == 2


def test_a_terminal_gets_texts_as_they_are(chroma_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    search(QUESTION, chroma=str(chroma_folder), collection="docs", limit=3)
    assert "[/100]" in terminal.getvalue()
    assert "─" in terminal.getvalue() or "━" in terminal.getvalue()


def test_control_sequences_of_a_stored_text_do_not_reach_the_terminal() -> None:
    assert _shorten("a \x1b[2Jtext\x07") == "a �[2Jtext�"


def test_an_empty_collection_has_no_answer(chroma_folder: Path) -> None:
    assert ask(f"chroma://{chroma_folder}/empty") == []


@pytest.mark.slow
def test_vectors_without_a_stored_function_need_the_model_named(chroma_folder: Path) -> None:
    where = (f"chroma://{chroma_folder}/plain",)
    assert "stores no function of this package" in refuse(*where)
    (row,) = ask(*where, "--model", MINILM)
    assert row["id"] == "paris"
    assert row["text"] is None
    assert "distance (l2)" in row


def test_a_collection_of_another_function_is_told_in_one_line(tmp_path: Path) -> None:
    client = chromadb.PersistentClient(tmp_path, settings=Settings(anonymized_telemetry=False))
    client.create_collection("docs")
    message = refuse("--chroma", str(tmp_path), "--collection", "docs", "--model", MINILM)
    assert "default" in message


def test_another_model_is_refused(lancedb_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AKIDB_EMBEDDING__MLX__QUERY_PROMPT", "another space: ")
    assert "cannot be compared" in refuse(f"{lancedb_folder}/docs", "--model", MINILM)


def test_what_is_not_there_is_said(chroma_folder: Path, lancedb_folder: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert "no Chroma database at" in refuse("--chroma", missing, "--collection", "docs")
    assert "no LanceDB database at" in refuse("--lancedb", missing, "--table", "docs")
    assert "nope" in refuse(
        f"chroma://{chroma_folder}/nope",
    )
    assert "no table 'nope'" in refuse(f"lancedb://{lancedb_folder}/nope")
    assert "http://host:port" in refuse("--chroma", "ftp://host", "--collection", "docs")
    assert not Path(missing).exists()


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["--chroma", "x"], ["--chroma", "x", "--collection", "y", "--lancedb", "x", "--table", "y"]),
        ["lancedb://x/y", "--chroma", "x", "--collection", "y"],
    ],
)
def test_one_place_has_to_be_named(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, [QUESTION, *arguments])
    assert result.exit_code == 2
    assert "name one collection or table" in " ".join(result.output.split())


_PROGRAM = """
import sys
from akidb_mlx_plugin import cli
from akidb_mlx_plugin.cli.search import search
if "search" not in {command.name for command in cli.app.registered_commands}:
    cli.app.command("search")(search)
sys.argv = ["akidb-mlx", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.slow
def test_a_server_is_asked_from_another_process(chroma_port: int, minilm_dir: Path) -> None:
    client = chromadb.HttpClient("127.0.0.1", chroma_port)
    docs = akidb_mlx_chroma.create_collection(client, "asked", MLXEmbeddingFunction(model=MINILM), get_or_create=True)
    akidb_mlx_chroma.upsert(docs, DOCUMENTS)
    command = ["search", QUESTION, f"chroma://127.0.0.1:{chroma_port}/asked", "-n", "1"]
    done = subprocess.run([sys.executable, "-c", _PROGRAM, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split("\t")[1] == "paris"
    assert done.stderr == ""


def test_a_reranker_sorts_the_candidates(chroma_folder: Path, lancedb_folder: Path) -> None:
    with CrossEncoder(reranker_dir("roberta"), device="cpu") as encoder:
        ranked = encoder.rank(QUESTION, [str(document.text) for document in DOCUMENTS])
    for place in (
        (f"{chroma_folder}/docs",),
        (f"{lancedb_folder}/docs",),
    ):
        rows = ask(*place, "--rerank", str(reranker_dir("roberta")), "--limit", "2")
        assert [row["id"] for row in rows] == [DOCUMENTS[each["corpus_id"]].id for each in ranked[:2]]
        assert [row["rerank_score"] for row in rows] == [round(each["score"], 4) for each in ranked[:2]]
        assert {"score", "text", "metadata"} <= rows[0].keys()


def test_records_without_text_come_last(chroma_folder: Path) -> None:
    rows = ask(
        *(f"chroma://{chroma_folder}/plain", "--model", MINILM),
        *("--rerank", str(reranker_dir("roberta"))),
    )
    assert [(row["id"], row["rerank_score"]) for row in rows] == [("paris", None)]


def test_an_empty_collection_with_a_reranker(chroma_folder: Path) -> None:
    place = (f"chroma://{chroma_folder}/empty",)
    assert ask(*place, "--rerank", str(reranker_dir("roberta"))) == []


def test_a_reranker_of_the_wrong_kind_is_refused_before_the_search(chroma_folder: Path) -> None:
    place = (f"chroma://{chroma_folder}/missing",)
    assert "of the kind embedding, not reranker" in refuse(*place, "--rerank", MINILM)
