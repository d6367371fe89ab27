"""Every architecture against sentence-transformers, on tiny checkpoints with every feature of the real ones."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from golden_models import NAMES, Packing, embed, farthest, read_golden

from akidb_mlx_plugin.checkpoints.loading import load_model
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.inference.packing import pack_exact, pack_padded
from akidb_mlx_plugin.inference.tokenizer import load_text_tokenizer
from akidb_mlx_plugin.models import causal_lm, find_encoder
from akidb_mlx_plugin.nn import attention, layout
from akidb_mlx_plugin.types import Vector

LM_NAMES = {"granite"}


def cosine_similarities(one: Vector, other: Vector) -> Vector:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) / lengths)


def _need_mlx_lm() -> None:
    if importlib.util.find_spec("mlx_lm") is None:
        pytest.skip("the optional extra lm is not installed")


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def _marks(name: str) -> list[pytest.MarkDecorator]:
    """Return the marks of tests with a checkpoint; one has texts of over a thousand tokens."""
    return [pytest.mark.slow] if name == "gemma3_text_wide" else []


@pytest.fixture(params=[pytest.param(name, marks=_marks(name)) for name in NAMES])
def name(request: pytest.FixtureRequest) -> str:
    if request.param in LM_NAMES:
        _need_mlx_lm()
    return str(request.param)


class TestAgainstSentenceTransformers:
    @pytest.mark.slow
    @pytest.mark.parametrize("packing", [pack_exact, pack_padded])
    @pytest.mark.parametrize("kind", ["document", "query"])
    def test_vectors_are_the_same(self, name: str, kind: str, packing: Packing) -> None:
        golden = read_golden(name)
        vectors = embed(golden.checkpoint, load_model(golden.checkpoint), golden.texts, kind, packing=packing)
        assert farthest(vectors, golden.vectors[kind]) < 1e-5

    @pytest.mark.slow
    def test_vectors_are_the_same_alone_and_in_any_order(self, name: str) -> None:
        golden = read_golden(name)
        model = load_model(golden.checkpoint)
        tokenizer = load_text_tokenizer(golden.checkpoint)
        alone = np.concatenate([embed(golden.checkpoint, model, [text], tokenizer=tokenizer) for text in golden.texts])
        assert farthest(alone, golden.vectors["document"]) < 1e-5
        order = random.Random(0).sample(range(len(golden.texts)), len(golden.texts))
        shuffled = embed(golden.checkpoint, model, [golden.texts[i] for i in order], budget=100)
        assert farthest(shuffled, alone[order]) < 1e-5

    @pytest.mark.slow
    @pytest.mark.parametrize("packing", [pack_exact, pack_padded])
    def test_vectors_are_the_same_by_what_a_gpu_computes(
        self, name: str, packing: Packing, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(layout, "_emulated", True)
        golden = read_golden(name)
        model = load_model(golden.checkpoint, dtype="float32")
        vectors = embed(golden.checkpoint, model, golden.texts, "query", packing=packing)
        assert farthest(vectors, golden.vectors["query"]) < 1e-5

    @pytest.mark.slow
    @pytest.mark.parametrize(("dtype", "usual", "least"), [("float16", 0.99995, 0.9998), ("bfloat16", 0.9985, 0.96)])
    def test_vectors_are_close_in_the_number_formats_of_a_gpu(
        self, name: str, dtype: str, usual: float, least: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Random weights make vectors of some texts that are small differences of large numbers."""
        monkeypatch.setattr(layout, "_emulated", True)
        golden = read_golden(name)
        try:
            model = load_model(golden.checkpoint, dtype=dtype)
        except InvalidInputError:
            pytest.skip("overflows float16, and is refused in it")
        vectors = embed(golden.checkpoint, model, golden.texts, packing=pack_padded)
        cosines = cosine_similarities(vectors, golden.vectors["document"])
        assert np.median(cosines) > usual
        assert cosines.min() > least

    @pytest.mark.slow
    def test_vectors_are_the_same_in_slices_of_few_scores(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attention, "_MAX_SCORES", 1)
        monkeypatch.setattr(attention, "_MASKED_QUERIES", 7)
        monkeypatch.setattr(attention, "_FEWEST_QUERIES", 5)
        golden = read_golden(name)
        vectors = embed(golden.checkpoint, load_model(golden.checkpoint), golden.texts, packing=pack_padded)
        assert farthest(vectors, golden.vectors["document"]) < 1e-5


