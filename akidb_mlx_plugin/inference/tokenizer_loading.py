"""Load a folder's tokenizer as transformers would.

The reference is transformers 5.24. Where its class would tokenize plain text differently from tokenizer.json, the file
wins, as in 4.x, with which such folders were saved and their models trained; for most published checkpoints both
agree. For the same reason `add_bos_token` and `add_eos_token` are honored for the classes that did so in 4.x; 5.x
follows tokenizer.json alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.inference.tokenizer_classes import TOKENIZER_CLASSES, NamedTokens, TokenizerClass, surround
from akidb_mlx_plugin.inference.tokenizer_models import OtherModelError
from akidb_mlx_plugin.inference.tokenizer_settings import REMEDY, TokenizerSettings, read_tokenizer_settings
from akidb_mlx_plugin.inference.tokenizer_tokens import (
    add_tokens,
    extra_tokens,
    keep_tokens_with_rows,
    name_tokens,
    without_added_tokens,
)

_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
# Everyday text: capitals, accents, numbers, punctuation, several scripts.
_PLAIN_TEXT = "The Quick brown fox's 2023 report (12,345) isn't naïve: café, Straße! Привет, мир! 東京の都 한국어 مرحبا"
# Number of tokens of the vocabulary that are compared too.
_TRIED_TOKENS = 400

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer with the settings that transformers keeps separately.

    Attributes:
        tokenizer: without padding and truncation.
        special_ids: ids of its named and extra special tokens.
        side: truncation side, "right" or "left".
    """

    tokenizer: Tokenizer
    special_ids: frozenset[int]
    side: str


@dataclass(frozen=True)
class _Tokens:
    """Added tokens: by id, by name, and unnamed special ones."""

    known: Mapping[int, AddedToken | str]
    named: NamedTokens
    extra: Sequence[AddedToken | str]

    @property
    def special(self) -> list[str]:
        tokens = (*self.named.values(), *self.extra)
        return list(dict.fromkeys(str(token) for token in tokens if token is not None))

    def add_to(self, tokenizer: Tokenizer) -> Tokenizer:
        add_tokens(tokenizer, self.known, self.named, self.extra)
        return tokenizer


def load_tokenizer(folder: Path, rows: int | None = None) -> LoadedTokenizer:
    """Load a folder's tokenizer.

    Args:
        folder: with tokenizer.json, or the vocabulary of a class that needs nothing else.
        rows: rows of the embedding table; added tokens beyond it are ignored. None for no limit.
    Raises:
        ModelNotFoundError: a file is missing, damaged, or needs something that this package does not support.
    """
    settings = read_tokenizer_settings(folder)
    with _errors_reported(folder):
        from_file = _read_file(folder / "tokenizer.json")
        kind = None if _is_byte_level_llama(settings, from_file) else TOKENIZER_CLASSES.get(settings.kind)
        tokens = _find_tokens(settings, kind, from_file)
        if from_file is not None:
            side = _truncation_side(settings, from_file)
            tokenizer = _choose(folder, kind, from_file, settings, tokens)
            _set_ends(tokenizer, settings, tokens.named)
        else:
            side = _truncation_side(settings, None)
            tokenizer = _from_vocabulary(folder, kind, settings, tokens)
        tokenizer.encode_special_tokens = settings.flag("split_special_tokens", False)
        if rows is not None:
            tokenizer = keep_tokens_with_rows(tokenizer, rows)
        ids = {tokenizer.token_to_id(token) for token in tokens.special}
        return LoadedTokenizer(tokenizer, frozenset(number for number in ids if number is not None), side)


def load_plain_tokenizer(folder: Path, rows: int | None = None) -> LoadedTokenizer:
    """Load tokenizer.json unchanged, like sentence-transformers' `StaticEmbedding`; see `load_tokenizer`."""
    with _errors_reported(folder):
        tokenizer = _read_file(folder / "tokenizer.json")
        if tokenizer is None:
            raise ModelNotFoundError(f"{folder} has no tokenizer.json")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if rows is not None:
            tokenizer = keep_tokens_with_rows(tokenizer, rows)
        return LoadedTokenizer(tokenizer, frozenset(), "right")


