"""EmbeddingGemma 2, whole or only its text tower, and Gemma 3 with bidirectional attention."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from golden_models import GOLDEN, Golden, embed, farthest, read_golden

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.loading import load_model
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.inference.packing import pack_exact
from akidb_mlx_plugin.models.architectures import is_bidirectional, text_settings
from akidb_mlx_plugin.nn.batch import Tokens

ROPE = {"rope_type": "default", "rope_theta": 500.0}


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def _with_text(checkpoint: Checkpoint, changes: Mapping[str, Any]) -> Checkpoint:
    """Change settings of the text tower."""
    config = dict(checkpoint.config)
    config["text_config"] = {**config["text_config"], **changes}
    return replace(checkpoint, config=text_settings(config))


def _difference(golden: Golden, checkpoint: Checkpoint) -> float:
    vectors = embed(checkpoint, load_model(checkpoint), golden.texts)
    assert np.isfinite(vectors).all()
    return farthest(vectors, golden.vectors["document"])


NOTICED: list[tuple[str, dict[str, Any]]] = [
    ("embedding_gemma2", {"sliding_window": 4}),
    ("embedding_gemma2", {"sliding_window": 6}),
    ("embedding_gemma2", {"hidden_activation": "silu"}),
    ("embedding_gemma2", {"rms_norm_eps": 0.1}),
    (
        "embedding_gemma2",
        {"rope_parameters": {"full_attention": ROPE, "sliding_attention": {**ROPE, "rope_theta": 100.0}}},
    ),
    (
        "embedding_gemma2",
        {"rope_parameters": {"full_attention": {**ROPE, "rope_theta": 3000.0}, "sliding_attention": ROPE}},
    ),
    ("embedding_gemma2_text", {"sliding_window": 29}),
    ("embedding_gemma2_text", {"sliding_window": 31}),
]


class TestEmbeddingGemma2:
    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "changes"), NOTICED)
    def test_references_notice_a_changed_setting(self, name: str, changes: dict[str, Any]) -> None:
        golden = read_golden(name)
        assert _difference(golden, _with_text(golden.checkpoint, changes)) > 3e-4

    def test_vectors_are_as_wide_as_the_projection(self) -> None:
        checkpoint = read_golden("embedding_gemma2").checkpoint
        assert checkpoint.config["text_config"]["hidden_size"] == 24
        assert checkpoint.native_dimension == load_model(checkpoint).encoder.hidden_size == 36
        assert read_golden("embedding_gemma2_text").checkpoint.native_dimension == 36

    def test_settings_of_layers_by_kind(self) -> None:
        golden = read_golden("embedding_gemma2")
        changes = {"per_layer_config": None, "global_head_dim": 16, "num_global_key_value_heads": 1}
        assert _difference(golden, _with_text(golden.checkpoint, changes)) < 1e-5

    def test_the_last_layer_sees_everything_whatever_is_asked_for(self) -> None:
        golden = read_golden("embedding_gemma2")
        kinds = [*golden.checkpoint.config["text_config"]["layer_types"][:-1], "sliding_attention"]
        assert _difference(golden, _with_text(golden.checkpoint, {"layer_types": kinds})) < 1e-5

    def test_a_placeholder_without_what_it_stands_for_is_padding(self) -> None:
        checkpoint = read_golden("embedding_gemma2").checkpoint
        encoder = load_model(checkpoint).encoder

        def token_vectors(ids: list[int]) -> np.ndarray[Any, Any]:
            (batch,) = pack_exact([ids], 100)
            return np.array(encoder(Tokens.from_batch(batch)))

        padding = token_vectors([2, 30, 0, 31, 1])
        assert all(np.array_equal(token_vectors([2, 30, token, 31, 1]), padding) for token in (4, 5, 6))
        assert not np.allclose(token_vectors([2, 30, 7, 31, 1]), padding, atol=0.01)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"per_layer_config": {"1": {"sliding_window": 3}}}, "per_layer_config sets sliding_window"),
            ({"per_layer_config": {"1": {"head_dim": 16}}}, "different head sizes"),
            ({"layer_types": ["full_attention"] * 4}, "names 4 layers"),
            ({"layer_types": ["linear_attention"] * 5}, "linear_attention"),
            ({"hidden_activation": "mish"}, "mish"),
            ({"embedding_dim": None}, "embedding_dim"),
            ({"per_layer_config": [16]}, "must hold an object per layer"),
            ({"per_layer_config": {"x": 3}}, "must hold an object per layer"),
            ({"num_hidden_layers": "five"}, "num_hidden_layers"),
        ],
    )
    def test_what_would_be_computed_wrong_is_refused(self, changes: dict[str, Any], message: str) -> None:
        checkpoint = read_golden("embedding_gemma2").checkpoint
        with pytest.raises(ModelNotFoundError, match=message):
            load_model(_with_text(checkpoint, changes))


class TestTensorsOfTheWholeModel:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return Path(shutil.copytree(GOLDEN / "embedding_gemma2" / "model", tmp_path / "model"))

    def _rewrite(self, folder: Path, prefix: str = "", **more: mx.array) -> Checkpoint:
        file = folder / "model.safetensors"
        tensors = mx.load(str(file))
        assert isinstance(tensors, dict)
        mx.eval(tensors)
        mx.save_safetensors(str(file), {prefix + name: value for name, value in tensors.items()} | more)
        return read_checkpoint(folder)

    def test_a_prefix_of_the_whole(self, folder: Path) -> None:
        assert _difference(read_golden("embedding_gemma2"), self._rewrite(folder, "model.")) < 1e-5

    @pytest.mark.parametrize(
        "name", ["speech_tower.weight", "vision_tower_weight", "language_model.vision_tower.weight"]
    )
    def test_only_what_belongs_to_the_other_towers_is_left_out(self, folder: Path, name: str) -> None:
        with pytest.raises(ModelNotFoundError, match=f"unknown tensor .*{name.split('.')[-2:][0]}"):
            load_model(self._rewrite(folder, **{name: mx.ones((2,))}))


class TestTextSettings:
    def test_lie_at_the_top(self) -> None:
        inner = {"hidden_size": 24, "embedding_dim": 36, "max_position_embeddings": 64, "vocab_size": 320}
        config = {"model_type": "embedding_gemma2", "image_token_id": 4, "text_config": inner}
        flat = text_settings(config)
        assert (flat["hidden_size"], flat["max_position_embeddings"], flat["vocab_size"]) == (36, 64, 320)
        assert (flat["model_type"], flat["image_token_id"], flat["text_config"]) == ("embedding_gemma2", 4, inner)
        assert text_settings(flat) == flat

    def test_of_the_tower_alone(self) -> None:
        config = {"model_type": "embedding_gemma2_text", "hidden_size": 24, "embedding_dim": 36}
        flat = text_settings(config)
        assert (flat["hidden_size"], flat["text_config"]["hidden_size"]) == (36, 24)
        assert text_settings(flat) == flat

    def test_of_any_other_architecture_stay_as_they_are(self) -> None:
        config = {"model_type": "qwen3", "hidden_size": 24, "text_config": None}
        assert text_settings(config) == config

    @pytest.mark.parametrize("inner", [None, [], "text", 3])
    def test_that_are_none(self, inner: Any) -> None:
        with pytest.raises(ModelNotFoundError, match="text_config"):
            text_settings({"model_type": "embedding_gemma2", "text_config": inner})


class TestGemma3BothWays:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "changes"),
        [
            ("gemma3_text_is_causal", {"sliding_window": 5}),
            ("gemma3_text_is_causal", {"sliding_window": 7}),
            ("gemma3_text_is_causal", {"is_causal": True}),
            ("gemma3_text_both_settings", {"sliding_window": 6}),
            ("gemma3_text_both_settings", {"sliding_window": 10}),
            ("gemma3_text_both_settings", {"is_causal": None}),
            ("gemma3_text_both_settings", {"use_bidirectional_attention": False}),
        ],
    )
    def test_references_notice_a_changed_setting(self, name: str, changes: dict[str, Any]) -> None:
        golden = read_golden(name)
        changed = replace(golden.checkpoint, config={**golden.checkpoint.config, **changes})
        assert _difference(golden, changed) > 3e-4

    def test_windows_that_only_a_name_speaks_of_are_refused(self) -> None:
        checkpoint = read_golden("gemma3_text_causal").checkpoint
        unsaid = {"use_bidirectional_attention": None, "architectures": ["Gemma3BidirectionalModel"]}
        with pytest.raises(ModelNotFoundError, match="in a bidirectional gemma3_text"):
            load_model(replace(checkpoint, config={**checkpoint.config, **unsaid}))

    def test_without_windows_the_name_is_enough(self) -> None:
        golden = read_golden("gemma3_text")
        everything = {**golden.checkpoint.config, "layer_types": ["full_attention"] * 4}
        by_name = everything | {"use_bidirectional_attention": None, "architectures": ["Gemma3BidirectionalModel"]}
        vectors = [
            embed(changed, load_model(changed), golden.texts)
            for changed in (replace(golden.checkpoint, config=config) for config in (everything, by_name))
        ]
        assert np.array_equal(*vectors)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "gemma3_text"}, False),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, True),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True, "is_causal": True}, True),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": False, "is_causal": False}, True),
        ({"model_type": "qwen3", "architectures": ["Qwen3BiModel"]}, True),
        ({"model_type": "qwen3", "architectures": ["Qwen3BiModel"], "is_causal": True}, False),
        ({"model_type": "lfm2", "architectures": ["Lfm2BidirectionalModel"]}, True),
        ({"model_type": "lfm2", "architectures": ["Lfm2ForCausalLM"]}, False),
        (
            {"model_type": "lfm2", "auto_map": {"AutoModel": "a--modeling_lfm2_bidirectional.Lfm2BidirectionalModel"}},
            True,
        ),
        ({"model_type": "lfm2", "auto_map": {"AutoModel": "modeling_lfm2_bidirectional.Other"}}, False),
        ({"model_type": "embedding_gemma2"}, True),
        ({"model_type": "bert"}, True),
        ({"model_type": "llama"}, False),
    ],
)
def test_which_decoders_look_both_ways(config: dict[str, Any], expected: bool) -> None:
    assert is_bidirectional(config) is expected