# Every feature matters: removing it, or changing it slightly, changes the vectors.
NOTICED: list[tuple[str, dict[str, Any]]] = [
    ("gemma3_text", {"sliding_window": 10}),
    ("gemma3_text", {"sliding_window": 6}),
    ("gemma3_text", {"use_bidirectional_attention": False}),
    ("gemma3_text", {"query_pre_attn_scalar": 16}),
    ("gemma3_text", {"hidden_activation": "silu"}),
    ("gemma3_text", {"layer_types": None}),
    ("gemma3_text", {"rope_parameters": None, "rope_theta": 100.0, "rope_local_base_freq": 100.0}),
    ("gemma3_text", {"rope_parameters": None, "rope_theta": 3000.0, "rope_local_base_freq": 3000.0}),
    ("gemma3_text_wide", {"sliding_window": 510}),
    ("gemma3_text_wide", {"sliding_window": 514}),
    ("gemma3_text_wide", {"sliding_window": 1024}),
    ("gemma3_text_causal", {"sliding_window": 7}),
    ("gemma3_text_causal", {"sliding_window": 5}),
    ("modernbert", {"local_attention": 6}),
    ("modernbert", {"local_attention": 10}),
    ("modernbert", {"layer_types": None, "global_attn_every_n_layers": 2}),
    ("modernbert", {"rope_parameters": None, "global_rope_theta": 100.0, "local_rope_theta": 100.0}),
    ("qwen3", {"rope_parameters": None, "rope_theta": 10_000.0}),
    ("qwen3", {"is_causal": False}),
    ("qwen3", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 2.0}}),
    ("qwen3_window", {"sliding_window": 7}),
    ("qwen3_window", {"sliding_window": 5}),
    ("qwen3_both_ways", {"is_causal": True}),
    ("roberta", {"layer_norm_eps": 0.1}),
    ("bert", {"hidden_act": "gelu_new"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changes"), [pytest.param(name, changes, marks=_marks(name)) for name, changes in NOTICED]
)
def test_references_notice_a_changed_setting(name: str, changes: dict[str, Any]) -> None:
    golden = read_golden(name)
    changed = replace(golden.checkpoint, config={**golden.checkpoint.config, **changes})
    vectors = embed(changed, load_model(changed), golden.texts)
    assert np.isfinite(vectors).all()
    # One position in a window of hundreds makes little difference, and so do the two forms of gelu.
    assert farthest(vectors, golden.vectors["document"]) > (3e-5 if "hidden_act" in changes else 3e-4)


# The same settings as earlier versions of transformers, and mlx-lm, write them.
OTHER_LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    ("qwen3", {"rope_parameters": None, "rope_theta": 1_000_000.0, "rope_scaling": None, "layer_types": None}),
    ("qwen3_window", {"layer_types": None}),
    ("gemma3_text", {"rope_parameters": None, "rope_theta": 3000.0, "rope_local_base_freq": 100.0}),
    (
        "gemma3_text",
        {"rope_parameters": None, "rope_theta": 3000.0, "rope_local_base_freq": 100.0}
        | {"layer_types": None, "sliding_window_pattern": 3},
    ),
    ("modernbert", {"rope_parameters": None, "global_rope_theta": 3000.0, "local_rope_theta": 100.0}),
    ("modernbert", {"layer_types": None, "global_attn_every_n_layers": 3}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), OTHER_LAYOUTS)
