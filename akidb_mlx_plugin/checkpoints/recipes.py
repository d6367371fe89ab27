"""How a conversion stores each kind of matrix."""

from __future__ import annotations

from dataclasses import dataclass

from akidb_mlx_plugin.checkpoints.quantization import Scheme
from akidb_mlx_plugin.errors import InvalidInputError

_FIXED_SCHEMES = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
_BITS, _GROUP_SIZES = (2, 3, 4, 5, 6, 8), (32, 64, 128)


@dataclass(frozen=True)
class Recipe:
    """A scheme for each kind of matrix; None: it is stored as it is.

    Attributes:
        tables: embedding tables, of which a text reads few rows.
        layers: matrices that every token is multiplied by.
        head: dense layers behind the pooling.
    """

    tables: Scheme | None
    layers: Scheme | None
    head: Scheme | None = None


# A table's errors are averaged out over a text's tokens, those of the layers add up from layer to layer: so bits are
# better spent on the layers. With six of them the layers add about as much to the error as the table does; with eight
# the mean cosine would rise by 0.001 to 0.002 and the size by 12 to 25 % (MiniLM, MPNet and EmbeddingGemma).
MIXED = Recipe(Scheme(64, 4, "affine"), Scheme(64, 6, "affine"), Scheme(64, 8, "affine"))
UNQUANTIZED = Recipe(None, None)


def choose_recipe(
    bits: int | None = None, group_size: int | None = None, mode: str = "affine", name: str = "plain"
) -> Recipe:
    """Return a recipe by its name, or by a scheme that tables and layers share.

    Args:
        bits, group_size, mode: as `choose_scheme`, for the recipe "plain" alone.
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
    """Return a way of quantizing that MLX has.

    Args:
        bits: per weight; None: 4, or what the mode fixes.
        group_size: weights that share a scale; None: 64, or what the mode fixes.
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
        raise InvalidInputError(f"mode {mode} has {fixed_bits} bits in groups of {fixed_size}")
    return Scheme(fixed_size, fixed_bits, mode)
