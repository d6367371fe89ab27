"""Causal decoders and their bidirectional variants: the effect of each setting, and rejected settings."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from golden_models import embed, farthest, read_golden

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.loading import load_model
from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.models import find_encoder, mlx_lm, mlx_lm_gaps
from akidb_mlx_plugin.models.architectures import is_bidirectional
from akidb_mlx_plugin.models.causal_lm import CausalEncoder
from akidb_mlx_plugin.models.settings import rope_settings

needs_mlx_lm = pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="the optional extra lm")


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def changed(name: str, changes: dict[str, Any], **more: Any) -> Checkpoint:
    """Return a checkpoint of tests/golden with changed settings; mappings are merged."""
    checkpoint = read_golden(name).checkpoint
    config = dict(checkpoint.config)
    for key, value in changes.items():
        config[key] = (
            {**config[key], **value} if isinstance(value, dict) and isinstance(config.get(key), dict) else value
        )
    return replace(checkpoint, config=config, model_type=config["model_type"], **more)


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": parameters}


# Removing a feature, or changing it slightly, changes the vectors.
NOTICED: list[tuple[str, dict[str, Any]]] = [
    ("llama_scaled", rope(factor=4.4)),
    ("llama_scaled", rope(low_freq_factor=1.5)),
    ("llama_scaled", rope(high_freq_factor=3.0)),
    ("llama_scaled", rope(original_max_position_embeddings=40)),
    ("llama_scaled", rope(rope_type="default")),
    ("llama_both_ways", {"is_causal": True}),
    ("mistral", {"sliding_window": 5}),
    ("mistral", {"sliding_window": 7}),
    ("mistral", {"sliding_window": None}),
    ("mistral_both_ways", {"sliding_window": 5}),
    ("mistral_both_ways", {"sliding_window": 7}),
    ("mistral_both_ways", {"is_causal": None}),
    ("ministral", {"layer_types": None}),
    ("ministral", {"sliding_window": 7}),
    ("ministral3", rope(llama_4_scaling_beta=0.2)),
    ("ministral3", rope(original_max_position_embeddings=17)),
    ("ministral3", rope(mscale=0.8)),
    ("ministral3", rope(mscale_all_dim=None)),
    ("ministral3", rope(beta_fast=2.0)),
    ("ministral3", rope(beta_slow=0.1)),
    ("ministral3", rope(truncate=False)),
    ("ministral3_both_ways", {"is_causal": True}),
    ("phi3", {"sliding_window": 25}),
    ("phi3", {"sliding_window": 23}),
    ("phi3", {"original_max_position_embeddings": 21, "rope_parameters": {"attention_factor": 1.18}}),
    ("phi3", rope(short_factor=[1.0, 1.1, 1.4])),
    ("phi3", rope(long_factor=[1.2, 2.5, 4.1])),
    ("phi3", rope(attention_factor=1.0)),
    ("qwen2", {"sliding_window": 5, "layer_types": None}),
    ("qwen2", {"sliding_window": 7, "layer_types": None}),
    ("qwen2", {"max_window_layers": 2, "layer_types": None}),
    ("qwen2", {"max_window_layers": 0, "layer_types": None}),
    ("qwen2", {"use_sliding_window": False, "layer_types": None}),
    ("qwen2_both_ways", {"is_causal": True}),
    ("qwen3_yarn", rope(factor=4.4)),
    ("qwen3_yarn", rope(attention_factor=1.0)),
    ("qwen3_window_both_ways", {"sliding_window": 5}),
    ("qwen3_window_both_ways", {"sliding_window": 7}),
    ("gemma3_text_not_causal", {"is_causal": True}),
    ("gemma3_text_not_causal", {"sliding_window": 5}),
    ("gemma3_text_not_causal", {"sliding_window": 7}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), NOTICED)
def test_references_notice_a_changed_setting(name: str, changes: dict[str, Any]) -> None:
    golden = read_golden(name)
    checkpoint = changed(name, changes)
    vectors = embed(checkpoint, load_model(checkpoint), golden.texts)
    assert np.isfinite(vectors).all()
    assert farthest(vectors, golden.vectors["document"]) > 3e-4


def older_rope(name: str) -> dict[str, Any]:
    """Return a checkpoint's rotary settings as transformers wrote them before version 5."""
    parameters = dict(read_golden(name).checkpoint.config["rope_parameters"])
    theta, kind = parameters.pop("rope_theta"), parameters.pop("rope_type")
    return {"rope_parameters": None, "rope_theta": theta, "rope_scaling": {"type": kind, **parameters}}


