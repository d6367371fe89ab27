"""LLM, the command line: the plugin is found by its entry point, and embeds, stores and searches."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from host_helpers import DOCUMENTS, MINILM

from akidb_mlx_plugin import EmbeddingService, list_models

llm = pytest.importorskip("llm")

MODEL = f"akidb-mlx/{MINILM}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a command of LLM with files of the test's own."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    (tmp_path / "llm").mkdir()
    from llm.cli import cli

    def invoke(*words: str) -> str:
        done = CliRunner().invoke(cli, list(words), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return invoke


def test_every_model_with_a_short_name_is_listed(run: Callable[..., str]) -> None:
    listed = run("embed-models")
    assert [spec.name for spec in list_models() if f"akidb-mlx/{spec.name}" not in listed] == []


def test_the_environments_model_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AKIDB_EMBEDDING__MLX__MODEL", "org/repo")
    assert llm.get_embedding_model("akidb-mlx/org/repo").model_id == "akidb-mlx/org/repo"


def test_vectors_are_the_services(run: Callable[..., str], minilm: EmbeddingService) -> None:
    printed = json.loads(run("embed", "-m", MODEL, "-c", "soup"))
    np.testing.assert_allclose(printed, minilm.encode("soup"), atol=1e-5)
    model = llm.get_embedding_model(MODEL)
    texts = [f"note {number}" for number in range(300)]
    np.testing.assert_allclose(list(model.embed_multi(texts)), minilm.encode(texts), atol=1e-5)
    with pytest.raises(ValueError, match="binary"):
        model.embed(b"soup")


def test_a_collection_finds_the_right_document(
    run: Callable[..., str], tmp_path: Path, questions: dict[str, str]
) -> None:
    file = tmp_path / "notes.jsonl"
    file.write_text("".join(json.dumps({"id": id_, "text": text}) + "\n" for id_, text in DOCUMENTS.items()))
    run("embed-multi", "notes", str(file), "--format", "nl", "-m", MODEL, "--store")
    for question, text in questions.items():
        assert json.loads(run("similar", "notes", "-n", "1", "-c", question))["content"] == text


def test_the_commands_of_the_documentation(run: Callable[..., str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "frameworks.md").read_text("utf-8")
    commands = re.findall(r"^llm .+", page, flags=re.MULTILINE)
    printed = [run(*shlex.split(command)[1:]) for command in commands]
    assert len(printed) == 5
    assert json.loads(printed[-1])["id"] == "paris"
