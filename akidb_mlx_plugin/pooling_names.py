"""The names of the pooling modes, and how a setting combines them."""

from __future__ import annotations

from akidb_mlx_plugin.errors import InvalidInputError

# sentence-transformers' names; `nn.pooling` computes them.
POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def parse_pooling(value: object) -> tuple[str, ...]:
    """Return the modes of a setting, in the order in which their vectors are concatenated.

    Args:
        value: one name, several joined as in "cls+mean", or a list of names.
    Raises:
        InvalidInputError: no name, or one that is not in `POOLING_MODES`.
    """
    names = value.split("+") if isinstance(value, str) else value if isinstance(value, list | tuple) else ()
    modes = tuple(name.strip() for name in names if isinstance(name, str))
    if not names or len(modes) < len(names) or not set(modes) <= set(POOLING_MODES):
        raise InvalidInputError(
            f"pooling must be one of {', '.join(POOLING_MODES)}, or several of them such as 'cls+mean', got {value!r}"
        )
    return modes


def join_pooling(value: object) -> str:
    """Return a setting in canonical form, like `ModelInfo.pooling`; raises like `parse_pooling`."""
    return "+".join(parse_pooling(value))
