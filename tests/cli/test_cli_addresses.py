"""One address for a collection or a table, in every command; the options of earlier versions still work."""

from __future__ import annotations

import json
from pathlib import Path

import akidb_mlx_chroma
import akidb_mlx_lancedb
import chromadb
import lancedb
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction
from akidb_mlx_lancedb import MLXEmbeddings
from chromadb.config import Settings
from typer.testing import CliRunner

from akidb_mlx_plugin import Document, InvalidInputError
from akidb_mlx_plugin.cli import app
from akidb_mlx_plugin.cli.addresses import Address, ChromaAddress, LanceAddress, parse_address

DOCUMENTS = [Document("a", text="one"), Document("b", text="two")]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty databases: a folder of Chroma's, one of LanceDB's, and one of both, in the current folder."""
    for folder in ("chroma", "both"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "chroma.sqlite3").touch()
    for folder in ("lance", "both"):
        (tmp_path / folder / "docs.lance").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


ADDRESSES: dict[str, Address] = {
    "chroma://localhost:8123/docs": ChromaAddress("http://localhost:8123", "docs"),
    "chroma://localhost/docs": ChromaAddress("http://localhost:8000", "docs"),
    "chroma://chroma:80/docs": ChromaAddress("http://chroma:80", "docs"),
    "chroma://[::1]:8000/docs": ChromaAddress("http://[::1]:8000", "docs"),
    "http://localhost:8123/docs": ChromaAddress("http://localhost:8123", "docs"),
    "https://db.example.com/docs/": ChromaAddress("https://db.example.com:443", "docs"),
    "chroma://chroma/docs": ChromaAddress("chroma", "docs"),
    "chroma://./chroma/docs": ChromaAddress("chroma", "docs"),
    "chroma://data/chroma/docs": ChromaAddress("data/chroma", "docs"),
    "chroma:///data/chroma/docs": ChromaAddress("/data/chroma", "docs"),
    "chroma/docs": ChromaAddress("chroma", "docs"),
    "./chroma/docs": ChromaAddress("chroma", "docs"),
    "lancedb://db/docs": LanceAddress("db", "docs"),
    "lancedb:///data/db/docs.lance": LanceAddress("/data/db", "docs"),
    "lancedb://s3://bucket/db/docs": LanceAddress("s3://bucket/db", "docs"),
    "lance/docs": LanceAddress("lance", "docs"),
    "lance/other": LanceAddress("lance", "other"),
    "lance/docs.lance": LanceAddress("lance", "docs"),
    "chroma://both/docs": ChromaAddress("both", "docs"),
    "lancedb://both/docs": LanceAddress("both", "docs"),
}


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize("address", ADDRESSES)
def test_what_they_name(address: str) -> None:
    assert parse_address(address) == ADDRESSES[address]


def test_a_home_folder(folders: Path) -> None:
    assert parse_address("~/chroma/docs") == ChromaAddress(f"{folders}/chroma", "docs")
    assert parse_address("chroma://~/chroma/docs") == ChromaAddress(f"{folders}/chroma", "docs")
    assert parse_address("lancedb://~/lance/docs") == LanceAddress(f"{folders}/lance", "docs")


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("docs", "no database at 'docs'.*chroma://HOST:PORT/COLLECTION, .*lancedb://FOLDER/TABLE"),
        ("nothing/docs", "no database at 'nothing/docs': nothing has no chroma.sqlite3"),
        ("", "no database at ''"),
        ("chroma", "chroma is a database: add the name .* as in chroma/COLLECTION"),
        ("lance/", "lance/ is a database: add the name .* as in lance/docs"),
        ("both/docs", "both .*chroma:///.*/both/docs or lancedb://both/docs"),
        ("lancedb://docs", "'lancedb://docs' is not a database's address; use chroma://"),
        ("chroma://localhost:8000", "is not a database's address"),
        ("http://localhost:8000/a/b", "is not a database's address"),
        ("chroma://h:x/docs", "chroma://h:x/docs: Port could not be cast .*; use chroma://"),
        ("chroma://:80/docs", "names no server"),
        ("s3://bucket/docs", "is not a database's address"),
        ("postgres://host/docs", "is not a database's address"),
    ],
)
def test_what_they_cannot_be(address: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_address(address)


@pytest.fixture
def databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The collection and the table `docs`, embedded by the mock, in `chroma` and `lance` of the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AKIDB_EMBEDDING__MODE", "mock")
    client = chromadb.PersistentClient(tmp_path / "chroma", settings=Settings(anonymized_telemetry=False))
    collection = akidb_mlx_chroma.create_collection(client, "docs", MLXEmbeddingFunction(mode="mock", dimension=8))
    akidb_mlx_chroma.upsert(collection, DOCUMENTS)
    function = MLXEmbeddings.create(mode="mock", dimension=8)
    table = akidb_mlx_lancedb.create_table(lancedb.connect(tmp_path / "lance"), "docs", function)
    akidb_mlx_lancedb.upsert(table, DOCUMENTS)
    return tmp_path


def run(*arguments: object) -> list[dict[str, object]]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert isinstance(rows, list)
    return rows


@pytest.mark.slow
def test_commands_take_addresses_and_the_options_of_earlier_versions(databases: Path) -> None:
    in_chroma = (
        [f"{databases}/chroma/docs"],
        [f"chroma://{databases}/chroma/docs"],
        ["--chroma", databases / "chroma", "--collection", "docs"],
    )
    in_lancedb = (["lance/docs"], ["lancedb://lance/docs"], ["--lancedb", "lance", "--table", "docs"])
    for place in (*in_chroma, *in_lancedb):
        assert run("search", "one", *place)[0]["id"] == "a"
    old_chroma, old_lance = [databases / "chroma", "--collection", "docs"], ["lance", "--table", "docs"]
    for number, source in enumerate((in_chroma[0], in_lancedb[0], old_chroma, old_lance)):
        row = run("reembed", *source, "--model", "unused", "--dimension", "16", "--name", f"again-{number}")[0]
        assert (row["from"], row["to"], row["embedded"]) == ("docs", f"again-{number}", 2)


def test_help_shows_the_address_and_no_earlier_option() -> None:
    for command in ("search", "reembed", "embed"):
        shown = CliRunner().invoke(app, [command, "--help"]).output
        assert "--collection" not in shown
        assert "--text-field" not in shown
        assert "--text-column" in shown or "chroma://HOST:PORT/COLLECTION" in " ".join(shown.split())


def test_columns_of_embed_have_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AKIDB_EMBEDDING__MODE", "mock")
    Path("in.jsonl").write_text('{"body": "one"}\n')
    for output, options in (
        ("new.jsonl", ("--text-column", "body", "--vector-column", "v")),
        ("old.jsonl", ("--text-field", "body", "--vector-field", "v")),
    ):
        run("embed", "in.jsonl", "--output", output, *options)
        assert list(json.loads(Path(output).read_text())) == ["body", "v"]
    assert Path("new.jsonl").read_text() == Path("old.jsonl").read_text()
