"""Which device computes, and what the GPU is good at."""

from __future__ import annotations

import re
from typing import NamedTuple

import mlx.core as mx

from akidb_mlx_plugin.errors import InvalidInputError


def choose_device(device: str) -> str:
    """Return "gpu" or "cpu" for "auto", "gpu" or "cpu".

    Raises:
        InvalidInputError: another value, or no GPU is available.
    """
    if device not in ("auto", "gpu", "cpu"):
        raise InvalidInputError(f"device must be auto, gpu or cpu, got {device!r}")
    available = mx.is_available(mx.gpu)
    if device == "gpu" and not available:
        raise InvalidInputError("device 'gpu': MLX found none on this machine; use 'auto' or 'cpu'")
    return "gpu" if available and device != "cpu" else "cpu"


class AppleGPU(NamedTuple):
    """An Apple GPU, as MLX names it.

    Attributes:
        generation: 13 in M1, 14 in M2, 15 in M3, and so on.
        size: "g" in base and Pro chips, "s" in Max, "d" in Ultra, "p" in phones.
    """

    generation: int
    size: str


def find_apple_gpu() -> AppleGPU | None:
    """Return this machine's Apple GPU; None if it has none."""
    architecture = str(mx.device_info(mx.gpu).get("architecture", ""))
    found = re.fullmatch(r"applegpu_g(\d+)([a-z])", architecture)
    return AppleGPU(int(found[1]), found[2]) if found else None


def emulates_bfloat16() -> bool:
    """Return whether the GPU computes bfloat16 in software, as M1 and M2 do at half the speed of float16."""
    gpu = find_apple_gpu()
    return gpu is not None and gpu.generation <= 14


def pass_tokens() -> int:
    """Return how many tokens a forward pass on the GPU may have.

    That many keep it busy. More would only delay the next caller: nothing interrupts a pass.
    """
    gpu = find_apple_gpu()
    if gpu is None:
        return 16384
    return 2048 if gpu.size in "gp" else 4096
