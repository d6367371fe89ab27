"""What a GPU computes before anybody asks: a few lengths after loading, and a little while it would fall asleep."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from golden_models import GOLDEN, farthest, read_golden
from queue_fakes import PATIENCE_S

from akidb_mlx_plugin import Embedder
from akidb_mlx_plugin.config import EmbeddingConfig
from akidb_mlx_plugin.inference import engine, warmth
from akidb_mlx_plugin.inference.warmth import Warmth
from akidb_mlx_plugin.nn.batch import TokenBatch
from akidb_mlx_plugin.nn.layout import emulate_gpu
from akidb_mlx_plugin.providers.mlx import MLXProvider
from akidb_mlx_plugin.types import BatchEmbeddingRequest


class Passes(list[int]):
    """Tokens of every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()

    def note(self, tokens: int) -> None:
        with self.changed:
            self.append(tokens)
            self.changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self) >= count, PATIENCE_S)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Passes]:
    """The GPU's layout, warmed up as on one."""
    passes = Passes()
    forward = engine.Engine._forward

    def note(self: engine.Engine, batch: TokenBatch, start: engine.Start) -> object:
        out = forward(self, batch, start)
        passes.note(len(batch.ids))
        return out

    monkeypatch.setattr(engine.Engine, "_forward", note)
    monkeypatch.setattr(engine, "_WARMED_DEVICES", ("cpu",))
    with emulate_gpu():
        yield passes


def test_a_few_lengths_after_loading(passes: Passes) -> None:
    golden = read_golden("bert")
    with Embedder.load(GOLDEN / "bert" / "model", device="cpu", dtype="float32") as embedder:
        vectors = embedder.embed(golden.texts).embeddings
        passes.wait_for(4)
    # Its longest text has 48 tokens.
    assert {2, 16, 48} <= set(passes)
    assert farthest(vectors, golden.vectors["document"]) < 1e-5


def test_a_cpu_is_not_warmed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[object] = []
    monkeypatch.setattr(engine.Engine, "_submit", lambda self, *arguments, **_: computed.append(arguments))
    Embedder.load(GOLDEN / "bert" / "model", device="cpu").close()
    assert not computed


def test_a_failure_is_left_to_the_first_text(passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine, "check_batch", lambda *_: 1 / 0)
        embedder = Embedder.load(GOLDEN / "bert" / "model", device="cpu")
        with pytest.raises(ZeroDivisionError):
            embedder.embed(["one"])
    assert np.isfinite(embedder.embed(["one"]).embeddings).all()
    embedder.close()


def test_keeping_warm_is_configured_and_ends(passes: Passes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(warmth.Warmth.__init__, "__kwdefaults__", {"tick_s": 0.01, "now": warmth.time.monotonic})
    # A copy, which no other test can have loaded.
    shutil.copytree(GOLDEN / "bert" / "model", tmp_path / "model")
    mlx = {"model": str(tmp_path / "model"), "device": "cpu", "keep_warm_s": 600}
    provider = MLXProvider(EmbeddingConfig.load(overrides={"mlx": mlx}).mlx)
    provider.embed_batch(BatchEmbeddingRequest(["one"]))
    # Four to warm up, the text, and whatever keeps it warm.
    passes.wait_for(8)
    assert passes.count(2) >= 4
    provider.close()
    assert not any(thread.name == "akidb-mlx-warmth" for thread in threading.enumerate())


class TestWarmth:
    def test_computes_while_idle_until_the_time_is_up(self) -> None:
        times = iter([0.0, 1.0, 4.0, 6.0, 6.0, 9.0, 9.5, 10.5, 10.5])
        computed: list[int] = []
        warm = Warmth(lambda: computed.append(1), tick_s=0.001, now=lambda: next(times, 99.0))
        warm.extend(10)
        warm.use()
        thread = warm._thread
        if thread is not None:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        assert computed
        assert warm._thread is None

    def test_is_off_unless_asked_for(self) -> None:
        warm = Warmth(lambda: pytest.fail("computed"), tick_s=0.0)
        warm.use()
        assert warm._thread is None
        warm.close()

    def test_the_longest_wish_counts_and_a_closed_one_starts_nothing(self) -> None:
        warm = Warmth(lambda: None)
        warm.extend(60)
        warm.extend(5)
        assert warm._seconds == 60
        warm.close()
        warm.use()
        assert warm._thread is None
