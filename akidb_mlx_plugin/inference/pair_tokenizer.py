"""Tokenize pairs of texts for a reranker: in two segments, or as a question to a language model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from akidb_mlx_plugin.checkpoints.cross_encoder import CrossEncoderCheckpoint
from akidb_mlx_plugin.checkpoints.rerankers import AnswerFormat
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError
from akidb_mlx_plugin.inference.tokenizer import PlainRow, TextTokenizer, load_text_tokenizer
from akidb_mlx_plugin.inference.tokenizer_settings import read_tokenizer_settings

Pair = tuple[str, str]


@dataclass(frozen=True)
class PairRows:
    """Token ids of several pairs.

    Attributes:
        ids: one list per pair.
        beginnings: what each row begins with that other rows may share.
        truncated: number of truncated pairs.
        seconds: where in each row the second text begins; None if the model does not distinguish them.
    """

    ids: list[list[int]]
    beginnings: list[tuple[int, ...]]
    truncated: int
    seconds: list[int] | None = None


class PairTokenizer(ABC):
    """Turns pairs of texts into rows of tokens."""

    @abstractmethod
    def encode(self, pairs: Sequence[Pair]) -> PairRows:
        """Return the rows of pairs.

        Raises:
            InvalidInputError: a text has a character that the tokenizer cannot read.
        """


class SegmentTokenizer(PairTokenizer):
    """Joins a pair by the tokenizer's own template, such as [CLS] query [SEP] text [SEP]."""

    def __init__(self, tokenizer: TextTokenizer, *, names_segments: bool) -> None:
        """Read the template.

        Args:
            tokenizer: the checkpoint's.
            names_segments: whether the model learns which text a token belongs to.
        Raises:
            ModelNotFoundError: the template is not supported, or leaves no room.
        """
        self._tokenizer = tokenizer
        self._frame = tokenizer.pair_frame()
        self._names_segments = names_segments and self._frame.segment is not None
        opening, between, closing, _ = self._frame
        self._room = tokenizer.room - len(opening) - len(between) - len(closing)
        if self._room < 1:
            raise ModelNotFoundError(
                f"pairs of up to {tokenizer.room} tokens leave no room for text between their special tokens"
            )

    def encode(self, pairs: Sequence[Pair]) -> PairRows:
        """Return the rows of pairs."""
        # Each text once: the pairs of a search have one query.
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        rows = dict(zip(texts, self._tokenizer.plain_rows(texts), strict=True))
        opening, between, closing, segment = self._frame
        ids, seconds, truncated = [], [], 0
        for pair in pairs:
            kept = self._truncate(pair, (rows[pair[0]], rows[pair[1]]))
            first, second = (self._cut(rows[text].ids, count) for text, count in zip(pair, kept, strict=True))
            truncated += sum(kept) < rows[pair[0]].tokens + rows[pair[1]].tokens
            ids.append([*opening, *first, *between, *second, *closing])
            seconds.append(len(opening) + len(first) + (segment or 0))
        for i, row in enumerate(ids):
            if not row:
                raise InvalidInputError(f"pair {i} has no tokens with this model's tokenizer; leave it out")
        return PairRows(ids, [()] * len(pairs), truncated, seconds if self._names_segments else None)

    def _truncate(self, pair: Pair, rows: tuple[PlainRow, PlainRow]) -> tuple[int, int]:
        """Return how many tokens of each text are kept: the longer one is truncated to the other's length first.

        Source: tokenizers, `TruncationStrategy::LongestFirst`.
        """
        counts = [row.tokens for row in rows]
        if sum(counts) <= self._room:
            return counts[0], counts[1]
        if min(counts) > self._room:
            # Whichever is longer may keep a token more, which a part of a text does not show.
            counts = [
                self._tokenizer.count_tokens(text) if row.is_part else row.tokens
                for text, row in zip(pair, rows, strict=True)
            ]
        shorter, longer = sorted(counts)
        longer = min(longer, max(shorter, self._room - shorter))
        if shorter + longer > self._room:
            shorter = self._room // 2
            longer = self._room - shorter
        return (longer, shorter) if counts[0] > counts[1] else (shorter, longer)

    def _cut(self, ids: list[int], count: int) -> list[int]:
        return ids[:count] if self._tokenizer.keeps_beginnings else ids[len(ids) - count :]


