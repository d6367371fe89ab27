"""Reading a checkpoint folder's settings, in every layout, and rejecting unsupported ones."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoint_helpers import change
from golden_models import GOLDEN

from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint
from akidb_mlx_plugin.checkpoints.families import Family
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.hub.registry import ModelSpec, list_models

SPECS = {spec.name: spec for spec in list_models()}


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
        with pytest.raises(InvalidInputError, match="an integer"):
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
