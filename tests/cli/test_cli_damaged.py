"""Damaged databases, wrong servers and odd names on the command line: one line, no stack trace."""

from __future__ import annotations

import http.server
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import akidb_mlx_chroma
import akidb_mlx_lancedb
import chromadb
import lancedb
import pytest
from chromadb.config import Settings
from host_helpers import TINY
from typer.testing import CliRunner

from akidb_mlx_plugin import Document
from akidb_mlx_plugin.cli import app
from akidb_mlx_plugin.cli.databases import host_errors
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError

NOISE = bytes(range(256)) * 12
DOCUMENTS = [Document(str(i), text=f"word {i}") for i in range(30)]


@pytest.fixture(scope="module")
def chroma_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chroma")
    client = chromadb.PersistentClient(folder, settings=Settings(anonymized_telemetry=False))
    docs = akidb_mlx_chroma.create_collection(client, "docs", akidb_mlx_chroma.MLXEmbeddingFunction(TINY))
    akidb_mlx_chroma.upsert(docs, DOCUMENTS)
    return folder


@pytest.fixture(scope="module")
def lance_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lance")
    function = akidb_mlx_lancedb.MLXEmbeddings.create(name=str(TINY))
    akidb_mlx_lancedb.upsert(akidb_mlx_lancedb.create_table(lancedb.connect(folder), "docs", function), DOCUMENTS)
    return folder


def execute(statement: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with sqlite3.connect(folder / "chroma.sqlite3") as database:
            database.execute(statement)
        database.close()

    return damage


def cut(folder: Path) -> None:
    with (folder / "chroma.sqlite3").open("r+b") as file:
        file.truncate(50_000)


def fill(pattern: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.write_bytes(NOISE)

    return damage


def refusal(*arguments: object) -> str:
    """Return the single error line of a command."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, EmbeddingError), (result.exception, result.output)
    message = str(result.exception)
    assert len(message.splitlines()) == 1
    assert 10 < len(message) < 500
    return message


UNREADABLE = {
    "noise": fill("chroma.sqlite3"),
    "cut": cut,
    "no table": execute("DROP TABLE collections"),
    "schema": execute("UPDATE collections SET schema_str = '{'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", UNREADABLE.values(), ids=UNREADABLE)
def test_chroma_folders(chroma_folder: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = shutil.copytree(chroma_folder, tmp_path / "damaged")
    damage(folder)
    assert str(folder) in refusal("search", "x", f"{folder}/docs")
    assert str(folder) in refusal("reembed", f"chroma://{folder}/docs", "--model", TINY)


def test_a_chroma_folder_with_another_dimension(chroma_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(chroma_folder, tmp_path / "damaged")
    execute("UPDATE collections SET dimension = 9")(folder)
    assert "had 9" in refusal("search", "x", f"{folder}/docs")


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["docs.lance/data/*", "docs.lance/_versions/*"])
@pytest.mark.parametrize("command", ["search", "reembed"])
def test_lancedb_folders(lance_folder: Path, tmp_path: Path, pattern: str, command: str) -> None:
    folder = shutil.copytree(lance_folder, tmp_path / "damaged")
    fill(pattern)(folder)
    if command == "search":
        refusal("search", "x", f"{folder}/docs")
    else:
        refusal("reembed", f"lancedb://{folder}/docs", "--model", TINY)


@pytest.fixture
def wrong_server() -> Iterator[int]:
    """The port of an HTTP server that is not Chroma's."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.slow
def test_servers(wrong_server: int) -> None:
    for address in (
        f"http://127.0.0.1:{wrong_server}",
        "http://127.0.0.1:9",
        "http://[::1",
        "http://127.0.0.1:999999",
        "ftp://127.0.0.1",
    ):
        assert address in refusal("search", "x", "--chroma", address, "--collection", "docs")


@pytest.mark.slow
def test_names_and_numbers(chroma_folder: Path) -> None:
    for name in ("", "nope", "a b/../c"):
        refusal("search", "x", "--chroma", chroma_folder, "--collection", name)
    refusal("search", "x", "--chroma", chroma_folder, "--collection", "docs", "--limit", 10**20)
    refusal("reembed", chroma_folder, "--collection", "docs", "--model", TINY, "--name", "a b/../c")
    refusal("reembed", chroma_folder, "--collection", "docs", "--model", TINY, "--name", "docs")


class TestOneLine:
    def test_whatever_is_raised(self) -> None:
        panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
        for error in (RuntimeError("two\nlines"), Exception(), KeyError("x"), OSError("gone"), panic("rust")):
            with pytest.raises(EmbeddingError, match=r"^db: ") as raised, host_errors("db"):
                raise error
            assert len(str(raised.value).splitlines()) == 1
            assert raised.value.__cause__ is error
        with pytest.raises(EmbeddingError, match="KeyError: 'x'"), host_errors("db"):
            raise KeyError("x")
        with pytest.raises(EmbeddingError) as raised, host_errors("db"):
            raise RuntimeError("x" * 10_000)
        assert len(str(raised.value)) < 400

    @pytest.mark.parametrize("error", [InvalidInputError("as it is"), KeyboardInterrupt(), SystemExit(3)])
    def test_what_passes(self, error: BaseException) -> None:
        with pytest.raises(type(error)) as raised, host_errors("db"):
            raise error
        assert raised.value is error
