"""The vocabulary of a tokenizer as a class of transformers takes it: its unknown token, its fallbacks, its size."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from tokenizers import Tokenizer, models

from akidb_mlx_plugin.errors import ModelNotFoundError
from akidb_mlx_plugin.inference.tokenizer_settings import REMEDY

# Ids looked at beyond the embedding table where a vocabulary's size alone leaves none there.
_PROBED_IDS = 256


def read_state(part: Any) -> dict[str, Any]:
    """Return what tokenizer.json would hold for a part of a tokenizer."""
    state = json.loads(part.__getstate__())
    assert isinstance(state, dict)
    return state


def as_word_piece(model: Any, unknown: str) -> models.WordPiece:
    """Return a model as BERT's classes have it.

    Raises:
        ModelNotFoundError: it is of another kind, or has no unknown token.
    """
    if isinstance(model, models.WordLevel):
        model = models.WordPiece(read_state(model)["vocab"], unk_token=unknown)
    if not isinstance(model, models.WordPiece):
        raise _wrong_kind(model, "WordPiece")
    if model.token_to_id(unknown) is None:
        raise ModelNotFoundError(f"the vocabulary has no {unknown!r}, which stands for unknown words; {REMEDY}")
    model.unk_token = unknown
    model.continuing_subword_prefix = "##"
    model.max_input_chars_per_word = 100
    return model


def as_bpe(model: Any, *, unknown: str | None = None, fallback: bool = False) -> models.BPE:
    """Return a model as the classes with merges have it.

    Args:
        unknown: token of characters that are not in the vocabulary; None: they are left out.
        fallback: whether such a character becomes its bytes first, as in models from sentencepiece.
    Raises:
        ModelNotFoundError: it is of another kind.
    """
    if not isinstance(model, models.BPE):
        raise _wrong_kind(model, "BPE")
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        raise ModelNotFoundError(f"tokenizer.json marks parts of words, which its tokenizer_class does not; {REMEDY}")
    model.dropout = None
    model.ignore_merges = False
    model.fuse_unk = fallback
    model.byte_fallback = fallback
    model.unk_token = unknown
    return model


def as_unigram(model: Any, unknown_id: int) -> models.Unigram:
    """Return a model as the classes from sentencepiece with scores have it.

    Raises:
        ModelNotFoundError: it is of another kind.
    """
    if not isinstance(model, models.Unigram):
        raise _wrong_kind(model, "Unigram")
    text = model.__getstate__()
    # A quarter of a million pieces are parsed only where something is to be changed.
    head = b'{"type":"Unigram","unk_id":%d,' % unknown_id
    if text.startswith(head) and text.endswith(b'"byte_fallback":false}'):
        return model
    return models.Unigram([tuple(piece) for piece in json.loads(text)["vocab"]], unknown_id, False)


def without_tokens(model: Any, contents: Collection[str]) -> Any:
    """Return a model whose vocabulary lacks some tokens at its end.

    Raises:
        ModelNotFoundError: others are made of them.
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
    """Return the tokens of a vocabulary whose ids have no row in an embedding table.

    Args:
        model: the vocabulary.
        size: how many tokens it has.
        rows: of the table.
    """
    if size <= rows and all(model.id_to_token(number) is None for number in range(rows, rows + _PROBED_IDS)):
        return {}
    vocabulary = Tokenizer(model).get_vocab(with_added_tokens=False)
    return {token: number for token, number in vocabulary.items() if number >= rows}


def _wrong_kind(model: Any, wanted: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"tokenizer.json holds a {type(model).__name__} model, and its tokenizer_class works on {wanted}; {REMEDY}"
    )
