"""Models related to BERT: the effect of each setting, rejected settings, and leftovers of other libraries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from golden_models import embed, farthest, read_golden, token_rows

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.loading import load_model
from akidb_mlx_plugin.checkpoints.tensors import load_strictly, read_tensors
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.inference.packing import pack_exact, pack_padded
from akidb_mlx_plugin.models import find_encoder
from akidb_mlx_plugin.nn import attention, layout
from akidb_mlx_plugin.nn.position_bias import PositionBias, alibi_slopes, relative_buckets


@pytest.fixture(autouse=True)
def _on_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


def changed(name: str, changes: dict[str, Any]) -> Checkpoint:
    checkpoint = read_golden(name).checkpoint
    return replace(checkpoint, config={**checkpoint.config, **changes})


NOTICED: list[tuple[str, dict[str, Any]]] = [
    ("albert", {"hidden_act": "relu"}),
    ("albert", {"num_hidden_layers": 4}),
    ("albert", {"num_hidden_layers": 6}),
    ("albert", {"layer_norm_eps": 0.1}),
    ("distilbert", {"activation": "relu"}),
    ("distilbert", {"n_heads": 2}),
    ("distilbert_relu", {"activation": "gelu"}),
    ("electra", {"num_attention_heads": 2}),
    ("jina_bert", {"feed_forward_type": "reglu"}),
    ("jina_bert", {"num_attention_heads": 4}),
    ("jina_bert_reglu", {"feed_forward_type": "geglu"}),
    ("jina_bert_original", {"hidden_act": "relu"}),
    ("jina_bert_code", {"feed_forward_type": "reglu"}),
    ("mpnet", {"layer_norm_eps": 0.1}),
    ("t5", {"relative_attention_max_distance": 127}),
    ("t5", {"relative_attention_max_distance": 129}),
    ("t5", {"feed_forward_proj": "gelu", "dense_act_fn": None}),
    ("t5_gated", {"feed_forward_proj": "gated-relu", "dense_act_fn": None}),
    ("t5_gated", {"relative_attention_max_distance": 21}),
    ("t5_gated", {"layer_norm_epsilon": 1e-6}),
    ("camembert", {"pad_token_id": 2}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), NOTICED)
def test_references_notice_a_changed_setting(name: str, changes: dict[str, Any]) -> None:
    golden = read_golden(name)
    checkpoint = changed(name, changes)
    vectors = embed(checkpoint, load_model(checkpoint), golden.texts)
    assert np.isfinite(vectors).all()
    assert farthest(vectors, golden.vectors["document"]) > 3e-4


# Settings at their defaults, or without effect on the vectors.
WITHOUT_EFFECT: list[tuple[str, dict[str, Any]]] = [
    ("distilbert", {"sinusoidal_pos_embds": False}),
    ("distilbert", {"layer_norm_eps": 0.1}),
    ("distilbert", {"activation": None}),
    ("albert", {"hidden_act": None}),
    ("jina_bert", {"hidden_act": "relu"}),
    ("jina_bert_original", {"feed_forward_type": None}),
    ("mpnet", {"relative_attention_num_buckets": None, "pad_token_id": None}),
    ("t5", {"relative_attention_num_buckets": None, "dense_act_fn": None, "is_gated_act": None}),
    ("t5", {"feed_forward_proj": None, "n_positions": 4}),
    (
        "jina_bert_code",
        {
            "_name_or_path": "",
            "auto_map": {"AutoModel": "jinaai/jina-bert-v2-qk-post-norm--modeling_bert.JinaBertModel"},
        },
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), WITHOUT_EFFECT)
def test_settings_without_effect(name: str, changes: dict[str, Any]) -> None:
    golden = read_golden(name)
    checkpoint = changed(name, changes)
    vectors = embed(checkpoint, load_model(checkpoint), golden.texts)
    assert farthest(vectors, golden.vectors["document"]) < 1e-5


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("albert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("distilbert", {"dim": None}, "lacks dim, which distilbert needs"),
    ("distilbert", {"activation": "mish"}, "activation 'mish'"),
    ("electra", {"is_decoder": True}, "is_decoder"),
    ("electra", {"embedding_size": None}, "shape"),
    ("jina_bert", {"feed_forward_type": "swiglu"}, "swiglu"),
    ("jina_bert", {"position_embedding_type": "absolute"}, "position_embedding_type 'alibi'"),
    ("jina_bert", {"feed_forward_type": "original"}, "gated_layers"),
    ("jina_bert_code", {"_name_or_path": ""}, "layer_norm_q"),
    ("jina_bert", {"_name_or_path": "jinaai/jina-bert-v2-qk-post-norm"}, "layer_norm_k"),
    ("mpnet", {"relative_attention_num_buckets": 16}, "relative_attention_num_buckets 16"),
    ("mpnet", {"pad_token_id": 0}, "pad_token_id 0"),
    ("t5", {"is_decoder": True}, "is_decoder"),
    ("t5", {"d_kv": None}, "lacks d_kv"),
    ("t5", {"d_kv": 8}, "shape"),
    ("t5", {"feed_forward_proj": "mish", "dense_act_fn": None}, "'mish' is not supported"),
    ("t5", {"feed_forward_proj": "fused-gelu", "dense_act_fn": None}, "fused-gelu"),
    ("t5", {"dense_act_fn": "gelu"}, "contradicts"),
    ("t5", {"is_gated_act": True}, "contradicts"),
    ("t5", {"relative_attention_num_buckets": 2}, "relative_attention_num_buckets 2"),
    ("t5", {"relative_attention_max_distance": 8}, "relative_attention_max_distance 8"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_what_would_be_computed_wrong_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message):
        load_model(changed(name, changes))


def test_t5_overflows_float16() -> None:
    with pytest.raises(InvalidInputError, match="overflow"):
        load_model(read_golden("t5").checkpoint, dtype="float16")


class TestLeftovers:
    def _check(self, name: str, added: dict[str, mx.array], rename: str = "") -> None:
        checkpoint = read_golden(name).checkpoint
        encoder = find_encoder(checkpoint.model_type, checkpoint.config).from_config(checkpoint.config)
        tensors = read_tensors(checkpoint.folder / "model.safetensors")
        tensors = {rename + key: value for key, value in tensors.items()}
        load_strictly(encoder, encoder.sanitize({**tensors, **added}), name, {})

    @pytest.mark.parametrize(
        ("name", "prefix", "leftovers"),
        [
            ("bert", "bert.", ("cls.predictions.bias", "classifier.weight", "qa_outputs.bias", "pooler.dense.bias")),
            ("bert", "bert.", ("embeddings.token_type_ids", "embeddings.position_ids", "bert.pooler.dense.weight")),
            ("roberta_pads", "roberta.", ("classifier.dense.weight", "qa_outputs.weight", "lm_head.bias")),
            ("jina_bert", "bert.", ("cls.predictions.decoder.weight", "pooler.dense.weight")),
            ("distilbert_relu", "", ("qa_outputs.weight", "vocab_projector.bias", "pre_classifier.bias")),
            ("electra", "", ("generator_lm_head.bias", "generator_predictions.dense.weight", "qa_outputs.bias")),
            ("albert", "", ("albert.embeddings.position_ids", "classifier.weight", "qa_outputs.weight")),
            ("mpnet", "", ("mpnet.embeddings.position_ids", "mpnet.pooler.dense.weight", "classifier.dense.bias")),
            ("t5_gated", "", ("lm_head.weight", "decoder.block.0.layer.0.SelfAttention.q.weight")),
        ],
    )
    def test_heads_and_buffers_are_dropped(self, name: str, prefix: str, leftovers: tuple[str, ...]) -> None:
        self._check(name, {leftover: mx.zeros(3) for leftover in leftovers}, prefix)

    @pytest.mark.parametrize("name", ["albert", "bert", "distilbert", "electra", "jina_bert", "mpnet", "t5"])
    def test_anything_else_is_named(self, name: str) -> None:
        with pytest.raises(ModelNotFoundError, match=r"unknown tensor encoder\.extra\.weight|unknown tensor extra"):
            self._check(name, {"encoder.extra.weight": mx.zeros(3)})

    def test_t5_has_its_table_under_one_name_or_two(self) -> None:
        golden = read_golden("t5_gated")
        encoder = load_model(golden.checkpoint).encoder
        tensors = read_tensors(golden.checkpoint.folder / "model.safetensors")
        table = tensors["shared.weight"]
        for names in (
            ("shared",),
            ("encoder.embed_tokens",),
            ("shared", "encoder.embed_tokens", "decoder.embed_tokens"),
        ):
            del tensors["shared.weight"]
            tensors |= {f"{name}.weight": table for name in names}
            assert encoder.sanitize(tensors).keys() == encoder.sanitize({**tensors, "shared.weight": table}).keys()
            tensors = {key: value for key, value in tensors.items() if "embed_tokens" not in key}
            tensors["shared.weight"] = table


class TestPaddingTokensInTexts:
    @pytest.mark.parametrize("name", ["camembert", "mpnet", "roberta_pads", "xlm_roberta_pads"])
    def test_they_are_there_and_they_matter(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        golden = read_golden(name)
        rows, _ = token_rows(golden.checkpoint, golden.texts, "document")
        padded = [i for i, row in enumerate(rows) if 1 in row]
        assert len(padded) == 5
        model = load_model(golden.checkpoint)
        monkeypatch.setattr(type(model.encoder), "position_ids", lambda self, tokens: tokens.positions + 2)
        vectors = embed(golden.checkpoint, model, golden.texts)
        differences = np.abs(vectors - golden.vectors["document"]).max(axis=1)
        assert (differences[padded] > 1e-3).sum() >= 4
        assert np.delete(differences, padded).max() < 1e-5


class TestPositionBias:
    def test_it_is_computed_once_per_length(self) -> None:
        asked: list[int] = []

        def by_distance(distances: np.ndarray[Any, Any]) -> mx.array:
            asked.append(len(distances))
            return mx.array(np.stack([distances, 10 * distances]))

        bias = PositionBias(by_distance, mx.float32)
        for start, stop, first, last in ((0, 9, 0, 9), (2, 5, 0, 9), (8, 9, 1, 3), (0, 1, 8, 9)):
            expected = np.arange(first, last) - np.arange(start, stop)[:, None]
            found = np.array(bias.between(9, start, stop, first, last))
            assert np.array_equal(found, np.stack([expected, 10 * expected]))
        assert np.array_equal(np.array(bias.between(1, 0, 1, 0, 1)), [[[0]], [[0]]])
        assert asked == [17, 1]

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["mpnet", "t5", "jina_bert"])
    def test_masks_in_slices_compute_the_same(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layout, "_emulated", True)
        monkeypatch.setattr(attention, "_MAX_MASK", 5000)
        golden = read_golden(name)
        model = load_model(golden.checkpoint, dtype="float32")
        for packing in (pack_exact, pack_padded):
            vectors = embed(golden.checkpoint, model, golden.texts, packing=packing)
            assert farthest(vectors, golden.vectors["document"]) < 1e-5

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_narrow_formats_stay_finite(self, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layout, "_emulated", True)
        for name in ("mpnet", "jina_bert_code"):
            golden = read_golden(name)
            model = load_model(golden.checkpoint, device="gpu", dtype=dtype)
            vectors = embed(golden.checkpoint, model, golden.texts, packing=pack_padded)
            cosines = (vectors * golden.vectors["document"]).sum(axis=1)
            assert np.isfinite(vectors).all()
            assert cosines.min() > 0.98

    def test_buckets(self) -> None:
        # By hand: 16 each way, 8 exact ones, then 8 + 8 log(n / 8) / log(16).
        distances = np.array([0, -1, -7, -8, -11, -12, -127, -128, -5000, 1, 7, 8, 12, 127, 5000])
        expected = [0, 1, 7, 8, 8, 9, 15, 15, 15, 17, 23, 24, 25, 31, 31]
        assert relative_buckets(distances).tolist() == expected

    @pytest.mark.parametrize(
        ("heads", "exponents"),
        [
            (8, [1, 2, 3, 4, 5, 6, 7, 8]),
            (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
            (6, [2, 4, 6, 8, 1, 3]),
            (1, [8]),
        ],
    )
    def test_slopes(self, heads: int, exponents: list[float]) -> None:
        assert np.allclose(alibi_slopes(heads), [2.0**-exponent for exponent in exponents], rtol=1e-6)
