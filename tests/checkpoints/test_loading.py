"""Loading tensors into encoders: every format and layout of checkpoints, strictly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from golden_models import GOLDEN, Golden, embed, farthest, read_golden
from mlx.utils import tree_flatten

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.convert import convert_checkpoint
from akidb_mlx_plugin.checkpoints.loading import LoadedModel, estimate_memory, load_model
from akidb_mlx_plugin.checkpoints.quantization import Scheme
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.checkpoints.recipes import Recipe
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError, ServiceUnavailableError
from akidb_mlx_plugin.nn import layout
from akidb_mlx_plugin.runtime import devices

Tensors = dict[str, mx.array]
SCHEMES = [
    Scheme(32, 4, "affine"),
    Scheme(32, 8, "affine"),
    Scheme(32, 3, "affine"),
    Scheme(32, 6, "affine"),
    Scheme(32, 4, "mxfp4"),
    Scheme(16, 4, "nvfp4"),
    Scheme(32, 8, "mxfp8"),
]


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute by MLX's own kernels, as a GPU does, but here."""
    monkeypatch.setattr(layout, "_emulated", True)


def copy_of(name: str, folder: Path, change: Callable[[Tensors], Tensors] | None = None) -> Path:
    """Copy a tiny checkpoint with changed tensors."""
    shutil.copytree(GOLDEN / name / "model", folder)
    if change:
        file = folder / "model.safetensors"
        tensors = mx.load(str(file))
        assert isinstance(tensors, dict)
        mx.eval(tensors)
        mx.save_safetensors(str(file), change(tensors))
    return folder


def check(golden: Golden, checkpoint: Checkpoint, model: LoadedModel, tolerance: float = 1e-5) -> None:
    assert farthest(embed(checkpoint, model, golden.texts), golden.vectors["document"]) < tolerance


