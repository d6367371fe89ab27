"""Reading a checkpoint folder's settings, in every layout, and rejecting unsupported ones."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoint_helpers import change, write
from golden_models import GOLDEN, NAMES

from akidb_mlx_plugin.checkpoints.families import FAMILIES
from akidb_mlx_plugin.checkpoints.head import DenseLayer
from akidb_mlx_plugin.checkpoints.loading import load_model
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.hub.files import digest_of_folder
from akidb_mlx_plugin.hub.registry import ModelSpec, list_models
from akidb_mlx_plugin.nn.pooling import POOLINGS
from akidb_mlx_plugin.pooling_names import POOLING_MODES

SPECS = {spec.name: spec for spec in list_models()}


def module(kind: str, path: str = "") -> dict[str, str]:
    return {"idx": "0", "name": "0", "path": path, "type": f"sentence_transformers.models.{kind}"}


def pipeline(folder: Path, *kinds: str) -> None:
    """Write modules.json as sentence-transformers did for years."""
    entries = [module(kind, "" if kind == "Transformer" else f"{i}_{kind}") for i, kind in enumerate(kinds)]
    write(folder / "modules.json", entries)


def bare(folder: Path) -> Path:
    (folder / "modules.json").unlink()
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_every_tiny_checkpoint_is_read(name: str) -> None:
    checkpoint = read_checkpoint(GOLDEN / name / "model")
    tokenizer = json.loads((GOLDEN / name / "model" / "tokenizer_config.json").read_text())
    assert checkpoint.max_tokens == tokenizer["model_max_length"]
    assert checkpoint.pool_prompt is (name != "bert_all_pooling")
    assert checkpoint.normalize is any((GOLDEN / name / "model").glob("*_Normalize"))
    assert checkpoint.name == checkpoint.repo == str(GOLDEN / name / "model")


class TestPooling:
    def test_of_the_newest_layout(self) -> None:
        assert read_checkpoint(GOLDEN / "bert_all_pooling" / "model").pooling == (
            "cls",
            "max",
            "mean",
            "mean_sqrt_len_tokens",
            "weightedmean",
            "lasttoken",
        )

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            (["pooling_mode_mean_tokens"], ("mean",)),
            (["pooling_mode_lasttoken"], ("lasttoken",)),
            (["pooling_mode_mean_tokens", "pooling_mode_cls_token"], ("cls", "mean")),
            ([], ("mean",)),
        ],
    )
    def test_of_the_older_layout(self, flags: list[str], expected: tuple[str, ...], folder: Path) -> None:
        old = {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": False, **dict.fromkeys(flags, True)}
        write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **old})
        checkpoint = read_checkpoint(folder)
        assert checkpoint.pooling == expected
        assert checkpoint.native_dimension == 32 * len(expected)
        assert checkpoint.pool_prompt

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("bert", "mean"),
            ("xlm_roberta", "mean"),
            ("modernbert", "mean"),
            ("qwen3", "lasttoken"),
            ("qwen3_both_ways", "mean"),
            ("gemma3_text", "mean"),
            ("gemma3_text_causal", "lasttoken"),
            ("llama", "lasttoken"),
        ],
    )
    def test_of_a_bare_folder_is_that_of_its_architecture_and_said_once(
        self, name: str, expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        shutil.copytree(GOLDEN / name / "model", tmp_path / "m")
        checkpoint = read_checkpoint(bare(tmp_path / "m"))
        assert checkpoint.pooling == (expected,)
        assert checkpoint.normalize
        with caplog.at_level(logging.WARNING):
            load_model(checkpoint, device="cpu")
            load_model(checkpoint, device="cpu")
        assert caplog.text.count(f"using {expected} pooling") == 1
        assert "pooling=" in caplog.text

    def test_of_a_bare_folder_is_the_registrys_where_there_is_an_entry(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            checkpoint = read_checkpoint(bare(folder), spec=SPECS["qwen3-0.6b-4bit"])
        assert checkpoint.pooling == ("lasttoken",)
        assert not caplog.records

    def test_of_families_are_known(self) -> None:
        assert {family.pooling for family in FAMILIES} <= POOLINGS.keys() == set(POOLING_MODES)

    def test_the_names_are_those_that_are_computed(self) -> None:
        assert tuple(POOLINGS) == POOLING_MODES

    @pytest.mark.parametrize("chosen", ["cls+max", ["cls", "max"], ("cls", "max")])
    def test_of_the_caller_goes_before_the_folders(self, chosen: Any, folder: Path) -> None:
        change(folder / "1_Pooling" / "config.json", include_prompt=False)
        checkpoint = read_checkpoint(folder, pooling=chosen)
        assert (checkpoint.pooling, checkpoint.pool_prompt) == (("cls", "max"), False)
        assert (checkpoint.native_dimension, checkpoint.info().pooling) == (64, "cls+max")

    def test_of_the_caller_goes_before_convention_and_silences_it(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert read_checkpoint(bare(folder), pooling="cls").pooling == ("cls",)
        assert read_checkpoint(folder, pooling="max", spec=SPECS["qwen3-0.6b-4bit"]).pooling == ("max",)
        assert not caplog.records

    @pytest.mark.parametrize("wrong", ["last", "", "mean+", [], [3], 3, ["mean", "avg"]])
    def test_of_the_caller_has_to_be_known(self, wrong: Any, folder: Path) -> None:
        known = "cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken"
        with pytest.raises(InvalidInputError, match=f"pooling must be one of {known}"):
            read_checkpoint(folder, pooling=wrong)

    def test_of_the_caller_has_to_fit_dense_layers(self, folder: Path) -> None:
        pipeline(folder, "Transformer", "Pooling", "Dense")
        write(folder / "2_Dense" / "config.json", {"in_features": 32, "out_features": 8})
        assert read_checkpoint(folder, pooling="cls").dense == read_checkpoint(folder).dense
        with pytest.raises(InvalidInputError, match=r"'cls\+mean' gives vectors of 2 parts.*dense layers"):
            read_checkpoint(folder, pooling="cls+mean")

    def test_several_of_the_caller_are_cut_to_no_length_of_the_model(self, folder: Path) -> None:
        """Matryoshka lengths apply to a model's own vectors: truncation would keep only the first pooling mode."""
        change(folder / "config_sentence_transformers.json", truncate_dim=16)
        spec = ModelSpec("tiny", "org/tiny", 16, 32, 48, 1, "MIT", "")
        for entry in (None, spec):
            several = read_checkpoint(folder, pooling="cls+mean", spec=entry)
            assert (several.default_dimension, several.allowed_dimensions) == (64, (64,))
            assert read_checkpoint(folder, pooling="cls", spec=entry).default_dimension == 16


