"""Texts to token ids, with the tokenizer that the checkpoint brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from akidb_mlx_plugin.errors import InvalidInputError, ModelNotFoundError


@dataclass(frozen=True)
class TokenRows:
    """Token ids of several texts.

    Attributes:
        ids: one list per text, special tokens included, at least one id each.
        truncated: how many texts were cut.
    """

    ids: list[list[int]]
    truncated: int


class TextTokenizer:
    """The checkpoint's tokenizer with truncation at the model's length and no padding."""

    def __init__(self, folder: Path, max_tokens: int, *, end_token: str | None = None, lowercase: bool = False) -> None:
        """Read `tokenizer.json`.

        Args:
            folder: the checkpoint.
            max_tokens: longest row, special tokens included.
            end_token: every row must end with it, also after truncation.
            lowercase: fold case first, as an old sentence-transformers setting asks.
        Raises:
            ModelNotFoundError: the file is missing or damaged, or has no such end token.
        """
        # Deferred: an adapter may be imported and built without ever embedding a text.
        from tokenizers import Tokenizer
        from tokenizers.normalizers import Lowercase
        from tokenizers.normalizers import Sequence as InOrder

        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ModelNotFoundError(
                f"{folder} has no tokenizer.json; save the checkpoint with a fast tokenizer (AutoTokenizer does)"
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelNotFoundError(f"{file} cannot be read: {error}") from error
        if lowercase:
            # Inside the tokenizer, so that special tokens in a text stay what they are.
            present = self._tokenizer.normalizer
            self._tokenizer.normalizer = InOrder([Lowercase(), *([present] if present else [])])
        self._tokenizer.no_padding()
        self._end_id = self._missing_end_id(end_token)
        self._tokenizer.enable_truncation(max_length=max_tokens - (self._end_id is not None))

    def encode(self, texts: Sequence[str]) -> TokenRows:
        """Return the token ids of each text.

        Args:
            texts: prompts already in front.
        Raises:
            InvalidInputError: a text makes no token at all.
        """
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        ids = [encoding.ids for encoding in encodings]
        if self._end_id is not None:
            ids = [[*row, self._end_id] for row in ids]
        for i, row in enumerate(ids):
            if not row:
                raise InvalidInputError(f"text {i} makes no token with this model's tokenizer; leave it out")
        return TokenRows(ids, truncated=sum(bool(encoding.overflowing) for encoding in encodings))

    def prompt_length(self, prompt: str) -> int:
        """Return how many leading tokens of a text a prompt makes: its tokens and the template's opening ones."""
        return len(self.prompt_ids(prompt))

    def prompt_ids(self, prompt: str) -> list[int]:
        """Return the template's opening tokens and those of a prompt, as it is tokenized with no text behind it."""
        if not prompt:
            return []
        encoding = self._tokenizer.encode(prompt)
        closing = encoding.special_tokens_mask[::-1].index(0) if 0 in encoding.special_tokens_mask else 0
        return list(encoding.ids[: len(encoding.ids) - closing])

    def _missing_end_id(self, end_token: str | None) -> int | None:
        """Return the id to append, or None where the tokenizer's own template appends it."""
        if end_token is None:
            return None
        end_id = self._tokenizer.token_to_id(end_token)
        if end_id is None:
            raise ModelNotFoundError(f"the tokenizer has no token {end_token!r}, which must end every text")
        row = self._tokenizer.encode("a").ids
        return None if row and row[-1] == end_id else int(end_id)
