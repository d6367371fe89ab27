"""Reading a checkpoint folder's settings, in every layout, and rejecting unsupported ones."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from golden_models import GOLDEN, NAMES

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.families import FAMILIES, Family
from akidb_mlx_plugin.checkpoints.head import DenseLayer
from akidb_mlx_plugin.checkpoints.loading import load_model
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.hub.files import digest_of_folder
from akidb_mlx_plugin.hub.registry import ModelSpec, list_models
from akidb_mlx_plugin.nn.pooling import POOLINGS
from akidb_mlx_plugin.pooling_names import POOLING_MODES

SPECS = {spec.name: spec for spec in list_models()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny BERT."""
    shutil.copytree(GOLDEN / "bert" / "model", tmp_path / "m")
    return tmp_path / "m"


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value))


def change(file: Path, **changes: Any) -> None:
    write(file, {**json.loads(file.read_text()), **changes})


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


class TestPrompts:
    def test_by_kind_and_by_task(self) -> None:
        checkpoint = read_checkpoint(GOLDEN / "qwen3" / "model")
        assert checkpoint.prompt_for("query") == "the question of time: "
        assert checkpoint.prompt_for("document") == ""
        assert checkpoint.prompt_for("task") == "some work "
        with pytest.raises(InvalidInputError, match=r"no prompt 'clustering'; it has document, query, task$"):
            checkpoint.prompt_for("clustering")

    def test_a_passage_is_a_document_where_that_has_no_prompt(self, folder: Path) -> None:
        file = folder / "config_sentence_transformers.json"
        change(file, prompts={"query": "q: ", "passage": "p: "})
        assert read_checkpoint(folder).prompt_for("document") == "p: "
        change(file, prompts={"query": "q: ", "passage": "p: ", "document": ""})
        assert read_checkpoint(folder).prompt_for("document") == ""

    @pytest.mark.parametrize(
        ("prompts", "default", "query", "document", "is_said"),
        [
            ({"query": "q: "}, "query", "q: ", "", False),
            ({"query": "q: ", "document": "d: "}, "query", "q: ", "d: ", False),
            ({"document": "d: "}, "document", "", "d: ", False),
            ({"query": "q: ", "any": "x: "}, "any", "q: ", "", True),
            ({"any": "x: "}, "any", "", "", True),
            ({"any": ""}, "any", "", "", False),
            ({"query": "q: "}, "missing", "q: ", "", False),
        ],
    )
    def test_the_default_goes_before_no_other_kind(
        self,
        prompts: dict[str, str],
        default: Any,
        query: str,
        document: str,
        is_said: bool,
        folder: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """As in encode_document and encode_query of sentence-transformers 6.2; plain encode would use it."""
        change(folder / "config_sentence_transformers.json", prompts=prompts, default_prompt_name=default)
        for _ in range(2):
            checkpoint = read_checkpoint(folder)
        assert [checkpoint.prompt_for(kind) for kind in ("query", "document")] == [query, document]
        assert caplog.text.count("default prompt 'any'") == is_said

    def test_of_the_checkpoint_go_before_the_registrys(self, folder: Path) -> None:
        spec = SPECS["gemma-300m-4bit"]
        assert read_checkpoint(folder, spec=spec).prompt_for("query") == "task: search result | query: "
        change(folder / "config_sentence_transformers.json", prompts={"query": "q: ", "document": ""})
        assert read_checkpoint(folder, spec=spec).prompt_for("query") == "q: "


class TestLengths:
    def test_the_setting_of_sentence_transformers_counts(self, folder: Path) -> None:
        change(folder / "sentence_bert_config.json", max_seq_length=30)
        assert read_checkpoint(folder).max_tokens == 30
        # It cannot exceed the number of positions.
        change(folder / "sentence_bert_config.json", max_seq_length=5000)
        assert read_checkpoint(folder).max_tokens == 64

    def test_else_the_tokenizers_and_positions(self, folder: Path) -> None:
        assert read_checkpoint(folder).max_tokens == 48
        change(folder / "tokenizer_config.json", model_max_length=1e30)
        assert read_checkpoint(folder).max_tokens == 64
        (folder / "tokenizer_config.json").unlink()
        assert read_checkpoint(folder).max_tokens == 64
        change(folder / "config.json", max_position_embeddings=None)
        assert read_checkpoint(folder).max_tokens == 512

    def test_some_positions_are_never_used(self, tmp_path: Path) -> None:
        shutil.copytree(GOLDEN / "roberta" / "model", tmp_path / "m")
        change(tmp_path / "m" / "tokenizer_config.json", model_max_length=1e30)
        assert read_checkpoint(tmp_path / "m").max_tokens == 48  # of 50 positions, pad_token_id 1

    def test_the_registrys_where_the_folder_is_silent(self, folder: Path) -> None:
        change(folder / "config.json", max_position_embeddings=100_000)
        assert read_checkpoint(folder, spec=SPECS["qwen3-0.6b-4bit"]).max_tokens == 32768


class TestSimilarity:
    @pytest.mark.parametrize(
        ("named", "expected"),
        [
            ("dot", "dot"),
            ("euclidean", "euclidean"),
            ("manhattan", "manhattan"),
            (None, "cosine"),
            ("maxsim", "cosine"),
        ],
    )
    def test_is_the_checkpoints_and_counts_where_vectors_have_lengths(
        self, named: str | None, expected: str, folder: Path
    ) -> None:
        change(folder / "config_sentence_transformers.json", similarity_fn_name=named)
        info = read_checkpoint(folder).info()
        assert (info.similarity, info.compared_by) == (expected, "cosine")
        assert read_checkpoint(folder).info(normalize=False).compared_by == expected

    def test_is_not_part_of_the_fingerprint(self, folder: Path) -> None:
        """Two collections of the same vectors may use different similarity functions."""
        first = read_checkpoint(folder).info().fingerprint
        change(folder / "config_sentence_transformers.json", similarity_fn_name="dot")
        assert read_checkpoint(folder).info().fingerprint == first


class TestDimensions:
    @staticmethod
    def _of_family(family: Family, default: int) -> Checkpoint:
        spec = ModelSpec("tiny", "org/tiny", default, 32, 48, 1, "MIT", "")
        return replace(read_checkpoint(GOLDEN / "qwen3" / "model", spec=spec), family=family)

    def test_of_a_range(self) -> None:
        checkpoint = self._of_family(Family("org/tiny", dimensions=range(8, 1025)), 16)
        assert [checkpoint.check_dimension(d) for d in (None, 8, 20, 32)] == [16, 8, 20, 32]
        for wrong in (7, 33):
            with pytest.raises(InvalidInputError, match=f"gives 8 to 32 dimensions, not {wrong}"):
                checkpoint.check_dimension(wrong)

    def test_of_a_few(self) -> None:
        checkpoint = self._of_family(Family("org/tiny", dimensions=(8, 16, 32, 64)), 32)
        with pytest.raises(InvalidInputError, match="gives 8 or 16 or 32 dimensions, not 20"):
            checkpoint.check_dimension(20)

    @pytest.mark.parametrize("wrong", [True, 16.0, "16"])
    def test_of_another_kind(self, wrong: Any) -> None:
        with pytest.raises(InvalidInputError, match="whole number"):
            self._of_family(Family("org/tiny", dimensions=(8, 16, 32, 64)), 32).check_dimension(wrong)

    def test_without_training_for_it_there_is_one(self, folder: Path) -> None:
        assert read_checkpoint(folder).allowed_dimensions == (32,)

    def test_of_repositories_that_do_not_say_it(self, folder: Path) -> None:
        change(folder / "config.json", hidden_size=2560)
        assert read_checkpoint(folder, repo="Qwen/Qwen3-Embedding-4B").allowed_dimensions == range(32, 2561)
        change(folder / "config.json", hidden_size=768)
        assert read_checkpoint(folder, repo="google/embeddinggemma-300m").allowed_dimensions == (128, 256, 512, 768)

    def test_of_the_checkpoint_itself(self, folder: Path) -> None:
        change(folder / "config_sentence_transformers.json", truncate_dim=16)
        checkpoint = read_checkpoint(folder)
        assert (checkpoint.default_dimension, checkpoint.allowed_dimensions) == (16, (16, 32))
        change(folder / "config.json", matryoshka_dimensions=[8, 24])
        assert read_checkpoint(folder).allowed_dimensions == (8, 16, 24, 32)


class TestFingerprint:
    def test_is_that_of_the_vectors(self, folder: Path) -> None:
        def fingerprint(**settings: Any) -> str:
            return read_checkpoint(folder).info(**settings).fingerprint

        first = fingerprint()
        assert first == fingerprint() == fingerprint(dimension=32, normalize=True)
        assert first == fingerprint(device="gpu", dtype="bfloat16")
        others = {fingerprint(normalize=False), fingerprint(prompts={"query": "q: "})}
        change(folder / "1_Pooling" / "config.json", include_prompt=False)
        others.add(fingerprint())
        change(folder / "1_Pooling" / "config.json", pooling_mode="cls")
        others.add(fingerprint())
        assert len(others | {first}) == 5
        # A setting equal to the folder's own gives the same vector space.
        assert read_checkpoint(folder, pooling="cls").info().fingerprint == fingerprint()
        assert read_checkpoint(folder, pooling="max").info().fingerprint not in others | {first}

    def test_follows_the_weights_and_not_the_place(self, folder: Path, tmp_path: Path) -> None:
        first = read_checkpoint(folder).info().fingerprint
        shutil.copytree(folder, tmp_path / "elsewhere")
        assert read_checkpoint(tmp_path / "elsewhere").info().fingerprint == first
        with (folder / "model.safetensors").open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"x")
        assert read_checkpoint(folder).info().fingerprint != first

    def test_takes_a_digest_that_is_known(self, folder: Path) -> None:
        assert read_checkpoint(folder, weights_digest="0123456789abcdef").weights_digest == "0123456789abcdef"


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
