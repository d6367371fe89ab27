"""Loading tensors into encoders: every format and layout of checkpoints, strictly."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from copies import Tensors, copy_of, quantized
from golden_models import GOLDEN, Golden, embed, farthest, read_golden
from mlx.utils import tree_flatten

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.loading import LoadedModel, estimate_memory, load_model
from akidb_mlx_plugin.checkpoints.quantization import Scheme
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError, ServiceUnavailableError
from akidb_mlx_plugin.runtime import devices


def check(golden: Golden, checkpoint: Checkpoint, model: LoadedModel, tolerance: float = 1e-5) -> None:
    assert farthest(embed(checkpoint, model, golden.texts), golden.vectors["document"]) < tolerance


class TestLayouts:
    @pytest.mark.slow
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
    @pytest.mark.slow
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

    @pytest.mark.slow
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

    @pytest.mark.slow
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
        monkeypatch.setattr(mx, "device_info", lambda *device: {"max_recommended_working_set_size": 1 << 20})
        with pytest.raises(ServiceUnavailableError, match=r"0\.00 GiB are left"):
            load_model(checkpoint, device="gpu")
        load_model(checkpoint, device="cpu")
        monkeypatch.setattr(mx, "device_info", lambda *device: {})
        load_model(checkpoint, device="gpu")

    def test_a_gpu_needs_room_for_activations_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        checkpoint = read_golden("bert").checkpoint
        # The widest layer has 64 numbers for each of 16,384 tokens, eight times in float32; 96 MiB are for the rest.
        for left, fits in ((115 << 20, False), (135 << 20, True)):
            active = mx.get_active_memory()
            size = {"max_recommended_working_set_size": left + active}
            monkeypatch.setattr(mx, "device_info", lambda *device, size=size: size)
            if fits:
                load_model(checkpoint, device="gpu")
            else:
                with pytest.raises(ServiceUnavailableError, match="are left"):
                    load_model(checkpoint, device="gpu")


def test_vectors_do_not_depend_on_what_was_loaded_before() -> None:
    golden = read_golden("qwen3")
    first, second = (embed(golden.checkpoint, load_model(golden.checkpoint), golden.texts) for _ in range(2))
    assert np.array_equal(first, second)
