"""Settings of sentence-transformers' modules: honored, or rejected by name; never ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_helpers import add_dense, change, copy_golden, embed, pipeline, write

from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_golden("bert", tmp_path / "m")


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("package", ["custom_st", "my_pooling", "sentence_transformers_of_mine.models"])
def test_a_strangers_class_of_a_known_name_is_refused(index: int, package: str, folder: Path) -> None:
    entries = json.loads((folder / "modules.json").read_text())
    kind = entries[index]["type"].rpartition(".")[2]
    entries[index]["type"] = f"{package}.{kind}"
    write(folder / "modules.json", entries)
    with pytest.raises(ModelNotFoundError, match=f"{package}.{kind}"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"modality_config": {"text": {"method": "forward", "method_output_name": ["hidden_states", -2]}}},
        {"modality_config": {"text": {"method": "get_text_features", "method_output_name": None}}},
        {"modality_config": {"image": {"method": "forward", "method_output_name": "last_hidden_state"}}},
        {"module_output_name": "scores"},
        {"transformer_task": "fill-mask"},
        {"query_length": 32},
        {"document_length": 16},
        {"query_expansion": {"length": 32}},
        {"processing_kwargs": {"text": {"max_length": 5}}},
        {"tokenizer_args": {"truncation_side": "left"}},
        {"processor_kwargs": {"do_lower_case": True}},
        {"model_args": {"hidden_act": "relu"}},
        {"model_kwargs": ["x"]},
        {"config_args": 5},
        {"max_seq_length": "many"},
        {"max_seq_length": 0},
        {"something_new": 3},
    ],
)
def test_settings_of_the_transformer_that_would_give_other_vectors_are_refused(
    settings: dict[str, Any], folder: Path
) -> None:
    write(folder / "sentence_bert_config.json", settings)
    (name,) = settings
    with pytest.raises(ModelNotFoundError, match=name):
        read_checkpoint(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"max_seq_length": None, "do_lower_case": False},
        {"model_args": {"trust_remote_code": True, "dtype": "bfloat16"}, "tokenizer_args": {}, "config_args": {}},
        {"transformer_task": "feature-extraction", "processing_kwargs": {}, "query_length": None},
        {"unpad_inputs": False},
    ],
)
def test_settings_of_the_transformer_without_effect_are_not(settings: dict[str, Any], folder: Path) -> None:
    before = embed(folder)
    write(folder / "sentence_bert_config.json", settings)
    assert np.array_equal(embed(folder), before)


def test_a_chat_template_is_refused(folder: Path) -> None:
    plain = {"method": "forward", "method_output_name": "last_hidden_state"}
    write(folder / "sentence_bert_config.json", {"modality_config": {"text": plain, "message": {"format": "flat"}}})
    with pytest.raises(ModelNotFoundError, match="chat template"):
        read_checkpoint(folder)


def test_settings_for_config_json_stand_in_for_those_there(folder: Path) -> None:
    before = embed(folder)
    change(folder / "config.json", hidden_act="relu")
    expected = embed(folder)
    assert np.abs(expected - before).max() > 1e-3
    change(folder / "config.json", hidden_act="gelu")
    write(folder / "sentence_bert_config.json", {"config_args": {"hidden_act": "relu", "trust_remote_code": True}})
    assert np.array_equal(embed(folder), expected)


def test_the_first_of_the_settings_files_counts(folder: Path) -> None:
    write(folder / "sentence_albert_config.json", {"max_seq_length": 10})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 20})
    assert read_checkpoint(folder).max_tokens == 20


@pytest.mark.parametrize(
    ("module", "settings"),
    [
        ("1_Pooling", {"pooling_mode": "mean", "token_weights": [1.0]}),
        ("2_Dense", {"module_output_name": "projected"}),
        ("2_Dense", {"module_input_name": "token_embeddings"}),
        ("2_Dense", {"scale": 2.0}),
        ("3_Normalize", {"module_output_name": "unit"}),
        ("3_Normalize", {"p": 1}),
    ],
)
def test_settings_of_other_modules_that_are_not_known_are_refused(
    module: str, settings: dict[str, Any], folder: Path
) -> None:
    pipeline(folder, "Transformer", "Pooling", "Dense", "Normalize")
    add_dense(folder, 2, (32, 16))
    read_checkpoint(folder)
    change(folder / module / "config.json", **settings)
    with pytest.raises(ModelNotFoundError, match=list(settings)[-1]):
        read_checkpoint(folder)


def test_pooling_of_the_caller_comes_first(folder: Path) -> None:
    checkpoint = read_checkpoint(folder, pooling="cls+mean")
    assert (checkpoint.pooling, checkpoint.native_dimension) == (("cls", "mean"), 64)
    assert checkpoint.origins["pooling"] == "the setting pooling"
    assert checkpoint.info().fingerprint != read_checkpoint(folder).info().fingerprint
    with pytest.raises(InvalidInputError, match="'last'"):
        read_checkpoint(folder, pooling="last")
