"""LlamaIndex: an index over both databases, and its own calls."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from host_helpers import DOCUMENTS, MINILM

from akidb_mlx_plugin import EmbeddingService
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError

pytest.importorskip("llama_index.core")

from akidb_mlx_llamaindex import MLXEmbedding
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode


@pytest.fixture(params=["chroma", "lancedb", "memory"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> VectorStoreIndex:
    """An index of the documents."""
    options: dict[str, Any] = {}
    if request.param == "chroma":
        module = pytest.importorskip("llama_index.vector_stores.chroma")
        collection = chromadb.PersistentClient(tmp_path / "chroma").create_collection("notes")
        store = module.ChromaVectorStore(chroma_collection=collection)
        options["storage_context"] = StorageContext.from_defaults(vector_store=store)
    if request.param == "lancedb":
        module = pytest.importorskip("llama_index.vector_stores.lancedb")
        store = module.LanceDBVectorStore(uri=str(tmp_path / "lancedb"), table_name="notes")
        options["storage_context"] = StorageContext.from_defaults(vector_store=store)
    nodes = [TextNode(text=text, id_=id_) for id_, text in DOCUMENTS.items()]
    return VectorStoreIndex(nodes, embed_model=MLXEmbedding(MINILM), **options)


def test_an_index_finds_the_right_document(index: VectorStoreIndex, questions: dict[str, str]) -> None:
    retriever = index.as_retriever(similarity_top_k=1)
    assert {question: retriever.retrieve(question)[0].text for question in questions} == questions


def test_an_index_finds_it_asynchronously(index: VectorStoreIndex, questions: dict[str, str]) -> None:
    async def run() -> dict[str, str]:
        retriever = index.as_retriever(similarity_top_k=1)
        answers = await asyncio.gather(*(retriever.aretrieve(question) for question in questions))
        return {question: answer[0].text for question, answer in zip(questions, answers, strict=True)}

    assert asyncio.run(run()) == questions


def test_every_call_gives_the_services_vectors(minilm: EmbeddingService) -> None:
    model = MLXEmbedding(MINILM, normalize=False, query_prompt="query: ", document_prompt="passage: ")
    query, *texts = minilm.embed_batch(["query: soup", "passage: soup", "passage: tea"], normalize=False).embeddings
    np.testing.assert_allclose(model.get_query_embedding("soup"), query, atol=1e-5)
    np.testing.assert_allclose(model.get_text_embedding("soup"), texts[0], atol=1e-5)
    np.testing.assert_allclose(model.get_text_embedding_batch(["soup", "tea"]), texts, atol=1e-5)

    async def ask() -> tuple[Any, Any, Any]:
        batch = await model.aget_text_embedding_batch(["soup", "tea"])
        return await model.aget_query_embedding("soup"), await model.aget_text_embedding("soup"), batch

    for found, expected in zip(asyncio.run(ask()), (query, texts[0], texts), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_more_batches_than_the_queue_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AKIDB_EMBEDDING__SERVICE__QUEUE_SIZE", "4")
    model = MLXEmbedding(MINILM, embed_batch_size=2)
    texts = [f"note {number}" for number in range(40)]
    assert len(asyncio.run(model.aget_text_embedding_batch(texts))) == 40


def test_names_its_model_and_can_be_pickled() -> None:
    model = MLXEmbedding(dimension=64)
    assert model.model_name == EmbeddingConfig().mlx.model
    again = pickle.loads(pickle.dumps(model))
    assert (again.service, again.to_dict()) == (model.service, model.to_dict())


def test_a_long_text_can_be_an_error() -> None:
    with pytest.raises(InvalidInputError, match="tokens"):
        MLXEmbedding(MINILM, overflow="error").get_text_embedding("word " * 600)


def test_refuses_what_it_does_not_know() -> None:
    with pytest.raises(InvalidInputError, match="no argument 'dim'; it is dimension="):
        MLXEmbedding(MINILM, dim=64)
    with pytest.raises(InvalidInputError, match="no argument 'model'; it is model_name="):
        MLXEmbedding(model=MINILM)
    with pytest.raises(InvalidInputError, match="dimension"):
        MLXEmbedding(MINILM, dimension=-1)
