"""A checkpoint folder to the tokenizer that transformers makes of it.

Followed is transformers 5.24, which takes more from a folder's `tokenizer_class` than 4.x did; on the files of
published checkpoints both agree. One exception: `add_bos_token` and `add_eos_token` are honoured for the classes that
honoured them in 4.x, under which those checkpoints were made; 5.x goes by tokenizer.json alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.inference.tokenizer_classes import TOKENIZER_CLASSES, NamedTokens, TokenizerClass, surround
from akidb_mlx_plugin.inference.tokenizer_models import tokens_beyond, without_tokens
from akidb_mlx_plugin.inference.tokenizer_settings import (
    NAMED_TOKENS,
    REMEDY,
    TokenizerSettings,
    read_tokenizer_settings,
    to_token,
)

_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer with what transformers keeps beside it.

    Attributes:
        tokenizer: without padding and truncation.
        special_ids: of its named and extra special tokens.
        side: where texts that are too long are cut, "right" or "left".
    """

    tokenizer: Tokenizer
    special_ids: frozenset[int]
    side: str


def load_tokenizer(folder: Path, rows: int | None = None) -> LoadedTokenizer:
    """Load a folder's tokenizer.

    Args:
        folder: with tokenizer.json, or the vocabulary of a class that is made of nothing else.
        rows: of the embedding table; added tokens beyond it are not tokens. None: not limited.
    Raises:
        ModelNotFoundError: a file is missing, damaged, or asks for what this package does not do.
    """
    settings = read_tokenizer_settings(folder)
    with _refusing(folder):
        tokenizer, special, side = _build(folder, settings)
        if rows is not None:
            tokenizer = _within(tokenizer, rows)
        ids = {tokenizer.token_to_id(token) for token in special}
        return LoadedTokenizer(tokenizer, frozenset(number for number in ids if number is not None), side)


def _build(folder: Path, settings: TokenizerSettings) -> tuple[Tokenizer, list[str], str]:
    """Return the tokenizer, its special tokens, and the side on which it cuts."""
    file = folder / "tokenizer.json"
    from_file = _read_file(file) if file.is_file() else None
    kind = None if _is_byte_level_llama(settings, from_file) else TOKENIZER_CLASSES.get(settings.kind)
    known = dict(settings.added)
    if from_file is not None and not settings.complete:
        known |= from_file.get_added_tokens_decoder()
    named = _named_tokens(settings, kind, known, from_file)
    source = from_file or _read_vocabulary(folder, settings, kind, named)
    if kind:
        tokenizer = _without_added_tokens(source)
        kind.build(tokenizer, settings, named)
    else:
        tokenizer = source
        if getattr(tokenizer.model, "dropout", None):
            raise ModelNotFoundError(
                f"{file}: dropout is {tokenizer.model.dropout}, which gives a text other tokens each time"
            )
    extra = _extra_tokens(settings)
    _add_tokens(tokenizer, known, named, extra)
    special = list(dict.fromkeys(str(token) for token in (*named.values(), *extra) if token is not None))
    if kind and kind.plain_tokens:
        tokenizer.add_tokens([AddedToken(token, special=True) for token in special])
    if kind:
        kind.set_template(tokenizer, named)
    _set_ends(tokenizer, settings, named, always=from_file is None and not (kind and kind.template))
    tokenizer.encode_special_tokens = settings.flag("split_special_tokens", False)
    side = settings.values.get("truncation_side") or (source.truncation or {}).get("direction", "right")
    if side not in ("left", "right"):
        raise ModelNotFoundError(f"tokenizer_config.json: truncation_side is {side!r}, not 'left' or 'right'")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, special, side


def _read_file(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelNotFoundError(f"{file} cannot be read: {error}") from error


def _is_byte_level_llama(settings: TokenizerSettings, from_file: Tokenizer | None) -> bool:
    """Return whether the folder names Llama's class, which is for sentencepiece, as Llama 3 and its kin do."""
    if settings.kind != "LlamaTokenizer" or from_file is None:
        return False
    parts = (from_file.pre_tokenizer, from_file.decoder, from_file.post_processor)
    return any(b'"ByteLevel"' in part.__getstate__() for part in parts if part is not None)


def _read_vocabulary(
    folder: Path, settings: TokenizerSettings, kind: TokenizerClass | None, named: NamedTokens
) -> Tokenizer:
    """Return a tokenizer of the plain files that came before tokenizer.json."""
    if kind and kind.vocabulary and all((folder / name).is_file() for name in kind.vocabulary):
        return kind.read_vocabulary(folder, named)
    found = [name for name in _SENTENCEPIECE if (folder / name).is_file()]
    instead = f", and {found[0]} alone is not enough" if found else ""
    raise ModelNotFoundError(
        f"{folder} has no tokenizer.json{instead}; save the checkpoint with a fast tokenizer: "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder) does"
    )


