"""Rerankers from a hub: by short name or repository, and which is refused before its weights are fetched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden_models import GOLDEN
from golden_rerankers import read_pairs, reranker_dir
from loopback_hub import Hub
from typer.testing import CliRunner

from akidb_mlx_plugin import CrossEncoder, EmbeddingService, ModelNotFoundError
from akidb_mlx_plugin.cli import models

pytest_plugins = ("hub_fixtures",)


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def fetched_weights(hub: Hub) -> bool:
    return any(request.path.endswith("safetensors") for request in hub.requests)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "repo", "name"),
    [
        ("ms-marco-minilm-l6", "cross-encoder/ms-marco-MiniLM-L6-v2", "bert"),
        ("bge-reranker-v2-m3", "BAAI/bge-reranker-v2-m3", "xlm_roberta"),
        ("org/reranker", "org/reranker", "modernbert"),
    ],
)
def test_by_name(model: str, repo: str, name: str, hub: Hub, cache_dir: Path) -> None:
    hub.add(repo, files_of(reranker_dir(name)))
    pairs, expected = read_pairs(name)
    with CrossEncoder(model, device="cpu", cache_dir=cache_dir) as encoder:
        assert abs(encoder.predict(pairs[:1])[0] - expected[0]) < 1e-4
    facts = json.loads(CliRunner().invoke(models.app, ["info", model, "--json"]).stdout)
    assert (facts["kind"], facts["supported"], facts["cached"], facts["scores"]) == ("reranker", True, True, 1)


def test_qwen3_reranker_is_known_by_its_repository(hub: Hub, cache_dir: Path) -> None:
    files = files_of(reranker_dir("qwen3_reranker"))
    hub.add("mlx-community/Qwen3-Reranker-0.6B-4bit", files | {"README.md": b"A conversion."})
    pairs, expected = read_pairs("qwen3_reranker")
    with CrossEncoder("qwen3-reranker-0.6b-4bit", device="cpu", cache_dir=cache_dir) as encoder:
        assert abs(encoder.predict(pairs[:1])[0] - expected[0]) < 1e-4


@pytest.mark.slow
@pytest.mark.usefixtures("cache_dir")
def test_a_reranker_in_place_of_an_embedding_model(hub: Hub) -> None:
    hub.add("org/reranker", files_of(reranker_dir("roberta")))
    with EmbeddingService("org/reranker") as service, pytest.raises(ModelNotFoundError, match="is a reranker"):
        service.embed_batch(["a"])
    assert not fetched_weights(hub)
    facts = json.loads(CliRunner().invoke(models.app, ["info", "org/reranker", "--json"]).stdout)
    assert (facts["kind"], facts["supported"], facts["cached"]) == ("reranker", True, False)
    assert not fetched_weights(hub)
    # Downloading serves either kind.
    assert CliRunner().invoke(models.app, ["download", "org/reranker"]).exit_code == 0
    assert fetched_weights(hub)


@pytest.mark.usefixtures("cache_dir")
def test_an_embedding_model_in_place_of_a_reranker(hub: Hub) -> None:
    hub.add("org/embedder", files_of(GOLDEN / "bert" / "model"))
    with CrossEncoder("org/embedder") as encoder, pytest.raises(ModelNotFoundError, match="is an embedding model"):
        encoder.predict([("a", "b")])
    assert not fetched_weights(hub)


def test_a_stored_name_downloads_no_unknown_reranker(hub: Hub, cache_dir: Path) -> None:
    from akidb_mlx_plugin import InvalidInputError

    hub.add("org/reranker", files_of(reranker_dir("roberta")))
    with (
        CrossEncoder("org/reranker", cache_dir=cache_dir, trusted=False) as encoder,
        pytest.raises(InvalidInputError, match="stored data names the model 'org/reranker'"),
    ):
        encoder.predict([("a", "b")])


def test_info_of_a_folder() -> None:
    result = CliRunner().invoke(models.app, ["info", str(reranker_dir("qwen3_reranker")), "--json"])
    facts = json.loads(result.stdout)
    assert (facts["kind"], facts["supported"], facts["max_tokens"]) == ("reranker", True, 360)
    assert facts["instruction"].startswith("Given a web search query")
