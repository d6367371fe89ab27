"""The embedder end to end in a GPU's layout, on the CPU device."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from golden_models import GOLDEN, farthest, read_golden

from akidb_mlx_plugin import BatchEmbeddingRequest, Embedder, EmbeddingError, ServiceUnavailableError
from akidb_mlx_plugin.models.base import Encoder
from akidb_mlx_plugin.nn import layout
from akidb_mlx_plugin.nn.batch import Tokens


@pytest.fixture(autouse=True)
def _gpu_layout() -> Iterator[None]:
    with layout.emulate_gpu():
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gemma3_text", "modernbert", "qwen3", "roberta"])
def test_vectors_are_those_of_the_reference(name: str) -> None:
    golden = read_golden(name)
    with Embedder.load(GOLDEN / name / "model", device="cpu", dtype="float32") as embedder:
        requests = [BatchEmbeddingRequest(golden.texts, kind) for kind in ("document", "query")]
        for request, response in zip(requests, embedder.embed_requests(requests), strict=True):
            assert farthest(response.embeddings, golden.vectors[request.kind]) < 1e-5
        alone = np.concatenate([embedder.embed([text]).embeddings for text in golden.texts])
        assert farthest(alone, golden.vectors["document"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_real_model_in_a_gpus_number_formats(minilm_dir: Path, dtype: str) -> None:
    texts = ["the stone bridge over the river", "how do I parse a date?", "", "def f(x): return x", "東京 は 日本"]
    with Embedder.load(minilm_dir, device="cpu", dtype="float32") as embedder:
        expected = embedder.embed(texts).embeddings
    with Embedder.load(minilm_dir, device="cpu", dtype=dtype) as embedder:
        vectors = embedder.embed(texts).embeddings
    assert (vectors * expected).sum(axis=1).min() > {"float16": 0.99999, "bfloat16": 0.9995}[dtype]


class TestOverflow:
    """A model that overflows float16 where float16 was chosen for it."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(GOLDEN / "bert" / "model", folder)
        file = folder / "model.safetensors"
        tensors = mx.load(str(file))
        assert isinstance(tensors, dict)
        # The product is the same, and what comes between outgrows float16.
        for name, value in tensors.items():
            if name.endswith("layer.0.intermediate.dense.weight"):
                tensors[name] = value * 1e6
        mx.eval(tensors)
        mx.save_safetensors(str(file), tensors, metadata={"format": "pt"})
        return folder

    def test_it_goes_on_in_bfloat16(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        texts = ["one", "two three", "four"]
        with Embedder.load(folder, device="cpu", dtype="float32") as embedder:
            expected = embedder.embed(texts).embeddings
        with Embedder.load(folder, device="cpu") as embedder, caplog.at_level(logging.WARNING):
            assert embedder.info().dtype == "float16"
            for _ in range(2):
                vectors = embedder.embed(texts).embeddings
                assert (vectors * expected).sum(axis=1).min() > 0.99
            assert embedder.info().dtype == "bfloat16"
        assert caplog.text.count("overflows float16") == 1

    def test_a_format_that_was_asked_for_stays(self, folder: Path) -> None:
        with Embedder.load(folder, device="cpu", dtype="float16") as embedder:
            with pytest.raises(EmbeddingError, match="not finite"):
                embedder.embed(["one"])
            assert embedder.info().dtype == "float16"

    def test_a_model_that_is_not_finite_either_way_is_an_error(self, folder: Path) -> None:
        file = folder / "model.safetensors"
        tensors = mx.load(str(file))
        assert isinstance(tensors, dict)
        broken = {
            name: mx.full(value.shape, np.nan) if "layer.0.output" in name else value for name, value in tensors.items()
        }
        mx.eval(broken)
        mx.save_safetensors(str(file), broken)
        with Embedder.load(folder, device="cpu") as embedder, pytest.raises(EmbeddingError, match="not finite"):
            embedder.embed(["one"])


class TestFailures:
    """What MLX raises where a GPU gives up: out of memory, or a kernel that ran too long."""

    @staticmethod
    def fail_above(tokens: int, embedder: Embedder, monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> list[int]:
        """Make passes of more tokens fail, and embed texts; return a list to which every pass adds its tokens."""
        assert embedder._engine.model is not None
        kind = type(embedder._engine.model.encoder)
        passes: list[int] = []
        compute = kind.__call__

        def compute_some(encoder: Encoder, batch: Tokens) -> mx.array:
            passes.append(len(batch.ids))
            if len(batch.ids) > tokens:
                raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")
            return compute(encoder, batch)

        monkeypatch.setattr(kind, "__call__", compute_some)
        if texts:
            embedder.embed(texts)
        return passes

    def test_a_pass_is_tried_again_in_halves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        golden = read_golden("bert")
        with Embedder.load(GOLDEN / "bert" / "model", device="cpu", dtype="float32") as embedder:
            before = embedder.embed(golden.texts).embeddings
            with monkeypatch.context() as patch:
                largest = max(self.fail_above(1 << 30, embedder, patch, golden.texts))
            passes = self.fail_above(largest - 1, embedder, monkeypatch, [])
            vectors = embedder.embed(golden.texts).embeddings
            assert max(passes) == largest
        assert farthest(vectors, before) < 1e-5

    def test_what_fails_in_halves_too_is_an_error_and_the_worker_lives(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with Embedder.load(GOLDEN / "bert" / "model", device="cpu") as embedder:
            with monkeypatch.context() as patch:
                self.fail_above(0, embedder, patch, [])
                with pytest.raises(ServiceUnavailableError, match=r"2 texts.*Insufficient Memory.*batch_size"):
                    embedder.embed(["one", "two"])
            assert len(embedder.embed(["one", "two"]).embeddings) == 2