class QuestionTokenizer(PairTokenizer):
    """Asks a language model whether a text answers a query."""

    def __init__(self, tokenizer: TextTokenizer, asks: AnswerFormat, instruction: str) -> None:
        """Tokenize the constant parts.

        Args:
            tokenizer: the checkpoint's; from now on it leaves room for the constant parts.
            asks: the format.
            instruction: what the model is to look for.
        Raises:
            ModelNotFoundError: the constant parts leave no room.
        """
        self._tokenizer = tokenizer
        opening, before_query, self._before_text = asks.content
        self._opening = f"{opening}{instruction}{before_query}"
        before, after = tokenizer.plain_rows([asks.before, asks.after])
        self._before, self._after = before.ids, after.ids
        tokenizer.reserve(len(self._before) + len(self._after))

    def encode(self, pairs: Sequence[Pair]) -> PairRows:
        """Return the rows of pairs."""
        rows = self._tokenizer.encode([f"{self._opening}{query}{self._before_text}{text}" for query, text in pairs])
        ids = [[*self._before, *row, *self._after] for row in rows.ids]
        # The keys and values of what comes before the texts of one query are worth caching.
        counts = Counter(query for query, _ in pairs)
        beginnings = {query: self._beginning(query if count > 1 else None) for query, count in counts.items()}
        return PairRows(ids, [beginnings[query] for query, _ in pairs], rows.truncated)

    def _beginning(self, query: str | None) -> tuple[int, ...]:
        """Return the tokens before the text, or for None before the query."""
        shared = self._opening if query is None else f"{self._opening}{query}{self._before_text}"
        return (*self._before, *self._tokenizer.prompt_ids(shared))


def load_pair_tokenizer(checkpoint: CrossEncoderCheckpoint, instruction: str | None = None) -> PairTokenizer:
    """Return the tokenizer of a reranker's pairs.

    Args:
        checkpoint: the reranker.
        instruction: for a language model, what to look for. Defaults to that of its card.
    Raises:
        ModelNotFoundError: as `TextTokenizer`, or special tokens leave no room for a pair.
        InvalidInputError: an instruction for a model that takes none.
    """
    tokenizer = load_text_tokenizer(checkpoint)
    if checkpoint.asks:
        return QuestionTokenizer(tokenizer, checkpoint.asks, instruction or checkpoint.asks.instruction)
    if instruction is not None:
        raise InvalidInputError(
            f"{checkpoint.name} takes no instruction, only rerankers that are language models do; leave it out"
        )
    # A model without a row for the second segment knows only one.
    rows = checkpoint.config.get("type_vocab_size", 2)
    has_two = not isinstance(rows, int) or rows > 1
    names_segments = read_tokenizer_settings(checkpoint.folder).names_segments and has_two
    return SegmentTokenizer(tokenizer, names_segments=names_segments)


def find_words(checkpoint: CrossEncoderCheckpoint) -> tuple[int, ...]:
    """Return the tokens of a language model's answers no and yes.

    Raises:
        ModelNotFoundError: its vocabulary lacks one.
    """
    assert checkpoint.asks is not None, "only a language model answers in words"
    tokenizer = load_text_tokenizer(checkpoint)
    ids = tuple(number for word in checkpoint.asks.words if (number := tokenizer.token_id(word)) is not None)
    if len(ids) < len(checkpoint.asks.words):
        raise ModelNotFoundError(
            f"the tokenizer of {checkpoint.folder} lacks one of the tokens {', '.join(checkpoint.asks.words)}, whose "
            "scores are the model's answer"
        )
    return ids
