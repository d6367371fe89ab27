"""The two ways to compute: a CPU's and a GPU's.

On a CPU texts of one length go together without padding, layers are evaluated one by one, quantized weights are
dequantized, and exponentials are polynomials. On a GPU texts of similar length share a padded rectangle, the whole
graph is handed over at once, quantized weights stay so, and attention and activations are MLX's own kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

_emulated = False


def in_cpu_layout(device: str | None = None) -> bool:
    """Return whether to compute as a CPU does best.

    Args:
        device: "cpu" or "gpu"; None: this thread's default device.
    """
    on_cpu = mx.default_device() == mx.cpu if device is None else device == "cpu"
    return bool(on_cpu) and not _emulated


def is_emulated() -> bool:
    """Return whether the GPU's layout runs on the CPU device."""
    return _emulated


@contextmanager
def emulate_gpu() -> Iterator[None]:
    """Make the whole process compute in a GPU's layout on the CPU device, for machines without a GPU.

    MLX's quantized product accumulates in the number format of the activations on a CPU, in float32 on a GPU. So
    quantized weights are dequantized to that format instead, which is closer to what a GPU gives.
    """
    global _emulated
    before, _emulated = _emulated, True
    try:
        yield
    finally:
        _emulated = before
