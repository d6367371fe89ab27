"""The metrics: what is counted, and how it is served."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from concurrent.futures import wait
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from processes import run_python
from prometheus_client.parser import text_string_to_metric_families
from queue_fakes import PATIENCE_S, FakeClock, GatedEngine

from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError, ServiceUnavailableError
from akidb_mlx_plugin.metrics import exposition, start_metrics_server
from akidb_mlx_plugin.metrics.specs import METRICS
from akidb_mlx_plugin.service import EmbeddingService


def samples(model: str) -> dict[str, float]:
    """Return the samples of a model, each named as name{label=value}."""
    found = {}
    for family in text_string_to_metric_families(exposition()):
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop("model", model) == model:
                found[sample.name + "".join(f"{{{key}={value}}}" for key, value in sorted(labels.items()))] = (
                    sample.value
                )
    return found


class TestCounting:
    def test_a_batch_of_several(
        self, service: EmbeddingService, engine: GatedEngine, clock: FakeClock, model: str
    ) -> None:
        engine.hold()
        futures = [service.submit("first")]
        engine.wait_for_batch()
        futures += [service.submit(["two words", "here"], kind="query")]
        clock.advance(0.2)
        futures += [service.submit("last one")]
        assert samples(model)["embedding_queue_length"] == 3
        clock.advance(0.3)
        engine.release()
        wait(futures, PATIENCE_S)
        seen = samples(model)
        assert (seen["embedding_batch_size_count"], seen["embedding_batch_size_sum"]) == (2, 4)
        assert seen["embedding_requests_total{kind=document}{outcome=ok}"] == 2
        assert seen["embedding_requests_total{kind=query}{outcome=ok}"] == 1
        assert (seen["embedding_texts_total{kind=document}"], seen["embedding_texts_total{kind=query}"]) == (2, 2)
        assert seen["embedding_tokens_total"] == 6
        assert seen["embedding_truncated_texts_total"] == 0
        assert seen["embedding_latency_ms_sum{kind=query}"] == pytest.approx(500)
        assert seen["embedding_latency_ms_bucket{kind=query}{le=500.0}"] == 1
        assert seen["embedding_latency_ms_bucket{kind=query}{le=250.0}"] == 0
        assert seen["embedding_queue_wait_seconds_count"] == 3
        assert seen["embedding_queue_wait_seconds_sum"] == pytest.approx(0.8)
        assert seen["embedding_batch_wait_seconds_count"] == 2
        assert seen["embedding_batch_wait_seconds_sum"] == pytest.approx(0.5)
        assert seen["embedding_batch_duration_seconds_sum"] == pytest.approx(0.5)
        assert seen["embedding_queue_length"] == 0

    def test_outcomes(self, service: EmbeddingService, engine: GatedEngine, clock: FakeClock, model: str) -> None:
        def fail(requests: object) -> None:
            raise RuntimeError("broken")

        with pytest.raises(EmbeddingError):
            service.embed_batch([None])  # type: ignore[list-item]
        engine.hold()
        late = service.submit("late", deadline_ms=100)
        engine.wait_for_batch()
        broken = [service.submit(str(i)) for i in range(4)]
        with pytest.raises(EmbeddingError):
            service.submit("no room")
        broken[0].cancel()
        clock.advance(0.1)
        wait([late], PATIENCE_S)
        engine.before_each = fail
        engine.release()
        wait(broken, PATIENCE_S)
        outcomes = {
            key.removesuffix("}").rpartition("=")[2]: value
            for key, value in samples(model).items()
            if key.startswith("embedding_requests_total")
        }
        assert outcomes == {"invalid": 1, "refused": 1, "cancelled": 1, "deadline": 1, "error": 3}

    def test_a_large_request_is_one_request(self, service: EmbeddingService, model: str) -> None:
        service.embed_batch([str(i) for i in range(1000)])
        seen = samples(model)
        assert seen["embedding_requests_total{kind=document}{outcome=ok}"] == 1
        assert seen["embedding_queue_wait_seconds_count"] == 1
        assert (seen["embedding_batch_size_count"], seen["embedding_batch_size_sum"]) == (2, 1000)

    @pytest.mark.slow
    def test_load_time_and_cache(
        self, service: EmbeddingService, engine: GatedEngine, model: str, tmp_path: Path
    ) -> None:
        assert "embedding_model_load_seconds" not in samples(model)
        engine.load_seconds = 2.5
        assert samples(model)["embedding_model_load_seconds"] == 2.5
        assert samples(model)["embedding_cache_bytes"] >= 0
        assert samples(model)["process_resident_memory_bytes"] > 1e6

    def test_services_of_one_model_are_one_series(self, service: EmbeddingService, model: str) -> None:
        others = [EmbeddingService(service.config, provider=GatedEngine()) for _ in range(2)]
        assert exposition().count(f'embedding_queue_length{{model="{model}"}}') == 1
        for other in others:
            other.close()
        service.close()
        assert "embedding_queue_length" not in samples(model)

    def test_buckets_resolve_a_millisecond_to_ten_seconds(self) -> None:
        latency = next(spec for spec in METRICS if spec.name == "embedding_latency_ms")
        assert (latency.buckets[0], latency.buckets[-1]) == (1, 10_000)


class TestServing:
    @pytest.mark.slow
    def test_on_the_loopback_interface(self, service: EmbeddingService, model: str) -> None:
        service.embed_batch(["a"])
        server = start_metrics_server(0)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as response:
                page = response.read().decode()
        finally:
            server.close()
        assert f'embedding_tokens_total{{model="{model}"}} 1.0' in page

    @pytest.mark.slow
    @pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="all of 127.0.0.0/8 is the loopback on Linux alone"
    )
    def test_on_no_other_interface(self) -> None:
        server = start_metrics_server(0)
        try:
            # A server that listened on every address would answer on this one too.
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", server.port), timeout=10)
        finally:
            server.close()

    @pytest.mark.slow
    def test_an_unavailable_port(self) -> None:
        server = start_metrics_server(0)
        try:
            with pytest.raises(ServiceUnavailableError, match=rf"127\.0\.0\.1:{server.port}: .*choose another port"):
                start_metrics_server(server.port)
        finally:
            server.close()
        with pytest.raises(InvalidInputError, match="got 70000"):
            start_metrics_server(70_000)

    @pytest.mark.slow
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
    def test_a_fork_during_a_scrape_does_not_hang(self) -> None:
        script = """
            import os, signal, threading
            from akidb_mlx_plugin import EmbeddingService
            from akidb_mlx_plugin.metrics import exporter as metrics
            EmbeddingService(mode="mock").embed_batch(["a"])
            held, done = threading.Event(), threading.Event()
            def scrape():
                with metrics._lock:
                    held.set()
                    done.wait()
            threading.Thread(target=scrape, daemon=True).start()
            held.wait()
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                print(len(EmbeddingService(mode="mock", dimension=5).embed_batch(["b"]).embeddings), flush=True)
                os._exit(0)
            print(os.waitpid(child, 0)[1])
            done.set()
        """
        assert run_python(script) == "1\n0\n"

    @pytest.mark.slow
    @pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus on this machine")
    def test_prometheus_scrapes_it(self, service: EmbeddingService, model: str, tmp_path: Path) -> None:
        service.embed_batch(["a b c"])
        server = start_metrics_server(0)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        target = {"job_name": "akidb", "static_configs": [{"targets": [f"127.0.0.1:{server.port}"]}]}
        settings = tmp_path / "prometheus.yml"
        settings.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [target]}))
        command = ["prometheus", f"--config.file={settings}", f"--storage.tsdb.path={tmp_path / 'data'}"]
        prometheus = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        query = urllib.parse.quote(f'embedding_tokens_total{{model="{model}"}}')
        found: list[Any] = []
        until = time.monotonic() + PATIENCE_S
        try:
            while not found and time.monotonic() < until:
                time.sleep(0.2)
                with suppress(OSError):
                    url = f"http://127.0.0.1:{port}/api/v1/query?query={query}"
                    with urllib.request.urlopen(url, timeout=10) as response:
                        found = json.load(response)["data"]["result"]
        finally:
            prometheus.terminate()
            prometheus.wait()
            server.close()
        assert [result["value"][1] for result in found] == ["3"]

    @pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Debian's prometheus")
    def test_promtool_accepts_it(self, service: EmbeddingService) -> None:
        service.embed_batch(["a"])
        check = subprocess.run(
            ["promtool", "check", "metrics"], input=exposition(), capture_output=True, text=True, check=False
        )
        # The only complaint is about a public name of this package.
        complaints = [line for line in check.stderr.splitlines() if line]
        assert all(line.startswith("embedding_latency_ms") for line in complaints), check.stderr
        assert check.returncode in (0, 3)
