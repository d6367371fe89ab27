"""The models in memory: one of each for the whole process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from host_helpers import count_loads

from akidb_mlx_plugin import EmbeddingService, ModelNotFoundError, ServiceUnavailableError
from akidb_mlx_plugin.inference.embedder import Embedder
from akidb_mlx_plugin.inference.shared import acquire_embedder, release_model

pytest_plugins = ("host_fixtures",)


def test_all_who_ask_at_once_wait_for_one_load(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = count_loads(monkeypatch)
    together = threading.Barrier(8)

    def ask(_: int) -> Embedder:
        together.wait()
        return acquire_embedder(tiny_dir)

    with ThreadPoolExecutor(8) as pool:
        shared = list(pool.map(ask, range(8)))
    assert len(loaded) == 1
    assert len(set(map(id, shared))) == 1
    for embedder in shared[:-1]:
        release_model(embedder)
    assert shared[0].embed(["a"]).embeddings.shape == (1, 32)
    release_model(shared[-1])
    with pytest.raises(ServiceUnavailableError, match="closed"):
        shared[0].embed(["a"])


def test_released_by_all_it_is_loaded_again(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = count_loads(monkeypatch)
    for _ in range(2):
        release_model(acquire_embedder(tiny_dir))
    assert len(loaded) == 2


def test_a_folder_is_one_model_by_any_name(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = acquire_embedder(tiny_dir), acquire_embedder(f"./{tiny_dir.name}")
    assert first is second
    release_model(first)
    release_model(second)


def test_a_failed_load_is_tried_again(tiny_dir: Path) -> None:
    config = tiny_dir / "config.json"
    content = config.read_bytes()
    config.unlink()
    with pytest.raises(ModelNotFoundError):
        acquire_embedder(tiny_dir)
    config.write_bytes(content)
    embedder = acquire_embedder(tiny_dir)
    assert embedder.embed(["a"]).embeddings.shape == (1, 32)
    release_model(embedder)


def test_releasing_what_was_not_acquired_does_nothing(tiny_dir: Path) -> None:
    with Embedder.load(tiny_dir) as embedder:
        release_model(embedder)
        assert embedder.embed(["a"]).embeddings.shape == (1, 32)


def test_one_copy_for_every_way_to_ask(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = count_loads(monkeypatch)
    with EmbeddingService(tiny_dir) as first, EmbeddingService(tiny_dir, normalize=False, dimension=32) as second:
        first.embed_batch(["a"])
        second.embed_batch(["a"])
        assert len(loaded) == 1
        first.close()
        assert second.embed_batch(["a"]).embeddings.shape == (1, 32)
