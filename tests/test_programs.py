"""`akidb-mlx run`: programs that do not import this package use its collections and tables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import akidb_mlx_chroma
import akidb_mlx_lancedb
import chromadb
import lancedb
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction
from akidb_mlx_lancedb import MLXEmbeddings

from akidb_mlx_plugin import Document, EmbeddingError, InvalidInputError
from akidb_mlx_plugin.programs import find_program, import_adapters

ROOT = Path(__file__).parents[1]
# A program as others write it. What it reads is embedded by the mock, which takes no model.
PROGRAM = """
import sys
import chromadb
import lancedb

print(__name__, sys.argv[1:], "mlx.core" in sys.modules)
try:
    collection = chromadb.PersistentClient("chroma").get_collection("docs")
    print(collection.query(query_texts=["one"], n_results=1)["ids"])
except ValueError as error:
    print(error)
try:
    print([hit["id"] for hit in lancedb.connect("lance").open_table("docs").search("one").limit(1).to_list()])
except KeyError as error:
    print(repr(error))
sys.exit(3)
"""


@pytest.fixture
def databases(tmp_path: Path) -> Path:
    documents = [Document("a", text="one"), Document("b", text="two")]
    client = chromadb.PersistentClient(tmp_path / "chroma")
    collection = akidb_mlx_chroma.create_collection(client, "docs", MLXEmbeddingFunction(mode="mock", dimension=8))
    akidb_mlx_chroma.upsert(collection, documents)
    function = MLXEmbeddings.create(mode="mock", dimension=8)
    akidb_mlx_lancedb.upsert(
        akidb_mlx_lancedb.create_table(lancedb.connect(tmp_path / "lance"), "docs", function), documents
    )
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "asks.py").write_text(PROGRAM)
    (tmp_path / "asks.py").write_text(PROGRAM)
    return tmp_path


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(folder, "-m", "akidb_mlx_plugin", "run", *arguments)


@pytest.mark.slow
def test_a_script_and_a_module_find_the_functions(databases: Path) -> None:
    """Without `run` they get the messages that docs/troubleshooting.md has."""
    alone = python(databases, "asks.py", "--verbose")
    assert alone.stdout.splitlines() == [
        "__main__ ['--verbose'] False",
        "Embedding function akidb_mlx not found. Add @register_embedding_function decorator to the class definition. "
        "in query.",
        "KeyError('akidb-mlx')",
    ]
    for program in ("asks.py", "package.asks"):
        found = run(databases, program, "--verbose", "-h", "x")
        assert found.stdout.splitlines() == ["__main__ ['--verbose', '-h', 'x'] False", "[['a']]", "['a']"]
        assert (found.returncode, found.stderr) == (3, "")


@pytest.mark.slow
def test_errors_are_the_programs_own(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(
        "import other\nprint(other.VALUE, flush=True)\nraise OSError('of the program')\n"
    )
    (tmp_path / "other.py").write_text("VALUE = 1\n")
    failed = run(tmp_path, "fails.py")
    assert (failed.returncode, failed.stdout) == (1, "1\n")
    assert failed.stderr.startswith("Traceback (most recent call last):")
    assert failed.stderr.endswith("OSError: of the program\n")
    absent = run(tmp_path, "absent.py")
    assert (absent.returncode, absent.stdout, absent.stderr) == (1, "", "akidb-mlx: no file absent.py\n")


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give the process back its arguments and its path, in a folder of its own."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_installed_command_is_found_by_its_name(untouched: Path) -> None:
    run_it = find_program("pytest", ["--version"])
    assert sys.argv == [str(Path(sys.executable).with_name("pytest")), "--version"]
    with pytest.raises(SystemExit) as ended:
        run_it()
    assert ended.value.code == 0


def test_a_file_goes_before_a_command(untouched: Path) -> None:
    (untouched / "pytest").write_text("import sys\nsys.exit('the file')\n")
    with pytest.raises(SystemExit, match="the file"):
        find_program("pytest", [])()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("nothing.py", "no file nothing.py"),
        ("folder/nothing.py", "no file folder/nothing.py"),
        ("akidb_nothing", "no file, installed command or module 'akidb_nothing' in .*installed elsewhere"),
        ("akidb_nothing.part", r"no file, installed command or module 'akidb_nothing.part' \(No module named"),
        ("..", "no file, installed command or module '..'"),
        ("xml", "xml is a package without __main__.py; run one of its modules, as xml.MODULE"),
    ],
)
def test_what_is_not_there(untouched: Path, program: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        find_program(program, [])


def test_a_database_that_is_missing_or_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "akidb_mlx_lancedb", None)
    import_adapters()
    assert "akidb-mlx: the function for LanceDB is not registered: " in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "lancedb", None)
    import_adapters()
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "chromadb", None)
    with pytest.raises(EmbeddingError, match="neither Chroma nor LanceDB is installed"):
        import_adapters()


def test_entry_points_name_the_classes() -> None:
    tomllib = pytest.importorskip("tomllib")
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]
    assert {name: group for name, group in groups.items() if name != "llm"} == {
        "chromadb.embedding_functions": {MLXEmbeddingFunction.name(): "akidb_mlx_chroma:MLXEmbeddingFunction"},
        "lancedb.embeddings": {"akidb-mlx": "akidb_mlx_lancedb:MLXEmbeddings"},
    }
