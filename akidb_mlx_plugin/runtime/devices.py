"""Choose the device to compute on."""

from __future__ import annotations

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
