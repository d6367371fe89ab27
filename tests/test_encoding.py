"""`encode`, `encode_query`, `encode_document` and their asynchronous forms."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

import numpy as np
import pytest
from queue_fakes import PATIENCE_S, GatedEngine

from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.providers.mock import hash_texts
from akidb_mlx_plugin.service import EmbeddingService

MOCK = EmbeddingConfig.load(overrides={"mode": "mock", "mock": {"dimension": 8}, "service": {"queue_size": 2}})
METHODS = ("encode", "encode_query", "encode_document")


@pytest.fixture
def service() -> Any:
    with EmbeddingService(MOCK) as service:
        yield service


@pytest.mark.parametrize("method", METHODS)
def test_shapes_are_sentence_transformers(service: EmbeddingService, method: str) -> None:
    encode = getattr(service, method)
    expected = hash_texts(["one", "two"], 8)
    np.testing.assert_array_equal(encode(["one", "two"]), expected)
    np.testing.assert_array_equal(encode(np.array(["one", "two"])), expected)
    np.testing.assert_array_equal(encode("one"), expected[0])
    assert encode([]).shape == (0, 8)
    assert {encode(texts).dtype for texts in ("one", ["one"], [])} == {np.dtype(np.float32)}
    assert encode("one", dimension=4).shape == (4,)
    assert encode([], dimension=4).shape == (0, 4)


@pytest.mark.parametrize("method", METHODS[1:])
def test_asynchronous_ones_give_the_same(service: EmbeddingService, method: str) -> None:
    for texts in ("one", ["one", "two"], []):
        found = asyncio.run(getattr(service, f"a{method}")(texts))
        np.testing.assert_array_equal(found, getattr(service, method)(texts))


def test_the_right_settings_reach_the_provider() -> None:
    engine = GatedEngine()
    with EmbeddingService(MOCK, provider=engine) as service:
        service.encode("a")
        service.encode("a", prompt="p", normalize=False)
        service.encode_query("a", dimension=3)
        service.encode_document(["a"])
        asyncio.run(service.aencode_query("a", prompt="p"))
        asyncio.run(service.aencode_document(["a"]))
    seen = [(r.kind, r.prompt, r.normalize, r.dimension) for batch in engine.batches for r in batch]
    assert seen == [
        ("document", "", None, None),
        ("document", "p", False, None),
        ("query", None, None, 3),
        ("document", None, None, None),
        ("query", "p", None, None),
        ("document", None, None, None),
    ]


@pytest.mark.parametrize("texts", [None, b"bytes", 3, ["a", None], [b"a"], {"a": 1}])
def test_unusable_texts(service: EmbeddingService, texts: Any) -> None:
    for method in METHODS:
        with pytest.raises(InvalidInputError):
            getattr(service, method)(texts)
    with pytest.raises(InvalidInputError):
        asyncio.run(service.aencode_document(texts))


def test_the_event_loop_goes_on_and_a_canceled_task_withdraws_its_texts() -> None:
    engine = GatedEngine()
    engine.hold()

    async def run(service: EmbeddingService) -> None:
        waiting = asyncio.create_task(service.aencode_query("running"))
        canceled = asyncio.create_task(service.aencode_document(["a", "b"]))
        in_line = asyncio.create_task(service.aencode_document(["c", "d"]))
        await asyncio.to_thread(engine.wait_for_batch)
        canceled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await canceled
        engine.release()
        assert (await asyncio.wait_for(waiting, PATIENCE_S)).shape == (8,)
        assert (await asyncio.wait_for(in_line, PATIENCE_S)).shape == (2, 8)

    with EmbeddingService(MOCK, provider=engine) as service:
        asyncio.run(run(service))
    assert "a" not in [text for batch in engine.batches for request in batch for text in request.inputs]


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_service_is_not_copied(service: EmbeddingService, clone: Any) -> None:
    with pytest.raises(TypeError, match="belongs to its process"):
        clone(service)
