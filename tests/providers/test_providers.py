"""The three providers: what they answer, and when the model is loaded."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from queue_fakes import PATIENCE_S, request

from akidb_mlx_plugin.checkpoints.options import LoadOptions
from akidb_mlx_plugin.config import EmbeddingConfig, MLXConfig
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError, ServiceUnavailableError
from akidb_mlx_plugin.providers import EmbeddingProvider, MLXProvider, UserProvidedProvider, make_provider
from akidb_mlx_plugin.providers.mock import MockProvider, hash_texts
from akidb_mlx_plugin.types import BatchEmbeddingRequest, BatchEmbeddingResponse, ModelInfo


class TestMock:
    def test_the_same_bits_everywhere(self) -> None:
        expected = [
            [-0.29130733, -0.19157065, 0.12365419, 0.5227918],
            [-0.31363946, 0.61122096, 0.4226596, -0.00084821],
        ]
        np.testing.assert_allclose(hash_texts(["a", "b"], 8)[:, :4], expected, atol=1e-7)

    @pytest.mark.slow
    def test_the_same_in_another_process(self) -> None:
        script = (
            "from akidb_mlx_plugin.providers.mock import hash_texts; print(hash_texts(['é', ''], 16).tobytes().hex())"
        )
        printed = [
            subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env).stdout
            for env in ({"PYTHONHASHSEED": "1", **_path()}, {"PYTHONHASHSEED": "2", **_path()})
        ]
        assert printed == [hash_texts(["é", ""], 16).tobytes().hex() + "\n"] * 2

    @pytest.mark.parametrize("dimension", [1, 3, 384, 5000])
    def test_unit_vectors_of_any_dimension(self, dimension: int) -> None:
        vectors = MockProvider(dimension).embed_batch(request("a", "", "ccc")).embeddings
        assert vectors.shape == (3, dimension)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    def test_a_query_finds_its_text(self) -> None:
        provider = MockProvider(64)
        texts = [f"text {i}" for i in range(200)]
        documents = provider.embed_batch(BatchEmbeddingRequest(texts)).embeddings
        queries = provider.embed_batch(BatchEmbeddingRequest(texts, kind="query")).embeddings
        assert (np.argmax(queries @ documents.T, axis=1) == np.arange(200)).all()

    def test_requests_may_cut_and_leave_lengths(self) -> None:
        provider = MockProvider(64)
        raw = provider.embed_batch(BatchEmbeddingRequest(["a"], normalize=False)).embeddings
        short = provider.embed_batch(BatchEmbeddingRequest(["a"], dimension=8)).embeddings
        np.testing.assert_allclose(short[0], raw[0, :8] / np.linalg.norm(raw[0, :8]), atol=1e-6)

    def test_chunks_do_not_show(self) -> None:
        texts = [str(i) for i in range(1500)]
        np.testing.assert_array_equal(hash_texts(texts, 1000)[1400:], hash_texts(texts[1400:], 1000))

    def test_refuses_what_a_model_would(self) -> None:
        with pytest.raises(InvalidInputError, match="no texts"):
            MockProvider().embed_batch(request())

    def test_info(self) -> None:
        info = MockProvider(16).model_info()
        assert (info.model, info.dimension, info.normalize) == ("mock", 16, True)
        assert info.fingerprint != MockProvider(17).model_info().fingerprint


def _path() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(sys.path)}


class TestUserProvided:
    def test_a_text_is_refused_with_the_remedy(self) -> None:
        provider = UserProvidedProvider(dimension=3)
        for ask in (provider.embed_batch, provider.prepare):
            with pytest.raises(InvalidInputError, match="provide a vector with every document and every query"):
                ask(request("a"))
        provider.health_check()
        provider.close()

    def test_info_says_what_is_known(self) -> None:
        assert UserProvidedProvider().model_info().dimension == 0
        info = UserProvidedProvider(model="mine", dimension=3).model_info()
        assert (info.model, info.dimension) == ("mine", 3)
        assert info.fingerprint not in ("", UserProvidedProvider(model="other", dimension=3).model_info().fingerprint)


class FakeEmbedder:
    load_seconds = 1.25

    def __init__(self) -> None:
        self.requests: list[BatchEmbeddingRequest] = []

    def embed_requests(self, requests: Sequence[BatchEmbeddingRequest]) -> list[BatchEmbeddingResponse]:
        self.requests += requests
        return [MockProvider(8).embed_batch(each) for each in requests]

    def resolve(self, request: BatchEmbeddingRequest) -> BatchEmbeddingRequest:
        if request.dimension not in (None, 8):
            raise InvalidInputError("no such dimension")
        return request

    def info(self) -> ModelInfo:
        return ModelInfo("m", 8, 256, device="cpu", dtype="float32", parameters=5, fingerprint="of the checkpoint")

    def keep_warm(self, seconds: float) -> None:
        assert seconds == 0


class Loader:
    """Stands for the process's models."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, LoadOptions]] = []
        self.released: list[object] = []
        self.error: Exception | None = None
        self.called = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def acquire(self, model: str, options: LoadOptions) -> FakeEmbedder:
        self.asked.append((model, options))
        self.called.set()
        assert self.gate.wait(PATIENCE_S)
        if self.error:
            raise self.error
        return FakeEmbedder()


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    loader = Loader()
    monkeypatch.setattr("akidb_mlx_plugin.inference.shared.acquire_embedder", loader.acquire)
    monkeypatch.setattr("akidb_mlx_plugin.inference.shared.release_model", loader.released.append)
    return loader


