"""The command `akidb-mlx reembed` on both databases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import akidb_mlx_chroma
import chromadb
import pytest
import typer
from host_helpers import MINILM, TINY
from hosts import Host
from typer.testing import CliRunner

from akidb_mlx_plugin import Document, EmbeddingError, EmbeddingService
from akidb_mlx_plugin.cli.reembed import reembed as reembed_command

pytest_plugins = ("host_fixtures", "collection_fixtures")

app = typer.Typer()
app.command()(reembed_command)


@pytest.fixture
def host(folder_host: Host) -> Host:
    return folder_host


class TestCommand:
    @pytest.fixture
    def real(self, host: Host, minilm: EmbeddingService) -> Any:
        made = host.create("docs", host.make(str(TINY)))
        host.upsert(made, [Document("date", "parse a date"), Document("pasta", "boil the pasta in water")])
        return made

    @pytest.mark.slow
    def test_another_model(self, host: Host, real: Any) -> None:
        arguments = [f"{host.location}/docs", "--model", MINILM, "--json"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        row = json.loads(result.stdout)[0]
        assert (row["from"], row["to"], row["documents"], row["embedded"]) == ("docs", f"docs-{MINILM}", 2, 2)
        again = json.loads(CliRunner().invoke(app, arguments).stdout)[0]
        assert (again["documents"], again["embedded"], again["already there"]) == (2, 0, 2)
        made = host.open(f"docs-{MINILM}")
        assert host.search(made, "cook spaghetti") == "pasta"

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

    @pytest.mark.slow
    def test_no_such_collection_or_model(self, host: Host, real: Any) -> None:
        for arguments in (["nothing", "--model", MINILM], ["docs", "--model", "nothing"], ["docs", "--model", "./no"]):
            result = CliRunner().invoke(app, [host.location, host.option, *arguments])
            assert isinstance(result.exception, EmbeddingError), result.output
            assert "no" in str(result.exception)
        assert list(host.names()) == ["docs"]

    def test_a_folder_stays_what_it_is(self, tmp_path: Path) -> None:
        CliRunner().invoke(app, [str(tmp_path), "--collection", "docs", "--model", MINILM])
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("options", [["--collection", "a", "--table", "b"]])
    def test_one_of_both(self, options: list[str], tmp_path: Path) -> None:
        result = CliRunner().invoke(app, [str(tmp_path), *options, "--model", MINILM])
        assert result.exit_code == 2
        assert "name one collection or table" in " ".join(result.output.split())

    @pytest.mark.slow
    def test_a_server(self, chroma_port: int, name: str, minilm: EmbeddingService) -> None:
        client = chromadb.HttpClient("127.0.0.1", chroma_port)
        source = akidb_mlx_chroma.create_collection(client, name, akidb_mlx_chroma.MLXEmbeddingFunction(TINY))
        akidb_mlx_chroma.upsert(source, [Document("a", "a")])
        address = f"chroma://127.0.0.1:{chroma_port}"
        result = CliRunner().invoke(app, [f"{address}/{name}", "--model", MINILM, "--name", f"{name}-new"])
        assert result.exit_code == 0, result.output
        assert client.get_collection(f"{name}-new").count() == 1

    def test_the_help_has_an_example(self) -> None:
        assert "akidb-mlx reembed ./chroma/docs" in " ".join(CliRunner().invoke(app, ["--help"]).output.split())
