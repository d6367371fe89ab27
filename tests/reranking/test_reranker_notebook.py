"""The notebook's cell about rerankers, with one at hand: the run of the whole notebook has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_rerankers import reranker_dir

from akidb_mlx_plugin import CrossEncoder, EmbeddingService, list_models
from akidb_mlx_plugin.benchmarks.corpus import popular_docstrings

nbformat = pytest.importorskip("nbformat", reason="the notebooks need their extra: pip install -e '.[notebook]'")
NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "04_choosing_a_model.ipynb"
COUNT = 60


def cell_with(text: str) -> str:
    (source,) = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if text in cell.source]
    return str(source)


@pytest.fixture(scope="module")
def exam(minilm: EmbeddingService) -> dict[str, Any]:
    """What the notebook's earlier cells leave behind, for fewer questions."""
    exam: dict[str, Any] = {"np": np, "list_models": list_models, "popular_docstrings": popular_docstrings}
    exec(cell_with("questions, documents = [], []"), exam)
    questions, documents = exam["questions"][:COUNT], exam["documents"][:COUNT]
    queries = minilm.embed_batch(questions, kind="query").embeddings
    answers = minilm.embed_batch(documents).embeddings
    exam |= {"questions": questions, "documents": documents, "results": {"minilm-l6-v2": ({}, queries, answers)}}
    return exam | {"present": {"minilm-l6-v2", "ms-marco-minilm-l6"}}


def run(exam: dict[str, Any], reranker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("akidb_mlx_plugin.CrossEncoder", reranker, raising=False)
    exec(cell_with("look_again"), dict(exam))


@pytest.mark.slow
def test_a_reranker_is_measured(
    exam: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(exam, lambda name: CrossEncoder(reranker_dir("roberta"), device="cpu"), monkeypatch)
    assert "ms-marco-minilm-l6: right answer first" in capsys.readouterr().out


@pytest.mark.slow
def test_a_question_whose_first_answer_is_right_now_is_shown(
    exam: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = dict(zip(exam["questions"], exam["documents"], strict=True))

    class Wise:
        """Knows the right answers, as a good reranker nearly does."""

        def __init__(self, name: str) -> None: ...

        def __enter__(self) -> Wise:
            return self

        def __exit__(self, *_: object) -> None: ...

        def rank(self, question: str, texts: list[str]) -> list[dict[str, int]]:
            return [{"corpus_id": i} for i in sorted(range(len(texts)), key=lambda i: texts[i] != right[question])]

    run(exam, Wise, monkeypatch)
    title, question, before, after = capsys.readouterr().out.splitlines()
    assert title.startswith("ms-marco-minilm-l6: right answer first")
    asked = question.removeprefix("  Q:").strip()
    expected = " ".join(right[next(known for known in right if " ".join(known.split()) == asked)].split())[:100]
    assert after == f"  after:  {expected} ..."
    assert before != f"  before: {expected} ..."


@pytest.mark.slow
def test_without_one_the_cell_says_so(
    exam: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(exam | {"present": {"minilm-l6-v2"}}, None, monkeypatch)
    assert capsys.readouterr().out.startswith("no reranker on this machine")
