"""Every architecture of rerankers against sentence-transformers, on tiny checkpoints."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from golden_rerankers import NAMES, copy_reranker, edit_json, opened, read_pairs, reranker_dir, score

from akidb_mlx_plugin.checkpoints.cross_encoder import read_cross_encoder
from akidb_mlx_plugin.inference import engine
from akidb_mlx_plugin.types import PairRequest

_PARTS = ("weight", "scales", "biases")


def farthest(actual: Any, expected: Any) -> float:
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / max(1.0, np.abs(expected).max()))


@pytest.mark.slow
@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_same(name: str, gpu: bool) -> None:
    """In a batch, alone, and in any order: mixed lengths, truncated pairs included."""
    pairs, expected = read_pairs(name)
    with opened(reranker_dir(name), gpu=gpu) as reranker:
        assert farthest(score(reranker, pairs), expected) < 1e-5
        alone = np.stack([score(reranker, [pair])[0] for pair in pairs])
        assert farthest(alone, expected) < 1e-5
        order = random.Random(0).sample(range(len(pairs)), len(pairs))
        assert farthest(score(reranker, [pairs[i] for i in order]), expected[order]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "modernbert", "qwen3_reranker"])
def test_scores_are_close_in_half_precision(name: str) -> None:
    pairs, expected = read_pairs(name)
    with opened(reranker_dir(name), gpu=True, dtype="bfloat16") as reranker:
        assert np.abs(score(reranker, pairs) - expected).max() < 0.1 * max(1.0, np.abs(expected).max())


def test_several_requests_share_a_batch() -> None:
    pairs, expected = read_pairs("bert")
    requests = [
        PairRequest([text for _, text in part], queries=[query for query, _ in part])
        for part in (pairs[:1], pairs[1:12], pairs[12:])
    ]
    with opened(reranker_dir()) as reranker:
        responses = reranker.score_requests(requests)
    assert [len(response.embeddings) for response in responses] == [1, 11, len(pairs) - 12]
    assert farthest(np.concatenate([response.embeddings for response in responses])[:, 0], expected) < 1e-5
    assert sum(response.usage.truncated for response in responses) == 7


def test_pairs_of_two_long_texts_are_cut_where_sentence_transformers_cuts_them() -> None:
    """Texts long enough to be shortened before they are tokenized."""
    with opened(reranker_dir()) as reranker:
        few = [["water " * 60, "stone " * 61], ["water " * 61, "stone " * 60], ["water", "stone " * 60]]
        many = [["water " * 6000, "stone " * 6100], ["water " * 6100, "stone " * 6000], ["water", "stone " * 6000]]
        assert np.array_equal(score(reranker, many), score(reranker, few))


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
def test_a_failed_pass_is_computed_in_halves(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, expected = read_pairs("bert")
    with opened(reranker_dir(), gpu=gpu) as reranker:
        whole = engine.Engine._forward
        failed: list[int] = []

        def fail_once(self: engine.Engine, batch: Any, start: Any) -> Any:
            if len(batch.order) > len(pairs) // 4 and not failed:
                failed.append(len(batch.order))
                raise RuntimeError("command buffer execution failed")
            return whole(self, batch, start)

        monkeypatch.setattr(engine.Engine, "_forward", fail_once)
        assert farthest(score(reranker, pairs), expected) < 1e-5
        assert failed


# Every feature matters: without it, or changed, the scores are others.
NOTICED: list[tuple[str, dict[str, Any]]] = [
    ("bert", {"sbert_ce_default_activation_function": None}),
    ("bert_one_segment", {"sentence_transformers": None}),
    ("modernbert", {"classifier_pooling": "cls"}),
    ("modernbert_cls", {"classifier_pooling": "mean"}),
    ("modernbert_cls", {"classifier_activation": "gelu"}),
    ("modernbert", {"local_attention": 6}),
    ("gte", {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}}),
    ("qwen3_reranker", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), NOTICED, ids=[f"{name}-{next(iter(c))}" for name, c in NOTICED])
def test_references_notice_a_changed_setting(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    pairs, expected = read_pairs(name)
    with opened(copy_reranker(name, tmp_path, **changes)) as reranker:
        assert farthest(score(reranker, pairs), expected) > 1e-3


@pytest.mark.parametrize("name", ["bert", "electra", "gte", "new"])
def test_references_notice_segments(name: str, tmp_path: Path) -> None:
    pairs, expected = read_pairs(name)
    folder = copy_reranker(name, tmp_path)
    edit_json(folder / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    with opened(folder) as reranker:
        assert farthest(score(reranker, pairs), expected) > 1e-3


class TestQuestions:
    """Qwen3-Reranker, which is asked and answers yes or no."""

    def test_an_instruction_changes_the_scores(self) -> None:
        pairs, expected = read_pairs("qwen3_reranker")
        with opened(reranker_dir("qwen3_reranker"), instruction="Find water") as reranker:
            assert farthest(score(reranker, pairs), expected) > 1e-4

    def test_the_beginning_that_texts_of_a_query_share_is_computed_once(self) -> None:
        pairs, expected = read_pairs("qwen3_reranker")
        with opened(reranker_dir("qwen3_reranker")) as reranker:
            query = pairs[12][0]
            same = [i for i, pair in enumerate(pairs) if pair[0] == query]
            assert farthest(score(reranker, [pairs[i] for i in same]), expected[same]) < 1e-5
            (kept,) = reranker._engine.prompts._kept
            rows = reranker._tokenizer.encode([(query, "water")])
            # The query itself is part of what is kept.
            assert len(kept) > len(rows.beginnings[0])

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["qwen3_reranker", "qwen3_reranker_untied"])
    @pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
    def test_quantized_weights(self, name: str, gpu: bool, tmp_path: Path) -> None:
        """As in mlx-community's conversions: the answers' rows are quantized too."""
        pairs, expected = read_pairs(name)
        folder = copy_reranker(name, tmp_path, quantization={"group_size": 32, "bits": 8})
        stored = mx.load(str(folder / "model.safetensors"))
        assert isinstance(stored, dict)
        tensors: dict[str, mx.array] = {}
        for key, value in stored.items():
            if value.ndim == 2:
                parts = mx.quantize(value, 32, 8)
                tensors |= {key.replace("weight", part): each for part, each in zip(_PARTS, parts, strict=True)}
            else:
                tensors[key] = value
        mx.save_safetensors(str(folder / "model.safetensors"), tensors, {"format": "mlx"})
        with opened(folder, gpu=gpu) as reranker:
            assert np.abs(score(reranker, pairs) - expected).max() < 0.03

    @pytest.mark.slow
    @pytest.mark.parametrize("single", [False, True], ids=["two", "one"])
    def test_a_module_may_name_other_answers(self, single: bool, tmp_path: Path) -> None:
        """Two as in Qwen's own folder, one as in zerank's."""
        pairs, expected = read_pairs("qwen3_reranker")
        folder = copy_reranker("qwen3_reranker", tmp_path)
        with opened(folder) as reranker:
            no, yes = reranker.checkpoint.dense[0].rows
        modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.Transformer"}]
        modules += [{"idx": 1, "name": "1", "path": "1_LogitScore", "type": "sentence_transformers.x.LogitScore"}]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "README.md").unlink()
        edit_json(
            folder / "1_LogitScore" / "config.json",
            true_token_id=no if not single else yes,
            false_token_id=None if single else yes,
        )
        with opened(folder) as reranker:
            scores = score(reranker, pairs)
        if not single:
            # The answers changed places.
            assert farthest(scores, 1 - expected) < 1e-5
        else:
            assert farthest(scores, expected) > 1e-4

    def test_it_is_recognized_by_its_card_alone(self, tmp_path: Path) -> None:
        folder = copy_reranker("qwen3_reranker", tmp_path)
        (folder / "README.md").write_text("---\nbase_model: Qwen/Qwen3-Reranker-0.6B\n---\n")
        assert read_cross_encoder(folder).asks is not None
        assert read_cross_encoder(folder).max_tokens == 360
