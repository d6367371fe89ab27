"""`CrossEncoder`: what callers get, what is refused, and what is shared with embeddings."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_rerankers import copy_reranker, read_pairs, reranker_dir

from akidb_mlx_plugin import (
    CrossEncoder,
    EmbeddingService,
    InvalidInputError,
    ModelNotFoundError,
    ServiceUnavailableError,
)
from akidb_mlx_plugin.cross_encoder import shared_cross_encoder
from akidb_mlx_plugin.inference import shared
from akidb_mlx_plugin.metrics import exposition
from akidb_mlx_plugin.providers.cross_encoder import CrossEncoderProvider
from akidb_mlx_plugin.types import BatchEmbeddingRequest

QUERY = "where is the water"
TEXTS = ["stone and paper", "water under the bridge", "light in the morning", "the river"]


@pytest.fixture
def encoder() -> Any:
    with CrossEncoder(reranker_dir(), device="cpu") as made:
        yield made


class TestPredict:
    def test_scores_in_order(self, encoder: CrossEncoder) -> None:
        pairs, expected = read_pairs("bert")
        scores = encoder.predict(pairs)
        assert (scores.dtype, scores.shape) == (np.float32, (len(pairs),))
        assert np.abs(scores - expected).max() < 1e-4
        assert np.array_equal(encoder.predict(np.array(pairs, dtype=object)), scores)
        assert np.array_equal(encoder.predict(tuple(pair) for pair in pairs), scores)

    def test_no_pairs(self, encoder: CrossEncoder) -> None:
        assert encoder.predict([]).shape == (0,)
        assert asyncio.run(encoder.apredict([])).shape == (0,)

    def test_several_scores_per_pair(self) -> None:
        pairs, expected = read_pairs("bert_labels")
        with CrossEncoder(reranker_dir("bert_labels"), device="cpu") as encoder:
            scores = encoder.predict(pairs)
            assert scores.shape == expected.shape == (len(pairs), 3)
            with pytest.raises(InvalidInputError, match="3 scores per pair"):
                encoder.rank(QUERY, TEXTS)
        with CrossEncoder(reranker_dir("bert_labels"), device="cpu", activation="softmax") as encoder:
            assert np.allclose(encoder.predict(pairs).sum(axis=1), 1)

    def test_an_activation_of_ones_own(self, encoder: CrossEncoder) -> None:
        pairs, _ = read_pairs("bert")
        logits = encoder.predict(pairs)
        with CrossEncoder(reranker_dir(), device="cpu", activation="sigmoid") as other:
            assert np.allclose(other.predict(pairs), 1 / (1 + np.exp(-logits)), atol=1e-6)
        with (
            CrossEncoder(reranker_dir(), device="cpu", activation="swish") as other,
            pytest.raises(InvalidInputError, match="activation must be identity, sigmoid, softmax, tanh, got 'swish'"),
        ):
            other.predict(pairs)

    def test_from_many_threads_and_the_event_loop(self, encoder: CrossEncoder) -> None:
        pairs, _ = read_pairs("bert")
        expected = encoder.predict(pairs)
        with ThreadPoolExecutor(8) as pool:
            alone = list(pool.map(lambda pair: encoder.predict([pair])[0], pairs))
        assert np.allclose(alone, expected, atol=1e-5)

        async def both() -> list[Any]:
            return await asyncio.gather(*(encoder.apredict([pair]) for pair in pairs), encoder.arank(QUERY, TEXTS, 2))

        *scores, ranked = asyncio.run(both())
        assert np.allclose(np.concatenate(scores), expected, atol=1e-5)
        again = encoder.rank(QUERY, TEXTS, 2)
        assert [one["corpus_id"] for one in ranked] == [one["corpus_id"] for one in again]
        assert [one["score"] for one in ranked] == pytest.approx([one["score"] for one in again], abs=1e-5)

    @pytest.mark.slow
    def test_a_large_request_goes_in_slices(self, encoder: CrossEncoder) -> None:
        pairs = [(QUERY, f"{text} {i}") for i in range(300) for text in TEXTS]
        scores = encoder.predict(pairs)
        some = range(0, len(pairs), 97)
        assert np.allclose(scores[list(some)], encoder.predict([pairs[i] for i in some]), atol=1e-5)

    def test_small_scores_keep_their_order(self) -> None:
        from akidb_mlx_plugin.inference.reranker import activate

        logits = np.array([[-80.0], [-79.0], [-20.0], [-19.99], [0.0], [80.0]], dtype=np.float32)
        scores = activate(logits, "sigmoid")[:, 0]
        assert (np.diff(scores) > 0).all()
        assert (scores[4], scores[5]) == (0.5, 1.0)


class TestRank:
    def test_the_best_first(self, encoder: CrossEncoder) -> None:
        scores = encoder.predict([(QUERY, text) for text in TEXTS])
        ranked = encoder.rank(QUERY, TEXTS)
        assert [each["corpus_id"] for each in ranked] == np.argsort(-scores).tolist()
        assert [each["text"] for each in ranked] == [TEXTS[each["corpus_id"]] for each in ranked]
        assert [each["score"] for each in ranked] == [float(scores[each["corpus_id"]]) for each in ranked]
        assert encoder.rank(QUERY, TEXTS, top_k=2) == ranked[:2]
        assert encoder.rank(QUERY, TEXTS, top_k=99) == ranked
        assert encoder.rank(QUERY, []) == []

    def test_equal_texts_keep_their_order(self, encoder: CrossEncoder) -> None:
        assert [each["corpus_id"] for each in encoder.rank(QUERY, ["water"] * 9)] == list(range(9))

    @pytest.mark.parametrize("top_k", [0, -1, True, 1.5])
    def test_how_many(self, encoder: CrossEncoder, top_k: Any) -> None:
        with pytest.raises(InvalidInputError, match="top_k must be a positive integer"):
            encoder.rank(QUERY, TEXTS, top_k)

    def test_texts_must_be_a_list(self, encoder: CrossEncoder) -> None:
        with pytest.raises(InvalidInputError, match="must be a list of strings"):
            encoder.rank(QUERY, "water")


class TestBadInput:
    """Refused before the model is loaded."""

    @pytest.mark.parametrize(
        ("pairs", "message"),
        [
            ("water", "pairs must be a list of pairs of strings, got str"),
            (None, "got NoneType"),
            ({"a": "b"}, "got dict"),
            (["water", "stone"], "pair 0 is str, not a pair of strings; put a single pair in"),
            ([("a", "b"), ("a",)], "pair 1 has 1 texts, not 2"),
            ([("a", "b", "c")], "pair 0 has 3 texts, not 2"),
            ([("a", None)], "the second text of pair 0 is NoneType, not a string"),
            ([(float("nan"), "b")], "the first text of pair 0 is float, not a string"),
            ([("a", b"b")], "the second text of pair 0 is bytes"),
            ([("a", "b"), ("a", "")], "the second text of pair 1 is empty"),
            ([(" \n", "b")], "the first text of pair 0 is empty"),
            ([("a", "\ud800")], "the second text of pair 0 holds a lone surrogate"),
            ([5], "pair 0 is int"),
        ],
        ids=range(13),
    )
    def test_pairs(self, pairs: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def never(*_: Any) -> Any:
            raise AssertionError("loaded")

        monkeypatch.setattr(CrossEncoderProvider, "_acquire", never)
        with CrossEncoder("no/such-model") as encoder:
            with pytest.raises(InvalidInputError, match=message):
                encoder.predict(pairs)
            with pytest.raises(InvalidInputError, match=message):
                asyncio.run(encoder.apredict(pairs))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"device": "tpu"}, "device"),
            ({"dtype": "float64"}, "dtype"),
            ({"batch_size": 0}, "batch_size"),
            ({"model": ""}, "model"),
        ],
    )
    def test_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            CrossEncoder(**{"model": "ms-marco-minilm-l6", **settings})

    def test_one_bad_request_spoils_no_other(self, encoder: CrossEncoder) -> None:
        with ThreadPoolExecutor(4) as pool:
            good = [pool.submit(encoder.predict, [(QUERY, text)]) for text in TEXTS]
            bad = pool.submit(encoder.predict, [(QUERY, "")])
            assert all(future.result().shape == (1,) for future in good)
            assert isinstance(bad.exception(), InvalidInputError)


class TestTheWrongKind:
    def test_an_embedding_model_by_name(self) -> None:
        with (
            CrossEncoder("minilm-l6-v2") as encoder,
            pytest.raises(
                ModelNotFoundError,
                match=r"kind embedding, not reranker: use it as EmbeddingService.*ms-marco-minilm-l6",
            ),
        ):
            encoder.predict([("a", "b")])

    def test_an_embedding_models_folder(self) -> None:
        from golden_models import GOLDEN

        with (
            CrossEncoder(GOLDEN / "bert" / "model") as encoder,
            pytest.raises(ModelNotFoundError, match=r"is an embedding model.*Embedder\(model\)"),
        ):
            encoder.predict([("a", "b")])

    def test_a_reranker_by_name(self) -> None:
        with (
            EmbeddingService("ms-marco-minilm-l6") as service,
            pytest.raises(
                ModelNotFoundError, match=r"kind reranker, not embedding: use it as CrossEncoder.*minilm-l6-v2"
            ),
        ):
            service.embed_batch(["a"])

    @pytest.mark.parametrize("name", ["bert", "roberta", "qwen3_reranker"])
    def test_a_rerankers_folder(self, name: str) -> None:
        with (
            EmbeddingService(reranker_dir(name)) as service,
            pytest.raises(ModelNotFoundError, match=r"is a reranker.*CrossEncoder\(model\)"),
        ):
            service.embed_batch(["a"])

    def test_texts_instead_of_pairs(self) -> None:
        provider = CrossEncoderProvider(EmbeddingService("mock", mode="mock").config.mlx, settings=Any)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="scores pairs of texts"):
            provider.prepare(BatchEmbeddingRequest(["a"]))


class TestShared:
    def test_one_model_for_the_process(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = copy_reranker("bert", tmp_path)
        opened: list[Any] = []
        load = shared.Reranker.open

        def count(*arguments: Any, **settings: Any) -> Any:
            opened.append(load(*arguments, **settings))
            return opened[-1]

        monkeypatch.setattr(shared.Reranker, "open", count)
        encoders = [CrossEncoder(folder, device="cpu") for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda each: each.predict([("a", "b")]), encoders))
        assert len(opened) == 1
        other = CrossEncoder(folder, device="cpu", activation="tanh")
        other.predict([("a", "b")])
        assert len(opened) == 2
        for each in (*encoders, other):
            each.close()
        assert all(each._engine.model is None for each in opened)

    def test_one_for_the_adapters(self, encoder: CrossEncoder) -> None:
        first = shared_cross_encoder(reranker_dir(), device="cpu")
        assert shared_cross_encoder(reranker_dir(), device="cpu") is first
        assert shared_cross_encoder(reranker_dir()) is not first
        assert shared_cross_encoder(encoder) is encoder
        first.close()
        assert shared_cross_encoder(reranker_dir(), device="cpu") is not first


class TestService:
    def test_creating_is_free(self) -> None:
        before = threading.active_count()
        encoders = [CrossEncoder("ms-marco-minilm-l6") for _ in range(100)]
        assert threading.active_count() == before
        assert repr(encoders[0]) == "CrossEncoder('ms-marco-minilm-l6', open)"

    def test_truncated_pairs_are_counted_and_logged_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = copy_reranker("bert", tmp_path)
        with caplog.at_level(logging.WARNING), CrossEncoder(folder, device="cpu") as encoder:
            encoder.predict([(QUERY, "water " * 80), (QUERY, "water")])
            encoder.predict([("stone " * 80, "water")])
            metrics = exposition()
        assert [record.message for record in caplog.records if "are cut by" in record.message] == [
            f"pairs longer than 47 tokens are cut by {folder}, the longer text first; the metric "
            "embedding_truncated_texts_total counts them"
        ]
        label = f'model="{folder}"'
        assert f"embedding_truncated_texts_total{{{label}}} 2.0" in metrics
        assert f'embedding_texts_total{{kind="pair",{label}}} 3.0' in metrics
        assert f'embedding_requests_total{{kind="pair",{label},outcome="ok"}} 2.0' in metrics

    def test_health(self, tmp_path: Path) -> None:
        encoder = CrossEncoder(tmp_path / "missing")
        encoder.health_check()
        with pytest.raises(ModelNotFoundError, match="no folder at"):
            encoder.predict([("a", "b")])
        with pytest.raises(ServiceUnavailableError, match="could not be loaded: no folder at"):
            encoder.health_check()
        copy_reranker("bert", tmp_path).rename(tmp_path / "missing")
        assert encoder.predict([("a", "b")]).shape == (1,)
        encoder.health_check()
        encoder.close()
        encoder.close()
        with pytest.raises(ServiceUnavailableError, match="closed"):
            encoder.health_check()
        with pytest.raises(ServiceUnavailableError, match="closed"):
            encoder.predict([("a", "b")])

    def test_info(self, encoder: CrossEncoder) -> None:
        info = encoder.model_info()
        assert (info.dimension, info.max_tokens, info.similarity, info.device) == (1, 47, "identity", "")
        encoder.predict([("a", "b")])
        info = encoder.model_info()
        assert (info.device, info.dtype) == ("cpu", "float32")
        assert info.parameters > 1000

    def test_offline_without_the_model_is_one_clear_sentence(self, tmp_path: Path) -> None:
        from akidb_mlx_plugin import DownloadError

        with (
            CrossEncoder("ms-marco-minilm-l6", cache_dir=tmp_path, offline=True) as encoder,
            pytest.raises(
                DownloadError,
                match=r"MiniLM-L6-v2\) at main is not complete.*offline mode does not allow",
            ),
        ):
            encoder.predict([("a", "b")])
