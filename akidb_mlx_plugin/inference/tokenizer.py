"""Tokenize texts with the checkpoint's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from akidb_mlx_plugin.checkpoints.static_embedding import STATIC
from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from akidb_mlx_plugin.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True)
class TokenRows:
    """Token ids of several texts.

    Attributes:
        ids: one list per text, special tokens included, at least one id each.
        cut: whether each text was truncated.
    """

    ids: list[list[int]]
    cut: list[bool]

    @property
    def truncated(self) -> int:
        """Number of truncated texts."""
        return sum(self.cut)

    def within(self, tokens: int) -> TokenRows:
        """Return the first rows, of at most this many tokens together, and at least one."""
        count = 1
        spent = len(self.ids[0])
        while count < len(self.ids) and (spent := spent + len(self.ids[count])) <= tokens:
            count += 1
        return TokenRows(self.ids[:count], self.cut[:count])


class PlainRow(NamedTuple):
    """Tokens of a text without special tokens.

    Attributes:
        ids: as many as a row has room for, from the end that truncation keeps.
        tokens: number of all tokens.
        is_part: whether they were counted in a part of the text that is longer than a row.
    """

    ids: list[int]
    tokens: int
    is_part: bool


class PairFrame(NamedTuple):
    """What surrounds the two texts of a pair.

    Attributes:
        opening, between, closing: special tokens.
        segment: how many tokens after the first text the second segment begins; None for one segment.
    """

    opening: list[int]
    between: list[int]
    closing: list[int]
    segment: int | None


class TextTokenizer:
    """The checkpoint's tokenizer with truncation at the model's length and no padding."""

    def __init__(
        self,
        folder: Path,
        max_tokens: int,
        *,
        rows: int | None = None,
        end_token: str | None = None,
        lowercase: bool = False,
        plain: bool = False,
    ) -> None:
        """Load a folder's tokenizer as transformers would.

        Args:
            folder: the checkpoint.
            max_tokens: longest row, including special tokens.
            rows: rows of the embedding table: an added token beyond it is ordinary text. None for no limit.
            end_token: every row must end with it, also after truncation.
            lowercase: fold case first, for an old sentence-transformers setting.
            plain: use tokenizer.json unchanged and add no special tokens, like `StaticEmbedding`.
        Raises:
            ModelNotFoundError: a file is missing or damaged, a setting is not supported, the vocabulary is larger than
                the table, there is no such end token, or special tokens leave no room for text.
        """
        # Imported here: an adapter may be imported and built without ever embedding a text.
        from akidb_mlx_plugin.inference.tokenizer_loading import load_plain_tokenizer, load_tokenizer

        loaded = (load_plain_tokenizer if plain else load_tokenizer)(folder, rows)
        self._adds_special_tokens = not plain
        self._tokenizer = loaded.tokenizer
        if lowercase:
            _fold_case(self._tokenizer)
        self._end_id = self._missing_end_id(end_token)
        self._special_ids = loaded.special_ids | ({self._end_id} if self._end_id is not None else set())
        room = max_tokens - (self._end_id is not None)
        special = 0 if plain else self._tokenizer.num_special_tokens_to_add(False)
        if room < max(special, 1):
            raise ModelNotFoundError(
                f"{folder} allows {max_tokens} tokens per text, which its special tokens alone exceed; "
                "increase max_seq_length in sentence_bert_config.json"
            )
        self._truncate(room, loaded.side)

    def encode(self, texts: Sequence[str]) -> TokenRows:
        """Return the token ids of each text.

        Args:
            texts: with prompts prepended.
        Raises:
            InvalidInputError: a text has no tokens, or a character that the tokenizer cannot read.
        """
        encodings = self._encode(list(texts))
        ids = [encoding.ids for encoding in encodings]
        if self._end_id is not None:
            ids = [[*row, self._end_id] for row in ids]
        for i, row in enumerate(ids):
            if not row:
                raise InvalidInputError(f"text {i} has no tokens with this model's tokenizer; leave it out")
        return TokenRows(ids, [bool(encoding.overflowing) for encoding in encodings])

    def plain_rows(self, texts: Sequence[str]) -> list[PlainRow]:
        """Return the tokens of each text without special tokens.

        Raises:
            InvalidInputError: a text has a character that the tokenizer cannot read.
        """
        short = [self._bounds.shorten(text) for text in texts]
        rows = self._run(short, special=False)
        return [
            PlainRow(row.ids, len(row.ids) + sum(map(len, row.overflowing)), part is not text)
            for text, part, row in zip(texts, short, rows, strict=True)
        ]

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a whole text, without special tokens."""
        (row,) = self._run([text], special=False)
        return len(row.ids) + sum(map(len, row.overflowing))

    def token_starts(self, text: str) -> list[int]:
        """Return where each token of a whole text begins, in characters and in order, without special tokens."""
        try:
            (row,) = self._tokenizer.encode_batch([text], add_special_tokens=False)
        except BaseException as error:
            _raise_as_invalid_input(error)
        # Of a text that is truncated at its beginning, the parts come in another order.
        return sorted(start for part in (row, *row.overflowing) for start, _ in part.offsets)

    @property
    def special_tokens(self) -> int:
        """How many special tokens a row has."""
        added = self._tokenizer.num_special_tokens_to_add(False) if self._adds_special_tokens else 0
        return added + self.end_tokens

    @property
    def end_tokens(self) -> int:
        """How many tokens end a row beside those of the tokenizer's own template."""
        return int(self._end_id is not None)

    def pair_frame(self) -> PairFrame:
        """Return what the tokenizer's template puts around the two texts of a pair; call it before texts are encoded.

        Raises:
            ModelNotFoundError: the template is not of that form.
        """
        self._tokenizer.no_truncation()
        probe = self._tokenizer.encode("a", "a")
        self._truncate(self._room, self._side)
        first, second = ([i for i, text in enumerate(probe.sequence_ids) if text == place] for place in (0, 1))
        whole = [*first, *second] and [*range(first[0], first[-1] + 1), *range(second[0], second[-1] + 1)]
        segments = probe.type_ids
        if not first or not second or [*first, *second] != whole or segments != sorted(segments):
            raise ModelNotFoundError(f"the tokenizer joins a pair of texts as {probe.tokens}, which is not supported")
        begins = next((i for i, segment in enumerate(segments) if segment), None)
        return PairFrame(
            probe.ids[: first[0]],
            probe.ids[first[-1] + 1 : second[0]],
            probe.ids[second[-1] + 1 :],
            None if begins is None else begins - first[-1] - 1,
        )

    @property
    def room(self) -> int:
        """Longest row, including special tokens."""
        return self._room

    @property
    def keeps_beginnings(self) -> bool:
        """Whether truncation keeps the beginning of a text, not its end."""
        return self._side == "right"

    def reserve(self, tokens: int) -> None:
        """Truncate texts that many tokens earlier, for what the caller adds to their rows.

        Raises:
            ModelNotFoundError: that leaves no room.
        """
        special = self._tokenizer.num_special_tokens_to_add(False)
        if self._room - tokens <= special:
            raise ModelNotFoundError(
                f"texts of up to {self._room} tokens leave no room for {tokens} others around them"
            )
        self._truncate(self._room - tokens, self._side)

    def _truncate(self, room: int, side: str) -> None:
        from akidb_mlx_plugin.inference.tokenizer_bounds import TextBounds

        self._room, self._side = room, side
        self._tokenizer.enable_truncation(max_length=room, direction=side)
        self._bounds = TextBounds(self._tokenizer, room, side)

    def token_id(self, token: str) -> int | None:
        """Return the id of a token; None if the vocabulary lacks it."""
        number = self._tokenizer.token_to_id(token)
        return None if number is None else int(number)

    def prompt_length(self, prompt: str) -> int:
        """Return the number of leading tokens that belong to a prompt, counted like sentence-transformers."""
        return len(self.prompt_ids(prompt))

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the token ids of a prompt alone, without the last one if that is a special token.

        Source: sentence-transformers `Transformer`, which excludes as many tokens from pooling.
        """
        if not prompt:
            return []
        (encoding,) = self._encode([prompt])
        row = [*encoding.ids, *([] if self._end_id is None else [self._end_id])]
        return row[:-1] if row and row[-1] in self._special_ids else row

    def _encode(self, texts: list[str]) -> list[Encoding]:
        return self._run([self._bounds.shorten(text) for text in texts], special=self._adds_special_tokens)

    def _run(self, texts: list[str], *, special: bool) -> list[Encoding]:
        try:
            return self._tokenizer.encode_batch_fast(texts, add_special_tokens=special)
        except BaseException as error:
            _raise_as_invalid_input(error)

    def _missing_end_id(self, end_token: str | None) -> int | None:
        """Return the id to append, or None where the tokenizer's own template appends it."""
        if end_token is None:
            return None
        end_id = self._tokenizer.token_to_id(end_token)
        if end_id is None:
            raise ModelNotFoundError(f"the tokenizer has no token {end_token!r}, which must end every text")
        row = self._tokenizer.encode("a").ids
        return None if row and row[-1] == end_id else int(end_id)


def _raise_as_invalid_input(error: BaseException) -> NoReturn:
    """Raise InvalidInputError for an error of the tokenizer; an interrupt is raised as it is."""
    # tokenizers raises bare Exception, or on a panic PanicException, which is not an Exception.
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        reason = " ".join(str(error).split())[:200]
        raise InvalidInputError(f"this model's tokenizer cannot read one of the texts: {reason}") from error
    raise error


def load_text_tokenizer(checkpoint: Checkpoint) -> TextTokenizer:
    """Return a checkpoint's tokenizer; raises like `TextTokenizer`."""
    return TextTokenizer(
        checkpoint.folder,
        checkpoint.max_tokens,
        rows=checkpoint.config.get("vocab_size"),
        end_token=checkpoint.end_token,
        lowercase=checkpoint.lowercase,
        plain=checkpoint.model_type == STATIC,
    )


def _fold_case(tokenizer: Tokenizer) -> None:
    """Lowercase as the tokenizer's first normalizer, so that special tokens in a text are kept."""
    from tokenizers.normalizers import Lowercase
    from tokenizers.normalizers import Sequence as InOrder

    present = tokenizer.normalizer
    tokenizer.normalizer = InOrder([Lowercase(), *([present] if present else [])])
