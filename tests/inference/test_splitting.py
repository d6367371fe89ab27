"""Splitting long texts: nothing is lost, every piece fits, and ends where a reader would end it."""

from __future__ import annotations

import time
import unicodedata
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from golden_models import GOLDEN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_cases import CASES, write_case

from akidb_mlx_plugin.checkpoints.options import LoadOptions
from akidb_mlx_plugin.checkpoints.reader import read_checkpoint
from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.inference.boundaries import best_end, next_end
from akidb_mlx_plugin.inference.embedder import load_splitter
from akidb_mlx_plugin.inference.splitting import TextSplitter
from akidb_mlx_plugin.inference.tokenizer import TextTokenizer, load_text_tokenizer
from akidb_mlx_plugin.types import TextPiece

BERT = GOLDEN / "bert" / "model"
# One checkpoint of each kind of tokenizer: WordPiece, Unigram, byte-level BPE, BPE with byte fallback, plain.
CHECKPOINTS = ("bert", "xlm_roberta", "qwen3", "gemma3_text", "modernbert", "static_embedding", "t5", "mpnet", "llama")
PROMPT = "title: none | text: "
WORDS = st.sampled_from(
    [
        *("a", "the", "house", "Straße", "naïve", "e\u0301", "日本語", "東京。", "한국어", "ไทย", "İ", "ﬁ", "ﷺ"),
        *("👨\u200d👩\u200d👧", "🇩🇪", "👍🏽", "x" * 30, "1234567890", ".", "!", "…", "<s>", "[SEP]"),
        *("\n", "\n\n", "\r\n", " ", "   ", "\t", "\u00a0", "\u200b", "\x00"),
    ]
)
TEXTS = st.one_of(
    st.lists(WORDS, max_size=60).map(" ".join),
    st.lists(WORDS, max_size=60).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=120),
)


@cache
def tokenizer_of(name: str) -> TextTokenizer:
    # The tiny checkpoints take few tokens.
    return load_text_tokenizer(
        replace(
            read_checkpoint(GOLDEN / name / ("pipeline" if name == "static_embedding" else "model")), max_tokens=128
        )
    )


def check(tokenizer: TextTokenizer, prompt: str, text: str, limit: int) -> list[TextPiece]:
    """Split a text, and check what holds for every split without overlap."""
    pieces = TextSplitter(tokenizer, prompt, "tiny").split(text, max_tokens=limit)
    assert "".join(piece.text for piece in pieces) == text
    assert all(text[piece.start : piece.end] == piece.text != "" for piece in pieces)
    for piece in pieces:
        if not prompt and not tokenizer.count_tokens(piece.text) + tokenizer.special_tokens:
            # Nothing of the text is in the vocabulary of a tokenizer without special tokens.
            continue
        rows = tokenizer.encode([prompt + piece.text])
        assert len(rows.ids[0]) <= limit
        assert rows.truncated == 0
    return pieces


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["", PROMPT], ids=["plain", "prompt"])
@pytest.mark.parametrize("name", CHECKPOINTS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, share=st.floats(0, 1))
def test_no_character_is_lost_and_every_piece_fits(name: str, prompt: str, text: str, share: float) -> None:
    tokenizer = tokenizer_of(name)
    around = tokenizer.count_tokens(prompt) + tokenizer.special_tokens
    longest = tokenizer.room + tokenizer.end_tokens
    # The ligature of 18 letters is one character.
    least = min(around + 40, longest)
    check(tokenizer, prompt, text, round(least + share * (longest - least)))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES))
def test_every_tokenizer_splits(name: str, tmp_path: Path) -> None:
    paragraph = "Paragraph {}. It's naïve, 東京 in e\u0301té 👨\u200d👩\u200d👧!  Two  spaces.\tTab {}"
    text = "\n\n".join(paragraph.format(i, i * 7919) for i in range(30))
    pieces = check(TextTokenizer(write_case(name, tmp_path / "model"), 64), "", text, 64)
    assert len(pieces) > 1


