"""A folder's tokenizer matches transformers': its class, its settings, its added tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizer_cases import change, ids_of, write_case
from tokenizers import Tokenizer, models

from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.inference.tokenizer import TextTokenizer

REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "a class of Python code": (
        "bert, cased",
        "tokenizer_config.json",
        {"tokenizer_class": "BertJapaneseTokenizer"},
        "BertJapaneseTokenizer.*implemented in Python",
    ),
    "a class that is no name": (
        "bert, cased",
        "tokenizer_config.json",
        {"tokenizer_class": ["BertTokenizer"]},
        "tokenizer_class is .*BertTokenizer",
    ),
    "code of its own": (
        "bert, cased",
        "tokenizer_config.json",
        {"auto_map": {"AutoTokenizer": ["my_code.MyTokenizer", None]}},
        "auto_map.*my_code.MyTokenizer",
    ),
    "a patch": (
        "llama's class in a mistral, which is ignored",
        "tokenizer_config.json",
        {"fix_mistral_regex": True},
        "fix_mistral_regex",
    ),
    "files of other versions": (
        "bert, cased",
        "tokenizer_config.json",
        {"fast_tokenizer_files": ["tokenizer.4.0.0.json", "tokenizer.json"]},
        "fast_tokenizer_files.*4.0.0",
    ),
    "case neither true nor false": (
        "bert, cased",
        "tokenizer_config.json",
        {"do_lower_case": "yes"},
        "do_lower_case is 'yes'",
    ),
    "a side": ("bert, cased", "tokenizer_config.json", {"truncation_side": "top"}, "truncation_side is 'top'"),
    "a token": ("bert, cased", "tokenizer_config.json", {"sep_token": 5}, "sep_token holds 5"),
    "extra tokens": (
        "bert, cased",
        "tokenizer_config.json",
        {"extra_special_tokens": [5]},
        "extra_special_tokens holds 5",
    ),
    "extra tokens that are no list": (
        "bert, cased",
        "tokenizer_config.json",
        {"extra_special_tokens": 7},
        "extra_special_tokens is 7, not a list",
    ),
    "no object of tokens": (
        "bert, cased",
        "tokenizer_config.json",
        {"added_tokens_decoder": []},
        "added_tokens_decoder",
    ),
    "an id": (
        "bert, cased",
        "tokenizer_config.json",
        {"added_tokens_decoder": {"x": "[DOC]"}},
        "'x' instead of an id",
    ),
    "dropout": (
        "llama 3, whose class is ignored",
        "tokenizer.json",
        {"model": {"type": "BPE", "dropout": 0.5, "vocab": {"a": 0}, "merges": []}, "added_tokens": []},
        "dropout 0.5",
    ),
    "an unknown token": (
        "bert, vocab.txt",
        "tokenizer_config.json",
        {"unk_token": "<oov>"},
        "no '<oov>', the token for unknown words",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(what: str, tmp_path: Path) -> None:
    name, file, values, message = REFUSED[what]
    change(write_case(name, tmp_path) / file, **values)
    with pytest.raises(ModelNotFoundError, match=message):
        TextTokenizer(tmp_path, 64)


class TestAFolderWithoutTokenizerJson:
    def test_is_refused_where_more_than_a_vocabulary_is_needed(self, tmp_path: Path) -> None:
        folder = write_case("xlm-roberta", tmp_path)
        (folder / "tokenizer.json").rename(folder / "sentencepiece.bpe.model")
        with pytest.raises(ModelNotFoundError, match=r"no tokenizer\.json.*sentencepiece\.bpe\.model.*save_pretrained"):
            TextTokenizer(folder, 64)

    def test_is_refused_where_one_of_its_files_is_missing(self, tmp_path: Path) -> None:
        folder = write_case("roberta, vocab.json and merges.txt", tmp_path)
        (folder / "merges.txt").unlink()
        with pytest.raises(ModelNotFoundError, match=r"no tokenizer\.json"):
            TextTokenizer(folder, 64)

    @pytest.mark.parametrize("content", ["", "{", "[1]"])
    def test_is_refused_where_one_is_damaged(self, content: str, tmp_path: Path) -> None:
        folder = write_case("roberta, vocab.json and merges.txt", tmp_path)
        (folder / "vocab.json").write_text(content)
        with pytest.raises(ModelNotFoundError, match=str(folder)):
            TextTokenizer(folder, 64)


def test_a_text_that_the_vocabulary_has_no_word_for(tmp_path: Path) -> None:
    whole = Tokenizer(models.WordLevel({"river": 0}, unk_token="[UNK]"))
    whole.save(str(tmp_path / "tokenizer.json"))
    assert ids_of(tmp_path, "river") == [[0]]
    with pytest.raises(InvalidInputError, match="cannot read one of the texts"):
        ids_of(tmp_path, "river", "stone")
