"""Shorten long texts before tokenization without changing the tokens that are kept.

A text of megabytes of which a model reads 256 tokens need not be tokenized in full, which takes some 400 bytes of
memory per character. It may be cut wherever the tokens on either side do not depend on the other side. These are

- spaces between two letters, if the tokenizer splits words at spaces, and
- places between any two letters that normalization leaves unchanged, if no token of the vocabulary spans them.

This holds only for known tokenizer components; with any other component, no text is cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram

# Letters that never combine with a neighbor, in any normalization form or grapheme.
_CASELESS = "\u05d0-\u05ea\u0621-\u063a\u0641-\u064a\u0905-\u0939\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3"
_LETTER = f"[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0400-\u0481{_CASELESS}]"
_BEFORE_SPACE = re.compile(f"(?<={_LETTER})(?= {_LETTER})")
_WITHIN_WORD = re.compile(f"(?<=[a-z{_CASELESS}])(?=[a-z{_CASELESS}])")
_BETWEEN_IDEOGRAPHS = re.compile("(?<=[\u4e00-\u9fff])(?=[\u4e00-\u9fff])")

_NORMALIZERS = frozenset(
    [
        "BertNormalizer",
        "Lowercase",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "StripAccents",
        "Nmt",
        "Prepend",
        "Precompiled",
        "Strip",
    ]
)
_SPACE_PATTERNS = frozenset([" {2,}", r"\s+", r"\s{2,}"])
# The patterns of GPT-2, and of later models such as Llama 3 and Qwen: no space after the first character of a word, and
# no lookahead but for further whitespace.
_LATER = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|%s|\s+(?!\S)|\s+"
_WORD_PATTERNS = frozenset(
    [r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"]
    + [_LATER % parts for parts in product((r"\p{N}", r"\p{N}{1,3}"), (r"\s*[\r\n]+", r"\s*[\r\n]"))]
)
# Characters per token from which a text is shortened, and candidates tried per kind of cut.
_CHARACTERS, _CANDIDATES = 8, 64


@dataclass(frozen=True)
class _Pieces:
    """What a tokenizer does to words before its model sees them.

    Attributes:
        splits_at_spaces: whether it splits at every space, and attaches the space to the next word or drops it.
        splits_ideographs: whether each ideograph is a word.
        joinable: whether words are substrings of the normalized text, with spaces and bytes replaced as below.
        space: replacement of a space.
        byte_level: whether each byte is replaced by a character.
    """

    splits_at_spaces: bool
    splits_ideographs: bool
    joinable: bool
    space: str
    byte_level: bool


class TextBounds:
    """Shortens texts of which truncation keeps only the beginning or end, without changing the kept tokens."""

    def __init__(self, tokenizer: Tokenizer, room: int, side: str) -> None:
        """Prepare for a tokenizer.

        Args:
            tokenizer: with truncation enabled, so that counting takes little memory.
            room: most tokens that are kept.
            side: truncation side, "right" or "left".
        """
        self._tokenizer = tokenizer
        self._room = room
        self._side = side
        self.least = _CHARACTERS * room + 64

    def shorten(self, text: str) -> str:
        """Return a part of a text with the same kept tokens, or the whole text if no safe cut is found."""
        size = self.least
        while self._pieces is not None and 2 * size < len(text):
            part = self._beginning(text, size) if self._side == "right" else self._end(text, size)
            if part is not None:
                return part
            size *= 2
        return text

    @cached_property
    def _pieces(self) -> _Pieces | None:
        return _read_pieces(_parts(self._tokenizer.normalizer), _parts(self._tokenizer.pre_tokenizer))

    def _beginning(self, text: str, size: int) -> str | None:
        cut = self._find_cut(text, size, 2 * size)
        if cut is None or self._count(text[:cut]) <= self._room:
            return None
        return text[:cut]

    def _end(self, text: str, size: int) -> str | None:
        # Special treatment of the beginning of a text, such as a leading space, also applies to the part that is left,
        # but has no effect beyond the next possible cut.
        first = self._find_cut(text, len(text) - 2 * size, len(text) - size)
        second = None if first is None else self._find_cut(text, first + 1, len(text) - size // 2)
        if first is None or second is None:
            return None
        end = text[first:]
        if self._count(end) - self._count(text[first:second]) <= self._room:
            return None
        return end

    def _count(self, text: str) -> int:
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        return sum(len(part.ids) for part in (encoding, *encoding.overflowing))

    def _find_cut(self, text: str, start: int, stop: int) -> int | None:
        assert self._pieces is not None
        for kind, always in self._kinds():
            for tried, match in enumerate(kind.finditer(text, start, stop)):
                if tried == _CANDIDATES:
                    break
                cut = match.start()
                if not self._near_added_token(text, cut) and (always or self._is_unspanned(text, cut)):
                    return cut
        return None

    def _kinds(self) -> Iterator[tuple[re.Pattern[str], bool]]:
        """Yield patterns of possible cuts, and whether every match is safe."""
        assert self._pieces is not None
        # Sums of scores that begin elsewhere round differently, so that the end of a word may not be cut.
        unigram_end = isinstance(self._tokenizer.model, Unigram) and self._side == "left"
        joinable = self._pieces.joinable and self._splits_nothing_else() and not unigram_end
        if self._pieces.splits_at_spaces:
            yield _BEFORE_SPACE, True
        elif joinable:
            yield _BEFORE_SPACE, False
        if self._pieces.splits_ideographs:
            yield _BETWEEN_IDEOGRAPHS, True
        elif joinable:
            yield _WITHIN_WORD, False

    def _splits_nothing_else(self) -> bool:
        """Return whether the model treats parts of a word like separate words."""
        model = self._tokenizer.model
        if isinstance(model, Unigram):
            return True
        marks = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
        return isinstance(model, BPE) and not any(getattr(model, mark) for mark in marks)

    def _near_added_token(self, text: str, cut: int) -> bool:
        near = text[max(cut - self._longest_added, 0) : cut + self._longest_added]
        normalizer = self._tokenizer.normalizer
        forms = {near, near if normalizer is None else normalizer.normalize_str(near)}
        return any(token in form for form in forms for token in self._added)

    def _is_unspanned(self, text: str, cut: int) -> bool:
        """Return whether no token of the vocabulary spans a cut, and both its neighbors are in the vocabulary."""
        assert self._pieces is not None
        longest = self._longest_token
        start = cut - longest
        if start <= 0:
            return False
        before, whole = self._normalize(text[start:cut]), self._normalize(text[start : cut + longest])
        after = whole[len(before) :]
        if not before or not after or not whole.startswith(before):
            return False
        # With fewer characters than requested, longer tokens cannot be ruled out.
        if len(before) < longest or (len(after) < longest and cut + longest < len(text)):
            return False
        known = self._tokenizer.token_to_id
        if known(before[-1]) is None or known(after[0]) is None:
            return False
        before, after = before[-longest:], after[:longest]
        return not any(
            known(before[-left:] + after[:right]) is not None
            for left in range(1, len(before) + 1)
            for right in range(1, min(longest - left, len(after)) + 1)
        )

    def _normalize(self, text: str) -> str:
        assert self._pieces is not None
        normalizer = self._tokenizer.normalizer
        text = text if normalizer is None else normalizer.normalize_str(text)
        if self._pieces.byte_level:
            return "".join(_BYTE_LETTERS[byte] for byte in text.encode())
        return text.replace(" ", self._pieces.space)

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self._tokenizer.get_vocab(with_added_tokens=False)), default=0)

    @cached_property
    def _added(self) -> list[str]:
        contents = [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.content]
        normalizer = self._tokenizer.normalizer
        if normalizer is not None:
            contents += [normalizer.normalize_str(content) for content in contents]
        return [content for content in dict.fromkeys(contents) if content]

    @cached_property
    def _longest_added(self) -> int:
        return 2 * max(map(len, self._added), default=0)


def _state(part: Any) -> dict[str, Any]:
    return {} if part is None else dict(json.loads(part.__getstate__()))


def _parts(part: Any) -> list[dict[str, Any]]:
    """Return the normalizers or pre-tokenizers in a component, flattened."""

    def flatten(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if state.get("type") == "Sequence":
            for inner in state.get("normalizers") or state.get("pretokenizers") or []:
                yield from flatten(inner)
        elif state:
            yield state

    return list(flatten(_state(part)))


def _read_pieces(normalizers: list[dict[str, Any]], pre_tokenizers: list[dict[str, Any]]) -> _Pieces | None:
    """Return what the components do, or None if one of them is unknown."""
    spaces = True
    for part in normalizers:
        if part["type"] == "Replace":
            if not _is_harmless(part["pattern"]):
                return None
            found = part["pattern"].get("String")
            spaces = spaces and (part["content"] == " " if found is None else " " not in found)
        elif part["type"] not in _NORMALIZERS:
            return None
    ideographs = any(part["type"] == "BertNormalizer" and part["handle_chinese_chars"] for part in normalizers)
    splits = words = byte_level = False
    joinable, space = True, " "
    before: set[str] = set()
    for part in pre_tokenizers:
        kind = part["type"]
        if kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit"):
            splits, words = splits or spaces, spaces
        elif kind == "Metaspace":
            splits, space = splits or part["split"], part["replacement"]
        elif kind == "ByteLevel":
            splits, byte_level = splits or (part["use_regex"] and spaces), True
        elif kind == "Split" and _is_safe_split(part, spaces):
            splits = splits or spaces
        elif kind not in ("Punctuation", "Digits"):
            return None
        # A space prepended to words that earlier components split off is not in the text.
        if kind == "Metaspace" or (kind == "ByteLevel" and part["add_prefix_space"]):
            joinable = joinable and before <= {"WhitespaceSplit"}
        before.add(kind)
    return _Pieces(splits, ideographs and words, joinable, space, byte_level)


def _is_safe_split(part: Mapping[str, Any], spaces: bool) -> bool:
    """Return whether a component splits at spaces, if there are any, and otherwise never between letters."""
    if part["pattern"] == {"String": " "}:
        return not spaces
    in_order = part["behavior"] == "Isolated" or (part["behavior"] == "Removed" and part["invert"])
    return in_order and part["pattern"].get("Regex") in _WORD_PATTERNS


def _is_harmless(pattern: Mapping[str, str]) -> bool:
    """Return whether a pattern's matches contain no letter, or are more than one blank."""
    if "String" in pattern:
        return not re.search(_LETTER, pattern["String"])
    return pattern.get("Regex") in _SPACE_PATTERNS


def _byte_letters() -> list[str]:
    """Return the character for each byte in byte-level vocabularies: itself if printable."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    letters = {byte: chr(byte) for byte in seen} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


_BYTE_LETTERS = _byte_letters()
