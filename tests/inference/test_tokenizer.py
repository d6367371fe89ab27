"""Token rows: end tokens, truncation, prompts, case."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from golden_models import GOLDEN
from tokenizers import Tokenizer

from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.errors import EmbeddingError, InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.hub.registry import list_models
from akidb_mlx_plugin.inference.embedder import Embedder
from akidb_mlx_plugin.inference.tokenizer import TextTokenizer, TokenRows

END = 0  # end token of the tiny Qwen3, also its padding token; "<|im_end|>", its eos_token, is 2


def folder_of(name: str) -> Path:
    return GOLDEN / name / "model"


def without_template(folder: Path) -> Path:
    """Copy the tiny Qwen3's tokenizer as first released upstream: without an end token."""
    shutil.copytree(folder_of("qwen3"), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    tokenizer["padding"] = {
        "strategy": {"Fixed": 20},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


class TestTheEndOfATextOfQwen3:
    TEXTS = ("", "a", "the water of the river", "stone " * 100)

    def test_is_there_once_whether_or_not_the_template_puts_it(self, tmp_path: Path) -> None:
        with_template = TextTokenizer(folder_of("qwen3"), 48, end_token="<|endoftext|>").encode(self.TEXTS)
        appended = TextTokenizer(without_template(tmp_path / "m"), 48, end_token="<|endoftext|>").encode(self.TEXTS)
        assert with_template.ids == appended.ids
        assert with_template.truncated == appended.truncated == 1
        for row in appended.ids:
            assert row[-1] == END
            assert row.count(END) == 1
        assert [len(row) for row in appended.ids[:2]] == [1, 2]
        assert len(appended.ids[3]) == 48

    def test_is_missed_without_care(self, tmp_path: Path) -> None:
        rows = TextTokenizer(without_template(tmp_path / "m"), 48).encode(["a"])
        assert END not in rows.ids[0]

    def test_is_asked_for_by_the_family_of_the_registrys_repository(self) -> None:
        (spec,) = [spec for spec in list_models() if spec.name == "qwen3-0.6b-4bit"]
        assert read_checkpoint(folder_of("qwen3"), spec=spec).end_token == "<|endoftext|>"

    def test_is_an_error_where_the_tokenizer_has_no_such_token(self) -> None:
        with pytest.raises(ModelNotFoundError, match="endoftext"):
            TextTokenizer(folder_of("bert"), 48, end_token="<|endoftext|>")


def test_a_text_of_gemma_begins_and_ends() -> None:
    rows = TextTokenizer(folder_of("gemma3_text"), 48).encode(["", "the river", "stone " * 100]).ids
    assert [(row[0], row[-1]) for row in rows] == [(2, 1)] * 3
    assert len(rows[0]) == 2
    assert len(rows[2]) == 48


def test_nothing_is_padded_and_long_texts_are_counted(minilm_dir: Path) -> None:
    # This tokenizer.json sets padding and truncation to 128.
    tokenizer = TextTokenizer(minilm_dir, 256)
    rows = tokenizer.encode(["", "hello", "x " * 254, "x " * 255])
    assert [len(row) for row in rows.ids] == [2, 3, 256, 256]
    assert rows.truncated == 1


@pytest.mark.parametrize("name", ["bert", "roberta", "qwen3", "gemma3_text", "llama"])
@pytest.mark.parametrize("prompt", ["the question of time: ", "paper", ""])
def test_a_prompt_is_as_long_as_what_it_adds(name: str, prompt: str) -> None:
    tokenizer = TextTokenizer(folder_of(name), 48)
    plain = Tokenizer.from_file(str(folder_of(name) / "tokenizer.json"))
    opening = {"qwen3": 0}.get(name, 1)
    expected = opening + len(plain.encode(prompt, add_special_tokens=False).ids) if prompt else 0
    assert tokenizer.prompt_length(prompt) == expected


def test_case_is_folded_where_it_is_asked_for() -> None:
    plain, folded = (TextTokenizer(folder_of("roberta"), 48, lowercase=lowercase) for lowercase in (False, True))
    texts = ["The RIVER", "ÉTÉ"]
    assert folded.encode(texts).ids == plain.encode(["the river", "été"]).ids != plain.encode(texts).ids
    # A special token is kept.
    assert folded.encode(["<MASK> <mask>"]).ids[0].count(4) == plain.encode(["<mask>"]).ids[0].count(4)


def test_a_text_without_any_token_is_refused(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(without_template(tmp_path / "m"), 48)
    with pytest.raises(InvalidInputError, match="text 1 has no tokens"):
        tokenizer.encode(["a", ""])


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no tokenizer\.json.*fast tokenizer"):
        TextTokenizer(tmp_path, 48)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json cannot be read"):
        TextTokenizer(tmp_path, 48)


class TestIdsBeyondTheTable:
    """The real EmbeddingGemma has a token `<image_soft_token>` one past its table; MLX would read out of bounds."""

    TEXTS = ("the <image_soft_token> river", "<image_soft_token>", "the river")

    def test_are_not_made_by_what_is_typed(self, tmp_path: Path) -> None:
        folder = tmp_path / "m"
        shutil.copytree(folder_of("gemma3_text"), folder)
        rows = json.loads((folder / "config.json").read_text())["vocab_size"]
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.add_tokens([f"<unused{i}>" for i in range(rows - tokenizer.get_vocab_size())])
        tokenizer.add_special_tokens(["<image_soft_token>"])
        assert tokenizer.token_to_id("<image_soft_token>") == rows
        tokenizer.save(str(folder / "tokenizer.json"))
        with Embedder.load(folder) as changed, Embedder.load(folder_of("gemma3_text")) as plain:
            np.testing.assert_array_equal(changed.embed(self.TEXTS).embeddings, plain.embed(self.TEXTS).embeddings)

    def test_are_refused_with_a_vocabulary_that_is_larger(self, tmp_path: Path) -> None:
        folder = tmp_path / "m"
        shutil.copytree(folder_of("bert"), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
        with pytest.raises(ModelNotFoundError, match=r"the vocabulary goes up to id \d+ .* 100 rows"):
            Embedder.load(folder)

    def test_are_refused_with_a_table_that_is_smaller_than_it_says(self, tmp_path: Path) -> None:
        folder = tmp_path / "m"
        shutil.copytree(folder_of("bert"), folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 1}))
        with pytest.raises(ModelNotFoundError, match=r"word_embeddings\.weight of shape \(448, \d+\), expected \(449"):
            Embedder.load(folder)

    def test_stop_before_the_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with Embedder.load(folder_of("bert")) as embedder:
            rows = json.loads((folder_of("bert") / "config.json").read_text())["vocab_size"]
            monkeypatch.setattr(TextTokenizer, "encode", lambda self, texts: TokenRows([[1], [2, rows]], [False] * 2))
            with pytest.raises(EmbeddingError, match=rf"token id {rows}, .* embeddings for {rows}"):
                embedder.embed(["a", "b"])
            monkeypatch.setattr(TextTokenizer, "encode", lambda self, texts: TokenRows([[1], [rows - 1]], [False] * 2))
            assert embedder.embed(["a", "b"]).embeddings.shape == (2, 32)
