"""The demo: questions about real docstrings in a real Chroma and a real LanceDB."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from golden_rerankers import reranker_dir
from typer.testing import CliRunner

from akidb_mlx_plugin import CrossEncoder, DownloadError, EmbeddingService
from akidb_mlx_plugin.benchmarks.corpus import all_docstrings, popular_docstrings
from akidb_mlx_plugin.cli import app

QUESTION = "how do I parse a date from a string"


@pytest.fixture(scope="module")
def folder(minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Both databases of a smaller demo, after its first run."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("akidb_mlx_plugin.cli.demo._TEXTS", 130)
        (folder / "first.json").write_text(json.dumps(run("--path", str(folder))))
        yield folder


def run(*arguments: str) -> list[dict[str, object]]:
    result = CliRunner().invoke(app, ["demo", "--json", *arguments])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert isinstance(rows, list)
    return rows


@pytest.mark.slow
def test_finds_strptime_in_both_databases(folder: Path) -> None:
    rows = run("--path", str(folder), QUESTION)
    for database in ("Chroma", "LanceDB"):
        found = [row["found"] for row in rows if row["database"] == database]
        assert len(found) == 5
        assert any("strptime" in str(name) for name in found)


@pytest.mark.slow
def test_both_databases_agree_on_names_and_scores(folder: Path) -> None:
    rows = json.loads((folder / "first.json").read_text())
    chroma, lancedb = ([row for row in rows if row["database"] == name] for name in ("Chroma", "LanceDB"))
    assert [row["found"] for row in chroma] == [row["found"] for row in lancedb]
    assert [row["score"] for row in chroma] == pytest.approx([row["score"] for row in lancedb], abs=2e-3)
    assert len({row["question"] for row in rows}) == 3


@pytest.mark.slow
def test_second_run_embeds_only_the_question(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[str] = []
    original = EmbeddingService.embed_batch

    def counting(self: EmbeddingService, texts: list[str], **how: object) -> object:
        embedded.extend(texts)
        return original(self, texts, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(EmbeddingService, "embed_batch", counting)
    run("--path", str(folder), QUESTION)
    assert embedded == [QUESTION, QUESTION]


def test_unknown_model_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--path", str(tmp_path / "demo"), "--model", "minilm"])
    assert result.exit_code != 0
    assert "did you mean 'minilm-l6-v2'" in str(result.exception)
    assert not (tmp_path / "demo").exists()


def test_corpus_is_distinct_and_has_what_the_demo_asks_for() -> None:
    corpus = popular_docstrings(1000)
    assert len(corpus) == len({doc.name for doc in corpus}) == len({doc.text for doc in corpus}) == 1000
    assert {"datetime.datetime.strptime", "time.strptime"} <= {doc.name for doc in corpus}


@pytest.mark.slow
def test_large_corpus_is_distinct() -> None:
    texts = [text for text, _ in zip(all_docstrings(), range(500), strict=False)]
    assert len(set(texts)) == 500


def test_the_command_is_named_in_help() -> None:
    assert "akidb-mlx demo" in CliRunner().invoke(app, ["demo", "--help"]).output


@pytest.mark.slow
@pytest.mark.usefixtures("minilm_dir")
def test_a_reranker_sorts_the_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny one of random weights: which texts it puts first says nothing, that it is asked does."""
    monkeypatch.setattr("akidb_mlx_plugin.cli.demo._TEXTS", 30)
    with CrossEncoder(reranker_dir("roberta"), device="cpu") as encoder:
        rows = run("--path", str(tmp_path), QUESTION, "--rerank", str(reranker_dir("roberta")))
        for database in ("Chroma", "LanceDB"):
            scores = [row["rerank_score"] for row in rows if row["database"] == database]
            assert len(scores) == 5
            assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
        best = next(doc for doc in popular_docstrings(130) if doc.name == rows[0]["found"])
        assert rows[0]["rerank_score"] == pytest.approx(encoder.predict([(QUESTION, best.text)])[0], abs=1e-3)


def test_a_reranker_that_cannot_be_had_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minilm_dir: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = CliRunner().invoke(app, ["demo", "--path", str(tmp_path), "--rerank", "ms-marco-minilm-l6"])
    assert isinstance(result.exception, DownloadError)
    assert "offline mode does not allow" in str(result.exception)
    assert not (tmp_path / "chroma").exists()