def test_older_layouts_of_settings_mean_the_same(name: str, changes: dict[str, Any]) -> None:
    golden = read_golden(name)
    changed = replace(golden.checkpoint, config={**golden.checkpoint.config, **changes})
    vectors = embed(changed, load_model(changed), golden.texts)
    assert farthest(vectors, golden.vectors["document"]) < 1e-5


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("bert", {"hidden_act": "mish"}, "mish"),
    ("bert", {"is_decoder": True}, "is_decoder"),
    ("bert", {"vocab_size": None}, "vocab_size"),
    ("qwen3", {"rope_parameters": {"rope_type": "proportional", "factor": 4.0}}, "proportional"),
    ("qwen3", {"rope_parameters": None, "rope_scaling": {"type": "yarn", "factor": "4"}}, "positive factor"),
    ("qwen3", {"layer_types": ["full_attention"]}, "names 1 layers"),
    ("qwen3", {"layer_types": ["linear_attention"] * 3}, "linear_attention"),
    ("qwen3_window", {"use_sliding_window": False}, "no sliding_window"),
    ("qwen3_window", {"architectures": ["Qwen3BiModel"]}, "bidirectional"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
    ("modernbert", {"hidden_activation": "mish"}, "mish"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_what_would_be_computed_wrong_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    checkpoint = read_golden(name).checkpoint
    with pytest.raises(ModelNotFoundError, match=message):
        load_model(replace(checkpoint, config={**checkpoint.config, **changes}))


class TestModelsOfMlxLm:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        _need_mlx_lm()

    def test_long_texts_go_in_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(causal_lm, "_CHUNK", 11)
        golden = read_golden("granite")
        model = load_model(golden.checkpoint)
        for packing in (pack_exact, pack_padded):
            vectors = embed(golden.checkpoint, model, golden.texts, packing=packing)
            assert farthest(vectors, golden.vectors["document"]) < 1e-5

    @pytest.mark.slow
    def test_the_rest_of_mlx_lm_stays_out(self) -> None:
        code = (
            "import resource, sys; limit = resource.getrlimit(resource.RLIMIT_NOFILE); "
            "from akidb_mlx_plugin.models import find_encoder; "
            "from akidb_mlx_plugin.models.mlx_lm import import_part; "
            "find_encoder('granite'); assert import_part('cache'); "
            "assert resource.getrlimit(resource.RLIMIT_NOFILE) == limit; "
            "assert not {'transformers', 'mlx_lm', 'mlx_lm.utils'} & sys.modules.keys()"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

    @pytest.mark.parametrize("model_type", ["no-such", "base", "cache", "../llama", "llama.x", ""])
    def test_an_architecture_that_nobody_has(self, model_type: str) -> None:
        with pytest.raises(ModelNotFoundError, match="not supported"):
            find_encoder(model_type)

    def test_rope_settings_of_transformers_5_reach_it(self) -> None:
        golden = read_golden("granite")
        rope = {"rope_type": "default", "rope_theta": 100.0}
        vectors = []
        for changes in ({"rope_parameters": rope}, {"rope_parameters": None, "rope_theta": 100.0}):
            changed = replace(golden.checkpoint, config={**golden.checkpoint.config, **changes})
            vectors.append(embed(changed, load_model(changed), golden.texts))
        assert np.array_equal(*vectors)
        assert farthest(vectors[0], golden.vectors["document"]) > 1e-3
        by_layer = {**golden.checkpoint.config, "rope_parameters": {"full_attention": rope}}
        with pytest.raises(ModelNotFoundError, match="by layer type"):
            load_model(replace(golden.checkpoint, config=by_layer))

    def test_an_architecture_that_needs_something_else(self) -> None:
        # mlx-lm's module for it exits the interpreter if another package is missing.
        if importlib.util.find_spec("hf_olmo") is None:
            with pytest.raises(ModelNotFoundError, match="olmo cannot be imported"):
                find_encoder("olmo")

    def test_an_encoder_in_disguise_is_refused(self) -> None:
        checkpoint = read_golden("granite").checkpoint
        with pytest.raises(ModelNotFoundError, match="is bidirectional"):
            load_model(replace(checkpoint, config={**checkpoint.config, "is_causal": False}))

    def test_settings_that_do_not_fit(self) -> None:
        checkpoint = read_golden("granite").checkpoint
        config = {key: value for key, value in checkpoint.config.items() if key != "num_hidden_layers"}
        with pytest.raises(ModelNotFoundError, match="cannot be built"):
            load_model(replace(checkpoint, config=config))


def test_without_mlx_lm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelNotFoundError, match=r"pip install .*\[lm\]"):
        find_encoder("granite")
