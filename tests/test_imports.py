"""Importing costs nothing: no model, no heavy module, no thread, no socket."""

from __future__ import annotations

import json

import pytest
from host_helpers import run_python

import akidb_mlx_plugin

HEAVY = ["mlx", "mlx_lm", "transformers", "torch", "tokenizers", "huggingface_hub", "sentence_transformers"]
HEAVY += ["pandas", "polars", "pyarrow"]
HOSTS = ["chromadb", "lancedb"]

CODE = """
import importlib, json, sys, threading
# What the host does by itself is none of ours.
if sys.argv[1]:
    importlib.import_module(sys.argv[1])
before, threads, sockets = set(sys.modules), threading.active_count(), []
sys.addaudithook(lambda event, _: sockets.append(event) if event.startswith("socket.") else None)
exec(sys.argv[2])
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps([sorted(new), threading.active_count() - threads, sockets]))
"""


def imports(code: str, host: str = "") -> set[str]:
    """Return the top-level modules that code brings in, and see that it starts no thread and opens no socket."""
    modules, threads, sockets = json.loads(run_python(CODE, host, code))
    assert (threads, sockets) == (0, [])
    return set(modules)


def test_the_package() -> None:
    assert imports("import akidb_mlx_plugin").isdisjoint([*HEAVY, *HOSTS])


@pytest.mark.slow
def test_its_public_names() -> None:
    """All but the embedder, which is MLX."""
    names = [name for name in akidb_mlx_plugin.__all__ if name != "Embedder"]
    found = imports(f"from akidb_mlx_plugin import {', '.join(names)}")
    assert found.isdisjoint([*HEAVY, *HOSTS])


def test_every_public_name_is_there() -> None:
    for name in akidb_mlx_plugin.__all__:
        assert getattr(akidb_mlx_plugin, name) is not None
    assert set(akidb_mlx_plugin.__all__) <= set(dir(akidb_mlx_plugin))
    with pytest.raises(AttributeError, match="nonsense"):
        akidb_mlx_plugin.nonsense  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "host", "make"),
    [
        ("akidb_mlx_chroma", "chromadb", "MLXEmbeddingFunction('minilm-l6-v2', query_prompt=str(i)).get_config()"),
        ("akidb_mlx_lancedb", "lancedb.embeddings", "MLXEmbeddings.create(name='minilm-l6-v2').safe_model_dump()"),
    ],
)
def test_an_adapter_and_a_thousand_functions(adapter: str, host: str, make: str) -> None:
    code = f"from {adapter} import *\nfor i in range(1000): {make}"
    assert imports(code, host).isdisjoint([*HEAVY, *HOSTS])


@pytest.mark.slow
def test_an_adapter_registers_itself() -> None:
    code = """
import akidb_mlx_chroma, akidb_mlx_lancedb
from chromadb.utils.embedding_functions import known_embedding_functions
from lancedb.embeddings import get_registry
print(known_embedding_functions["akidb_mlx"].__name__, get_registry().get("akidb-mlx").__name__)
"""
    assert run_python(code) == "MLXEmbeddingFunction MLXEmbeddings\n"


@pytest.mark.slow
def test_the_command_line_frame() -> None:
    assert imports("import akidb_mlx_plugin.cli").isdisjoint(["mlx", "transformers", "torch", *HOSTS])


@pytest.mark.slow
def test_the_adapters_of_frameworks() -> None:
    """Each imports its framework when its class is asked for, and names the command that installs it."""
    code = """
import importlib, sys
sys.modules |= dict.fromkeys(["langchain_core", "llama_index", "haystack", "llm"])
for module, name in (
    ("akidb_mlx_langchain", "MLXEmbeddings"),
    ("akidb_mlx_llamaindex", "MLXEmbedding"),
    ("akidb_mlx_haystack", "MLXTextEmbedder"),
    ("akidb_mlx_llm", "MLXEmbeddingModel"),
):
    try:
        getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        print(error)
"""
    assert run_python(code).splitlines() == [
        "akidb_mlx_langchain needs langchain_core, which is not installed: pip install langchain-core",
        "akidb_mlx_llamaindex needs llama_index.core, which is not installed: pip install llama-index-core",
        "akidb_mlx_haystack needs haystack, which is not installed: pip install haystack-ai",
        "akidb_mlx_llm needs llm, which is not installed: pip install llm",
    ]
    found = imports("import akidb_mlx_langchain, akidb_mlx_llamaindex, akidb_mlx_haystack")
    assert found.isdisjoint([*HEAVY, *HOSTS, "langchain_core", "llama_index", "haystack", "llm"])
