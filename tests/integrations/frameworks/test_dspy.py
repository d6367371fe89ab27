"""DSPy takes a service's methods as functions."""

from __future__ import annotations

import numpy as np
import pytest
from host_helpers import DOCUMENTS

from akidb_mlx_plugin import EmbeddingService

dspy = pytest.importorskip("dspy")

TEXTS = list(DOCUMENTS.values())


def test_a_retriever_finds_the_right_document(minilm: EmbeddingService, questions: dict[str, str]) -> None:
    embedder = dspy.Embedder(minilm.encode, caching=False)
    search = dspy.retrievers.Embeddings(corpus=TEXTS, embedder=embedder, k=1)
    assert {question: search(question).passages[0] for question in questions} == questions


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_vectors_are_the_services(minilm: EmbeddingService, method: str) -> None:
    embedder = dspy.Embedder(getattr(minilm, method), batch_size=2, caching=False)
    np.testing.assert_allclose(embedder(TEXTS), getattr(minilm, method)(TEXTS), atol=1e-5)
    assert embedder("soup").shape == (384,)


def test_with_its_cache_the_error_says_what_to_do(minilm: EmbeddingService) -> None:
    """DSPy's cache would know a function by its source alone, and mix two models' vectors up."""
    with pytest.raises(TypeError, match="caching=False"):
        dspy.Embedder(minilm.encode)(["soup"])
