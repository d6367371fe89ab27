"""Loading quantized weights: kept or dequantized, whole or refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from copies import Tensors, copy_of, quantized, quantized_parts
from golden_models import GOLDEN, embed, farthest, read_golden
from mlx.utils import tree_flatten

from akidb_mlx_plugin.checkpoints.loading import load_model
from akidb_mlx_plugin.checkpoints.quantization import Scheme
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.errors import ModelNotFoundError

SCHEMES = [
    Scheme(32, 4, "affine"),
    Scheme(32, 8, "affine"),
    Scheme(32, 3, "affine"),
    Scheme(32, 6, "affine"),
    Scheme(32, 4, "mxfp4"),
    Scheme(16, 4, "nvfp4"),
    Scheme(32, 8, "mxfp8"),
]


class TestQuantized:
    @pytest.mark.slow
    @pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.mode}-{s.bits}-{s.group_size}")
    @pytest.mark.parametrize("name", ["bert", "modernbert_bias", "qwen3", "qwen3_window"])
    def test_vectors_are_those_of_the_weights_written_out(self, name: str, scheme: Scheme, tmp_path: Path) -> None:
        checkpoint, full = quantized(name, tmp_path, scheme)
        texts = read_golden(name).texts
        expected = embed(full, load_model(full), texts)
        written_out = load_model(checkpoint)
        assert written_out.dtype == "float32"
        assert farthest(embed(checkpoint, written_out, texts), expected) < 1e-5
        kept = load_model(checkpoint, dtype="float32", keep_quantized=True)
        assert kept.dtype == f"float32, {scheme.bits}-bit weights"
        assert kept.parameters == written_out.parameters == load_model(full).parameters
        assert kept.nbytes < written_out.nbytes
        assert farthest(embed(checkpoint, kept, texts), expected) < 1e-5

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["bert", "modernbert", "qwen3"])
    def test_vectors_are_the_same_by_what_a_gpu_computes(self, name: str, tmp_path: Path, as_on_gpu: None) -> None:
        checkpoint, full = quantized(name, tmp_path, Scheme(32, 4, "affine"))
        texts = read_golden(name).texts
        expected = embed(full, load_model(full, dtype="float32"), texts)
        exact = load_model(checkpoint, device="gpu", dtype="float32")
        assert farthest(embed(checkpoint, exact, texts), expected) < 1e-5
        model = load_model(checkpoint, device="gpu")
        assert model.dtype == "bfloat16, 4-bit weights"
        cosines = (embed(checkpoint, model, texts) * expected).sum(axis=1)
        assert np.median(cosines) > 0.999
        assert cosines.min() > 0.998

    def test_gemma_with_its_head_inside_as_mlx_community_stores_it(self, tmp_path: Path, as_on_gpu: None) -> None:
        # Widths of 48 do not divide into groups; only wider ones are quantized, like all of them at full size.
        def change(tensors: Tensors) -> Tensors:
            out = {f"model.{k}": v.astype(mx.float16) for k, v in tensors.items() if v.shape[-1] % 32}
            for key, value in tensors.items():
                if not value.shape[-1] % 32:
                    path = f"model.{key.removesuffix('.weight')}"
                    out |= quantized_parts(path, value)
            for i in range(2):
                loaded = mx.load(str(GOLDEN / "gemma3_text" / "model" / f"{i + 2}_Dense" / "model.safetensors"))
                assert isinstance(loaded, dict)
                weight = loaded["linear.weight"]
                out |= quantized_parts(f"dense.{i}", weight) if i else {f"dense.{i}.weight": weight}
            return out

        folder = copy_of("gemma3_text", tmp_path / "m", change)
        for extra in ("modules.json", "2_Dense", "3_Dense"):
            path = folder / extra
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        checkpoint = read_checkpoint(folder)
        golden = read_golden("gemma3_text")
        for device in ("cpu", "gpu"):
            model = load_model(checkpoint, device=device)
            vectors = embed(checkpoint, model, golden.texts)
            assert (vectors * golden.vectors["document"]).sum(axis=1).min() > 0.9
            formats = {value.dtype for _, value in tree_flatten(model.encoder.layers[0].parameters())}
            assert mx.float16 not in formats

    def test_every_matrix_may_have_a_scheme_of_its_own(self, tmp_path: Path) -> None:
        def change(tensors: Tensors) -> Tensors:
            out = dict(tensors)
            for key, bits, size in (("q", 8, 32), ("k", 3, 32), ("v", 4, 32)):
                path = f"layers.1.self_attn.{key}_proj"
                out |= quantized_parts(path, out[f"{path}.weight"], bits, size)
            return out

        folder = copy_of("qwen3", tmp_path / "m", change)
        checkpoint = read_checkpoint(folder)
        texts = read_golden("qwen3").texts
        models = [load_model(checkpoint), load_model(checkpoint, dtype="float32", keep_quantized=True)]
        assert models[1].dtype == "float32, 3/4/8-bit weights"
        assert farthest(*(embed(checkpoint, model, texts) for model in models)) < 1e-5

    def test_a_fused_matrix_is_split_as_it_is_quantized(self, tmp_path: Path) -> None:
        checkpoint, _ = quantized("modernbert", tmp_path, Scheme(32, 4, "affine"))
        attention = load_model(checkpoint, keep_quantized=True).encoder.layers[1].attn
        assert attention.query.weight.dtype == mx.uint32
        assert attention.query.weight.shape == (32, 4)

    def test_quantization_of_others_is_refused(self) -> None:
        checkpoint = read_golden("qwen3").checkpoint
        config = {**checkpoint.config, "quantization_config": {"quant_method": "gptq", "bits": 4}}
        with pytest.raises(ModelNotFoundError, match="gptq"):
            load_model(replace(checkpoint, config=config))

    def test_tensors_that_do_not_fit_each_other(self, tmp_path: Path) -> None:
        path = "layers.0.mlp.up_proj"
        broken: list[tuple[dict[str, Any], str]] = [
            ({f"{path}.scales": mx.ones((64, 3))}, "not an MLX quantization of 32 columns"),
            ({f"{path}.biases": None}, rf"has {path}\.scales as float16, and no {path}\.biases"),
        ]
        for i, (change, message) in enumerate(broken):

            def apply(tensors: Tensors, change: dict[str, Any] = change) -> Tensors:
                parts = {**tensors, **quantized_parts(path, tensors[f"{path}.weight"]), **change}
                return {k: v for k, v in parts.items() if v is not None}

            folder = copy_of("qwen3", tmp_path / str(i), apply)
            with pytest.raises(ModelNotFoundError, match=message):
                load_model(read_checkpoint(folder))
