"""The refusal of texts that a model would cut."""

from __future__ import annotations

from collections.abc import Sequence

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.inference.tokenizer import TextTokenizer
from akidb_mlx_plugin.types import ResolvedRequest

# Tokens of a longer text are not counted for a message: that takes some 400 bytes of memory per character.
_LONGEST_COUNTED = 1_000_000


def refuse_cut(
    tokenizer: TextTokenizer,
    label: str,
    request: ResolvedRequest,
    cut: Sequence[bool],
    *,
    first: int = 0,
    names: Sequence[str] | None = None,
) -> None:
    """Raise InvalidInputError if a text of a request that refuses long ones was cut.

    Args:
        tokenizer: that cut it.
        label: the model's name.
        request: holds the texts.
        cut: whether each of its texts from `first` on was cut.
        first: position of the first one.
        names: what to call each text of the request; default to its position.
    """
    if request.overflow != "error" or not any(cut):
        return
    index = first + cut.index(True)
    text = request.prompt + request.inputs[index]
    if len(text) <= _LONGEST_COUNTED:
        count = f"{tokenizer.count_tokens(text) + tokenizer.special_tokens} tokens"
    else:
        count = f"{len(text)} characters"
    name = names[index] if names else f"text {request.position(index)}"
    raise InvalidInputError(
        f"{name} has {count} with prompt and special tokens, and {label} takes "
        f"{tokenizer.room + tokenizer.end_tokens}; split it (upsert(..., split=True) or service.split(text)), or give "
        "overflow='truncate' to have it cut"
    )