@settings(max_examples=40, deadline=None)
@given(text=TEXTS, overlap=st.integers(0, 20))
def test_overlapping_pieces_cover_the_text(text: str, overlap: int) -> None:
    tokenizer = tokenizer_of("qwen3")
    splitter = TextSplitter(tokenizer, "", "tiny")
    limit = tokenizer.special_tokens + 48
    pieces = splitter.split(text, max_tokens=limit, overlap=overlap)
    assert not text or (pieces[0].start, pieces[-1].end) == (0, len(text))
    for one, other in pairwise(pieces):
        assert one.start < other.start <= one.end < other.end
        assert tokenizer.count_tokens(text[other.start : one.end]) <= overlap
    assert all(len(tokenizer.encode([piece.text]).ids[0]) <= limit for piece in pieces)


def test_overlap_repeats_whole_words() -> None:
    splitter = TextSplitter(tokenizer_of("bert"), "", "tiny")
    text = " ".join(f"word{i}" for i in range(60))
    pieces = splitter.split(text, max_tokens=20, overlap=8)
    repeated = [text[other.start : one.end] for one, other in pairwise(pieces)]
    assert len(repeated) > 2
    assert all(part.startswith("word") for part in repeated)


@pytest.mark.parametrize(
    ("text", "limit", "end"),
    [
        ("One two. Three.\n\nFour five. Six seven", 30, "One two. Three.\n\n"),
        ("Alpha beta gamma delta. Epsilon zeta", 30, "Alpha beta gamma delta. "),
        ("A. alpha beta gamma delta epsilon", 24, "A. alpha beta gamma "),
        ("第一句话。第二句话。第三句话", 12, "第一句话。第二句话。"),
        ("donaudampfschifffahrtsgesellschaft", 10, "donaudampf"),
        ("- one\n- two and more words", 9, "- one\n"),
        ("aaaaaaaa👨‍👩‍👧bbb", 10, "aaaaaaaa"),
        ("ae\u0301e\u0301\u0302x", 4, "ae\u0301"),
        ("ab🇩🇪🇫🇷", 5, "ab🇩🇪"),
        ("ab👍🏽", 3, "ab"),
        ("a\r\nb", 2, "a"),
    ],
    ids=str,
)
def test_where_a_piece_ends(text: str, limit: int, end: str) -> None:
    assert text[: best_end(text, 0, limit)] == end


def test_decomposed_hangul_is_not_cut() -> None:
    text = unicodedata.normalize("NFD", "각각")
    assert [best_end(text, 0, limit) for limit in (3, 4, 5, 6)] == [3, 3, 3, 6]
    assert next_end(text, 0) == 3


@pytest.mark.slow
def test_a_letter_under_more_accents_than_fit_is_cut() -> None:
    text = "e" + "\u0301" * 3000 + " end"
    pieces = check(tokenizer_of("qwen3"), "", text, 60)
    assert pieces[-1].text.endswith("end")


@pytest.mark.slow
def test_a_megabyte_takes_time_in_proportion() -> None:
    sentence = "The quick brown fox, who is 7 years old, jumps over the lazy dog. "
    splitter = TextSplitter(tokenizer_of("bert"), "", "tiny")
    used = []
    for repeats in (400, 1600):
        begun = time.thread_time()
        splitter.split(sentence * repeats)
        used.append(time.thread_time() - begun)
    assert used[1] < 12 * used[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be from 1 to"),
        ({"max_tokens": 100_000}, "max_tokens must be from 1 to"),
        ({"max_tokens": True}, "max_tokens must be from 1 to"),
        ({"max_tokens": 2}, "leaves no room"),
        ({"max_tokens": 32, "overlap": 16}, "from 0 to 15"),
        ({"overlap": -1}, "overlap must be"),
        ({"text": "\ud800"}, "lone surrogate"),
        ({"text": b"bytes"}, "is bytes, not a string"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value.replace(" ", "-"),
)
def test_what_cannot_be_split_is_refused(arguments: dict[str, object], message: str) -> None:
    splitter = load_splitter(BERT, LoadOptions())
    with pytest.raises(InvalidInputError, match=message):
        splitter.split(**{"text": "some text", **arguments})  # type: ignore[arg-type]


def test_the_empty_text_has_no_pieces() -> None:
    assert load_splitter(BERT, LoadOptions()).split("") == []