class TestLayouts:
    @pytest.mark.parametrize("name", ["qwen3", "gemma3_text", "modernbert", "bert"])
    def test_a_prefix_of_a_larger_model_is_dropped(self, name: str, tmp_path: Path) -> None:
        prefix = "bert." if name == "bert" else "model."
        folder = copy_of(name, tmp_path / "m", lambda t: {prefix + key: value for key, value in t.items()})
        check(read_golden(name), read_checkpoint(folder), load_model(read_checkpoint(folder)))

    def test_in_several_files(self, tmp_path: Path) -> None:
        folder = copy_of("qwen3", tmp_path / "m")
        tensors = mx.load(str(folder / "model.safetensors"))
        assert isinstance(tensors, dict)
        names = sorted(tensors)
        files = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
        for file, some in files.items():
            mx.save_safetensors(str(folder / file), {name: tensors[name] for name in some})
        (folder / "model.safetensors").unlink()
        index = {"weight_map": {name: file for file, some in files.items() for name in some}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        check(read_golden("qwen3"), read_checkpoint(folder), load_model(read_checkpoint(folder)))
        (folder / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(ModelNotFoundError, match="model-00002-of-00003"):
            load_model(read_checkpoint(folder))

    def test_names_of_tensorflow_and_buffers_of_old(self, tmp_path: Path) -> None:
        def change(tensors: Tensors) -> Tensors:
            old = {
                k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
                for k, v in tensors.items()
            }
            return {**old, "embeddings.position_ids": mx.arange(64)[None]}

        folder = copy_of("bert", tmp_path / "m", change)
        check(read_golden("bert"), read_checkpoint(folder), load_model(read_checkpoint(folder)))

    @pytest.mark.parametrize("keeps_modules", [True, False])
    def test_dense_layers_inside_the_models_own_file(self, keeps_modules: bool, tmp_path: Path) -> None:
        golden = read_golden("gemma3_text")

        def change(tensors: Tensors) -> Tensors:
            inside = {}
            for i in range(2):
                loaded = mx.load(str(GOLDEN / "gemma3_text" / "model" / f"{i + 2}_Dense" / "model.safetensors"))
                assert isinstance(loaded, dict)
                inside[f"dense.{i}.weight"] = loaded["linear.weight"]
            return {**{f"model.{k}": v for k, v in tensors.items()}, **inside}

        folder = copy_of("gemma3_text", tmp_path / "m", change)
        for i in (2, 3):
            if keeps_modules:
                (folder / f"{i}_Dense" / "model.safetensors").unlink()
            else:
                shutil.rmtree(folder / f"{i}_Dense")
        if not keeps_modules:
            (folder / "modules.json").unlink()
        checkpoint = read_checkpoint(folder)
        assert [(layer.in_features, layer.out_features) for layer in checkpoint.dense] == [(48, 96), (96, 48)]
        check(golden, checkpoint, load_model(checkpoint))


class TestStrictness:
    @pytest.mark.parametrize(
        ("name", "tensor"),
        [
            ("bert", "encoder.layer.1.attention.self.query.weight"),
            ("roberta", "roberta.encoder.layer.1.output.LayerNorm.bias"),
            ("qwen3", "layers.2.self_attn.q_norm.weight"),
            ("qwen3_window", "model.layers.2.self_attn.q_proj.bias"),
            ("modernbert", "layers.0.attn.Wqkv.weight"),
            ("gemma3_text", "norm.weight"),
        ],
    )
    def test_a_missing_tensor_is_named_as_in_the_file(self, name: str, tensor: str, tmp_path: Path) -> None:
        folder = copy_of(name, tmp_path / "m", lambda t: {k: v for k, v in t.items() if k != tensor})
        with pytest.raises(ModelNotFoundError, match=f"lacks the tensor {tensor}$"):
            load_model(read_checkpoint(folder))

    def test_an_unknown_tensor_is_named_as_in_the_file(self, tmp_path: Path) -> None:
        folder = copy_of("qwen3_window", tmp_path / "m", lambda t: {**t, "model.layers.0.self_attn.sinks": mx.ones(4)})
        with pytest.raises(ModelNotFoundError, match=r"unknown tensor model\.layers\.0\.self_attn\.sinks"):
            load_model(read_checkpoint(folder))

    def test_a_layer_too_many_is_an_error(self) -> None:
        checkpoint = read_golden("bert").checkpoint
        fewer = replace(checkpoint, config={**checkpoint.config, "num_hidden_layers": 1})
        with pytest.raises(ModelNotFoundError, match=r"encoder\.layer\.1\.attention.* and 13 more"):
            load_model(fewer)

    def test_another_shape_is_an_error(self, tmp_path: Path) -> None:
        folder = copy_of("bert", tmp_path / "m", lambda t: {**t, "embeddings.LayerNorm.bias": mx.ones(31)})
        with pytest.raises(ModelNotFoundError, match=r"embeddings\.LayerNorm\.bias of shape \(31,\), expected \(32,\)"):
            load_model(read_checkpoint(folder))

    def test_a_dense_layer_is_strict_too(self, tmp_path: Path) -> None:
        folder = copy_of("gemma3_text", tmp_path / "m")
        mx.save_safetensors(str(folder / "2_Dense" / "model.safetensors"), {"linear.weights": mx.ones((96, 48))})
        with pytest.raises(ModelNotFoundError, match=r"2_Dense.*lacks.*linear\.weight;.*unknown.*linear\.weights"):
            load_model(read_checkpoint(folder))

    @pytest.mark.parametrize("kept_bytes", [0, 4, 100, 5000, -1])
    def test_a_damaged_file_is_named(self, kept_bytes: int, tmp_path: Path) -> None:
        folder = copy_of("bert", tmp_path / "m")
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:kept_bytes])
        with pytest.raises(ModelNotFoundError, match=r"model\.safetensors is damaged"):
            load_model(read_checkpoint(folder))

    def test_no_weights_at_all(self, tmp_path: Path) -> None:
        folder = copy_of("bert", tmp_path / "m")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(ModelNotFoundError, match=r"no \*\.safetensors.*akidb-mlx convert"):
            load_model(read_checkpoint(folder))


