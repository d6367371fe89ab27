"""Added tokens of a tokenizer: their order, their ids, and those without a row in the embedding table.

Source: transformers 5.24, `TokenizersBackend.__init__` and `PreTrainedTokenizerBase.__init__`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, Tokenizer

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.inference.tokenizer_classes import NamedTokens, TokenizerClass
from akidb_mlx_plugin.inference.tokenizer_models import tokens_beyond, without_tokens
from akidb_mlx_plugin.inference.tokenizer_settings import NAMED_TOKENS, REMEDY, TokenizerSettings, is_token, to_token

_MOST_EXTRA_IDS = 10_000


def name_tokens(
    settings: TokenizerSettings,
    kind: TokenizerClass | None,
    known: Mapping[int, AddedToken | str],
    padding: str | None,
) -> dict[str, AddedToken | str | None]:
    """Return the named special tokens, in the order in which transformers adds them.

    Args:
        known: tokens with properties, which special tokens of the same content share.
        padding: tokenizer.json's padding token.
    """
    values, defaults = settings.values, dict(kind.tokens) if kind else {}
    if padding is not None:
        defaults.setdefault("pad_token", padding)
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
    # Model-specific names, such as image_token.
    own = {name: value for name, value in values.items() if name.endswith("_token") and is_token(value)}
    extra = values.get("extra_special_tokens")
    own |= extra if isinstance(extra, dict) else {}
    return named | {name: to_token(name, value) for name, value in own.items() if name not in NAMED_TOKENS}


def extra_tokens(settings: TokenizerSettings) -> list[AddedToken | str]:
    """Return the unnamed special tokens."""
    tokens = settings.values.get("extra_special_tokens")
    if not tokens or isinstance(tokens, dict):
        tokens = settings.values.get("additional_special_tokens") or []
        if settings.kind == "T5Tokenizer" and not any("<extra_id_" in str(token) for token in tokens):
            tokens = [*tokens, *(f"<extra_id_{i}>" for i in range(_extra_ids(settings)))]
    return [to_token("extra_special_tokens", token) for token in tokens]


def _extra_ids(settings: TokenizerSettings) -> int:
    """Return the number of T5's sentinel tokens."""
    count = settings.values.get("extra_ids", 100)
    if not isinstance(count, int) or not 0 <= count <= _MOST_EXTRA_IDS:
        raise ModelNotFoundError(
            f"tokenizer_config.json: extra_ids is {count!r}, not a number up to {_MOST_EXTRA_IDS}; {REMEDY}"
        )
    return count


def add_tokens(
    tokenizer: Tokenizer,
    known: Mapping[int, AddedToken | str],
    named: NamedTokens,
    extra: Sequence[AddedToken | str],
) -> None:
    """Add a folder's tokens in the order in which those without an id get the same ids as in transformers."""
    tokens = [token for _, token in sorted(known.items())]
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()} | set(map(str, tokens))
    for token in (*named.values(), *extra):
        if token is not None and str(token) not in present and token not in tokens:
            tokens.append(token)
    of_name = {str(token) for token in named.values() if token is not None}
    tokenizer.add_tokens([_as_added(token, str(token) in of_name) for token in tokens])


def _as_added(token: AddedToken | str, special: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    if special:
        token.special = True
    return token


def keep_tokens_with_rows(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    """Return a tokenizer without the added tokens that have no row in the embedding table.

    Raises:
        ModelNotFoundError: other tokens have no row either.
    """
    added = tokenizer.get_added_tokens_decoder()
    kept = {number: token for number, token in added.items() if number < rows}
    beyond = tokens_beyond(tokenizer.model, tokenizer.get_vocab_size(with_added_tokens=False), rows)
    lost = sorted(beyond.keys() - {token.content for token in added.values()})
    if lost:
        raise ModelNotFoundError(
            f"the vocabulary goes up to id {max(beyond.values())} (including {lost[0]!r}), but the embedding table "
            f"has {rows} rows (vocab_size in config.json)"
        )
    if len(kept) == len(added):
        return tokenizer
    smaller = without_added_tokens(tokenizer)
    smaller.encode_special_tokens = tokenizer.encode_special_tokens
    if beyond:
        smaller.model = without_tokens(smaller.model, beyond)
    smaller.add_tokens([token for _, token in sorted(kept.items())])
    highest = max(smaller.encode("").ids, default=0)
    if highest >= rows:
        raise ModelNotFoundError(
            f"every text gets the token {tokenizer.id_to_token(highest)!r} with id {highest}, but the embedding table "
            f"has {rows} rows (vocab_size in config.json)"
        )
    if smaller.get_added_tokens_decoder().keys() != kept.keys():
        raise ModelNotFoundError(f"tokens beyond the embedding table's {rows} rows are followed by others; {REMEDY}")
    return smaller


def without_added_tokens(source: Tokenizer) -> Tokenizer:
    """Return a tokenizer with the same components but no added tokens."""
    tokenizer = Tokenizer(source.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor"):
        if getattr(source, part) is not None:
            setattr(tokenizer, part, getattr(source, part))
    return tokenizer
