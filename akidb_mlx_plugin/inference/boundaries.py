"""Where a text may be cut: after paragraphs, sentences and words, and never inside a character as people see it."""

from __future__ import annotations

import re
import unicodedata

_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
# The end of a line counts as that of a sentence: lists, headings and verses have no full stops.
_SENTENCE = re.compile(
    r"""[.!?\u2026\u061f\u06d4\u0964]["'\u2019\u201d\u00bb)\]]*\s+|[\u3002\uff01\uff1f][\u300d\u300f\u201d\uff09]*\s*|\n\s*"""
)
_WORD = re.compile(r"\s+")

# Code points; a letter may have any number of accents, but nobody reads it.
_LONGEST_CHARACTER = 1000
_JOINER = "\u200d"
# Extends the character before it: a zero-width non-joiner, and the vowel signs of Thai and Lao that Unicode counts as
# letters.
_EXTENDING = "\u200c\u0e33\u0eb3"


def best_end(text: str, start: int, limit: int) -> int:
    """Return the best place after `start` and up to `limit` to cut a text.

    After the last paragraph that ends in the second half, else the last sentence there, else the last word anywhere,
    else between two characters; `start` if the first character ends behind `limit`.
    """
    half = start + (limit - start + 1) // 2
    for pattern, first in ((_PARAGRAPH, half), (_SENTENCE, half), (_WORD, start + 1)):
        end = _last_match_end(pattern, text, max(first, start + 1), limit)
        if end is not None and end == cluster_start(text, start, end):
            return end
    return cluster_start(text, start, limit)


def next_end(text: str, start: int) -> int:
    """Return the end of the character that begins at `start`."""
    end = start + 1
    while end < min(len(text), start + _LONGEST_CHARACTER) and _continues(text, end):
        end += 1
    return end


def cluster_start(text: str, start: int, place: int) -> int:
    """Return the last place between two characters that is not behind `place`; at least `start`."""
    while start < place < len(text) and _continues(text, place):
        place -= 1
    return place


def word_start(text: str, place: int, end: int) -> int:
    """Return where the next word begins from `place` on, or, without any before `end`, the next character."""
    if place > 0 and text[place - 1].isspace() and not text[place : place + 1].isspace():
        word = place
    else:
        match = _WORD.search(text, place, end)
        word = match.end() if match and match.end() < end else place
    while word < end and _continues(text, word):
        word += 1
    return word


def _last_match_end(pattern: re.Pattern[str], text: str, first: int, limit: int) -> int | None:
    """Return the end of the last match that ends from `first` to `limit`."""
    last = None
    for match in pattern.finditer(text, max(first - 1, 0), limit):
        if match.end() >= first:
            last = match.end()
    return last


def _continues(text: str, place: int) -> bool:
    """Return whether the code point at a place belongs to the same character as the one before it.

    Source: the rules for extended grapheme clusters of Unicode's Annex 29, without those of a few scripts' letters that
    go before others.
    """
    code, before = text[place], text[place - 1]
    if code.isascii():
        return before == "\r" and code == "\n"
    if before in "\r\n":
        return False
    if unicodedata.category(code)[0] == "M" or code in _EXTENDING or code == _JOINER or before == _JOINER:
        return True
    if "\U0001f3fb" <= code <= "\U0001f3ff" or "\U000e0020" <= code <= "\U000e007f":
        return True
    if "\U0001f1e6" <= code <= "\U0001f1ff":
        return _flags_before(text, place) % 2 == 1
    return _joins_syllable(before, code)


def _flags_before(text: str, place: int) -> int:
    """Return how many regional indicators stand before a place; two are a flag."""
    first = place
    while first > 0 and "\U0001f1e6" <= text[first - 1] <= "\U0001f1ff":
        first -= 1
    return place - first


def _joins_syllable(before: str, code: str) -> bool:
    """Return whether two Hangul letters belong to one syllable."""
    leads = "\u1100" <= before <= "\u115f" or "\ua960" <= before <= "\ua97c"
    if leads and ("\u1100" <= code <= "\u11a7" or "\uac00" <= code <= "\ud7a3" or "\ua960" <= code <= "\ua97c"):
        return True
    is_hangul = leads or "\u1160" <= before <= "\u11ff" or "\uac00" <= before <= "\ud7fb"
    return is_hangul and ("\u1160" <= code <= "\u11ff" or "\ud7b0" <= code <= "\ud7fb")
