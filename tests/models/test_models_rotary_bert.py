"""NomicBERT, GTE, jina v3 and EuroBERT: settings that matter, equivalent layouts, and rejected settings."""

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
from golden_models import GOLDEN, embed, farthest, read_golden

from akidb_mlx_plugin.checkpoints.convert import convert_checkpoint
from akidb_mlx_plugin.checkpoints.loading import load_model
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.checkpoints.recipes import choose_recipe
from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.inference.packing import pack_padded
from akidb_mlx_plugin.models import find_encoder
from akidb_mlx_plugin.nn.batch import Tokens
from akidb_mlx_plugin.nn.dynamic_rotary import DynamicRotary

Tensors = dict[str, mx.array]
# Three of transformers' own layouts, and four published ones.
NAMES = ["nomic_bert", "gte", "jina_embeddings_v3", "nomic_bert_published", "nomic_bert_long", "nomic_bert_moe", "new"]


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def _rope(theta: float, kind: str = "default", **parameters: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **parameters}}


NOTICED: list[tuple[str, dict[str, Any]]] = [
    ("nomic_bert", _rope(200.0)),
    ("nomic_bert", _rope(100.0, "linear", factor=2.0)),
    ("nomic_bert", {**_rope(100.0, "dynamic", factor=2.0), "max_position_embeddings": 32}),
    ("nomic_bert", {"hidden_act": "gelu"}),
    ("nomic_bert", {"layer_norm_eps": 0.1}),
    ("nomic_bert_published", {"rotary_emb_base": 200}),
    ("nomic_bert_published", {"activation_function": "geglu"}),
    ("nomic_bert_published", {"layer_norm_epsilon": 0.1}),
    ("nomic_bert_long", {"rotary_scaling_factor": None}),
    ("nomic_bert_long", {"rotary_scaling_factor": 3}),
    ("nomic_bert_long", {"max_trained_positions": 17}),
    ("nomic_bert_moe", {"moe_top_k": 1}),
    ("nomic_bert_moe", {"moe_top_k": 3}),
    ("gte", _rope(200.0)),
    ("gte", {"hidden_act": "silu"}),
    ("new", {"rope_theta": 40.0}),
    ("new", {"rope_scaling": None}),
    ("new", {"rope_scaling": {"type": "ntk", "factor": 4.0}}),
    ("jina_embeddings_v3", _rope(200.0)),
    ("jina_embeddings_v3", {"layer_norm_eps": 0.1}),
    ("eurobert", _rope(200.0)),
    ("eurobert", {"hidden_act": "gelu"}),
    ("eurobert", {"rms_norm_eps": 0.1}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), NOTICED)
def test_references_notice_a_changed_setting(name: str, changes: dict[str, Any]) -> None:
    golden = read_golden(name)
    changed = replace(golden.checkpoint, config={**golden.checkpoint.config, **changes})
    vectors = embed(changed, load_model(changed), golden.texts)
    assert np.isfinite(vectors).all()
    assert farthest(vectors, golden.vectors["document"]) > 3e-4


# The same settings in the layout that the checkpoint does not use.
OTHER_LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    # nomic-embed-text-v1.5 has both; max_position_embeddings is the training length.
    ("nomic_bert_published", {**_rope(100.0), "hidden_size": 32, "hidden_act": "silu", "max_position_embeddings": 16}),
    ("nomic_bert_published", {"num_experts": 0, "moe_every_n_layers": 0, "use_rms_norm": None}),
    ("nomic_bert_long", {**_rope(100.0, "dynamic", factor=2.0), "max_position_embeddings": 16}),
    # Fine-tuned, and saved by a version of transformers with the architecture.
    (
        "nomic_bert_long",
        {**_rope(100.0, "dynamic", factor=2.0), "rotary_scaling_factor": None, "max_position_embeddings": 16},
    ),
    ("nomic_bert", {"rope_parameters": None, "rope_theta": 100.0}),
    ("gte", {"rope_parameters": None, "rope_theta": 100.0, "rope_scaling": None, "position_embedding_type": "rope"}),
    # Fixed NTK scaling in the terms of transformers, which lacks it: 20 * 8, and 8 ** (2 / 8).
    ("new", {"rope_scaling": None, **_rope(160.0, "linear", factor=8**0.25)}),
    # As strings, like snowflake-arctic-embed-m-v2.0; neither changes the result.
    ("gte", {"unpad_inputs": "true", "use_memory_efficient_attention": "true", "logn_attention_scale": False}),
    ("eurobert", {"rope_parameters": None, "rope_theta": 100.0, "rope_scaling": None}),
    ("jina_embeddings_v3", {"rope_parameters": None, "rope_theta": 100.0}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), OTHER_LAYOUTS)
