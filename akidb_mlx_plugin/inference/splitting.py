"""Split long texts into pieces that a model takes whole, on the offsets of its own tokenizer.

A window of the text is tokenized, the end of a piece is chosen near the last token that fits, and the piece is then
counted as it will be embedded, with prompt and special tokens: a tokenizer may join or split tokens at any place, so an
offset is an estimate. Windows grow and shrink with the pieces, so that the time is about linear in the text's length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.inference.boundaries import best_end, next_end, word_start
from akidb_mlx_plugin.inference.tokenizer import TextTokenizer
from akidb_mlx_plugin.types import TextPiece
from akidb_mlx_plugin.validation import check_unicode

# Characters of the first window, per token that fits; a text of plain words has about five.
_CHARACTERS = 8
# How often a start that repeats tokens is moved on before nothing is repeated.
_TRIES = 8


@dataclass(frozen=True)
class TextSplitter:
    """Splits texts for one model.

    Attributes:
        tokenizer: the model's.
        prompt: what goes before each piece.
        label: the model's name, for messages.
    """

    tokenizer: TextTokenizer
    prompt: str
    label: str

    def split(self, text: str, *, max_tokens: int | None = None, overlap: int = 0) -> list[TextPiece]:
        """Split a text; arguments and errors as for `EmbeddingService.split`."""
        if not isinstance(text, str):
            raise InvalidInputError(f"the text to split is {type(text).__name__}, not a string")
        check_unicode(text, "the text to split")
        room = self._room(max_tokens)
        if not isinstance(overlap, int) or isinstance(overlap, bool) or not 0 <= overlap <= room // 2:
            raise InvalidInputError(
                f"overlap must be a number of tokens from 0 to {room // 2}, half of a piece, got {overlap!r}"
            )
        return [TextPiece(text[start:end], start, end) for start, end in self._spans(text, room, overlap)]

    def _room(self, max_tokens: int | None) -> int:
        """Return how many tokens of its own a piece may have."""
        longest = self.tokenizer.room + self.tokenizer.end_tokens
        if max_tokens is None:
            max_tokens = longest
        if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or not 1 <= max_tokens <= longest:
            raise InvalidInputError(f"max_tokens must be from 1 to {longest}, which {self.label} takes: {max_tokens!r}")
        around = self._count("")
        if max_tokens <= around:
            raise InvalidInputError(
                f"max_tokens = {max_tokens} leaves no room for text: the prompt and the special tokens of {self.label} "
                f"are {around} tokens"
            )
        return max_tokens - around

    def _count(self, piece: str) -> int:
        """Return the tokens of a piece as it is embedded."""
        return self.tokenizer.count_tokens(self.prompt + piece) + self.tokenizer.special_tokens

    def _spans(self, text: str, room: int, overlap: int) -> Iterator[tuple[int, int]]:
        most = room + self._count("")
        start = done = 0
        size = _CHARACTERS * room
        while done < len(text):
            end = self._find_end(text, start, max(size, done - start + 1), most)
            if end <= done:
                # What is repeated leaves no room for anything new.
                start = done
                continue
            yield start, end
            size = 2 * (end - start)
            done = end
            start = self._repeat(text, start, end, overlap) if overlap and end < len(text) else end

    def _find_end(self, text: str, start: int, size: int, most: int) -> int:
        """Return where the piece that begins at `start` ends."""
        while True:
            stop = min(start + size, len(text))
            starts = self.tokenizer.token_starts(self.prompt + text[start:stop])
            fits = len(starts) + self.tokenizer.special_tokens <= most
            if fits and stop == len(text):
                return stop
            if not fits:
                break
            size *= 2
        allowed = most - self.tokenizer.special_tokens
        step = 0
        while True:
            limit = start + max(starts[allowed] - len(self.prompt), 0) if allowed > 0 else start
            if limit <= start:
                return self._first_end(text, start, most)
            end = best_end(text, start, min(limit, stop))
            if end <= start:
                return self._first_end(text, start, most)
            excess = self._count(text[start:end]) - most
            if excess <= 0:
                return end
            step = max(excess, 2 * step)
            allowed -= step

    def _first_end(self, text: str, start: int, most: int) -> int:
        """Return the end of the first character, or of a part of it if it alone is too long."""
        end = next_end(text, start)
        while self._count(text[start:end]) > most:
            if end == start + 1:
                raise InvalidInputError(
                    f"character {start} of the text ({text[start]!a}) alone has more tokens than fit into a piece; "
                    "raise max_tokens"
                )
            end = start + max((end - start) // 2, 1)
        return end

    def _repeat(self, text: str, start: int, end: int, overlap: int) -> int:
        """Return where the next piece begins so that it repeats at most `overlap` tokens."""
        starts = self.tokenizer.token_starts(text[start:end])
        begin = start + starts[-overlap] if len(starts) > overlap else end
        for _ in range(_TRIES):
            begin = word_start(text, begin, end)
            if begin >= end or self.tokenizer.count_tokens(text[begin:end]) <= overlap:
                break
            begin += 1
        else:
            return end
        return end if begin <= start else begin
