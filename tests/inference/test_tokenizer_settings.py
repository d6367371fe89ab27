"""A folder's tokenizer matches transformers': its class, its settings, its added tokens."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tokenizer_cases import CASES, GOLDEN, change, ids_of, write_case
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.inference.tokenizer import TextTokenizer


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_transformers(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = CASES[name]
    tokenizer = TextTokenizer(write_case(name, tmp_path), GOLDEN["max_tokens"])
    for text, expected in zip(GOLDEN["texts"], case["ids"], strict=True):
        if expected:
            assert tokenizer.encode([text]).ids == [expected], text
        else:
            with pytest.raises(InvalidInputError, match="no token"):
                tokenizer.encode([text])
    lengths = [tokenizer.prompt_length(prompt) for prompt in GOLDEN["prompts"]]
    assert lengths == case["prompt_lengths"]
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("bert, lower case", "bert, cased"),
        ("bert, lower case", "bert, lower case with accents"),
        ("bert, lower case", "bert, Chinese characters in words"),
        ("bert, cased", "bert, cased without accents"),
        ("bert, lower case", "bert, cut on the left"),
        ("bert, lower case", "bert, an added token"),
        ("bert, lower case", "bert, special tokens split"),
        ("roberta", "roberta, a space before"),
        ("xlm-roberta", "xlm-roberta, no space before"),
        ("llama", "llama, legacy"),
        ("qwen, vocab.json and merges.txt", "qwen, vocab.json and merges.txt, an end"),
    ],
)
def test_the_settings_of_the_cases_show(name: str, other: str) -> None:
    assert CASES[name]["tokenizer"] == CASES[other]["tokenizer"]
    assert CASES[name]["ids"] != CASES[other]["ids"]


class TestBeginningAndEnd:
    """transformers 4 follows these settings for some classes; 5 follows tokenizer.json."""

    @pytest.mark.parametrize(
        ("name", "settings", "expected"),
        [
            ("llama", {"add_eos_token": True}, [1, 2]),
            ("llama", {"add_bos_token": False, "add_eos_token": True}, [2]),
            ("llama 3, whose class is ignored", {"add_eos_token": True}, [0, 1]),
            ("gemma", {"add_eos_token": False}, [2]),
            ("gemma", {"add_bos_token": True}, [2, 1]),
            ("llama's class in a mistral, which is ignored", {"add_eos_token": True}, [1, 2]),
            ("qwen", {"add_eos_token": False}, [0]),
            ("bert, cased", {"add_eos_token": True}, [2, 3]),
        ],
    )
    def test_are_put_by_the_classes_that_did(
        self, name: str, settings: dict[str, bool], expected: list[int], tmp_path: Path
    ) -> None:
        change(write_case(name, tmp_path) / "tokenizer_config.json", **settings)
        assert ids_of(tmp_path, "") == [expected]

    def test_are_put_by_the_code_of_gte_qwen2(self, tmp_path: Path) -> None:
        folder = write_case("qwen", tmp_path)
        code = {"AutoTokenizer": ["tokenization_qwen.Qwen2Tokenizer", "tokenization_qwen.Qwen2TokenizerFast"]}
        change(folder / "tokenizer_config.json", auto_map=code, add_eos_token=True)
        # Its end token, <|im_end|>, instead of the template's <|endoftext|>.
        assert ids_of(folder, "") == [[2]]

    def test_are_refused_where_there_is_no_such_token(self, tmp_path: Path) -> None:
        folder = write_case("qwen", tmp_path)
        code = {"AutoTokenizer": ["tokenization_qwen.Qwen2Tokenizer", None]}
        change(folder / "tokenizer_config.json", auto_map=code, add_bos_token=True)
        with pytest.raises(ModelNotFoundError, match="add_bos_token is true, but there is no bos_token"):
            TextTokenizer(folder, 64)


class TestATokenizerThatItsClassWouldChange:
    """Public reports: transformers 5 reads such folders differently from 4.x, which saved them."""

    def test_stays_with_another_kind_of_vocabulary(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        folder = write_case("xlm-roberta", tmp_path)
        expected = ids_of(folder, "The River runs by")
        # paraphrase-multilingual-MiniLM-L12-v2 named no class, and its model type is bert.
        change(folder / "tokenizer_config.json", tokenizer_class=None, do_lower_case=True, tokenize_chinese_chars=True)
        change(folder / "config.json", model_type="bert")
        assert ids_of(folder, "The River runs by") == expected
        assert not caplog.records
        change(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer")
        assert ids_of(folder, "The River runs by") == expected
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "BertTokenizer" in record.getMessage()
        assert str(folder) in record.getMessage()

    def test_stays_with_another_way_to_divide_texts(self, tmp_path: Path) -> None:
        folder = write_case("gpt2, vocab.json and merges.txt", tmp_path)
        whole = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
        whole.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        whole.save(str(folder / "tokenizer.json"))
        assert ids_of(folder, "on 42 pages") == [whole.encode("on 42 pages").ids]
        # A changed setting that the file cannot follow is followed by the class.
        change(folder / "tokenizer_config.json", add_prefix_space=True)
        (folder / "tokenizer.json").rename(folder / "other.json")
        of_class = ids_of(folder, "on 42 pages")
        (folder / "other.json").rename(folder / "tokenizer.json")
        assert ids_of(folder, "on 42 pages") == of_class

    def test_does_what_its_settings_say(self, tmp_path: Path) -> None:
        words = {word: i for i, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "water", "Water", "stone,"])}
        whole = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        whole.normalizer = normalizers.BertNormalizer(lowercase=False)
        whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        whole.save(str(tmp_path / "tokenizer.json"))
        change(tmp_path / "tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=True)
        assert ids_of(tmp_path, "Water Stone,") == [[4, 6]]
        change(tmp_path / "tokenizer_config.json", do_lower_case=False)
        assert ids_of(tmp_path, "Water Stone,") == [[5, 0]]

    def test_is_the_class_s_where_it_cannot_do_what_a_setting_says(self, tmp_path: Path) -> None:
        folder = write_case("bert, lower case", tmp_path)
        whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        whole |= {"normalizer": None, "pre_tokenizer": {"type": "WhitespaceSplit"}}
        (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
        assert ids_of(folder, "The River!") == ids_of(
            write_case("bert, lower case", tmp_path / "as it was"), "The River!"
        )


class TestTokensWithoutARow:
    @pytest.mark.parametrize("name", ["plain class, an added token", "bert, an added token"])
    def test_are_ordinary_text(self, name: str, tmp_path: Path) -> None:
        folder = write_case(name, tmp_path)
        rows = json.loads(GOLDEN["tokenizers"]["bert"])["model"]["vocab"]
        (whole,) = ids_of(folder, "[DOC] the [MASK]")
        (kept,) = ids_of(folder, "[DOC] the [MASK]", rows=len(rows) + 1)
        (cut,) = ids_of(folder, "[DOC] the [MASK]", rows=len(rows))
        assert whole == kept
        assert max(whole) == len(rows)
        change(folder / "tokenizer_config.json", added_tokens_decoder={})
        assert [cut] == ids_of(folder, "[DOC] the [MASK]")

    @pytest.mark.parametrize(
        ("name", "token"),
        [("xlm-roberta", "<image_soft_token>"), ("gemma", "<image_soft_token>"), ("bert, cased", "[imagesofttoken]")],
    )
    def test_are_taken_out_of_the_vocabulary_too(self, name: str, token: str, tmp_path: Path) -> None:
        folder = write_case(name, tmp_path)
        plain = ids_of(folder, f"the {token} river")
        whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        rows = len(whole["model"]["vocab"])
        if isinstance(whole["model"]["vocab"], list):
            whole["model"]["vocab"].append([token, 0.0])
        else:
            whole["model"]["vocab"][token] = rows
        properties = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
        whole["added_tokens"].append({"id": rows, "content": token, "special": True, **properties})
        (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
        assert rows in ids_of(folder, f"the {token} river")[0]
        assert ids_of(folder, f"the {token} river", rows=rows) == plain

    def test_leave_no_special_token_behind(self, tmp_path: Path) -> None:
        folder = write_case("bert, an added token", tmp_path)
        change(folder / "tokenizer_config.json", extra_special_tokens=["[DOC]"])
        rows = len(json.loads(GOLDEN["tokenizers"]["bert"])["model"]["vocab"])
        prompt = "the [DOC]"
        assert TextTokenizer(folder, 64).prompt_length(prompt) == 3
        assert TextTokenizer(folder, 64, rows=rows).prompt_length(prompt) > 3

    def test_are_refused_where_every_text_has_one(self, tmp_path: Path) -> None:
        folder = write_case("bert, vocab.txt", tmp_path)
        change(folder / "tokenizer_config.json", sep_token="[END]")
        rows = len(json.loads(GOLDEN["tokenizers"]["bert"])["model"]["vocab"])
        with pytest.raises(
            ModelNotFoundError, match=rf"every text gets the token '\[END\]' with id {rows}.* {rows} rows"
        ):
            TextTokenizer(folder, 64, rows=rows)

    @pytest.mark.parametrize("name", ["bert, cased", "xlm-roberta", "gemma", "roberta, vocab.json and merges.txt"])
    def test_of_the_vocabulary_are_refused(self, name: str, tmp_path: Path) -> None:
        folder = write_case(name, tmp_path)
        size = len(json.loads(GOLDEN["tokenizers"][CASES[name]["tokenizer"]])["model"]["vocab"])
        with pytest.raises(ModelNotFoundError, match=rf"up to id {size - 1} .* has {size - 2} rows"):
            TextTokenizer(folder, 64, rows=size - 2)

    def test_may_lie_far_behind_the_others(self, tmp_path: Path) -> None:
        words = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "the": 3, "river": 99}
        whole = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        whole.save(str(tmp_path / "tokenizer.json"))
        assert ids_of(tmp_path, "the river", rows=100) == [[3, 99]]
        with pytest.raises(ModelNotFoundError, match=r"up to id 99 \(including 'river'.* 50 rows"):
            TextTokenizer(tmp_path, 64, rows=50)


class TestTextsThatAreCutOnTheLeft:
    TEXTS = ("the river", "the river " * 20)

    def test_end_in_the_end_token_that_is_asked_for(self, tmp_path: Path) -> None:
        folder = write_case("llama 3, whose class is ignored", tmp_path)
        change(folder / "tokenizer_config.json", truncation_side="left")
        tokenizer = TextTokenizer(folder, 10, end_token="</s>")
        rows = tokenizer.encode(self.TEXTS)
        whole = TextTokenizer(folder, 500, end_token="</s>").encode(self.TEXTS)
        assert rows.ids[0] == whole.ids[0]
        # The beginning token, the last token of the text, the end token.
        assert rows.ids[1] == [whole.ids[1][0], *whole.ids[1][-9:]]
        assert (rows.truncated, whole.truncated) == (1, 0)

    def test_have_prompts_as_long_as_ever(self, tmp_path: Path) -> None:
        folder = write_case("llama 3, whose class is ignored", tmp_path)
        lengths = [TextTokenizer(folder, 10, end_token=end).prompt_length("the river") for end in (None, "</s>")]
        change(folder / "tokenizer_config.json", truncation_side="left")
        left = [TextTokenizer(folder, 10, end_token=end).prompt_length("the river") for end in (None, "</s>")]
        assert lengths == left == [len(ids_of(folder, "the river")[0])] * 2


@pytest.mark.parametrize(("max_tokens", "fits"), [(3, True), (2, True), (1, False), (0, False)])
def test_a_length_that_special_tokens_exceed(max_tokens: int, fits: bool, tmp_path: Path) -> None:
    folder = write_case("bert, cased", tmp_path)
    if fits:
        assert len(TextTokenizer(folder, max_tokens).encode(["the river runs"]).ids[0]) == max_tokens
    else:
        with pytest.raises(ModelNotFoundError, match=f"allows {max_tokens} tokens"):
            TextTokenizer(folder, max_tokens)
