"""Long texts are shortened before tokenization without changing their tokens."""

from __future__ import annotations

import resource
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.inference.tokenizer import TextTokenizer
from akidb_mlx_plugin.inference.tokenizer_bounds import TextBounds
from akidb_mlx_plugin.inference.tokenizer_loading import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
# WordPiece; byte-level BPE; the same with Qwen's pattern; Gemma's BPE; Unigram with and without splits at spaces.
KINDS = ("bert", "eurobert", "qwen2", "gemma3_text", "xlm_roberta", "t5", "albert", "roberta")
# Where a cut could go wrong: words, blanks, contractions, marks, ideographs, kana, Hangul, emoji, special tokens.
PARTS = (
    *(
        "the ",
        "Quick ",
        "brown fox",
        " jumps",
        " over",
        "ing",
        "'re ",
        "'",
        "I'm a",
        "e",
        "x",
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n",
    ),
    *(
        "12,345",
        ".",
        "!?",
        "-",
        "_",
        "\u0301",
        "e\u0301",
        "café ",
        "Straße ",
        "ﬁ",
        "Привет ",
        "мир",
        "東京",
        "は",
        "日本の首都",
        "。",
    ),
    *(
        "한국어 ",
        "서울",
        "مرحبا ",
        "नमस्ते ",
        "กำ",
        "👩‍👩‍👧",
        "▁",
        "``",
        "\u200b",
        "\u00a0",
        "İ",
        "ΑΣ ",
        "\x00",
        "\uff1cpad\uff1e",
    ),
    *(
        "<s>",
        "</s>",
        "[SEP]",
        "[MASK]",
        " <mask> ",
        "<|endoftext|>",
        "<bos>",
        "<eos>",
        "<pad>",
        "<extra_id_0>",
        "<|im_end|>",
    ),
)


@cache
def load(kind: str) -> Tokenizer:
    return load_tokenizer(GOLDEN / kind / "model").tokenizer


def assert_same(tokenizer: Tokenizer, text: str, room: int, side: str) -> str:
    tokenizer.enable_truncation(room, direction=side)
    part = TextBounds(tokenizer, room, side).shorten(text)
    whole, short = tokenizer.encode(text), tokenizer.encode(part)
    assert short.ids == whole.ids
    assert bool(short.overflowing) == bool(whole.overflowing)
    return part


@pytest.mark.slow
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    room=st.integers(3, 24),
    before=st.lists(st.sampled_from(PARTS), min_size=20, max_size=60),
    middle=st.lists(st.sampled_from(PARTS), min_size=20, max_size=60),
    times=st.integers(3, 12),
)
def test_the_same_tokens(kind: str, side: str, room: int, before: list[str], middle: list[str], times: int) -> None:
    text = "".join(before) + "".join(middle) * times + "".join(before)
    assert_same(load(kind), text, room, side)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(text=st.text(min_size=60, max_size=200), room=st.integers(3, 12))
def test_the_same_tokens_of_any_text(kind: str, side: str, text: str, room: int) -> None:
    assert_same(load(kind), text * 12, room, side)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_prose_is_cut(kind: str, side: str) -> None:
    prose = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. " * 2000
    assert len(assert_same(load(kind), prose, 16, side)) < 2000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "eurobert", "qwen2"])
def test_ideographs_are_cut(kind: str) -> None:
    assert len(assert_same(load(kind), "東京は日本の首都です。人口が多い都市である、" * 1000, 16, "right")) < 3000


def test_short_texts_are_left_alone() -> None:
    bounds = TextBounds(load("bert"), 16, "right")
    text = "a b " * (bounds.least // 2)
    assert bounds.shorten(text) is text


@pytest.mark.parametrize(
    "change",
    [
        lambda t: setattr(t, "normalizer", normalizers.Replace("a b", "c")),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.CharDelimiterSplit("b")),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Split(" ", "merged_with_previous")),
    ],
    ids=["letters replaced", "a part that is not known", "spaces before words"],
)
def test_nothing_is_cut_where_it_cannot_be_told(change: object) -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, " ": 2}, []))
    change(tokenizer)  # type: ignore[operator]
    text = "a b " * 1000
    assert assert_same(tokenizer, text, 8, "right") is text


def test_a_token_that_spans_words_is_not_cut() -> None:
    vocabulary = {"a": 0, "b": 1, " ": 2, "a ": 3, "a b": 4}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", " "), ("a ", "b")]))
    text = "a b" * 1000
    # Only between b and a, which no token spans.
    assert assert_same(tokenizer, text, 8, "right").endswith("b")
    del vocabulary["a b"]
    tokenizer.model = models.BPE(vocabulary, [("a", " ")])
    assert len(assert_same(tokenizer, text, 8, "right")) < 200


def test_megabytes_take_little_memory() -> None:
    tokenizer = TextTokenizer(GOLDEN / "bert" / "model", 48)
    tokenizer.encode(["warm up"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = tokenizer.encode(["word " * 1_000_000])
    assert len(rows.ids[0]) == 48
    assert rows.truncated == 1
    # In KiB; 2 GB without a cut.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_panic_is_the_texts_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """Like pyo3's: not an Exception."""

    def give_up(texts: list[str], *, add_special_tokens: bool) -> None:
        raise PanicException("called `Result::unwrap()` on an `Err` value:\n retry-limit-in-match over")

    tokenizer = TextTokenizer(GOLDEN / "bert" / "model", 48)
    monkeypatch.setattr(tokenizer, "_tokenizer", type("Broken", (), {"encode_batch_fast": staticmethod(give_up)})())
    with pytest.raises(InvalidInputError, match=r"cannot read one of the texts: called .* value: retry-limit"):
        tokenizer.encode(["a"])
