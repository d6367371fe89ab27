"""The service with the real MiniLM behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from processes import run_python
from queue_fakes import PATIENCE_S

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.service import EmbeddingService
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse


@pytest.mark.slow
def test_a_crowd_gets_what_one_batch_gives(minilm_dir: Path) -> None:
    texts = [f"text number {i} " + "and so on " * (i % 9) for i in range(128)]
    sizes: list[int] = []
    with EmbeddingService(minilm_dir) as service:
        expected = service.embed_batch(texts).embeddings
        vectors = np.empty_like(expected)
        embed_requests = service._provider.embed_requests

        def note(requests: Sequence[BatchEmbeddingRequest]) -> list[BatchEmbeddingResponse]:
            sizes.append(sum(len(request.inputs) for request in requests))
            return embed_requests(requests)

        service._queue._runner._embed = note

        def call(start: int) -> None:
            for i in (start, start + 32):
                vectors[i] = service.embed_batch([texts[i]]).embeddings[0]

        async def acall(start: int) -> None:
            for i in (start, start + 32):
                vectors[i] = (await service.aembed_batch([texts[i]])).embeddings[0]

        async def everybody() -> None:
            loop = asyncio.get_running_loop()
            with ThreadPoolExecutor(32) as pool:
                calls = [loop.run_in_executor(pool, call, i) for i in range(32)]
                await asyncio.gather(*calls, *(acall(64 + i) for i in range(32)))

        asyncio.run(everybody())
    assert np.sum(vectors * expected, axis=1).min() >= 0.99999
    assert sum(sizes) == len(texts)
    assert np.mean(sizes) > 4


@pytest.mark.slow
def test_requests_keep_their_settings_in_one_batch(minilm_dir: Path) -> None:
    with EmbeddingService(minilm_dir) as service:
        service.embed_batch(["warm up"])
        unit = service.submit("a text")
        raw = service.submit("a text", normalize=False)
        prompted = service.submit("text", prompt="a ")
        vectors = [future.result(PATIENCE_S).embeddings[0] for future in (unit, raw, prompted)]
    np.testing.assert_allclose(vectors[1] / np.linalg.norm(vectors[1]), vectors[0], atol=1e-5)
    np.testing.assert_allclose(vectors[2], vectors[0], atol=1e-5)
    assert np.linalg.norm(vectors[1]) != pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_a_bad_dimension_is_refused_before_and_after_the_load(minilm_dir: Path) -> None:
    with EmbeddingService(minilm_dir) as service:
        good, bad = service.submit("good"), service.submit("bad", dimension=5)
        assert good.result(PATIENCE_S).embeddings.shape == (1, 384)
        with pytest.raises(InvalidInputError, match="384"):
            bad.result(PATIENCE_S)
        with pytest.raises(InvalidInputError, match="384"):
            service.submit("bad", dimension=5)


@pytest.mark.slow
def test_info_without_and_with_the_model(minilm_dir: Path) -> None:
    with EmbeddingService(minilm_dir) as service:
        before = service.model_info()
        service.embed_batch(["a"])
        after = service.model_info()
    assert (before.dimension, before.device, before.parameters) == (384, "", 0)
    assert (after.fingerprint, after.device != "", after.parameters > 0) == (before.fingerprint, True, True)


@pytest.mark.slow
def test_a_fork_after_the_load_is_refused(minilm_dir: Path) -> None:
    script = f"""
        import os, signal
        from akidb_mlx_plugin import EmbeddingService, ServiceUnavailableError
        signal.alarm(60)
        service = EmbeddingService({str(minilm_dir)!r})
        service.embed_batch(["a"])
        futures = [service.submit("a longer text " * 20) for _ in range(10)]
        child = os.fork()
        if child == 0:
            for each in (service, EmbeddingService({str(minilm_dir)!r})):
                try:
                    each.embed_batch(["a"])
                except ServiceUnavailableError:
                    print("refused", flush=True)
            raise SystemExit(0)
        print(os.waitpid(child, 0)[1], sum(len(future.result().embeddings) for future in futures))
    """
    assert run_python(script) == "refused\nrefused\n0 10\n"


@pytest.mark.slow
def test_the_interpreter_exits_without_close(minilm_dir: Path) -> None:
    script = f"""
        from akidb_mlx_plugin import EmbeddingService
        service = EmbeddingService({str(minilm_dir)!r})
        service.embed_batch(["a"])
        futures = [service.submit("a longer text " * 20) for _ in range(50)]
        print("end")
    """
    assert run_python(script) == "end\n"
