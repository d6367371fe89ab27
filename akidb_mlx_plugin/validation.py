"""Checks of a request that every provider makes before it reads the texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import get_args

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.types import BatchEmbeddingRequest, Kind, Overflow, PairRequest

_KINDS = get_args(Kind)
_OVERFLOWS = get_args(Overflow)


def list_inputs(inputs: object) -> list[str]:
    """Return the caller's texts as a list, without checking the texts themselves.

    Raises:
        InvalidInputError: a bare string or bytes, None, or not an iterable.
    """
    if isinstance(inputs, str | bytes | bytearray | Mapping) or not isinstance(inputs, Iterable):
        raise InvalidInputError(
            f"texts must be a list of strings, got {type(inputs).__name__}; put a single text in [ ]"
        )
    return list(inputs)


def check_request(request: BatchEmbeddingRequest) -> None:
    """Check a request against what every model requires.

    Raises:
        InvalidInputError: no texts, an input that is not a string, an unpaired surrogate, an unknown kind or overflow,
            or a dimension that is not a positive integer. The message names the position, never the text.
    """
    if isinstance(request.inputs, str | bytes):
        raise InvalidInputError(
            f"texts must be a list of strings, got {type(request.inputs).__name__}; put a single text in [ ]"
        )
    if not request.inputs:
        raise InvalidInputError("there are no texts to embed; give at least one")
    for index, text in enumerate(request.inputs):
        if not isinstance(text, str):
            raise InvalidInputError(f"text {index} is {type(text).__name__}, not a string{_remedy(text)}")
        check_unicode(text, f"text {index}")
    if request.kind not in _KINDS:
        raise InvalidInputError(f"kind must be {' or '.join(map(repr, _KINDS))}, got {request.kind!r}")
    if request.overflow is not None and request.overflow not in _OVERFLOWS:
        raise InvalidInputError(f"overflow must be {' or '.join(map(repr, _OVERFLOWS))}, got {request.overflow!r}")
    dimension = request.dimension
    if dimension is not None and (isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 1):
        raise InvalidInputError(f"dimension must be a positive integer, got {dimension!r}")


def list_pairs(pairs: object) -> tuple[list[str], list[str]]:
    """Return the first and the second texts of the caller's pairs, without checking the texts themselves.

    Raises:
        InvalidInputError: not a list of pairs.
    """
    if isinstance(pairs, str | bytes | bytearray | Mapping) or not isinstance(pairs, Iterable):
        raise InvalidInputError(
            f"pairs must be a list of pairs of strings, got {type(pairs).__name__}; put a single pair in [ ]"
        )
    queries, texts = [], []
    for index, pair in enumerate(pairs):
        if isinstance(pair, str | bytes | bytearray | Mapping) or not isinstance(pair, Iterable):
            raise InvalidInputError(
                f"pair {index} is {type(pair).__name__}, not a pair of strings; put a single pair in [ ]"
            )
        both = list(pair)
        if len(both) != 2:
            raise InvalidInputError(f"pair {index} has {len(both)} texts, not 2: a query and a text")
        queries.append(both[0])
        texts.append(both[1])
    return queries, texts


def check_pairs(request: PairRequest) -> None:
    """Check pairs of texts against what every reranker requires.

    Raises:
        InvalidInputError: no pairs, or a text that is not a string, is empty, or has an unpaired surrogate. The message
            names the position, never the text.
    """
    if not request.inputs:
        raise InvalidInputError("there are no pairs to score; give at least one")
    for index, pair in enumerate(zip(request.queries, request.inputs, strict=True)):
        for place, text in zip(("first", "second"), pair, strict=True):
            what = f"the {place} text of pair {index}"
            if not isinstance(text, str):
                raise InvalidInputError(f"{what} is {type(text).__name__}, not a string; leave the pair out")
            if not text.strip():
                raise InvalidInputError(f"{what} is empty, and there is nothing to compare; leave the pair out")
            check_unicode(text, what)


def check_unicode(text: str, what: str) -> None:
    """Raise InvalidInputError for a string with an unpaired surrogate, which no database can store.

    Args:
        text: of any length.
        what: its name in messages.
    """
    # An ASCII string is recognized by a flag; only others must be encoded.
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{what} holds a lone surrogate (character {error.start}), which is not valid Unicode text; "
            "decode it with errors='replace'"
        ) from None


def _remedy(text: object) -> str:
    if text is None:
        return "; leave it out, or pass '' to embed an empty text"
    if isinstance(text, bytes | bytearray):
        return "; decode it first"
    return ""