def _read_file(file: Path) -> Tokenizer | None:
    if not file.is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelNotFoundError(f"{file} cannot be read: {error}") from error
    if dropout := getattr(tokenizer.model, "dropout", None):
        raise ModelNotFoundError(
            f"{file} has dropout {dropout}: a text would get different tokens each time; set it to null"
        )
    return tokenizer


def _is_byte_level_llama(settings: TokenizerSettings, from_file: Tokenizer | None) -> bool:
    """Return whether the folder names Llama's sentencepiece class for a byte-level vocabulary, as Llama 3 does."""
    if settings.kind != "LlamaTokenizer" or from_file is None:
        return False
    parts = (from_file.pre_tokenizer, from_file.decoder, from_file.post_processor)
    return any(b'"ByteLevel"' in part.__getstate__() for part in parts if part is not None)


def _find_tokens(settings: TokenizerSettings, kind: TokenizerClass | None, from_file: Tokenizer | None) -> _Tokens:
    known, padding = dict(settings.added), None
    if from_file is not None:
        known |= {} if settings.complete else from_file.get_added_tokens_decoder()
        padding = from_file.padding["pad_token"] if from_file.padding else None
    return _Tokens(known, name_tokens(settings, kind, known, padding), extra_tokens(settings))


def _truncation_side(settings: TokenizerSettings, from_file: Tokenizer | None) -> str:
    """Return the truncation side, and disable the tokenizer's padding and truncation."""
    side = settings.values.get("truncation_side")
    if from_file is not None:
        side = side or (from_file.truncation or {}).get("direction")
        from_file.no_padding()
        from_file.no_truncation()
    if side not in (None, "left", "right"):
        raise ModelNotFoundError(f"tokenizer_config.json: truncation_side is {side!r}, not 'left' or 'right'")
    return side or "right"


def _choose(
    folder: Path, kind: TokenizerClass | None, from_file: Tokenizer, settings: TokenizerSettings, tokens: _Tokens
) -> Tokenizer:
    """Return the class's tokenizer, or tokenizer.json's if the two differ on plain text."""
    if kind is None:
        return tokens.add_to(from_file)
    try:
        return _fit(folder, kind, from_file, settings, tokens)
    except OtherModelError:
        # The class's settings do not apply, and never did.
        pass
    except Exception:  # tokenizers raises bare Exception
        # If only the architecture implies this class, the file need not fit it.
        if settings.values.get("tokenizer_class"):
            raise
    return _as_saved(folder, settings, tokens.add_to(from_file))


def _fit(
    folder: Path, kind: TokenizerClass, from_file: Tokenizer, settings: TokenizerSettings, tokens: _Tokens
) -> Tokenizer:
    """Like `_choose`, for a file whose vocabulary suits the class."""
    of_class = _build(kind, from_file, settings, tokens)
    if not kind.adapt(from_file, settings):
        return of_class
    saved = tokens.add_to(from_file)
    if all(saved.encode(text).ids == of_class.encode(text).ids for text in (_PLAIN_TEXT, _words_of(saved, of_class))):
        return of_class
    return _as_saved(folder, settings, saved)