class TestMLX:
    def test_loads_with_the_first_text_and_once(self, loader: Loader, tmp_path: Path) -> None:
        config = MLXConfig(model="minilm-l6-v2", cache_dir=tmp_path, device="cpu", max_cache_gb=3, pooling="mean")
        provider = MLXProvider(config, trusted=False)
        provider.prepare(request("a"))
        provider.health_check()
        assert (loader.asked, provider.load_seconds) == ([], None)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(provider.embed_batch, [request("a")] * 8))
        options = LoadOptions(device="cpu", cache_dir=tmp_path, max_cache_gb=3, trusted=False, pooling="mean")
        assert loader.asked == [("minilm-l6-v2", options)]
        assert provider.load_seconds == 1.25

    def test_fills_in_what_a_request_leaves_open(self, loader: Loader) -> None:
        provider = MLXProvider(MLXConfig(dimension=8, normalize=False, query_prompt="Q: "))
        provider.embed_requests(
            [
                BatchEmbeddingRequest(["a"], "query"),
                BatchEmbeddingRequest(["a"]),
                BatchEmbeddingRequest(["a"], "query", normalize=True, dimension=4, prompt=""),
            ]
        )
        embedder = provider._lazy.model
        assert isinstance(embedder, FakeEmbedder)
        seen = [(each.normalize, each.dimension, each.prompt) for each in embedder.requests]
        assert seen == [(False, 8, "Q: "), (False, 8, None), (True, 4, "")]

    def test_checks_with_the_model_once_it_is_there(self, loader: Loader) -> None:
        provider = MLXProvider(MLXConfig())
        odd = BatchEmbeddingRequest(["a"], dimension=9)
        provider.prepare(odd)
        provider.embed_batch(request("a"))
        with pytest.raises(InvalidInputError, match="no such dimension"):
            provider.prepare(odd)

    def test_a_failed_load_is_told_and_tried_again(self, loader: Loader) -> None:
        provider = MLXProvider(MLXConfig())
        loader.error = ModelNotFoundError("no such model")
        with pytest.raises(ModelNotFoundError):
            provider.embed_batch(request("a"))
        with pytest.raises(ServiceUnavailableError, match="could not be loaded: no such model"):
            provider.health_check()
        loader.error = None
        assert len(provider.embed_batch(request("a")).embeddings) == 1
        provider.health_check()
        assert len(loader.asked) == 2

    def test_close_gives_the_model_back_once(self, loader: Loader) -> None:
        provider = MLXProvider(MLXConfig())
        provider.close()
        provider = MLXProvider(MLXConfig())
        provider.embed_batch(request("a"))
        provider.close()
        provider.close()
        assert len(loader.released) == 1
        with pytest.raises(ServiceUnavailableError, match="closed"):
            provider.embed_batch(request("a"))

    def test_close_does_not_wait_for_a_load(self, loader: Loader) -> None:
        provider = MLXProvider(MLXConfig())
        loader.gate.clear()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(provider.embed_batch, request("a"))
            assert loader.called.wait(PATIENCE_S)
            provider.close()
            assert loader.released == []
            loader.gate.set()
            with pytest.raises(ServiceUnavailableError, match="closed while"):
                waiting.result(PATIENCE_S)
        assert len(loader.released) == 1

    def test_info_comes_from_the_checkpoint(self, loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
        described: list[tuple[LoadOptions, dict[str, Any]]] = []

        def describe(model: str, options: LoadOptions, **settings: Any) -> ModelInfo:
            described.append((options, settings))
            return ModelInfo(model, settings["dimension"], 256, fingerprint="with my prompts")

        monkeypatch.setattr("akidb_mlx_plugin.checkpoints.lookup.describe_model", describe)
        provider = MLXProvider(MLXConfig(model="m", dimension=4, document_prompt="D: ", pooling="cls"))
        assert (provider.model_info().device, loader.asked) == ("", [])
        provider.embed_batch(request("a"))
        info = provider.model_info()
        assert (info.dimension, info.device, info.parameters, info.fingerprint) == (4, "cpu", 5, "with my prompts")
        ((options, settings),) = described
        assert (settings["prompts"], options.pooling) == ({"document": "D: "}, "cls")


@pytest.mark.parametrize(
    ("mode", "kind"), [("mlx", MLXProvider), ("mock", MockProvider), ("user_provided", UserProvidedProvider)]
)
def test_the_mode_decides(mode: Any, kind: type[EmbeddingProvider]) -> None:
    provider = make_provider(EmbeddingConfig.from_arguments(mode=mode, dimension=12))
    assert isinstance(provider, kind)
    if mode != "mlx":
        assert provider.model_info().dimension == 12


def test_a_provider_of_ones_own_needs_four_methods() -> None:
    class Ones(EmbeddingProvider):
        def embed_batch(self, request: BatchEmbeddingRequest) -> BatchEmbeddingResponse:
            return MockProvider(2).embed_batch(request)

        def model_info(self) -> ModelInfo:
            return ModelInfo("ones", 2, 1)

        def health_check(self) -> None: ...

        def close(self) -> None: ...

    assert [len(response.embeddings) for response in Ones().embed_requests([request("a"), request("b", "c")])] == [1, 2]
    with pytest.raises(TypeError, match="abstract"):
        EmbeddingProvider()  # type: ignore[abstract]
