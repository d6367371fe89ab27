"""The embedder: the numbers of sentence-transformers, whoever asks, in whatever company."""

from __future__ import annotations

import gzip
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_helpers import MINILM, TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from akidb_mlx_plugin import (
    BatchEmbeddingRequest,
    InvalidInputError,
)
from akidb_mlx_plugin.checkpoints.options import LoadOptions
from akidb_mlx_plugin.hub.cache import resolve_cache_dir
from akidb_mlx_plugin.inference.embedder import Embedder
from akidb_mlx_plugin.inference.shared import acquire_embedder, release_model

pytest_plugins = ("host_fixtures",)


GOLDEN = Path(__file__).parents[1] / "golden"


TEXTS: list[str] = json.loads(gzip.decompress((GOLDEN / "minilm_texts.json.gz").read_bytes()))


TINY_TEXTS: list[str] = json.loads((TINY.parent / "texts.json").read_text())


@pytest.fixture(scope="module")
def minilm_embedder(minilm_dir: Path) -> Iterator[Embedder]:
    """The real MiniLM, shared with the services of other tests."""
    embedder = acquire_embedder(MINILM, LoadOptions(cache_dir=resolve_cache_dir(None)))
    yield embedder
    release_model(embedder)


@pytest.fixture(scope="module")
def batch() -> list[str]:
    """200 texts of many lengths."""
    return sorted(TEXTS, key=len)[:400:2]


@pytest.fixture(scope="module")
def expected(batch: list[str]) -> Any:
    """The batch's vectors, as sentence-transformers makes them."""
    places = {text: place for place, text in enumerate(TEXTS)}
    return np.load(GOLDEN / "minilm_vectors.npz")["vectors"][[places[text] for text in batch]]


def worst_cosine(vectors: Any, others: Any) -> float:
    """Return the smallest cosine between rows of two arrays."""
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1)
    return float(np.min(np.sum(vectors * others, axis=1) / norms))


class TestNumbers:
    @pytest.mark.slow
    def test_of_sentence_transformers(self, minilm_embedder: Embedder) -> None:
        """Over 500 real texts of 1 to 400 tokens, mixed in one call."""
        expected = np.load(GOLDEN / "minilm_vectors.npz")["vectors"]
        result = minilm_embedder.embed(TEXTS)
        assert len(TEXTS) > 500
        assert result.embeddings.dtype == np.float32
        assert np.abs(result.embeddings - expected).max() < 2e-5
        counts = count_tokens(minilm_embedder, TEXTS)
        assert max(counts) > 390
        assert result.usage.truncated == sum(count > 256 for count in counts) == 62
        assert result.usage.total_tokens == sum(min(count, 256) for count in counts)

    @pytest.mark.slow
    def test_unit_length_or_as_computed(self, minilm_embedder: Embedder) -> None:
        unit = minilm_embedder.embed(TEXTS[:5]).embeddings
        raw = minilm_embedder.embed(TEXTS[:5], normalize=False).embeddings
        norms = np.linalg.norm(raw, axis=1, keepdims=True)
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(raw / norms, unit, atol=1e-6)
        assert np.abs(norms - 1).min() > 0.1

    def test_a_prompt_is_text_in_front(self, tiny: Embedder) -> None:
        prompted = tiny.embed([" one two"], prompt="question").embeddings
        np.testing.assert_allclose(prompted, tiny.embed(["question one two"]).embeddings, atol=1e-6)