def _words_of(saved: Tokenizer, of_class: Tokenizer) -> str:
    """Return a text made of many tokens of the vocabulary, to reveal differences in splitting."""
    size = saved.get_vocab_size(with_added_tokens=False)
    tokens = (saved.model.id_to_token(number) for number in range(0, size, max(1, size // _TRIED_TOKENS)))
    both = (saved.get_added_tokens_decoder(), of_class.get_added_tokens_decoder())
    added = {token.content for tokenizer in both for token in tokenizer.values()}
    words = (token.removeprefix("##").strip("Ġ▁") for token in tokens if token is not None)
    return " ".join(" ".join(word for word in words if word not in added).split())


def _as_saved(folder: Path, settings: TokenizerSettings, saved: Tokenizer) -> Tokenizer:
    # A class implied only by the architecture is not a statement of the checkpoint.
    logger.log(
        logging.WARNING if settings.values.get("tokenizer_class") else logging.DEBUG,
        "%s: tokenizer.json and its tokenizer_class %s disagree on plain text; using tokenizer.json, like transformers "
        "4, not the class, like 5",
        folder,
        settings.kind,
    )
    return saved


def _build(kind: TokenizerClass, source: Tokenizer, settings: TokenizerSettings, tokens: _Tokens) -> Tokenizer:
    """Return a class's tokenizer over a vocabulary."""
    tokenizer = without_added_tokens(source)
    kind.build(tokenizer, settings, tokens.named)
    tokens.add_to(tokenizer)
    if kind.plain_tokens:
        tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens.special])
    kind.set_template(tokenizer, tokens.named)
    return tokenizer


def _from_vocabulary(
    folder: Path, kind: TokenizerClass | None, settings: TokenizerSettings, tokens: _Tokens
) -> Tokenizer:
    """Return a tokenizer from the files that preceded tokenizer.json."""
    if not kind or not kind.vocabulary or not all((folder / name).is_file() for name in kind.vocabulary):
        found = [name for name in _SENTENCEPIECE if (folder / name).is_file()]
        instead = f", and this package cannot read {found[0]}" if found else ""
        raise ModelNotFoundError(
            f"{folder} has no tokenizer.json{instead}; save the checkpoint with a fast tokenizer: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    tokenizer = _build(kind, kind.read_vocabulary(folder, tokens.named), settings, tokens)
    if not kind.template:
        wanted = [
            tokens.named.get(f"{end}_token") if settings.flag(f"add_{end}_token", False) else None
            for end in ("bos", "eos")
        ]
        surround(tokenizer, *(None if token is None else str(token) for token in wanted))
    return tokenizer


def _set_ends(tokenizer: Tokenizer, settings: TokenizerSettings, named: NamedTokens) -> None:
    """Add or omit the beginning and end tokens by `add_bos_token` and `add_eos_token`, where they decide."""
    asked = [
        settings.flag(f"add_{end}_token", False) if settings.sets(f"add_{end}_token") else None
        for end in ("bos", "eos")
    ]
    if not settings.adds_ends or asked == [None, None]:
        return
    tokens = [named.get(f"{end}_token") for end in ("bos", "eos")]
    row = tokenizer.encode("").ids
    present = [
        token is not None and row[place : place + 1 or None] == [tokenizer.token_to_id(str(token))]
        for token, place in zip(tokens, (0, -1), strict=True)
    ]
    wanted = [there if said is None else said for said, there in zip(asked, present, strict=True)]
    if wanted == present:
        return
    for end, token, wants in zip(("bos", "eos"), tokens, wanted, strict=True):
        if wants and token is None:
            raise ModelNotFoundError(f"tokenizer_config.json: add_{end}_token is true, but there is no {end}_token")
    surround(tokenizer, *(str(token) if wants else None for token, wants in zip(tokens, wanted, strict=True)))


@contextmanager
def _errors_reported(folder: Path) -> Iterator[None]:
    """Turn errors and panics of tokenizers into ModelNotFoundError for the folder."""
    try:
        yield
    except ModelNotFoundError as error:
        if str(folder) in str(error):
            raise
        raise ModelNotFoundError(f"{folder}: {error}") from error.__cause__
    except BaseException as error:
        # A panic in its Rust code is not an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelNotFoundError(f"the tokenizer of {folder} cannot be built: {error}; {REMEDY}") from error
