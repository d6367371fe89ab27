"""Adapt a tokenizer's vocabulary to a transformers class: its unknown token, fallbacks and size."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any

from tokenizers import Tokenizer, models

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.inference.tokenizer_settings import REMEDY

# Ids checked beyond the embedding table where the vocabulary's size would leave none there.
_PROBED_IDS = 256


class OtherModelError(ModelNotFoundError):
    """A vocabulary is not of the kind that a tokenizer class needs."""


def read_state(part: Any) -> dict[str, Any]:
    """Return a tokenizer component as in tokenizer.json."""
    state = json.loads(part.__getstate__())
    assert isinstance(state, dict)
    return state


def as_word_piece(model: Any, unknown: str) -> Any:
    """Return a model as BERT's classes configure it; the same object if nothing changes.

    Raises:
        OtherModelError: it is of another kind.
        ModelNotFoundError: it has no unknown token.
    """
    if isinstance(model, models.WordLevel):
        model = models.WordPiece(read_state(model)["vocab"], unk_token=unknown)
    if not isinstance(model, models.WordPiece):
        raise _wrong_kind(model, "WordPiece")
    if model.token_to_id(unknown) is None:
        raise ModelNotFoundError(f"the vocabulary has no {unknown!r}, the token for unknown words; {REMEDY}")
    wanted = {"unk_token": unknown, "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    return _with_attributes(model, wanted)


def as_bpe(model: Any, *, unknown: str | None = None, fallback: bool = False) -> Any:
    """Return a model as the BPE classes configure it; the same object if nothing changes.

    Args:
        unknown: token for characters that are not in the vocabulary; None to drop them.
        fallback: whether such a character is first split into bytes, as in sentencepiece models.
    Raises:
        OtherModelError: it is of another kind.
    """
    if not isinstance(model, models.BPE) or model.continuing_subword_prefix or model.end_of_word_suffix:
        raise _wrong_kind(model, "BPE without marks inside words")
    wanted = {"unk_token": unknown, "dropout": None, "ignore_merges": False}
    return _with_attributes(model, wanted | {"fuse_unk": fallback, "byte_fallback": fallback})


def _with_attributes(model: Any, wanted: Mapping[str, Any]) -> Any:
    """Return a model with these attributes: itself if it has them, else a modified copy."""
    if any(getattr(model, name) != value for name, value in wanted.items()):
        model = deepcopy(model)
        for name, value in wanted.items():
            setattr(model, name, value)
    return model


def as_unigram(model: Any, unknown_id: int) -> Any:
    """Return a model as the sentencepiece unigram classes configure it.

    Raises:
        OtherModelError: it is of another kind.
    """
    if not isinstance(model, models.Unigram):
        raise _wrong_kind(model, "Unigram")
    text = model.__getstate__()
    # A quarter of a million pieces are parsed only if something must change.
    head = b'{"type":"Unigram","unk_id":%d,' % unknown_id
    if text.startswith(head) and text.endswith(b'"byte_fallback":false}'):
        return model
    return models.Unigram([tuple(piece) for piece in json.loads(text)["vocab"]], unknown_id, False)


def without_tokens(model: Any, contents: Collection[str]) -> Any:
    """Return a model without some tokens at the end of its vocabulary.

    Raises:
        ModelNotFoundError: other tokens are merged from them.
    """
    state = read_state(model)
    if isinstance(model, models.Unigram):
        state["vocab"] = [piece for piece in state["vocab"] if piece[0] not in contents]
    else:
        state["vocab"] = {token: number for token, number in state["vocab"].items() if token not in contents}
    holder = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
    whole = json.loads(holder.to_str())
    whole["model"] = state
    return Tokenizer.from_str(json.dumps(whole)).model


def tokens_beyond(model: Any, size: int, rows: int) -> dict[str, int]:
    """Return the tokens of a vocabulary whose ids have no row in the embedding table.

    Args:
        model: the vocabulary.
        size: number of its tokens.
        rows: rows of the table.
    """
    if size <= rows and all(model.id_to_token(number) is None for number in range(rows, rows + _PROBED_IDS)):
        return {}
    vocabulary = Tokenizer(model).get_vocab(with_added_tokens=False)
    return {token: number for token, number in vocabulary.items() if number >= rows}


def _wrong_kind(model: Any, wanted: str) -> OtherModelError:
    return OtherModelError(
        f"tokenizer.json holds a {type(model).__name__} model, but its tokenizer_class needs {wanted}; {REMEDY}"
    )
