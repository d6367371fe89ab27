"""LangChain: vector stores over both databases, with Chroma's function and with an `Embeddings`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from host_helpers import DOCUMENTS, MINILM

from akidb_mlx_plugin import Document, EmbeddingService, InvalidInputError

pytest.importorskip("langchain_core")

from akidb_mlx_chroma import MLXEmbeddingFunction, create_collection, upsert
from akidb_mlx_langchain import MLXEmbeddings
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

TEXTS = list(DOCUMENTS.values())
PROMPTS = {"query_prompt": "query: ", "document_prompt": "passage: "}


@pytest.fixture(params=[MLXEmbeddingFunction, MLXEmbeddings], ids=["function", "embeddings"])
def embeddings(request: pytest.FixtureRequest) -> Any:
    return request.param(MINILM)


@pytest.fixture(params=["chroma", "lancedb", "memory"])
def store(request: pytest.FixtureRequest, embeddings: Any, tmp_path: Path) -> VectorStore:
    """An empty store."""
    if request.param == "chroma":
        chroma = pytest.importorskip("langchain_chroma")
        return chroma.Chroma("notes", embedding_function=embeddings, persist_directory=str(tmp_path / "chroma"))
    if request.param == "lancedb":
        lancedb = pytest.importorskip("langchain_lancedb")
        return lancedb.LanceDB(embedding_function=embeddings, uri=tmp_path / "lancedb")
    return InMemoryVectorStore(embeddings)


def test_stores_find_the_right_document(store: VectorStore, questions: dict[str, str]) -> None:
    store.add_texts(TEXTS, ids=list(DOCUMENTS))
    found = {question: store.similarity_search(question, k=1)[0].page_content for question in questions}
    assert found == questions


def test_stores_find_it_asynchronously(store: VectorStore, questions: dict[str, str]) -> None:
    async def run() -> dict[str, str]:
        await store.aadd_texts(TEXTS, ids=list(DOCUMENTS))
        answers = await asyncio.gather(*(store.asimilarity_search(question, k=1) for question in questions))
        return {question: answer[0].page_content for question, answer in zip(questions, answers, strict=True)}

    assert asyncio.run(run()) == questions


def test_a_retriever_after_a_splitter(store: VectorStore, questions: dict[str, str]) -> None:
    splitters = pytest.importorskip("langchain_text_splitters")
    splitter = splitters.RecursiveCharacterTextSplitter(chunk_size=40, chunk_overlap=0, separators=["\n\n"])
    store.add_documents(splitter.create_documents(["\n\n".join(TEXTS)]))
    retriever = store.as_retriever(search_kwargs={"k": 1})
    assert {question: retriever.invoke(question)[0].page_content for question in questions} == questions


def test_a_collection_of_this_package_opens_in_langchain(tmp_path: Path, questions: dict[str, str]) -> None:
    langchain_chroma = pytest.importorskip("langchain_chroma")
    client = chromadb.PersistentClient(tmp_path)
    function = MLXEmbeddingFunction(MINILM)
    collection = create_collection(client, "notes", function)
    upsert(collection, [Document(id_, text=text) for id_, text in DOCUMENTS.items()])
    store = langchain_chroma.Chroma("notes", embedding_function=function, client=client)
    assert {question: store.similarity_search(question, k=1)[0].page_content for question in questions} == questions


@pytest.mark.parametrize("make", [MLXEmbeddingFunction, MLXEmbeddings])
def test_vectors_are_the_services(make: Any, minilm: EmbeddingService) -> None:
    prompted = make(MINILM, normalize=False, **PROMPTS)
    expected = minilm.embed_batch(["query: soup", "passage: soup"], normalize=False).embeddings
    both = [prompted.embed_query("soup"), *prompted.embed_documents(["soup"])]
    np.testing.assert_allclose(both, expected, atol=1e-5)
    assert prompted.embed_documents([]) == []
    with pytest.raises(InvalidInputError, match="put a single text in"):
        prompted.embed_documents("soup")

    async def ask() -> list[list[float]]:
        return [await prompted.aembed_query("soup"), *await prompted.aembed_documents(["soup"])]

    np.testing.assert_allclose(asyncio.run(ask()), expected, atol=1e-5)


def test_is_of_langchains_class() -> None:
    assert isinstance(MLXEmbeddings(MINILM), Embeddings)


def test_another_name_of_an_argument_is_an_error_with_the_right_one() -> None:
    with pytest.raises(InvalidInputError, match="no argument 'model_name'; it is model="):
        MLXEmbeddings(model_name=MINILM)
    with pytest.raises(InvalidInputError, match="tokens"):
        MLXEmbeddings(MINILM, overflow="error").embed_documents(["word " * 600])
