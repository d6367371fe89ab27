"""What a re-embedded Chroma collection takes over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import akidb_mlx_chroma
import chromadb
import pytest
from host_helpers import nearest

from akidb_mlx_plugin import Document

pytest_plugins = ("host_fixtures", "collection_fixtures")


class TestChroma:
    @pytest.mark.slow
    def test_index_and_metadata_go_over(self, tmp_path: Path) -> None:
        client = chromadb.PersistentClient(tmp_path)
        configuration: Any = {"hnsw": {"space": "l2", "max_neighbors": 40, "ef_search": 77}}
        plain = client.create_collection("docs", metadata={"owner": "me"}, configuration=configuration)
        plain.add(ids=["a"], documents=["a"], embeddings=[[1.0, 2.0]])
        made = akidb_mlx_chroma.reembed(plain, akidb_mlx_chroma.MLXEmbeddingFunction(mode="mock", dimension=8))
        assert made.metadata["owner"] == "me"
        hnsw = client.get_collection(made.name).configuration_json["hnsw"]
        assert (hnsw["space"], hnsw["max_neighbors"], hnsw["ef_search"]) == ("cosine", 40, 77)
        assert nearest(client.get_collection(made.name), "a") == "a"

    @pytest.mark.slow
    def test_another_database(self, chroma_port: int, name: str) -> None:
        admin = chromadb.AdminClient(
            chromadb.Settings(
                chroma_api_impl="chromadb.api.fastapi.FastAPI",
                chroma_server_host="127.0.0.1",
                chroma_server_http_port=chroma_port,
            )
        )
        admin.create_database(name)
        client = chromadb.HttpClient("127.0.0.1", chroma_port, database=name)
        old = akidb_mlx_chroma.MLXEmbeddingFunction(mode="mock", dimension=8)
        source = akidb_mlx_chroma.create_collection(client, "docs", old)
        akidb_mlx_chroma.upsert(source, [Document("a", "a")])
        akidb_mlx_chroma.reembed(source, akidb_mlx_chroma.MLXEmbeddingFunction(mode="mock", dimension=16))
        assert client.get_collection("docs-mock").count() == 1