def count_tokens(embedder: Embedder, texts: list[str]) -> list[int]:
    """Count tokens with the checkpoint's tokenizer itself, nothing cut."""
    tokenizer = Tokenizer.from_file(str(embedder._checkpoint.folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]


class TestCompany:
    """The same text gives the same vector: alone or in a batch, in any order, from any thread."""

    @pytest.mark.slow
    def test_alone(self, minilm_embedder: Embedder, batch: list[str], expected: Any) -> None:
        assert len(batch) == 200
        alone = np.concatenate([minilm_embedder.embed([text]).embeddings for text in batch[::10]])
        assert worst_cosine(alone, expected[::10]) >= 0.99999

    @pytest.mark.slow
    def test_in_another_order(self, minilm_embedder: Embedder, batch: list[str], expected: Any) -> None:
        order = np.random.default_rng(0).permutation(len(batch))
        shuffled = minilm_embedder.embed([batch[i] for i in order]).embeddings
        assert worst_cosine(shuffled, expected[order]) >= 0.99999

    @pytest.mark.slow
    def test_from_eight_threads_at_once(self, minilm_embedder: Embedder, batch: list[str], expected: Any) -> None:
        together = threading.Barrier(8)

        def work(number: int) -> float:
            mine = batch[number::8]
            together.wait()
            some = minilm_embedder.embed(mine).embeddings
            alone = minilm_embedder.embed(mine[:1]).embeddings
            wanted = expected[number::8]
            return min(worst_cosine(some, wanted), worst_cosine(alone, wanted[:1]))

        with ThreadPoolExecutor(8) as pool:
            assert min(pool.map(work, range(8))) >= 0.99999

    @pytest.mark.slow
    def test_the_same_batch_gives_the_same_bits(self, minilm_embedder: Embedder, batch: list[str]) -> None:
        few = batch[:60]
        first = minilm_embedder.embed(few).embeddings
        for _ in range(5):
            np.testing.assert_array_equal(minilm_embedder.embed(few).embeddings, first)

    @pytest.mark.slow
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(chosen=st.lists(st.sampled_from([*TINY_TEXTS, "", "a", " ".join(TINY_TEXTS)]), min_size=1, max_size=80))
    def test_any_mix_of_lengths(self, tiny: Embedder, chosen: list[str]) -> None:
        alone = {text: tiny.embed([text]).embeddings[0] for text in set(chosen)}
        together = tiny.embed(chosen)
        assert together.embeddings.shape == (len(chosen), 32)
        assert worst_cosine(together.embeddings, np.stack([alone[text] for text in chosen])) >= 0.99999

    @pytest.mark.slow
    def test_more_than_a_slice(self, tiny: Embedder) -> None:
        limit = tiny.info().max_tokens
        texts = [TINY_TEXTS[i % len(TINY_TEXTS)] for i in range(2500)]
        few = tiny.embed(TINY_TEXTS).embeddings
        many = tiny.embed(texts)
        assert worst_cosine(many.embeddings, few[np.arange(2500) % len(few)]) >= 0.99999
        assert many.usage.total_tokens == sum(min(count, limit) for count in count_tokens(tiny, texts))


def words(count: int) -> str:
    """Return a text of that many words of one token each; two special tokens come to it."""
    return "the " * count


class TestTruncation:
    @pytest.fixture
    def fresh(self) -> Iterator[Embedder]:
        with Embedder.load(TINY) as embedder:
            yield embedder

    def test_is_counted_and_logged_once(self, fresh: Embedder, caplog: pytest.LogCaptureFixture) -> None:
        limit = fresh.info().max_tokens
        with caplog.at_level(logging.WARNING, logger="akidb_mlx_plugin.inference.embedder"):
            assert fresh.embed([words(limit - 2)]).usage.truncated == 0
            assert caplog.messages == []
            usage = fresh.embed([words(limit - 1), "the", words(500)]).usage
            fresh.embed([words(500)])
        assert (usage.truncated, usage.total_tokens) == (2, limit + 3 + limit)
        (message,) = caplog.messages
        assert f"longer than {limit} tokens" in message

    def test_keeps_the_beginning(self, tiny: Embedder) -> None:
        long, short = tiny.embed([words(500), words(tiny.info().max_tokens - 2)]).embeddings
        np.testing.assert_allclose(long, short, atol=1e-6)

    def test_a_prompt_counts(self, tiny: Embedder) -> None:
        almost = words(tiny.info().max_tokens - 3)
        assert tiny.embed([almost], prompt="the ").usage.truncated == 0
        assert tiny.embed([almost], prompt="the the ").usage.truncated == 1


class TestRequests:
    def test_each_in_its_own_way(self, tiny: Embedder) -> None:
        requests = [
            BatchEmbeddingRequest(TINY_TEXTS[:3]),
            BatchEmbeddingRequest(["a"], kind="query", normalize=False),
            BatchEmbeddingRequest(TINY_TEXTS[2:5], prompt="the "),
            BatchEmbeddingRequest([""], normalize=True, dimension=32),
            BatchEmbeddingRequest([words(100), "a"], prompt=""),
        ]
        together = tiny.embed_requests(requests)
        assert [len(response.embeddings) for response in together] == [3, 1, 3, 1, 2]
        assert together[-1].usage.truncated == 1
        for request, response in zip(requests, together, strict=True):
            (alone,) = tiny.embed_requests([request])
            np.testing.assert_allclose(response.embeddings, alone.embeddings, atol=1e-5)
            assert response.usage.total_tokens == alone.usage.total_tokens
            assert response.usage.truncated == alone.usage.truncated
            assert response.model == str(TINY)

    def test_one_bad_request_stops_all(self, tiny: Embedder) -> None:
        good, bad = BatchEmbeddingRequest(["a"]), BatchEmbeddingRequest(["a"], dimension=5)
        with pytest.raises(InvalidInputError, match="gives 32 dimensions, not 5"):
            tiny.embed_requests([good, bad])

    def test_none_at_all(self, tiny: Embedder) -> None:
        assert tiny.embed_requests([]) == []

    def test_any_iterable_of_texts(self, tiny: Embedder) -> None:
        expected = tiny.embed(["a", "the"]).embeddings
        for texts in (("a", "the"), np.array(["a", "the"]), (text for text in ["a", "the"])):
            np.testing.assert_array_equal(tiny.embed(texts).embeddings, expected)  # type: ignore[arg-type]

    def test_the_matryoshka_cut(self, tiny_dir: Path) -> None:
        config = json.loads((tiny_dir / "config.json").read_text())
        (tiny_dir / "config.json").write_text(json.dumps({**config, "matryoshka_dimensions": [8]}))
        with Embedder.load(tiny_dir) as embedder:
            whole, cut, raw = (
                embedder.embed(TINY_TEXTS, dimension=dimension, normalize=normalize).embeddings
                for dimension, normalize in ((None, False), (8, None), (8, False))
            )
        np.testing.assert_allclose(raw, whole[:, :8], atol=1e-6)
        np.testing.assert_allclose(cut, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
