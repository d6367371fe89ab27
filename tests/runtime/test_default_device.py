"""Other MLX code in the process keeps its default device while a model computes on another one.

`ELSEWHERE` stands for the GPU that such code uses: MLX accepts it as the default device, and raises for any operation
that is described for it. So a model computes here only if all it describes is for the CPU, and only on loan.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from golden_models import GOLDEN, farthest, read_golden
from queue_fakes import PATIENCE_S

from akidb_mlx_plugin import BatchEmbeddingRequest, Embedder
from akidb_mlx_plugin.inference import engine
from akidb_mlx_plugin.nn.layout import emulate_gpu, in_cpu_layout
from akidb_mlx_plugin.runtime import default_device
from akidb_mlx_plugin.runtime.default_device import borrowed, evaluate, given_back
from akidb_mlx_plugin.runtime.workers import WorkerPool

ELSEWHERE = mx.Device(mx.cpu, 1)


@pytest.fixture(autouse=True)
def _elsewhere() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(ELSEWHERE)
    yield
    mx.set_default_device(before)


def on_another_thread(look: Any) -> Any:
    """Return what a thread of the user's finds."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(look).result(PATIENCE_S)


def test_the_device_stands_for_one_that_cannot_compute_here() -> None:
    assert mx.default_device() != mx.cpu
    with pytest.raises(IndexError):
        mx.zeros((2,))


class TestOtherThreads:
    @pytest.fixture
    def seen(self, monkeypatch: pytest.MonkeyPatch) -> list[mx.Device]:
        """Devices that another thread sees, whenever a worker evaluates."""
        seen: list[mx.Device] = []

        def watched(original: Any) -> Any:
            def call(*values: Any) -> Any:
                if threading.current_thread().name.startswith("akidb-mlx-"):
                    seen.append(on_another_thread(mx.default_device))
                return original(*values)

            return call

        monkeypatch.setattr(mx, "eval", watched(mx.eval))
        monkeypatch.setattr(mx, "async_eval", watched(mx.async_eval))
        return seen

    @pytest.mark.slow
    @pytest.mark.parametrize("layout", ["cpu", "gpu"])
    @pytest.mark.parametrize("name", ["bert", "qwen3"])
    def test_never_see_ours_while_a_model_computes(
        self, seen: list[mx.Device], monkeypatch: pytest.MonkeyPatch, name: str, layout: str
    ) -> None:
        golden = read_golden(name)
        # Of two, one may be describing while the other evaluates.
        monkeypatch.setattr(engine, "core_count", lambda: 1)
        requests = [BatchEmbeddingRequest(golden.texts, kind) for kind in ("document", "query")]
        with ExitStack() as stack:
            if layout == "gpu":
                stack.enter_context(emulate_gpu())
            embedder = stack.enter_context(Embedder.load(GOLDEN / name / "model", device="cpu", dtype="float32"))
            loading = len(seen)
            responses = embedder.embed_requests(requests)
        assert len(seen) > loading > 10
        assert set(map(str, seen)) == {str(ELSEWHERE)}
        for request, response in zip(requests, responses, strict=True):
            assert farthest(response.embeddings, golden.vectors[request.kind]) < 1e-5
        assert mx.default_device() == ELSEWHERE

    def test_see_theirs_before_between_and_after_our_work(self) -> None:
        pool = WorkerPool("cpu", 2)
        try:
            ours: list[bool] = []

            def work() -> mx.array:
                ours.append(mx.default_device() == mx.cpu and in_cpu_layout())
                evaluate(mx.zeros((2,)))
                return mx.ones((2,))

            for _ in range(3):
                assert mx.default_device() == ELSEWHERE
                assert pool.submit(work, collect=np.array).result(PATIENCE_S).tolist() == [1, 1]
            assert ours == [True] * 3
        finally:
            pool.close()
        assert mx.default_device() == ELSEWHERE

    def test_several_models_at_once(self) -> None:
        """Each describes under the lock, and those that wait for a prompt's keys and values do not hold it."""
        golden = read_golden("qwen3")
        with Embedder.load(GOLDEN / "qwen3" / "model", device="cpu") as embedder, ThreadPoolExecutor(4) as callers:
            waiting = [callers.submit(embedder.embed, golden.texts, kind="query") for _ in range(8)]
            for future in waiting:
                assert farthest(future.result(PATIENCE_S).embeddings, golden.vectors["query"]) < 1e-5
        assert mx.default_device() == ELSEWHERE


class TestLoan:
    def test_ends_with_an_error(self) -> None:
        with pytest.raises(ZeroDivisionError), borrowed(mx.cpu):
            1 / (mx.default_device() != mx.cpu)
        assert mx.default_device() == ELSEWHERE
        assert not default_device._lock.locked()

    def test_is_exclusive(self) -> None:
        order: list[str] = []
        begun = threading.Event()

        def other() -> None:
            begun.set()
            with borrowed(mx.cpu):
                order.append("second")

        with borrowed(mx.cpu):
            thread = threading.Thread(target=other)
            thread.start()
            assert begun.wait(PATIENCE_S)
            order.append("first")
        thread.join(PATIENCE_S)
        assert order == ["first", "second"]

    def test_another_device_that_was_set_meanwhile_stays(self) -> None:
        meant = mx.Device(mx.cpu, 2)
        with borrowed(mx.cpu):
            mx.set_default_device(meant)
        assert mx.default_device() == meant

    @pytest.mark.skipif(mx.is_available(mx.gpu), reason="with a GPU, the default device may change at any time")
    def test_nothing_is_locked_where_there_is_one_device(self) -> None:
        mx.set_default_device(mx.cpu)
        with borrowed(mx.cpu):
            assert not default_device._lock.locked()
            with given_back():
                assert in_cpu_layout()