def _named_tokens(
    settings: TokenizerSettings,
    kind: TokenizerClass | None,
    known: Mapping[int, AddedToken | str],
    from_file: Tokenizer | None,
) -> dict[str, AddedToken | str | None]:
    """Return the special tokens that have names, in the order in which transformers adds them."""
    values, defaults = settings.values, dict(kind.tokens) if kind else {}
    if from_file is not None and from_file.padding and not kind:
        defaults["pad_token"] = from_file.padding["pad_token"]
    properties = {str(token): token for token in known.values()}
    named: dict[str, AddedToken | str | None] = {}
    for name in NAMED_TOKENS:
        if values.get(name) is not None:
            token = to_token(name, values[name])
            named[name] = properties.get(str(token), token)
        elif name not in values and name in defaults:
            named[name] = defaults[name]
    if kind and kind.mask_takes_space and isinstance(named.get("mask_token"), str):
        named["mask_token"] = AddedToken(str(named["mask_token"]), lstrip=True)
    # Names of a model's own, such as image_token.
    own = {name: value for name, value in values.items() if name.endswith("_token") and name not in NAMED_TOKENS}
    own = {name: value for name, value in own.items() if isinstance(value, (str, AddedToken)) or _is_token(value)}
    extra = values.get("extra_special_tokens")
    if isinstance(extra, dict):
        own |= extra
    return named | {name: to_token(name, value) for name, value in own.items()}


def _is_token(value: Any) -> bool:
    return isinstance(value, dict) and "content" in value


def _extra_tokens(settings: TokenizerSettings) -> list[AddedToken | str]:
    """Return the special tokens without names."""
    tokens = settings.values.get("extra_special_tokens")
    if not tokens:
        tokens = settings.values.get("additional_special_tokens")
        if settings.kind == "T5Tokenizer" and not any("<extra_id_" in str(token) for token in tokens or ()):
            count = settings.values.get("extra_ids", 100)
            tokens = [*(tokens or ()), *(f"<extra_id_{i}>" for i in range(count))]
    if isinstance(tokens, dict) or not tokens:
        return []
    return [to_token("extra_special_tokens", token) for token in tokens]


def _add_tokens(
    tokenizer: Tokenizer,
    known: Mapping[int, AddedToken | str],
    named: NamedTokens,
    extra: list[AddedToken | str],
) -> None:
    """Add what the folder names as tokens beside the vocabulary, in the order that gives them transformers' ids."""
    tokens = [token for _, token in sorted(known.items())]
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()} | set(map(str, tokens))
    for token in (*named.values(), *extra):
        if token is not None and str(token) not in present and token not in tokens:
            tokens.append(token)
    of_name = {str(token) for token in named.values() if token is not None}
    for i, token in enumerate(tokens):
        if isinstance(token, str):
            tokens[i] = AddedToken(token, special=True)
        elif str(token) in of_name:
            token.special = True
    tokenizer.add_tokens(tokens)


def _set_ends(tokenizer: Tokenizer, settings: TokenizerSettings, named: NamedTokens, *, always: bool) -> None:
    """Put the beginning and end tokens that `add_bos_token` and `add_eos_token` ask for, where they decide.

    Args:
        always: there is no template but this one.
    """
    asked = {
        name: settings.flag(f"add_{name}", False)
        for name in ("bos_token", "eos_token")
        if f"add_{name}" in settings.values
    }
    if not always and not (asked and settings.adds_ends):
        return
    tokens = {name: str(named[name]) if named.get(name) is not None else None for name in ("bos_token", "eos_token")}
    row = tokenizer.encode("").ids
    present = {
        name: bool(row) and token is not None and row[place] == tokenizer.token_to_id(token)
        for (name, token), place in zip(tokens.items(), (0, -1), strict=True)
    }
    wanted = present | asked
    if always or wanted != present:
        missing = [name for name, wants in wanted.items() if wants and tokens[name] is None]
        if missing and not always:
            raise ModelNotFoundError(f"tokenizer_config.json: add_{missing[0]} is true, and there is no {missing[0]}")
        surround(tokenizer, *(tokens[name] if wants else None for name, wants in wanted.items()))


def _without_added_tokens(source: Tokenizer) -> Tokenizer:
    tokenizer = Tokenizer(source.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        if getattr(source, part) is not None:
            setattr(tokenizer, part, getattr(source, part))
    return tokenizer


def _within(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    """Return the tokenizer without those added tokens that have no row in the embedding table.

    Raises:
        ModelNotFoundError: other tokens have none either.
    """
    added = tokenizer.get_added_tokens_decoder()
    kept = {number: token for number, token in added.items() if number < rows}
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    beyond = tokens_beyond(tokenizer.model, size, rows)
    lost = beyond.keys() - {token.content for token in added.values()}
    if lost:
        raise ModelNotFoundError(
            f"the vocabulary goes up to id {max(beyond.values())} (with {min(lost)!r} among its tokens), and the "
            f"embedding table has {rows} rows (vocab_size in config.json)"
        )
    if len(kept) == len(added):
        return tokenizer
    smaller = _without_added_tokens(tokenizer)
    smaller.encode_special_tokens = tokenizer.encode_special_tokens
    if beyond:
        smaller.model = without_tokens(smaller.model, beyond)
    smaller.add_tokens([token for _, token in sorted(kept.items())])
    ends = smaller.encode("").ids
    if smaller.get_added_tokens_decoder().keys() != kept.keys() or max(ends, default=0) >= rows:
        raise ModelNotFoundError(
            f"every text gets a token with id {max(ends, default=0)}, and the embedding table has {rows} rows "
            f"(vocab_size in config.json); {REMEDY}"
        )
    return smaller


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Turn what tokenizers raises, or panics with, into a refusal of the folder."""
    try:
        yield
    except ModelNotFoundError as error:
        if str(folder) in str(error):
            raise
        raise ModelNotFoundError(f"{folder}: {error}") from error.__cause__
    except BaseException as error:
        # A panic in its Rust code is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelNotFoundError(f"the tokenizer of {folder} cannot be built: {error}; {REMEDY}") from error
