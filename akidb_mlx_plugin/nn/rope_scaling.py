"""Rotary frequencies, plain and scaled for texts longer than those the model was first trained on.

Source: `ROPE_INIT_FUNCTIONS` of Hugging Face transformers, and the papers cited at each function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from akidb_mlx_plugin.errors import ModelNotFoundError

Frequencies = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class RopeSettings:
    """How positions become angles, for heads of one size.

    Attributes:
        frequencies: (d/2,) angle per position of each pair of channels.
        attention_factor: multiplies the cosines and sines.
        long_frequencies: for texts of more than `short_length` tokens; None where all texts share `frequencies`.
        short_length: longest text, in tokens, that uses `frequencies`.
        max_length: longest text, in tokens, for which these frequencies are exact; None for no limit.
    """

    frequencies: Frequencies
    attention_factor: float = 1.0
    long_frequencies: Frequencies | None = None
    short_length: int = 0
    max_length: int | None = None


@dataclass(frozen=True)
class RopeScaling:
    """One kind of scaling with its parameters from the checkpoint.

    Attributes:
        kind: `rope_type`.
        parameters: by their names in `config.json`.
        size: rotated channels of a head, d.
        theta: base of the frequencies.
        positions: `max_position_embeddings`.
        original_positions: positions of the model before scaling.
    """

    kind: str
    parameters: Mapping[str, Any]
    size: int
    theta: float
    positions: int | None
    original_positions: int | None

    def settings(self) -> RopeSettings:
        """Compute the frequencies.

        Raises:
            ModelNotFoundError: an unsupported kind, or a missing or invalid parameter.
        """
        if self.kind not in _KINDS:
            raise ModelNotFoundError(f"rope type {self.kind!r} is not supported; supported are {', '.join(_KINDS)}")
        if self.size < 2 or self.size % 2:
            raise ModelNotFoundError(f"rotary positions need an even number of channels, got {self.size}")
        return _KINDS[self.kind](self)

    def number(self, name: str, default: float | None = None) -> float:
        """Return a positive parameter; null counts as missing."""
        value = self.parameters.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ModelNotFoundError(f"rope type {self.kind!r} needs a positive {name}, got {value!r}")
        return float(value)

    @property
    def original_length(self) -> int:
        """Positions of the model before scaling."""
        if self.original_positions is None:
            raise ModelNotFoundError(f"rope type {self.kind!r} needs original_max_position_embeddings")
        return self.original_positions

    @property
    def factor(self) -> float:
        """How many times longer texts may be than before scaling."""
        if self.parameters.get("factor") is None and self.positions is not None:
            return self.positions / self.original_length
        return self.number("factor")


def plain_frequencies(size: int, theta: float) -> Frequencies:
    """Return theta ** (-2i / size) for each pair of channels i.

    Computed in float32 like transformers: at large positions the rounding of a frequency shows in the angle.
    Source: Su et al. 2021.
    """
    return np.float32(1.0) / np.float32(theta) ** _exponents(size)


def _exponents(size: int) -> Frequencies:
    return np.arange(0, size, 2, dtype=np.float32) / np.float32(size)


def _plain(rope: RopeScaling) -> RopeSettings:
    return RopeSettings(plain_frequencies(rope.size, rope.theta))


def _linear(rope: RopeScaling) -> RopeSettings:
    return RopeSettings(plain_frequencies(rope.size, rope.theta) / np.float32(rope.number("factor")))


def _dynamic(rope: RopeScaling) -> RopeSettings:
    """The base grows with texts longer than `max_position_embeddings`; shorter ones are not scaled."""
    rope.number("factor")
    return RopeSettings(plain_frequencies(rope.size, rope.theta), max_length=rope.positions)


def _llama3(rope: RopeScaling) -> RopeSettings:
    """Long wavelengths are stretched, short ones kept, those between interpolated."""
    factor, low, high = (rope.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    if low == high:
        raise ModelNotFoundError(f"low_freq_factor and high_freq_factor of rope type 'llama3' are both {low}")
    length = rope.original_length
    plain = plain_frequencies(rope.size, rope.theta)
    waves = np.float32(2 * math.pi) / plain
    share = (length / waves - low) / (high - low)
    mixed = (1 - share) * plain / factor + share * plain
    scaled = np.where(waves > length / low, plain / factor, np.where(waves < length / high, plain, mixed))
    return RopeSettings(scaled.astype(np.float32))


def _yarn(rope: RopeScaling) -> RopeSettings:
    """Channels of high frequency are kept, those of low frequency are stretched.

    Source: Peng et al. 2023, arXiv 2309.00071.
    """
    size, length, factor = rope.size, rope.original_length, rope.factor
    if rope.theta <= 1:
        raise ModelNotFoundError(f"rope type 'yarn' needs a rope_theta above 1, got {rope.theta}")

    def channel(turns: float) -> float:
        return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    # Null and 0 mean the defaults.
    low = channel(rope.number("beta_fast", 32.0) if rope.parameters.get("beta_fast") else 32.0)
    high = channel(rope.number("beta_slow", 1.0) if rope.parameters.get("beta_slow") else 1.0)
    if rope.parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high = high + 0.001 if low == high else high
    stretched = np.clip((np.arange(size // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    waves = np.float32(rope.theta) ** _exponents(size)
    frequencies = stretched / (np.float32(factor) * waves) + (1 - stretched) / waves
    return RopeSettings(frequencies.astype(np.float32), _yarn_attention_factor(rope, factor))


def _yarn_attention_factor(rope: RopeScaling, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.parameters.get("attention_factor") is not None:
        return rope.number("attention_factor")
    if rope.parameters.get("mscale") and rope.parameters.get("mscale_all_dim"):
        return mscale(rope.number("mscale")) / mscale(rope.number("mscale_all_dim"))
    return mscale(1.0)


def _longrope(rope: RopeScaling) -> RopeSettings:
    """Each pair of channels is stretched by its own factor, a different one in long texts.

    Source: Ding et al. 2024, arXiv 2402.13753.
    """
    plain = np.float32(rope.theta) ** _exponents(rope.size)
    short = (np.float32(1.0) / (_factors(rope, "short_factor") * plain)).astype(np.float32)
    long = (np.float32(1.0) / (_factors(rope, "long_factor") * plain)).astype(np.float32)
    if rope.parameters.get("attention_factor") is not None:
        attention_factor = rope.number("attention_factor")
    else:
        growth = math.log(max(rope.factor, 1.0))
        attention_factor = math.sqrt(1 + growth / math.log(max(rope.original_length, 2)))
    return RopeSettings(short, attention_factor, long, rope.original_length)


def _factors(rope: RopeScaling, name: str) -> Frequencies:
    values = rope.parameters.get(name)
    if not isinstance(values, list) or len(values) != rope.size // 2:
        raise ModelNotFoundError(f"rope type 'longrope' needs {name}, a list of {rope.size // 2} numbers")
    numbers = [RopeScaling(rope.kind, {name: value}, 0, 0.0, None, None).number(name) for value in values]
    return np.array(numbers, dtype=np.float32)


_KINDS: dict[str, Callable[[RopeScaling], RopeSettings]] = {
    "default": _plain,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
