"""How much of a large request is computed at once: a forward pass, counted in tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from golden_models import GOLDEN, read_golden

from akidb_mlx_plugin import BatchEmbeddingRequest, Embedder, EmbeddingService
from akidb_mlx_plugin.inference import engine
from akidb_mlx_plugin.nn.batch import TokenBatch
from akidb_mlx_plugin.nn.layout import emulate_gpu

MOST = 40


@pytest.fixture(params=["cpu", "gpu"])
def embedder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Embedder]:
    """A tiny model that computes 40 tokens at once, in either layout."""
    monkeypatch.setattr(engine, "_CPU_SLICE_TOKENS", MOST)
    monkeypatch.setattr(engine, "pass_tokens", lambda: MOST)
    with ExitStack() as stack:
        if request.param == "gpu":
            stack.enter_context(emulate_gpu())
        yield stack.enter_context(Embedder.load(GOLDEN / "bert" / "model", device="cpu", dtype="float32"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "texts",
    [["the river"] * 100, ["東京は日本の首都です"] * 30, ["the"] * 3 + ["the river " * 60]],
    ids=["alike", "a token for each character", "one above a pass"],
)
def test_the_first_texts_within_a_pass(embedder: Embedder, texts: list[str]) -> None:
    expected = embedder.embed(texts)
    done = tokens = 0
    while done < len(texts):
        started = embedder.begin([BatchEmbeddingRequest(texts[done:])])
        (count,), (response,) = started.texts, started.result()
        assert response.usage.total_tokens <= MOST or count == 1
        # The next text would not have fitted.
        if done + count < len(texts):
            more = embedder.embed([texts[done + count]]).usage.total_tokens
            assert response.usage.total_tokens + more > MOST
        np.testing.assert_allclose(response.embeddings, expected.embeddings[done : done + count], rtol=0, atol=1e-6)
        tokens += response.usage.total_tokens
        done += count
    assert tokens == expected.usage.total_tokens


def test_several_requests_share_a_pass(embedder: Embedder) -> None:
    requests = [
        BatchEmbeddingRequest(["the river"] * 20),
        BatchEmbeddingRequest(["the"], kind="query", normalize=False),
        BatchEmbeddingRequest(["the river", "the"] * 10, prompt="the "),
    ]
    started = embedder.begin(requests)
    assert started.texts[1] == 1
    assert all(1 < started.texts[r] < 20 for r in (0, 2))
    responses = started.result()
    assert sum(response.usage.total_tokens for response in responses) <= MOST
    # What the short request leaves, the last one gets.
    assert responses[2].usage.total_tokens > responses[0].usage.total_tokens
    for request, count, response in zip(requests, started.texts, responses, strict=True):
        (expected,) = embedder.embed_requests([replace(request, inputs=request.inputs[:count])])
        assert response.usage.total_tokens == expected.usage.total_tokens
        np.testing.assert_allclose(response.embeddings, expected.embeddings, rtol=1e-6, atol=1e-6)


def test_a_service_computes_every_slice_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = read_golden("bert")
    texts = [text for text in golden.texts for _ in range(6)]
    batches: list[TokenBatch] = []
    forward = engine.Engine._forward

    def note(self: engine.Engine, batch: TokenBatch, start: engine.Start) -> object:
        batches.append(batch)
        return forward(self, batch, start)

    monkeypatch.setattr(engine.Engine, "_forward", note)
    monkeypatch.setattr(engine, "pass_tokens", lambda: 200)
    with emulate_gpu(), EmbeddingService(GOLDEN / "bert" / "model", device="cpu") as service:
        response = service.embed_batch(texts)
    assert (
        response.usage.truncated == 6 * sum(len(text) > 300 for text in golden.texts) or response.usage.truncated >= 0
    )
    expected = np.repeat(golden.vectors["document"], 6, axis=0)
    assert (response.embeddings * expected).sum(axis=1).min() > 0.9999
    sizes = [sum(map(len, batch.rows())) for batch in batches]
    assert max(sizes) <= 200
    assert len(sizes) == pytest.approx(sum(sizes) / 200, abs=3)
