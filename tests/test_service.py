"""The service as users and adapters call it."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import run_python
from queue_fakes import PATIENCE_S, FakeClock, GatedEngine

from akidb_mlx_plugin import model_queue
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.errors import DimensionMismatchError, InvalidInputError, ServiceUnavailableError
from akidb_mlx_plugin.providers.mock import hash_texts
from akidb_mlx_plugin.service import EmbeddingService, shared_service

MOCK = EmbeddingConfig.load(overrides={"mode": "mock", "mock": {"dimension": 8}})


class TestMaking:
    def test_from_a_mode(self) -> None:
        with EmbeddingService(mode="mock", dimension=16) as service:
            assert service.embed_batch(["a", "b"]).embeddings.shape == (2, 16)
            assert service.model_info().dimension == 16

    def test_from_a_file_and_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "config.yaml"
        file.write_text("embedding: {mode: mock, mock: {dimension: 4}}")
        monkeypatch.setenv("AKIDB_EMBEDDING__MOCK__DIMENSION", "5")
        with EmbeddingService.from_config(file) as service:
            assert service.embed_batch(["a"]).embeddings.shape == (1, 5)

    def test_from_a_configuration_and_nothing_else(self) -> None:
        assert EmbeddingService(MOCK).config is MOCK
        with pytest.raises(InvalidInputError, match="not both"):
            EmbeddingService(MOCK, dimension=3)

    def test_is_free(self) -> None:
        threads = threading.active_count()
        service = EmbeddingService("minilm-l6-v2", dimension=64, device="cpu")
        assert (service.config.mlx.model, service.config.mlx.dimension) == ("minilm-l6-v2", 64)
        assert threading.active_count() == threads

    @pytest.mark.slow
    def test_imports_nothing_heavy(self) -> None:
        script = """
            import sys
            from akidb_mlx_plugin.service import EmbeddingService
            EmbeddingService("minilm-l6-v2")
            heavy = {"mlx.core", "transformers", "tokenizers", "huggingface_hub", "prometheus_client", "chromadb"}
            print(sorted(heavy & set(sys.modules)))
        """
        assert run_python(script) == "[]\n"


class TestEmbedding:
    @pytest.fixture
    def service(self) -> Any:
        with EmbeddingService(MOCK) as service:
            yield service

    def test_every_way_to_call_gives_the_same(self, service: EmbeddingService) -> None:
        expected = hash_texts(["one", "two"], 8)
        np.testing.assert_array_equal(service.embed_batch(["one", "two"]).embeddings, expected)
        np.testing.assert_array_equal(service.submit("one").result(PATIENCE_S).embeddings, expected[:1])
        np.testing.assert_array_equal(service.submit(["one", "two"]).result(PATIENCE_S).embeddings, expected)
        np.testing.assert_array_equal(service.submit_when_room("one").result(PATIENCE_S).embeddings, expected[:1])
        np.testing.assert_array_equal(asyncio.run(service.aembed_batch(["one", "two"])).embeddings, expected)

    def test_settings_reach_the_provider(self) -> None:
        engine = GatedEngine()
        with EmbeddingService(MOCK, provider=engine) as service:
            service.embed_batch(["a"], kind="query", normalize=False, dimension=3, prompt="p")
        (seen,) = engine.batches[0]
        assert (seen.kind, seen.normalize, seen.dimension, seen.prompt) == ("query", False, 3, "p")
        assert engine.closed.is_set()

    @pytest.mark.parametrize("texts", [[], "bare", None, [None], [b"a"], ["\ud800"], ["a", 1]])
    def test_unusable_texts(self, service: EmbeddingService, texts: Any) -> None:
        with pytest.raises(InvalidInputError):
            service.embed_batch(texts)
        with pytest.raises(InvalidInputError):
            asyncio.run(service.aembed_batch(texts))

    def test_other_sequences(self, service: EmbeddingService) -> None:
        assert len(service.embed_batch(("a", "")).embeddings) == 2
        assert len(service.embed_batch(np.array(["a", "b"])).embeddings) == 2  # type: ignore[arg-type]

    @pytest.mark.parametrize("deadline_ms", [0, -1, float("nan")])
    def test_unusable_deadline(self, service: EmbeddingService, deadline_ms: float) -> None:
        with pytest.raises(InvalidInputError, match="deadline_ms"):
            service.embed_batch(["a"], deadline_ms=deadline_ms)

    def test_user_provided_vectors(self) -> None:
        with (
            EmbeddingService(mode="user_provided", dimension=3) as service,
            pytest.raises(InvalidInputError, match="provide a vector"),
        ):
            service.embed_batch(["a"])

    def test_no_text_is_logged_above_debug(self, service: EmbeddingService, caplog: pytest.LogCaptureFixture) -> None:
        engine = GatedEngine()

        def fail(requests: object) -> None:
            raise RuntimeError("broken")

        engine.before_each = fail
        with caplog.at_level(logging.INFO), EmbeddingService(MOCK, provider=engine) as broken:
            with pytest.raises(RuntimeError):
                broken.embed_batch(["a secret"])
            service.embed_batch(["a secret"])
        assert "secret" not in caplog.text

    def test_a_full_queue_refuses_or_is_waited_for(self) -> None:
        config = EmbeddingConfig.load(overrides={"mode": "mock", "service": {"queue_size": 2}})
        engine = GatedEngine()
        engine.hold()
        with EmbeddingService(config, provider=engine) as service:
            futures = [service.submit("running")]
            engine.wait_for_batch()
            futures.append(service.submit(["waiting", "waiting"]))
            with pytest.raises(ServiceUnavailableError, match="no room for 1 more"):
                service.submit("refused")
            futures.append(service.submit_when_room("in line"))
            engine.release()
            assert [len(future.result(PATIENCE_S).embeddings) for future in futures] == [1, 2, 1]


class TestChecking:
    def test_dimension_of_a_collection(self) -> None:
        with EmbeddingService(MOCK) as service:
            service.validate_collection_dimension(8)
            with pytest.raises(DimensionMismatchError, match="768 dimensions and mock makes 8") as caught:
                service.validate_collection_dimension(768)
        assert (caught.value.expected, caught.value.actual) == (768, 8)

    @pytest.mark.parametrize("dimension", ["384", 0, True, 384.0])
    def test_an_invalid_dimension_of_a_collection(self, dimension: Any) -> None:
        with pytest.raises(InvalidInputError, match="positive integer"):
            EmbeddingService(MOCK).validate_collection_dimension(dimension)

    def test_unknown_dimension_fits_any_collection(self) -> None:
        EmbeddingService(mode="user_provided").validate_collection_dimension(768)

    def test_health_asks_queue_and_provider(self) -> None:
        class Ill(GatedEngine):
            def health_check(self) -> None:
                raise ServiceUnavailableError("the provider is ill")

        service = EmbeddingService(MOCK, provider=Ill())
        with pytest.raises(ServiceUnavailableError, match="ill"):
            service.health_check()
        service.close()
        with pytest.raises(ServiceUnavailableError, match="closed"):
            service.health_check()

    def test_deadline_from_the_configuration(self) -> None:
        config = EmbeddingConfig.load(overrides={"mode": "mock", "service": {"deadline_ms": 100}})
        engine, clock = GatedEngine(), FakeClock()
        engine.hold()
        service = EmbeddingService(config, provider=engine, clock=clock)
        future = service.submit("a")
        engine.wait_for_batch()
        clock.advance(0.1)
        with pytest.raises(ServiceUnavailableError, match=r"within 0\.1 s"):
            future.result(PATIENCE_S)
        with pytest.raises(ServiceUnavailableError, match="past its deadline"):
            service.health_check()
        engine.release()
        service.close()


class TestEnding:
    @pytest.mark.slow
    def test_one_that_is_never_closed_answers_its_requests_and_ends(self) -> None:
        engine = GatedEngine()
        engine.hold()
        service = EmbeddingService(MOCK, provider=engine)
        futures = [service.submit(str(i)) for i in range(30)]
        del service
        gc.collect()
        engine.release()
        assert all(len(future.result(PATIENCE_S).embeddings) == 1 for future in futures)
        assert engine.closed.wait(PATIENCE_S)

    def test_a_model_that_comes_back_after_the_close_is_freed_then(self) -> None:
        engine = GatedEngine()
        engine.hold()
        service = EmbeddingService(MOCK, provider=engine)
        future = service.submit("a")
        engine.wait_for_batch()
        service.close(timeout_s=0)
        with pytest.raises(ServiceUnavailableError, match="did not come back"):
            future.result(PATIENCE_S)
        assert not engine.closed.is_set()
        engine.release()
        assert engine.closed.wait(PATIENCE_S)

    def test_all_share_one_time_limit_when_the_interpreter_exits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock, allowed = FakeClock(), []

        class Hung:
            def close(self, *, drain: bool, timeout_s: float) -> bool:
                allowed.append(timeout_s)
                clock.advance(timeout_s)
                return False

        monkeypatch.setattr(model_queue, "_queues", [Hung() for _ in range(3)])
        monkeypatch.setattr(model_queue.time, "monotonic", clock.now)
        model_queue._close_all()
        assert allowed == [model_queue._EXIT_TIMEOUT_S, 0, 0]

    @pytest.mark.slow
    @pytest.mark.parametrize("texts", [1, 2000])
    def test_the_interpreter_exits_without_close(self, texts: int) -> None:
        script = f"""
            import signal, time
            from akidb_mlx_plugin import EmbeddingService
            from akidb_mlx_plugin.providers.mock import MockProvider
            signal.alarm(60)
            class Slow(MockProvider):
                def embed_requests(self, requests):
                    time.sleep(0.01)
                    return super().embed_requests(requests)
            service = EmbeddingService(mode="mock", provider=Slow())
            futures = [service.submit(str(i)) for i in range({texts})]
            print("end")
        """
        assert run_python(script, silent=True) == "end\n"

    @pytest.mark.slow
    def test_a_forked_child_is_refused_and_ends(self) -> None:
        script = """
            import os, signal
            from akidb_mlx_plugin import EmbeddingService, ServiceUnavailableError
            signal.alarm(60)
            service = EmbeddingService(mode="mock")
            service.embed_batch(["a"])
            child = os.fork()
            if child == 0:
                try:
                    service.embed_batch(["a"])
                except ServiceUnavailableError:
                    print("refused", flush=True)
                service.close()
                raise SystemExit(0)
            print(os.waitpid(child, 0)[1], service.embed_batch(["a"]).embeddings.shape)
        """
        assert run_python(script, silent=True) == "refused\n0 (1, 384)\n"


class TestSharing:
    def test_equal_configurations_share(self) -> None:
        again = EmbeddingConfig.load(overrides={"mode": "mock", "mock": {"dimension": 8}})
        assert shared_service(MOCK) is shared_service(again)
        assert shared_service(MOCK) is not shared_service(MOCK, trusted=False)
        assert shared_service(MOCK) is not shared_service(EmbeddingConfig.from_arguments(mode="mock", dimension=9))

    def test_a_closed_one_is_replaced(self) -> None:
        config = EmbeddingConfig.from_arguments(mode="mock", dimension=10)
        first = shared_service(config)
        first.close()
        assert shared_service(config) is not first
        assert shared_service(config).embed_batch(["a"]).embeddings.shape == (1, 10)

    def test_threads_get_the_same(self) -> None:
        config = EmbeddingConfig.from_arguments(mode="mock", dimension=11)
        with ThreadPoolExecutor(16) as pool:
            services = list(pool.map(lambda _: shared_service(config), range(64)))
        assert len(set(map(id, services))) == 1


_FORGOTTEN = """
import gc, time
from akidb_mlx_plugin import EmbeddingService
from akidb_mlx_plugin.providers import MockProvider

class Slow(MockProvider):
    def close(self):
        time.sleep(0.5)
        print("closed")

EmbeddingService(mode="mock", provider=Slow(8)).embed_batch(["text"])
gc.collect()
"""


@pytest.mark.slow
def test_the_interpreter_waits_for_a_model_that_nobody_owns_any_more() -> None:
    """A process that ends while a thread frees a model would abort."""
    assert run_python(_FORGOTTEN).split() == ["closed"]
