"""Texts that are longer than the model takes: cut and counted, or refused by name before anything is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from akidb_mlx_chroma import MLXEmbeddingFunction
from akidb_mlx_lancedb import MLXEmbeddings
from host_helpers import TINY
from local_server import mock_config, serving, wait_until

from akidb_mlx_plugin import EmbeddingService
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.inference.embedder import Embedder
from akidb_mlx_plugin.inference.engine import Engine
from akidb_mlx_plugin.inference.tokenizer import load_text_tokenizer
from akidb_mlx_plugin.providers import make_provider
from akidb_mlx_plugin.types import BatchEmbeddingRequest

LONG = "word " * 300
REFUSAL = r"text {} has \d+ tokens with prompt and special tokens, and .* takes 48; split it .* overflow='truncate'"


def refusal(position: int) -> str:
    return REFUSAL.format(position)


@pytest.fixture
def no_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record forward passes."""
    passes: list[int] = []
    start = Engine.start

    def record(engine: Engine, rows: Any, *args: Any, **options: Any) -> Any:
        passes.append(len(rows))
        return start(engine, rows, *args, **options)

    monkeypatch.setattr(Engine, "start", record)
    return passes


def test_the_count_is_that_of_the_whole_text(tiny: Embedder) -> None:
    request = BatchEmbeddingRequest(["a word", "word " * 100], overflow="error", prompt="query: ")
    tokenizer = load_text_tokenizer(replace(read_checkpoint(TINY), max_tokens=1000))
    count = len(tokenizer.encode(["query: " + "word " * 100]).ids[0])
    with pytest.raises(InvalidInputError, match=f"text 1 has {count} tokens"):
        tiny.embed_requests([request])


@pytest.mark.parametrize("texts", [3, 1200], ids=["few", "more-than-a-chunk"])
def test_nothing_is_computed(tiny: Embedder, no_passes: list[int], texts: int) -> None:
    request = BatchEmbeddingRequest([*["short"] * (texts - 1), LONG], overflow="error")
    with pytest.raises(InvalidInputError, match=refusal(texts - 1)):
        tiny.embed_requests([BatchEmbeddingRequest(["other"]), request])
    assert no_passes == []


def test_each_request_may_say_otherwise() -> None:
    with EmbeddingService(TINY, overflow="error") as strict, EmbeddingService(TINY) as lax:
        cut = lax.embed_batch([LONG])
        assert cut.usage.truncated == 1
        np.testing.assert_array_equal(strict.embed_batch([LONG], overflow="truncate").embeddings, cut.embeddings)
        for refused in (strict.submit([LONG]), lax.submit([LONG], overflow="error")):
            with pytest.raises(InvalidInputError, match=refusal(0)):
                refused.result()
        assert strict.embed_batch(["short"]).usage.truncated == 0
        with pytest.raises(InvalidInputError, match="overflow must be 'truncate' or 'error', got 'cut'"):
            lax.embed_batch(["a"], overflow="cut")  # type: ignore[arg-type]


def test_large_requests_name_the_callers_position_and_fail_alone() -> None:
    config = EmbeddingConfig.model_validate({"mlx": {"model": str(TINY), "batch_size": 4, "batch_timeout_ms": 1}})
    with EmbeddingService(config) as service:
        # Slices take the longest texts first, by characters; this one has the most tokens, not characters.
        bad = service.submit([*["s" * 900] * 40, "a b " * 30, *["short"] * 10], overflow="error")
        good = service.submit(["fine"] * 10, overflow="error")
        with pytest.raises(InvalidInputError, match=refusal(40)):
            bad.result()
        assert good.result().embeddings.shape[0] == 10


def test_it_is_a_setting_of_the_machine_and_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = MLXEmbeddingFunction(model=str(TINY), overflow="error")
    assert strict.get_config() == MLXEmbeddingFunction(model=str(TINY)).get_config()
    with pytest.raises(InvalidInputError, match=refusal(0)):
        strict([LONG])
    lance = MLXEmbeddings.create(name=str(TINY), overflow="error")
    assert lance.safe_model_dump() == MLXEmbeddings.create(name=str(TINY)).safe_model_dump()
    with pytest.raises(InvalidInputError, match=refusal(0)):
        lance.compute_source_embeddings([LONG])
    monkeypatch.setenv("AKIDB_EMBEDDING__MLX__OVERFLOW", "error")
    reopened = MLXEmbeddingFunction.build_from_config(strict.get_config())
    with pytest.raises(InvalidInputError, match=refusal(0)):
        reopened.embed_query([LONG])
    monkeypatch.setenv("AKIDB_EMBEDDING__MLX__OVERFLOW", "cut")
    with pytest.raises(InvalidInputError, match=r"mlx.overflow = 'cut' \(environment"):
        EmbeddingConfig.load()


def test_a_server_refuses_what_its_client_says(tmp_path: Path) -> None:
    config = EmbeddingConfig.model_validate({"mlx": {"model": str(TINY)}})
    with serving(config, uds=tmp_path / "socket") as server:
        wait_until(lambda: server.is_ready, "the model is loaded")
        mlx = {"model": str(TINY), "overflow": "error"}
        far = EmbeddingConfig.model_validate({"mlx": mlx, "remote": {"url": server.url}})
        with EmbeddingService(far, provider=make_provider(far)) as service:
            assert service.embed_batch([LONG], overflow="truncate").usage.truncated == 1
            with pytest.raises(InvalidInputError, match=refusal(30)):
                service.embed_batch([*["short"] * 30, LONG])
            pieces = service.split(LONG)
            assert service.embed_batch([piece.text for piece in pieces]).usage.truncated == 0


def test_the_servers_body_names_the_field() -> None:
    with serving(mock_config()) as server:
        wait_until(lambda: server.is_ready, "the server is ready")
        status, answer, _ = server.post({"model": "mock", "input": "a", "overflow": "cut"})
    assert (status, answer["error"]["param"]) == (400, "overflow")
