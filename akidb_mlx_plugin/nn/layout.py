"""The two ways to compute: on a CPU and on a GPU.

On a CPU texts of one length are packed without padding, layers are evaluated one by one, quantized weights are
dequantized, and exponentials are polynomials. On a GPU texts of similar length share a padded rectangle, the whole
graph is submitted at once, quantized weights stay so, and attention and activations are MLX's own kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from akidb_mlx_plugin.runtime.default_device import computes_on_cpu

_emulated = False


def in_cpu_layout(device: str | None = None) -> bool:
    """Return whether to compute the CPU's way.

    Args:
        device: "cpu" or "gpu". Defaults to what this thread computes on.
    """
    on_cpu = computes_on_cpu() if device is None else device == "cpu"
    return on_cpu and not _emulated


def is_emulated() -> bool:
    """Return whether the CPU device uses the GPU's layout."""
    return _emulated


@contextmanager
def emulate_gpu() -> Iterator[None]:
    """Make the whole process use the GPU's layout on the CPU device, for machines without a GPU.

    MLX's quantized product accumulates in the activations' dtype on a CPU, in float32 on a GPU. So quantized weights
    are dequantized to that dtype instead, which is closer to a GPU's results.
    """
    global _emulated
    before, _emulated = _emulated, True
    try:
        yield
    finally:
        _emulated = before
