"""How a conversion stores each kind of matrix."""

from __future__ import annotations

from dataclasses import dataclass

from akidb_mlx_plugin.checkpoints.quantization import Scheme
from akidb_mlx_plugin.errors import InvalidInputError

_FIXED_SCHEMES = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
_BITS, _GROUP_SIZES = (2, 3, 4, 5, 6, 8), (32, 64, 128)


@dataclass(frozen=True)
class Recipe:
    """A scheme for each kind of matrix; None to leave it unquantized.

    Attributes:
        tables: embedding tables, of which a text reads few rows.
        layers: matrices that every token is multiplied by.
        head: dense layers after pooling.
    """

    tables: Scheme | None
    layers: Scheme | None
    head: Scheme | None = None


# A table's errors average out over a text's tokens, whereas those of the layers accumulate: so bits are better spent on
# the layers. With six bits the layers contribute about as much to the error as the table; with eight, the mean cosine
# would rise by 0.001 to 0.002 and the size by 12 to 25 % (MiniLM, MPNet and EmbeddingGemma).
MIXED = Recipe(Scheme(64, 4, "affine"), Scheme(64, 6, "affine"), Scheme(64, 8, "affine"))
UNQUANTIZED = Recipe(None, None)


def choose_recipe(
    bits: int | None = None, group_size: int | None = None, mode: str = "affine", name: str = "plain"
) -> Recipe:
    """Return a recipe by name, or one whose tables and layers share a scheme.

    Args:
        bits, group_size, mode: as for `choose_scheme`; only for the recipe "plain".
        name: "plain", "mixed" (tables in 4 bits, layers in 6, the head in 8) or "unquantized".
    Raises:
        InvalidInputError: no such recipe or scheme.
    """
    fixed = {"mixed": MIXED, "unquantized": UNQUANTIZED}
    if name in fixed:
        if (bits, group_size, mode) != (None, None, "affine"):
            raise InvalidInputError(f"the recipe {name} has its own bits, group size and mode; leave them out")
        return fixed[name]
    if name != "plain":
        raise InvalidInputError(f"recipe must be plain, {' or '.join(fixed)}, got {name!r}")
    scheme = choose_scheme(bits, group_size, mode)
    return Recipe(scheme, scheme)


def choose_scheme(bits: int | None = None, group_size: int | None = None, mode: str = "affine") -> Scheme:
    """Return a quantization scheme that MLX supports.

    Args:
        bits: per weight; None for 4, or the mode's fixed value.
        group_size: weights that share a scale; None for 64, or the mode's fixed value.
        mode: "affine", "mxfp4", "nvfp4" or "mxfp8".
    Raises:
        InvalidInputError: MLX has no such scheme.
    """
    if mode == "affine":
        scheme = Scheme(group_size or 64, bits or 4, mode)
        if scheme.bits in _BITS and scheme.group_size in _GROUP_SIZES:
            return scheme
        raise InvalidInputError(
            f"bits must be one of {', '.join(map(str, _BITS))} and the group size one of "
            f"{', '.join(map(str, _GROUP_SIZES))}, got {scheme.bits} and {scheme.group_size}"
        )
    if mode not in _FIXED_SCHEMES:
        raise InvalidInputError(f"mode must be affine, {', '.join(_FIXED_SCHEMES)}, got {mode!r}")
    fixed_bits, fixed_size = _FIXED_SCHEMES[mode]
    if (bits or fixed_bits, group_size or fixed_size) != (fixed_bits, fixed_size):
        raise InvalidInputError(f"mode {mode} always has {fixed_bits} bits in groups of {fixed_size}")
    return Scheme(fixed_size, fixed_bits, mode)
