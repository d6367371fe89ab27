"""README and docs: code runs, commands exist, links lead to files, figures and messages are the real ones."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from akidb_mlx_plugin.cli import app
from akidb_mlx_plugin.config import EmbeddingConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_LONGEST_README = 900
# No requirement of the tests: .ci/frameworks has them.
_FRAMEWORKS = ("dspy", "haystack", "haystack_integrations", "langchain_chroma", "langchain_lancedb", "llama_index")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def python_blocks() -> list[object]:
    """Every block of Python; those of one page that need Ray, in an id that the CI names."""
    return [
        pytest.param(page, code, id=f"{name(page)}-{'ray' if 'akidb_mlx_ray' in code else number}")
        for page in PAGES
        for number, code in enumerate(blocks(page, "python"))
    ]


def commands() -> list[str]:
    found = set()
    for page in PAGES:
        lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
        inline = re.findall(r"`(akidb-mlx [^`|<>…]+)`", page.read_text(encoding="utf-8"))
        found |= {line for line in (*lines, *inline) if line.startswith("akidb-mlx ")}
    return sorted(found)


@pytest.fixture
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder for one block, and no Chroma client of another block by the same relative path."""
    from chromadb.api.shared_system_client import SharedSystemClient

    monkeypatch.chdir(tmp_path)
    SharedSystemClient.clear_system_cache()


@pytest.mark.slow
@pytest.mark.parametrize(("page", "code"), python_blocks())
@pytest.mark.usefixtures("minilm_dir", "_own_folder")
def test_python_runs(page: Path, code: str, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:
    if "akidb_mlx_ray" in code:
        if find_spec("ray") is None:
            pytest.skip("needs the extra ray")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        return
    imported = set(re.findall(r"^(?:import|from) (\w+)", code, flags=re.MULTILINE))
    for framework in imported & {*_FRAMEWORKS}:
        pytest.importorskip(framework)
    # A page's second block may open what its first one wrote.
    earlier = blocks(page, "python")
    run = [*earlier[: earlier.index(code)], code] if "get_collection(chromadb" in code else [code]
    for block in run:
        exec(compile(block, name(page), "exec", dont_inherit=True), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_commands_exist_with_their_options(command: str) -> None:
    words = [word for word in shlex.split(command.split(" > ")[0])[1:] if not word.isupper()]
    path = [word for word in words if re.fullmatch(r"[a-z]+", word)][:2]
    shown = CliRunner().invoke(app, [*path, "--help"])
    if path and shown.exit_code != 0:  # the second word was an argument
        shown = CliRunner().invoke(app, [path[0], "--help"])
    assert shown.exit_code == 0, shown.output
    for option in (word for word in words if word.startswith("--") and word != "--help"):
        assert option in shown.output


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


def test_two_commands_come_first_in_a_short_readme() -> None:
    install, test = blocks(ROOT / "README.md", "bash")[:2]
    assert install == "python3 -m venv .venv && .venv/bin/pip install -e '.[all]' && .venv/bin/akidb-mlx demo\n"
    assert test == "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest\n"
    assert README.index(install) < README.index("```python")
    assert len(README.split()) <= _LONGEST_README


def test_configuration_reference_is_of_the_schema(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "scripts"))
    script = import_module("configuration")
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.write() == page, "run python docs/scripts/configuration.py"
    (text,) = blocks(script.PAGE, "yaml")
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    assert EmbeddingConfig.load(file) == EmbeddingConfig()
    assert set(yaml.safe_load(text)["embedding"]) == set(EmbeddingConfig.model_fields)


@pytest.mark.slow
def test_figures_are_those_of_the_published_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    publish = import_module("publish")
    report = publish.json.loads(publish.FIGURES.read_text("utf-8"))
    text = publish.PAGE.read_text("utf-8")
    assert publish.insert(text, report) == text, "run python tests/benchmarks/publish.py"


def spoken() -> str:
    """Every string of the package's code, with … where a value is put in."""
    found = []
    for folder in ("akidb_mlx_plugin", "integrations"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub(r"%[.\d]*[sdrgf]", "…", node.value))
    return "\n".join(found)


@pytest.mark.slow
def test_troubleshooting_quotes_messages_that_exist() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    own = page.partition("## Messages of Chroma")[0]
    quoted = re.findall(r"^\| `(.+?)` \|", own, flags=re.MULTILINE)
    said = spoken()
    parts = [part.strip(" .:;,'") for message in quoted for part in message.split("…")]
    assert len(quoted) > 10
    assert [part for part in parts if part and part not in said] == []


def test_what_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"(?:tests|docs)/[\w/]+\.(?:py|md)|\.ci/\w+", text)
    named += [word for line in re.findall(r"`pytest [^`<]*`", text) for word in re.findall(r"tests/[\w/]+", line)]
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists() and not (ROOT / f"{path}.py").exists()] == []