# The same model with its settings in another form.
SAME: list[tuple[str, dict[str, Any]]] = [
    ("llama_scaled", older_rope("llama_scaled")),
    ("qwen3_yarn", older_rope("qwen3_yarn")),
    ("qwen3_yarn", rope(beta_fast=None, beta_slow=None, attention_factor=None, truncate=True, mscale=None)),
    ("ministral3", older_rope("ministral3")),
    ("phi3", older_rope("phi3")),
    ("phi3", rope(rope_type="su")),
    ("phi3", {"partial_rotary_factor": 0.75, "rope_parameters": {"partial_rotary_factor": None}}),
    ("qwen3", rope(rope_type="dynamic", factor=4.0)),
    ("qwen2", {"layer_types": None}),
    ("mistral", {"layer_types": ["full_attention"] * 3}),
    ("llama_both_ways", {"is_causal": None, "architectures": ["LlamaBidirectionalModel"]}),
    ("llama_both_ways", {"is_causal": None, "model_type": "llama_bidirec"}),
    ("llama_both_ways", {"is_causal": None, "use_bidirectional_attention": True}),
    ("ministral3_both_ways", {"is_causal": None, "model_type": "ministral3_bidirec"}),
    ("qwen3_both_ways", {"is_causal": None, "model_type": "bidirectional_pplx_qwen3"}),
    ("qwen3_both_ways", {"is_causal": None, "architectures": ["VoyageQwen3BidirectionalEmbedModel"]}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), SAME)
def test_the_same_in_other_words(name: str, changes: dict[str, Any]) -> None:
    golden = read_golden(name)
    checkpoint = changed(name, changes)
    vectors = embed(checkpoint, load_model(checkpoint), golden.texts)
    assert farthest(vectors, golden.vectors["document"]) < 1e-5


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama_scaled", rope(factor=None, original_max_position_embeddings=None, rope_type="linear"), "positive factor"),
    ("llama_scaled", rope(low_freq_factor=None), "positive low_freq_factor"),
    ("llama_scaled", rope(high_freq_factor=1.0), "are both 1.0"),
    ("llama_scaled", rope(rope_theta="1e4"), "rope_theta"),
    ("llama_scaled", rope(rope_theta=None, partial_rotary_factor=0.5), "partial_rotary_factor 0.5"),
    ("llama_scaled", rope(original_max_position_embeddings=0), "original_max_position_embeddings"),
    ("llama_scaled", {"rope_parameters": [1]}, "must be an object"),
    ("llama_scaled", {"num_key_value_heads": 3}, "does not divide"),
    ("llama_scaled", {"head_dim": 15}, "even number"),
    ("llama_scaled", {"hidden_act": "mish"}, "mish"),
    ("mistral", {"sliding_window": 0}, "sliding_window"),
    ("mistral", {"architectures": ["MistralBiModel"]}, "sliding_window of 6 in a bidirectional mistral"),
    ("ministral", {"layer_types": 3}, "layer_types"),
    ("ministral3", rope(llama_4_scaling_beta=None), "llama_4_scaling_beta"),
    ("phi3", rope(short_factor=[1.0]), "a list of 3 numbers"),
    ("phi3", rope(long_factor=[1.0, None, 1.0]), "positive long_factor"),
    ("qwen3_yarn", rope(rope_theta=1.0), "rope_theta above 1"),
    (
        "gemma3_text_not_causal",
        {"is_causal": None, "use_bidirectional_attention": None, "architectures": ["GemmaBiModel"]},
        "bidirectional",
    ),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_what_would_be_computed_wrong_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message):
        load_model(changed(name, changes))


def test_dynamic_positions_end_where_they_begin_to_depend_on_the_text() -> None:
    checkpoint = changed("qwen3", rope(rope_type="dynamic", factor=4.0), max_tokens=65)
    with pytest.raises(ModelNotFoundError, match=r"64 tokens.* 65; lower max_seq_length"):
        load_model(checkpoint)


