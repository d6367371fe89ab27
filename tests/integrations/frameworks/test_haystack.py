"""Haystack: pipelines that write and ask, over both databases."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_helpers import DOCUMENTS, MINILM, count_loads

from akidb_mlx_plugin import EmbeddingService, InvalidInputError

pytest.importorskip("haystack")

from akidb_mlx_haystack import MLXDocumentEmbedder, MLXTextEmbedder
from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore


@pytest.fixture(params=["chroma", "lancedb", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    """An empty store, and a retriever of one document."""
    if request.param == "chroma":
        stores = pytest.importorskip("haystack_integrations.document_stores.chroma")
        from haystack_integrations.components.retrievers.chroma import ChromaEmbeddingRetriever

        chroma = stores.ChromaDocumentStore("notes", persist_path=str(tmp_path / "chroma"))
        return chroma, ChromaEmbeddingRetriever(chroma, top_k=1)
    if request.param == "lancedb":
        stores = pytest.importorskip("lancedb_haystack")
        import pyarrow

        schema = pyarrow.struct([("topic", pyarrow.string())])
        lance = stores.LanceDBDocumentStore(str(tmp_path / "lancedb"), "notes", schema, 384)
        return lance, stores.LanceDBEmbeddingRetriever(lance, top_k=1)
    memory = InMemoryDocumentStore()
    return memory, InMemoryEmbeddingRetriever(memory, top_k=1)


def documents() -> list[Document]:
    return [Document(content=text, meta={"topic": topic}) for topic, text in DOCUMENTS.items()]


def writing(store: Any) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("embedder", MLXDocumentEmbedder(MINILM))
    pipeline.add_component("writer", DocumentWriter(store))
    pipeline.connect("embedder.documents", "writer.documents")
    return pipeline


def asking(retriever: Any) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("embedder", MLXTextEmbedder(MINILM))
    pipeline.add_component("retriever", retriever)
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    return pipeline


def test_pipelines_find_the_right_document(store: tuple[Any, Any], questions: dict[str, str]) -> None:
    writing(store[0]).run({"embedder": {"documents": documents()}})
    pipeline = asking(store[1])
    found = {
        question: pipeline.run({"embedder": {"text": question}})["retriever"]["documents"][0].content
        for question in questions
    }
    assert found == questions


def test_a_pipeline_is_stored_and_made_again() -> None:
    pipeline = Pipeline()
    pipeline.add_component("query", MLXTextEmbedder(MINILM, normalize=False, query_prompt="query: "))
    pipeline.add_component("documents", MLXDocumentEmbedder(MINILM, device="cpu", meta_fields_to_embed=["topic"]))
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["akidb_mlx_haystack"])
    assert again.to_dict() == pipeline.to_dict()
    given = {"query": {"text": "soup"}, "documents": {"documents": documents()}}
    assert again.run(given) == pipeline.run(given)


def test_vectors_are_the_services(minilm: EmbeddingService) -> None:
    query = MLXTextEmbedder(MINILM, query_prompt="query: ")
    document = MLXDocumentEmbedder(
        MINILM, document_prompt="passage: ", meta_fields_to_embed=["topic"], embedding_separator=" | "
    )
    (soup,) = minilm.embed_batch(["query: soup"]).embeddings
    texts = [f"passage: {topic} | {text}" for topic, text in DOCUMENTS.items()]
    expected = minilm.embed_batch(texts).embeddings
    given = documents()
    np.testing.assert_allclose(query.run("soup")["embedding"], soup, atol=1e-5)
    np.testing.assert_allclose([d.embedding for d in document.run(given)["documents"]], expected, atol=1e-5)
    assert [d.embedding for d in given] == [None] * len(given)
    assert document.run([])["documents"] == []
    assert query.run("soup")["meta"] == {"model": MINILM}
    with pytest.raises(InvalidInputError, match="tokens"):
        MLXDocumentEmbedder(MINILM, overflow="error").run([Document(content="word " * 600)])
    with pytest.raises(InvalidInputError, match="text 0 is list"):
        query.run(["soup"])

    async def ask() -> tuple[Any, Any]:
        return await query.run_async("soup"), await document.run_async(given)

    one, several = asyncio.run(ask())
    np.testing.assert_allclose(one["embedding"], soup, atol=1e-5)
    np.testing.assert_allclose([d.embedding for d in several["documents"]], expected, atol=1e-5)


@pytest.mark.parametrize("make", [MLXTextEmbedder, MLXDocumentEmbedder])
def test_warming_up_loads_the_model(make: Any, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = count_loads(monkeypatch)
    embedder = make(str(tiny_dir))
    assert loads == []
    embedder.warm_up()
    embedder.warm_up()
    assert loads == [str(tiny_dir)]