class TestNumberFormats:
    @pytest.mark.parametrize("stored", [mx.float32, mx.bfloat16, mx.float16])
    def test_a_cpu_computes_in_float32(self, stored: mx.Dtype, tmp_path: Path) -> None:
        exact = copy_of(
            "qwen3", tmp_path / "a", lambda t: {k: v.astype(stored).astype(mx.float32) for k, v in t.items()}
        )
        narrow = copy_of("qwen3", tmp_path / "b", lambda t: {k: v.astype(stored) for k, v in t.items()})
        models = [load_model(read_checkpoint(folder)) for folder in (exact, narrow)]
        assert [model.dtype for model in models] == ["float32", "float32"]
        texts = read_golden("qwen3").texts
        assert farthest(*(embed(read_checkpoint(exact), model, texts) for model in models)) < 1e-6
        # The table keeps its stored dtype: only some of its rows are needed in float32.
        assert models[1].encoder.embed_tokens.weight.dtype == stored

    @pytest.mark.parametrize(
        ("name", "stored", "expected"),
        [
            ("qwen3", mx.float32, "float16"),
            ("gemma3_text", mx.float32, "bfloat16"),
            ("qwen3", mx.bfloat16, "bfloat16"),
            ("qwen3", mx.float16, "float16"),
            ("gemma3_text", mx.float16, "bfloat16"),
            ("gemma3_text", mx.bfloat16, "bfloat16"),
        ],
    )
    def test_a_gpu_computes_in_16_bits_but_gemma_never_in_float16(
        self, name: str, stored: mx.Dtype, expected: str, tmp_path: Path, as_on_gpu: None
    ) -> None:
        folder = copy_of(name, tmp_path / "m", lambda t: {k: v.astype(stored) for k, v in t.items()})
        checkpoint = read_checkpoint(folder)
        model = load_model(checkpoint, device="gpu")
        assert model.dtype == expected
        golden = read_golden(name)
        cosines = (embed(checkpoint, model, golden.texts) * golden.vectors["document"]).sum(axis=1)
        assert cosines.min() > (0.9985 if expected == "bfloat16" else 0.99995)

    @pytest.mark.parametrize(
        ("generation", "expected"), [("g13g", "float16"), ("g14s", "float16"), ("g15g", "bfloat16")]
    )
    def test_m1_and_m2_have_no_bfloat16(
        self, generation: str, expected: str, tmp_path: Path, as_on_gpu: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(devices.mx, "device_info", lambda device: {"architecture": f"applegpu_{generation}"})
        for name, dtype in (("qwen3", expected), ("gemma3_text", "bfloat16")):
            folder = copy_of(name, tmp_path / name, lambda t: {k: v.astype(mx.bfloat16) for k, v in t.items()})
            assert load_model(read_checkpoint(folder), device="gpu").dtype == dtype

    def test_one_can_be_asked_for(self, as_on_gpu: None) -> None:
        golden = read_golden("gemma3_text")
        check(golden, golden.checkpoint, load_model(golden.checkpoint, device="gpu", dtype="float32"))
        with pytest.raises(InvalidInputError, match="overflow float16"):
            load_model(golden.checkpoint, dtype="float16")
        with pytest.raises(InvalidInputError, match="int8"):
            load_model(golden.checkpoint, dtype="int8")


def _rounded(value: mx.array, dtype: mx.Dtype) -> mx.array:
    return value.astype(dtype).astype(mx.float32)


def quantized(name: str, folder: Path, scheme: Scheme) -> tuple[Checkpoint, Checkpoint]:
    """Return a quantized copy of a tiny checkpoint, and one with the same weights dequantized."""
    convert_checkpoint(GOLDEN / name / "model", folder / "quantized", Recipe(scheme, scheme))
    tensors = mx.load(str(folder / "quantized" / "model.safetensors"))
    assert isinstance(tensors, dict)
    full: Tensors = {}
    for key, value in tensors.items():
        path = key.removesuffix(".weight")
        if f"{path}.scales" in tensors and key.endswith(".weight"):
            parts = [tensors.get(f"{path}.{part}") for part in ("scales", "biases")]
            parts = [part if part is None or part.dtype == mx.uint8 else part.astype(mx.float32) for part in parts]
            how = (scheme.group_size, scheme.bits, scheme.mode)
            full[key] = mx.dequantize(value, *parts, *how, dtype=mx.float32)
        elif not key.endswith((".scales", ".biases")):
            full[key] = value
    shutil.copytree(GOLDEN / name / "model", folder / "full")
    mx.save_safetensors(str(folder / "full" / "model.safetensors"), full)
    return read_checkpoint(folder / "quantized"), read_checkpoint(folder / "full")


class TestQuantized:
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
                    out |= _quantized_parts(path, value)
            for i in range(2):
                loaded = mx.load(str(GOLDEN / "gemma3_text" / "model" / f"{i + 2}_Dense" / "model.safetensors"))
                assert isinstance(loaded, dict)
                weight = loaded["linear.weight"]
                out |= _quantized_parts(f"dense.{i}", weight) if i else {f"dense.{i}.weight": weight}
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
                out |= _quantized_parts(path, out[f"{path}.weight"], bits, size)
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
                parts = {**tensors, **_quantized_parts(path, tensors[f"{path}.weight"]), **change}
                return {k: v for k, v in parts.items() if v is not None}

            folder = copy_of("qwen3", tmp_path / str(i), apply)
            with pytest.raises(ModelNotFoundError, match=message):
                load_model(read_checkpoint(folder))


def _quantized_parts(path: str, weight: mx.array, bits: int = 4, group_size: int = 32) -> Tensors:
    packed, scales, biases = mx.quantize(weight.astype(mx.float16), group_size, bits)
    return {f"{path}.weight": packed, f"{path}.scales": scales, f"{path}.biases": biases}


class TestMemory:
    def test_the_estimate_is_what_loading_takes(self, tmp_path: Path) -> None:
        for name in ("bert_all_pooling", "qwen3", "gemma3_text", "modernbert"):
            checkpoint = read_golden(name).checkpoint
            model = load_model(checkpoint)
            parts = (model.encoder, *model.dense)
            actual = sum(value.nbytes for part in parts for _, value in tree_flatten(part.parameters()))
            assert estimate_memory(checkpoint) == model.nbytes == actual
        checkpoint, _ = quantized("qwen3", tmp_path, Scheme(32, 4, "affine"))
        assert estimate_memory(checkpoint, device="gpu") < estimate_memory(checkpoint, device="cpu")

    def test_the_estimate_reads_no_weights(self) -> None:
        before = mx.get_active_memory()
        estimate_memory(read_golden("gemma3_text").checkpoint)
        assert mx.get_active_memory() - before < 10_000

    def test_what_cannot_fit_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("akidb_mlx_plugin.runtime.memory.available_memory", lambda: 1 << 20)
        with pytest.raises(ServiceUnavailableError, match=r"needs 0\.09 GiB of memory and 0\.00 GiB are left"):
            load_model(read_golden("bert").checkpoint)

    def test_what_the_gpu_cannot_take_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        checkpoint = read_golden("bert").checkpoint
        monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 1 << 20})
        with pytest.raises(ServiceUnavailableError, match=r"0\.00 GiB are left"):
            load_model(checkpoint, device="gpu")
        load_model(checkpoint, device="cpu")
        monkeypatch.setattr(mx, "device_info", dict)
        load_model(checkpoint, device="gpu")


def test_vectors_do_not_depend_on_what_was_loaded_before() -> None:
    golden = read_golden("qwen3")
    first, second = (embed(golden.checkpoint, load_model(golden.checkpoint), golden.texts) for _ in range(2))
    assert np.array_equal(first, second)