def test_ministral3_without_rotary_settings_has_those_of_transformers() -> None:
    golden = read_golden("ministral3")
    defaults = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384}
    defaults |= {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
    vectors = []
    for parameters in (None, defaults):
        checkpoint = replace(golden.checkpoint, config={**golden.checkpoint.config, "rope_parameters": parameters})
        vectors.append(embed(checkpoint, load_model(checkpoint), golden.texts))
    assert np.array_equal(*vectors)


def test_yarn_takes_its_factor_from_the_lengths_where_there_is_none() -> None:
    config = {"max_position_embeddings": 128, "rope_parameters": {"rope_type": "yarn", "rope_theta": 100.0}}
    config["rope_parameters"] |= {"original_max_position_embeddings": 32}
    without = rope_settings(config, size=16, default_theta=1e4)
    config["rope_parameters"] |= {"factor": 4.0}
    given = rope_settings(config, size=16, default_theta=1e4)
    assert np.array_equal(without.frequencies, given.frequencies)
    assert without.attention_factor == given.attention_factor == pytest.approx(1.1386294)


class TestWhichWaysItLooks:
    @pytest.mark.parametrize(
        ("config", "both"),
        [
            ({"model_type": "qwen2"}, False),
            ({"model_type": "qwen2", "is_causal": False}, True),
            ({"model_type": "qwen2", "is_causal": True, "architectures": ["Qwen2BiModel"]}, False),
            ({"model_type": "qwen3", "use_bidirectional_attention": True}, True),
            ({"model_type": "gemma3_text", "use_bidirectional_attention": False, "is_causal": False}, True),
            ({"model_type": "mistral", "architectures": ["MistralModel"]}, False),
            ({"model_type": "mistral", "architectures": ["MistralBiModel"]}, True),
            ({"model_type": "mixtral", "architectures": ["MixtralBidirectionalModel"]}, True),
            ({"model_type": "llama_bidirec"}, True),
            ({"model_type": "bert"}, True),
            ({"model_type": "starcoder2"}, False),
        ],
    )
    def test_is_decided_by_the_configuration_then_by_the_architecture(self, config: dict[str, Any], both: bool) -> None:
        assert is_bidirectional(config) is both

    @pytest.mark.parametrize("name", ["llama_scaled", "qwen3", "mistral", "gemma3_text_causal"])
    def test_the_first_token_of_one_that_looks_backwards_is_not_pooled(self, name: str) -> None:
        for pooling in (("cls",), ("mean", "cls")):
            with pytest.raises(ModelNotFoundError, match=r"'cls'.*is causal by its config.json"):
                load_model(changed(name, {}, pooling=pooling))

    def test_the_first_token_of_one_that_looks_both_ways_is(self) -> None:
        golden = read_golden("llama_both_ways")
        checkpoint = changed("llama_both_ways", {}, pooling=("cls",))
        vectors = embed(checkpoint, load_model(checkpoint), ["stone river", "stone garden"])
        assert np.abs(vectors[0] - vectors[1]).max() > 0.01
        assert vectors.shape[1] == golden.vectors["document"].shape[1]


SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-6}