class TestModules:
    def test_the_order_of_years(self, folder: Path) -> None:
        pipeline(folder, "Transformer", "Pooling", "Dense", "Normalize")
        dense = {"in_features": 32, "out_features": 8, "activation_function": "torch.nn.modules.activation.Tanh"}
        write(folder / "2_Dense" / "config.json", dense)
        checkpoint = read_checkpoint(folder)
        assert checkpoint.dense == (DenseLayer(folder / "2_Dense", 32, 8, bias=True, activation="tanh"),)
        assert checkpoint.native_dimension == 8
        assert checkpoint.normalize

    def test_without_normalize(self, folder: Path) -> None:
        pipeline(folder, "Transformer", "Pooling")
        assert not read_checkpoint(folder).normalize

    def test_dropout_does_nothing(self, folder: Path) -> None:
        entries = [module("Transformer"), module("Pooling", "1_Pooling"), module("Dropout", "2_Dropout")]
        write(folder / "modules.json", entries)
        assert not read_checkpoint(folder).normalize

    def test_the_transformer_in_a_folder_of_its_own(self, folder: Path) -> None:
        inner = folder / "0_Transformer"
        inner.mkdir()
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            (folder / name).rename(inner / name)
        write(folder / "modules.json", [module("Transformer", "0_Transformer"), module("Pooling", "1_Pooling")])
        write(inner / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": True})
        checkpoint = read_checkpoint(folder)
        assert (checkpoint.root, checkpoint.folder) == (folder, inner)
        assert (checkpoint.max_tokens, checkpoint.lowercase) == (20, True)
        assert checkpoint.weights_digest == digest_of_folder(folder)

    @pytest.mark.parametrize(
        ("kinds", "message"),
        [
            (["Transformer", "Pooling", "LSTM"], "LSTM"),
            (["Transformer", "CNN", "Pooling"], "CNN"),
            (["Transformer"], "lists the modules"),
            (["Pooling", "Transformer"], "lists the modules"),
            (["Transformer", "Pooling", "Pooling"], "lists the modules"),
            ([], "lists the modules"),
        ],
    )
    def test_others_are_refused(self, kinds: list[str], message: str, folder: Path) -> None:
        pipeline(folder, *kinds)
        with pytest.raises(ModelNotFoundError, match=message):
            read_checkpoint(folder)

    def test_one_that_works_on_tokens_is_refused(self, folder: Path) -> None:
        pipeline(folder, "Transformer", "Pooling", "Dense")
        settings = {"in_features": 32, "out_features": 8, "module_input_name": "token_embeddings"}
        write(folder / "2_Dense" / "config.json", settings)
        with pytest.raises(ModelNotFoundError, match=r"has an unsupported input or output.*token_embeddings"):
            read_checkpoint(folder)

    @pytest.mark.parametrize("value", [{}, [1], [{"type": "x"}], "x", [module("Transformer", "../..")]])
    def test_nonsense_is_refused(self, value: Any, folder: Path) -> None:
        write(folder / "modules.json", value)
        with pytest.raises(ModelNotFoundError, match=r"modules\.json"):
            read_checkpoint(folder)

    def test_a_dense_layer_without_sides_is_refused(self, folder: Path) -> None:
        pipeline(folder, "Transformer", "Pooling", "Dense")
        write(folder / "2_Dense" / "config.json", {"in_features": 32})
        with pytest.raises(ModelNotFoundError, match="out_features"):
            read_checkpoint(folder)


class TestRefusals:
    def test_no_config(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
            read_checkpoint(tmp_path)

    @pytest.mark.parametrize("text", ["", "{", "[]", '"x"'])
    def test_an_unreadable_config(self, text: str, folder: Path) -> None:
        (folder / "config.json").write_text(text)
        with pytest.raises(ModelNotFoundError, match=r"config\.json"):
            read_checkpoint(folder)

    def test_code_of_its_own(self, folder: Path) -> None:
        change(folder / "config.json", auto_map={"AutoModel": "org/repo--modeling.Model"})
        with pytest.raises(ModelNotFoundError, match="auto_map"):
            read_checkpoint(folder)

    def test_an_adapter(self, folder: Path) -> None:
        write(folder / "adapter_config.json", {})
        with pytest.raises(ModelNotFoundError, match="merge"):
            read_checkpoint(folder)

    @pytest.mark.parametrize("changes", [{"model_type": None}, {"hidden_size": None}])
    def test_no_text_encoder(self, changes: dict[str, Any], folder: Path) -> None:
        change(folder / "config.json", **changes)
        with pytest.raises(ModelNotFoundError, match="is it a text encoder"):
            read_checkpoint(folder)

    @pytest.mark.parametrize(
        ("name", "changes", "message"),
        [
            ("config.json", {"hidden_size": "32"}, "hidden_size"),
            ("config.json", {"max_position_embeddings": -1}, "max_position_embeddings"),
            ("1_Pooling/config.json", {"pooling_mode": 5}, "pooling_mode"),
            ("config_sentence_transformers.json", {"prompts": {"query": 3}}, r"prompts\.query"),
            ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim"),
            ("tokenizer_config.json", {"model_max_length": "512"}, "model_max_length"),
        ],
    )
    def test_a_value_of_another_type_is_named_with_its_file(
        self, name: str, changes: dict[str, Any], message: str, folder: Path
    ) -> None:
        change(folder / name, **changes)
        with pytest.raises(ModelNotFoundError, match=message) as caught:
            read_checkpoint(folder)
        assert Path(name).name in str(caught.value)
