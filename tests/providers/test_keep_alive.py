"""Weights are freed when idle, and loaded again by the next text."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_helpers import PATIENCE_S, TINY, count_loads

from akidb_mlx_plugin import EmbeddingService
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.durations import parse_duration
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.inference import shared
from akidb_mlx_plugin.providers.idle import IdleRelease
from akidb_mlx_plugin.types import BatchEmbeddingRequest

REQUEST = BatchEmbeddingRequest(["a text"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that no other test has loaded."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def service(folder: Path, keep_alive: Any) -> EmbeddingService:
    return EmbeddingService(
        EmbeddingConfig.model_validate({"mlx": {"model": str(folder), "device": "cpu", "keep_alive": keep_alive}})
    )


def is_loaded(folder: Path) -> bool:
    return any(entry.model is not None for key, entry in shared._entries.items() if str(folder) in key)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        *((0, 0.0), ("0", 0.0), (-1, -1.0), ("-1", -1.0), ("-5m", -1.0), (90, 90.0), ("90", 90.0), ("1.5", 1.5)),
        *(("5m", 300.0), ("1h30m", 5400.0), ("500ms", 0.5), ("2d", 172_800.0), (" 10s ", 10.0)),
    ],
)
def test_durations(given: Any, seconds: float) -> None:
    assert parse_duration(given) == seconds


@pytest.mark.parametrize("given", ["", "m", "5 m", "5x", "1e3", "m5", True, None, [], float("nan"), 1e300, "9" * 39])
def test_what_is_not_a_duration(given: Any) -> None:
    with pytest.raises(ValueError, match="a duration is"):
        parse_duration(given)
    with pytest.raises(InvalidInputError, match=r"mlx\.keep_alive"):
        EmbeddingConfig.load(overrides={"mlx": {"keep_alive": given}})


def test_freed_at_once_and_loaded_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = count_loads(monkeypatch)
    with service(folder, 0) as lazy:
        first = lazy.embed_batch(["a text"]).embeddings
        assert not is_loaded(folder)
        np.testing.assert_array_equal(lazy.embed_batch(["a text"]).embeddings, first)
        assert len(loads) == 2
        assert lazy.model_info().dimension == first.shape[1]


def test_freed_after_a_while(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = count_loads(monkeypatch)
    with service(folder, "50ms") as lazy:
        for number in (1, 2):
            lazy.embed_batch(["a text"])
            until = time.monotonic() + PATIENCE_S
            while is_loaded(folder):
                assert time.monotonic() < until, "the weights stay"
                time.sleep(0.01)
            assert len(loads) == number
    assert not [thread for thread in threading.enumerate() if thread.name == "akidb-mlx-idle"]


def test_kept_by_another_service_that_uses_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = count_loads(monkeypatch)
    with service(folder, -1) as keeper, service(folder, 0) as lazy:
        keeper.embed_batch(["a text"])
        lazy.embed_batch(["a text"])
        assert is_loaded(folder)
        keeper.embed_batch(["a text"])
        assert len(loads) == 1


def test_never_while_in_use() -> None:
    detached = threading.Event()

    def detach() -> None:
        detached.set()

    idle = IdleRelease(0.02, detach)
    with idle.use():
        with idle.use():
            pass
        assert not detached.wait(0.2)
    assert detached.wait(PATIENCE_S)


def test_many_threads_get_right_vectors_whenever_the_weights_go(folder: Path) -> None:
    with service(folder, 0) as lazy:
        expected = lazy.embed_batch(["a text"]).embeddings
        answers: list[Any] = []

        def ask() -> None:
            answers.extend(lazy._provider.embed_batch(REQUEST).embeddings for _ in range(5))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 20
    for vectors in answers:
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