@needs_mlx_lm
class TestModelsOfMlxLm:
    def test_another_thread_can_compute_with_what_was_loaded(self) -> None:
        golden = read_golden("granite")  # its rotary positions are scaled
        model = load_model(golden.checkpoint)
        results = []

        def compute() -> None:
            mx.set_default_device(mx.cpu)
            results.append(embed(golden.checkpoint, model, golden.texts[:3]))
            mx.synchronize()
            mx.clear_streams()

        thread = threading.Thread(target=compute)
        thread.start()
        thread.join(60)
        assert farthest(results[0], golden.vectors["document"][:3]) < 1e-5

    def test_a_scaled_rope_shows(self) -> None:
        golden = read_golden("granite")
        checkpoint = changed("granite", rope(factor=4.4))
        assert farthest(embed(checkpoint, load_model(checkpoint), golden.texts), golden.vectors["document"]) > 3e-4

    @pytest.mark.parametrize(
        ("config", "window"),
        [
            ({"model_type": "mixtral", "sliding_window": 8}, 8),
            ({"model_type": "mixtral", "sliding_window": None}, None),
            ({"model_type": "gemma2", "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}, 8),
            ({"model_type": "gemma2", "layer_types": ["full_attention"] * 2, "sliding_window": 8}, None),
            ({"model_type": "starcoder2", "sliding_window": 4096}, 4096),
            ({"model_type": "qwen2_moe", "sliding_window": 8, "use_sliding_window": False}, None),
            ({"model_type": "dots1", "sliding_window": 8, "max_window_layers": 2, "num_hidden_layers": 2}, None),
            ({"model_type": "dots1", "sliding_window": 8, "max_window_layers": 1, "num_hidden_layers": 2}, 8),
            ({"model_type": "plamo2", "attention_window_size": 8}, 8),
            ({"model_type": "olmo3", "sliding_window": 8}, None),
        ],
    )
    def test_a_window_that_it_forgets_is_known(self, config: dict[str, Any], window: int | None) -> None:
        assert mlx_lm_gaps.ignored_window(config) == window

    def test_texts_longer_than_an_ignored_window_are_rejected(self) -> None:
        encoder = CausalEncoder.from_config({"model_type": "starcoder2", **SIZES, "sliding_window": 8})
        encoder.check_length(8)
        with pytest.raises(ModelNotFoundError, match=r"sliding_window of 8 tokens.*up to 9 tokens.*to 8 or less"):
            encoder.check_length(9)

    def test_where_it_applies_windows_is_as_its_sources_say(self) -> None:
        package = importlib.util.find_spec("mlx_lm")
        assert package is not None
        assert package.submodule_search_locations is not None
        folder = Path(package.submodule_search_locations[0]) / "models"
        sources = {name: (folder / f"{name}.py") for name in mlx_lm.MODULES}
        applied = {name for name, file in sources.items() if file.is_file() and "window_size=" in file.read_text()}
        # The first has its own indices, the second a window that belongs to its loops.
        assert (applied | {"deepseek_v41"}) - {"iquestloopcoder"} == mlx_lm_gaps.APPLY_WINDOW

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"model_type": "starcoder2", "rope_scaling": {"type": "linear", "factor": 2.0}}, "does not scale"),
            ({"model_type": "gemma2", "head_dim": 8, **rope(rope_type="llama3", factor=2.0)}, "lacks original_max"),
            ({"model_type": "granite", **rope(rope_type="longrope", factor=2.0)}, "cannot be built|longrope"),
            ({"model_type": "smollm3", "rope_scaling": [1]}, "cannot be built|must be an object"),
            ({"model_type": "mixtral", "architectures": ["MixtralBiModel"]}, "is bidirectional"),
            ({"model_type": "cohere2", "head_dim": 8, "layer_types": ["full_attention"] * 2}, "not in the order"),
        ],
    )
    def test_what_it_would_compute_otherwise_is_refused(self, config: dict[str, Any], message: str) -> None:
        needed = {"num_local_experts": 2, "num_experts_per_tok": 1, "norm_epsilon": 1e-5, "query_pre_attn_scalar": 8}
        needed |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "rope_theta": 1e4}
        with pytest.raises(ModelNotFoundError, match=message):
            CausalEncoder.from_config({**SIZES, **needed, **config})

    def test_every_architecture_it_is_said_to_have_is_there(self) -> None:
        missing = {name for name in mlx_lm.MODULES if importlib.util.find_spec(f"mlx_lm.models.{name}") is None}
        assert missing == set()


@needs_mlx_lm
def test_what_mlx_lm_asserts_of_a_configuration_is_an_error_of_ours() -> None:
    config = {**read_golden("granite").checkpoint.config, "vocab_size": 0}
    with pytest.raises(ModelNotFoundError, match="mlx-lm's granite cannot be built"):
        find_encoder("granite").from_config(config)


@pytest.mark.parametrize("model_type", ["clip_text_model", "longformer"])
def test_what_mlx_lm_lacks_too_is_no_reason_to_install_it(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError, match=f"'{model_type}' is not supported") as raised:
        find_encoder(model_type)
    assert "pip install" not in str(raised.value)