def test_other_layouts_of_settings_mean_the_same(name: str, changes: dict[str, Any]) -> None:
    golden = read_golden(name)
    changed = replace(golden.checkpoint, config={**golden.checkpoint.config, **changes})
    vectors = embed(changed, load_model(changed), golden.texts)
    assert farthest(vectors, golden.vectors["document"]) < 1e-5


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("nomic_bert", {"vocab_size": None}, "vocab_size"),
    ("nomic_bert", {"hidden_act": "mish"}, "mish"),
    ("nomic_bert_published", {"prenorm": True}, "prenorm True"),
    ("nomic_bert_published", {"causal": True}, "causal True"),
    ("nomic_bert_published", {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction 0.5"),
    ("nomic_bert_published", {"rotary_emb_fraction": 0.0}, "rotary_emb_fraction 0.0"),
    ("nomic_bert_published", {"rotary_emb_interleaved": True}, "rotary_emb_interleaved"),
    ("nomic_bert_published", {"rotary_emb_scale_base": 512}, "rotary_emb_scale_base"),
    ("nomic_bert_published", {"num_heads_kv": 2}, "num_heads_kv 2"),
    ("nomic_bert_published", {"activation_function": "gelu_new"}, "activation_function 'gelu_new'"),
    ("nomic_bert_published", {"moe_every_n_layers": 2, "num_experts": 4}, "experts without gates"),
    ("nomic_bert_published", {"n_inner": None}, "intermediate_size"),
    ("nomic_bert_published", {"rope_parameters": {"rope_theta": 200.0}}, "contradict rotary_emb_base 100"),
    ("nomic_bert_long", _rope(100.0), "rotary_scaling_factor 2"),
    ("nomic_bert_long", {"max_trained_positions": "many"}, "max_trained_positions"),
    ("nomic_bert_long", {"rotary_scaling_factor": -1.0}, "rotary_scaling_factor"),
    ("nomic_bert_moe", {"moe_every_n_layers": True}, "moe_every_n_layers"),
    ("nomic_bert_moe", {"moe_normalize_expert_weights": True}, "moe_normalize_expert_weights"),
    ("nomic_bert_moe", {"num_shared_experts": 1}, "num_shared_experts 1"),
    ("nomic_bert_moe", {"moe_top_k": 5}, "moe_top_k 5"),
    ("gte", {"position_embedding_type": "absolute"}, "position_embedding_type 'absolute'"),
    ("gte", {"layer_norm_type": "rms_norm"}, "layer_norm_type 'rms_norm'"),
    ("gte", {"logn_attention_scale": True}, "logn_attention_scale"),
    ("new", {"rope_scaling": {"type": "ntk", "factor": 4.0, "mixed_b": 0.6}}, "mixed_b"),
    ("new", {"rope_scaling": {"type": "ntk", "factor": "8"}}, "factor"),
    ("eurobert", {"is_causal": True}, "causal"),
    ("jina_embeddings_v3", {"hidden_act": "mish"}, "mish"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_what_would_be_computed_wrong_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    checkpoint = read_golden(name).checkpoint
    with pytest.raises(ModelNotFoundError, match=message):
        load_model(replace(checkpoint, config={**checkpoint.config, **changes}))


def _own_names(name: str, tensors: Tensors) -> Tensors:
    """Rename tensors to transformers' own names, which it writes instead of the published ones on request."""
    return (
        find_encoder(read_golden(name).checkpoint.model_type)
        .from_config(read_golden(name).checkpoint.config)
        .sanitize(tensors)
    )


def _with_heads(name: str, tensors: Tensors) -> Tensors:
    """Rename tensors as in models for other tasks: the encoder under a prefix, with heads and buffers."""
    prefix = {"nomic": "bert.", "gte": "new.", "new": "", "jina": "roberta."}[name.split("_")[0]]
    one = mx.ones((2, 2))
    heads = {"cls.predictions.decoder.bias": one, "lm_head.dense.weight": one, "classifier.weight": one}
    inside = {"pooler.dense.weight": one, "embeddings.position_ids": one, "embeddings.rotary_emb.inv_freq": one}
    return {f"{prefix}{name}": value for name, value in (tensors | inside).items()} | heads


def _rewritten(folder: Path, name: str, change: Callable[[str, Tensors], Tensors]) -> Path:
    """Return a copy of a golden checkpoint with changed tensors."""
    shutil.copytree(GOLDEN / name / "model", folder, dirs_exist_ok=True)
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    mx.save_safetensors(str(folder / "model.safetensors"), change(name, tensors))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("change", [_own_names, _with_heads])
@pytest.mark.parametrize("name", NAMES)
def test_other_names_of_tensors_mean_the_same(
    name: str, change: Callable[[str, Tensors], Tensors], tmp_path: Path
) -> None:
    golden = read_golden(name)
    checkpoint = read_checkpoint(_rewritten(tmp_path, name, change))
    vectors = embed(checkpoint, load_model(checkpoint), golden.texts)
    assert farthest(vectors, golden.vectors["document"]) < 1e-5


@pytest.mark.parametrize("name", ["gte", "nomic_bert_moe"])
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(_rewritten(tmp_path, name, lambda _, tensors: dict(list(tensors.items())[:-1])))
    with pytest.raises(ModelNotFoundError, match="lacks the tensor"):
        load_model(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "eurobert"])
@pytest.mark.parametrize("keep", [False, True])
def test_conversions_load_and_stay_close(name: str, keep: bool, tmp_path: Path) -> None:
    golden = read_golden(name)
    convert_checkpoint(GOLDEN / name / "model", tmp_path / "8bit", choose_recipe(8, 32))
    checkpoint = read_checkpoint(tmp_path / "8bit")
    model = load_model(checkpoint, keep_quantized=keep, dtype="float32")
    assert ("8-bit" in model.dtype) == keep
    vectors = embed(checkpoint, model, golden.texts)
    expected = golden.vectors["document"]
    cosines = (vectors * expected).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.mean() > 0.99


class TestMaxTokens:
    @pytest.mark.parametrize(
        ("name", "changes", "expected"),
        [
            ("nomic_bert_published", {"n_positions": 20}, 20),
            # The training length: rotary positions continue beyond it, as in sentence-transformers.
            ("nomic_bert_published", {"max_trained_positions": 20, "max_position_embeddings": 20}, 48),
            ("gte", {"max_position_embeddings": 20}, 20),
        ],
    )
    def test_settings_limit_texts(self, name: str, changes: dict[str, Any], expected: int, tmp_path: Path) -> None:
        shutil.copytree(GOLDEN / name / "model", tmp_path, dirs_exist_ok=True)
        file = tmp_path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), "utf-8")
        assert read_checkpoint(tmp_path).max_tokens == expected


def test_each_text_has_the_positions_of_its_own_length() -> None:
    rotary = DynamicRotary(8, 100.0, 2.0, trained_length=4)
    lengths = [3, 4, 5, 9, 16]

    def cosines(*lengths: int) -> list[np.ndarray]:
        """Return each text's (L, 4) cosines, computed in padded batches."""
        found = {}
        for batch in pack_padded([[1] * length for length in lengths], 1 << 10):
            cos = np.array(rotary.angles(Tokens.from_batch(batch)).cos)[:, 0]
            starts = [block.start + row * block.length for block in batch.blocks for row in range(block.rows)]
            found |= {i: cos[start : start + lengths[i]] for i, start in zip(batch.order, starts, strict=False)}
        return [found[i] for i in range(len(lengths))]

    for length, together in zip(lengths, cosines(*lengths), strict=True):
        assert np.allclose(cosines(length)[0], together, atol=1e-6)
    trained, longer = cosines(4, 5)
    assert np.abs(trained - longer[:4]).max() > 0.01
