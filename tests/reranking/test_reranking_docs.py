"""docs/reranking.md: its code runs as it stands, with a tiny reranker in the place of the one that it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from golden_rerankers import reranker_dir
from loopback_hub import Hub
from typer.testing import CliRunner

from akidb_mlx_plugin import cross_encoder
from akidb_mlx_plugin.cli import app
from akidb_mlx_plugin.hub import ensure_model
from akidb_mlx_plugin.hub.registry import list_models

pytest_plugins = ("hub_fixtures",)

PAGE = (Path(__file__).parents[2] / "docs" / "reranking.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def models_cached(hub: Hub, cache_dir: Path, minilm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model cache with MiniLM and, by the name of a real reranker, a tiny one."""
    (minilm,) = (parent for parent in minilm_dir.parents if parent.name.startswith("models--"))
    cache_dir.mkdir()
    (cache_dir / minilm.name).symlink_to(minilm)
    repo, folder = "cross-encoder/ms-marco-MiniLM-L6-v2", reranker_dir("roberta")
    hub.add(repo, {file.name: file.read_bytes() for file in folder.iterdir()})
    ensure_model(repo, cache_dir=cache_dir)
    # The adapters' rerankers are those of the whole process.
    monkeypatch.setattr(cross_encoder, "_shared", {})


@pytest.mark.slow
@pytest.mark.usefixtures("models_cached")
@pytest.mark.parametrize("code", blocks("py"), ids=lambda code: code.splitlines()[0])
def test_python_runs(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert len(capsys.readouterr().out.split()) > 1


def test_commands_exist() -> None:
    commands = [shlex.split(line)[1:] for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 3
    for words in commands:
        path = [word for word in words if re.fullmatch(r"[a-z]+", word)][: 2 if words[0] == "models" else 1]
        shown = CliRunner().invoke(app, [*path, "--help"])
        assert shown.exit_code == 0
        assert all(word in shown.output for word in words if word.startswith("--"))


def test_models_are_those_of_the_registry() -> None:
    rows = re.findall(r"^\| `([\w.-]+)` \| ([\w./-]+);.*\| ([\d,]+) tokens \| [\d.]+ [MG]B \| ([\w.-]+) \|", PAGE, re.M)
    expected = [(spec.name, spec.repo, f"{spec.max_tokens:,}", spec.licence) for spec in list_models("reranker")]
    assert rows == expected
