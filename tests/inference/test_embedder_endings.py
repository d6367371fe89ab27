"""The embedder: the numbers of sentence-transformers, whoever asks, in whatever company."""

from __future__ import annotations

import gc
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from host_helpers import TINY, run_python

from akidb_mlx_plugin import (
    EmbeddingError,
    InvalidInputError,
    ServiceUnavailableError,
)
from akidb_mlx_plugin.inference.embedder import Embedder
from akidb_mlx_plugin.inference.engine import Engine
from akidb_mlx_plugin.runtime.devices import choose_device

pytest_plugins = ("host_fixtures",)


GOLDEN = Path(__file__).parents[1] / "golden"


TINY_TEXTS: list[str] = json.loads((TINY.parent / "texts.json").read_text())


class TestFailures:
    @pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
    def test_a_vector_that_is_not_finite(self, tiny_dir: Path, poison: float) -> None:
        with Embedder.load(tiny_dir) as embedder:
            assert embedder._engine.model is not None
            encoder = embedder._engine.model.encoder

            class Poisoned:
                def __call__(self, tokens: Any) -> mx.array:
                    return mx.where(mx.arange(32) == 3, poison, encoder(tokens))

            embedder._engine.model = replace(embedder._engine.model, encoder=Poisoned())  # type: ignore[arg-type]
            with pytest.raises(EmbeddingError, match=r"not finite.*models verify"):
                embedder.embed(["a"])

    def test_an_error_in_the_model_reaches_the_caller_and_the_next_is_served(
        self, tiny: Embedder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> Any:
            raise MemoryError("no memory left")

        expected = tiny.embed(["a"]).embeddings
        with monkeypatch.context() as broken:
            broken.setattr(Engine, "_forward", fail)
            with pytest.raises(MemoryError, match="no memory left"):
                tiny.embed(TINY_TEXTS * 200)
        np.testing.assert_array_equal(tiny.embed(["a"]).embeddings, expected)

    def test_devices(self) -> None:
        assert choose_device("cpu") == "cpu"
        assert choose_device("auto") in ("cpu", "gpu")
        with pytest.raises(InvalidInputError, match="auto, gpu or cpu, got 'tpu'"):
            choose_device("tpu")


class TestEnd:
    def test_closed_it_refuses(self) -> None:
        with Embedder.load(TINY) as embedder:
            embedder.embed(["a"])
        embedder.close()
        with pytest.raises(ServiceUnavailableError, match="closed"):
            embedder.embed(["a"])
        assert embedder.info().dimension == 32

    @pytest.mark.slow
    def test_closing_frees_the_weights(self) -> None:
        gc.collect()
        before = mx.get_active_memory()
        embedder = Embedder.load(TINY)
        assert mx.get_active_memory() > before
        embedder.embed(TINY_TEXTS)
        embedder.close()
        gc.collect()
        assert mx.get_active_memory() <= before

    @pytest.mark.slow
    def test_a_process_that_embedded_from_threads_ends_well(self, minilm_dir: Path) -> None:
        """12 times in 12, with embedders closed and not, and threads that are still at it."""
        code = """
            import sys, threading
            from akidb_mlx_plugin.inference.embedder import Embedder
            way = int(sys.argv[2])
            embedder = Embedder.load(sys.argv[1])
            texts = ["a text", "another text that is a little longer", "short"] * 3
            threads = [threading.Thread(target=embedder.embed, args=(texts,), daemon=way == 2) for _ in range(4)]
            for thread in threads:
                thread.start()
            if way == 0:
                for thread in threads:
                    thread.join()
                embedder.close()
            if way == 1:
                for thread in threads:
                    thread.join()
                del embedder
            """
        with ThreadPoolExecutor(2) as pool:
            # Each raises unless its status is 0.
            list(pool.map(lambda i: run_python(code, minilm_dir, i % 3), range(12)))

    @pytest.mark.slow
    def test_after_a_fork_it_refuses(self) -> None:
        printed = run_python(
            """
            import os, signal, sys, threading
            from akidb_mlx_plugin import ServiceUnavailableError
            from akidb_mlx_plugin.inference import shared as embedders
            from akidb_mlx_plugin.inference.embedder import Embedder
            signal.alarm(60)
            shared = embedders.acquire_embedder(sys.argv[1])
            shared.embed(["a"])
            # Locks that a thread of the parent holds just then are never released in the child.
            with embedders._lock, shared._engine.workers._lock:
                child = os.fork()
            if child == 0:
                for use in (
                    lambda: shared.embed(["a"] * 3000),
                    lambda: embedders.acquire_embedder(sys.argv[1]).embed(["a"]),
                    lambda: Embedder.load(sys.argv[1]),
                ):
                    try:
                        use()
                    except ServiceUnavailableError as error:
                        print("spawn" in str(error), flush=True)
                shared.close()
                raise SystemExit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shared.embed(["a"]).embeddings.shape)
            """,
            TINY,
        )
        assert printed.split("\n") == ["True", "True", "True", "7 (1, 32)", ""]

    @pytest.mark.slow
    def test_loaded_after_a_fork_it_works(self) -> None:
        printed = run_python(
            """
            import os, signal, sys
            from akidb_mlx_plugin.inference.embedder import Embedder
            signal.alarm(60)
            child = os.fork()
            if child == 0:
                with Embedder.load(sys.argv[1]) as embedder:
                    print(embedder.embed(["a"] * 300).embeddings.shape, flush=True)
                raise SystemExit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            """,
            TINY,
        )
        assert printed == "(300, 32)\n7\n"
