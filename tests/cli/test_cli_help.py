"""Help of every command: working examples, shell completion, and exit codes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import akidb_mlx_chroma
import akidb_mlx_lancedb
import chromadb
import lancedb
import pyarrow as pa
import pytest
import typer
from chromadb.config import Settings
from typer.testing import CliRunner

from akidb_mlx_plugin import Document
from akidb_mlx_plugin.cli import app

MINILM = "minilm-l6-v2"
# Commands that are quick, need no hub, and write only to the current folder.
QUICK = (
    "cache list",
    "cache size",
    "cache clean",
    "config",
    "embed",
    "metrics",
    "models list",
    "models info",
    "search",
)


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every command that is not a group, with its full name."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from walk(inner, (*path, name))
    else:
        yield " ".join(path), command


COMMANDS = dict(walk(typer.main.get_command(app)))


def examples_of(command: Any) -> list[str]:
    """Return the examples in a command's help, without the program's name and redirections."""
    found = re.findall(r"^Example: akidb-mlx (.+)$", command.help or "", flags=re.MULTILINE)
    return [example.partition(" > ")[0] for example in found]


EXAMPLES = [(name, example) for name, command in COMMANDS.items() for example in examples_of(command)]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_of_this_very_command(name: str) -> None:
    assert examples_of(COMMANDS[name]), f"the help of {name!r} has no line 'Example: akidb-mlx {name} ...'"
    assert all(shlex.split(example)[: len(name.split())] == name.split() for example in examples_of(COMMANDS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_it(name: str) -> None:
    result = CliRunner().invoke(app, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert "Example: akidb-mlx" in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    silent = [parameter.name for parameter in COMMANDS[name].params if not getattr(parameter, "help", "")]
    assert silent == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=[example for _, example in EXAMPLES])
def test_example_parses(name: str, example: str) -> None:
    root = typer.main.get_command(app)
    called: list[str] = []
    for full_name, command in walk(root):
        command.callback = lambda *, _called=full_name, **_: called.append(_called)
    root.main(shlex.split(example), prog_name="akidb-mlx", standalone_mode=False)
    assert called == [name]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path) -> Path:
    """A folder with the files, the collection and the table that the examples name."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "texts.txt").write_text("one\ntwo\n")
    (folder / "articles.jsonl").write_text('{"title": "a", "body": "how to parse a date"}\n')
    (folder / "config.yaml").write_text("embedding:\n  mlx:\n    model: minilm-l6-v2\n")
    documents = [Document("a", text="how to parse a date", metadata={"year": 2021})]
    client = chromadb.PersistentClient(folder / "chroma", settings=Settings(anonymized_telemetry=False))
    function = akidb_mlx_chroma.MLXEmbeddingFunction(model=MINILM)
    akidb_mlx_chroma.upsert(akidb_mlx_chroma.create_collection(client, "docs", function), documents)
    own = akidb_mlx_lancedb.MLXEmbeddings.create(name=MINILM)
    columns = pa.schema([pa.field("year", pa.int64())])
    akidb_mlx_lancedb.upsert(
        akidb_mlx_lancedb.create_table(lancedb.connect(folder / "lancedb"), "docs", own, schema=columns), documents
    )
    return folder


# The weights of no reranker are on the package index.
@pytest.mark.slow
@pytest.mark.parametrize(
    "example", [example for name, example in EXAMPLES if name.startswith(QUICK) and "--rerank" not in example]
)
def test_quick_example_runs(example: str, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(prepared)
    result = CliRunner().invoke(app, shlex.split(example), input="a question\n", catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() or example.startswith("cache clean")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program like its script."""
    code = "import sys; sys.argv[0] = 'akidb-mlx'; from akidb_mlx_plugin.__main__ import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.slow
def test_the_shell_completes_commands() -> None:
    done = run(_AKIDB_MLX_COMPLETE="complete_bash", COMP_WORDS="akidb-mlx m", COMP_CWORD="1")
    assert done.stdout.split() == ["models", "metrics"]


@pytest.mark.slow
def test_the_shell_completes_options() -> None:
    done = run(_AKIDB_MLX_COMPLETE="complete_bash", COMP_WORDS="akidb-mlx cache clean --max", COMP_CWORD="3")
    assert done.stdout.split() == ["--max-gb"]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_completion_is_shown(shell: str) -> None:
    # Set here rather than detected from the parent process, which need not be a shell.
    done = run("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0, done.stderr
    assert "_AKIDB_MLX_COMPLETE" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--version"], 0),
        (["--help"], 0),
        (["-h"], 0),
        (["models", "list"], 0),
        (["models", "info", "no-such-model"], 1),
        (["config", "show", "--config", "no-such-file.yaml"], 1),
        (["no-such-command"], 2),
        (["models", "list", "--no-such-option"], 2),
        (["cache", "clean", "--max-gb", "many"], 2),
    ],
)
def test_exit_status(arguments: list[str], status: int) -> None:
    done = run(*arguments)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    # Errors go to standard error, this package's own in one line.
    assert bool(done.stdout) == (status == 0)
    if status == 1:
        assert re.fullmatch(r"akidb-mlx: .+\n", done.stderr)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "akidb_mlx_plugin", "models", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "akidb-mlx: [Errno 28] No space left on device\n")


def test_an_interrupt_while_the_program_is_imported_ends_it_cleanly() -> None:
    code = """
        import builtins, sys
        from akidb_mlx_plugin.__main__ import main
        def interrupt(name, *rest):
            if name == "akidb_mlx_plugin.cli":
                raise KeyboardInterrupt
            return load(name, *rest)
        load, builtins.__import__ = builtins.__import__, interrupt
        main()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "akidb-mlx: interrupted\n")


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = "import sys; from akidb_mlx_plugin.__main__ import main; sys.argv[1:] = ['metrics', 'dashboard']; main()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
