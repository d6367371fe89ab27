"""What `akidb-mlx doctor` finds on a machine with a GPU: chip, system, number format, and the speed of its products."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from akidb_mlx_plugin.runtime.devices import AppleGPU
    from akidb_mlx_plugin.runtime.workers import WorkerPool

# The first macOS that MLX runs on, and the first that lets it use the matrix units of M5 chips.
_LOWEST_MACOS, _MATRIX_UNITS_MACOS = (14, 0), (26, 2)
_M5 = 17
_TOKENS = 512

# A check, what was found, and a remedy where something is off.
Finding = tuple[str, str, str]


def check_gpu(pool: WorkerPool) -> Iterator[Finding]:
    """Yield findings about the GPU that a pool's thread computes on."""
    from akidb_mlx_plugin.benchmarks.products import DEFAULT_MODEL_WEIGHTS, measure_products
    from akidb_mlx_plugin.runtime.devices import emulates_bfloat16, find_apple_gpu, pass_tokens

    gpu = find_apple_gpu()
    if gpu is not None:
        yield _describe_chip(gpu)
        yield _check_macos(gpu)
    if emulates_bfloat16():
        yield "number format", "float16, as this GPU computes bfloat16 in software; bfloat16 for EmbeddingGemma", ""
    else:
        yield "number format", "bfloat16; float16 for weights in float32 or float16, except EmbeddingGemma's", ""
    yield "forward pass", f"up to {pass_tokens():,} tokens", ""
    tflops = measure_products(pool, _TOKENS)
    rate = tflops * 1e12 / (2 * DEFAULT_MODEL_WEIGHTS)
    yield (
        "4-bit products",
        f"{tflops:.1f} TFLOP/s, which allows at most {rate:,.0f} tokens/s of qwen3-0.6b-4bit",
        "",
    )


def _describe_chip(gpu: AppleGPU) -> Finding:
    from akidb_mlx_plugin.benchmarks.machine import describe_machine

    return "chip", f"{describe_machine()['processor']} (applegpu_g{gpu.generation}{gpu.size})", ""


def _check_macos(gpu: AppleGPU) -> Finding:
    found = platform.mac_ver()[0]
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if numbers < _LOWEST_MACOS:
        return "macOS", found, "MLX needs macOS 14 or later"
    if gpu.generation >= _M5 and numbers < _MATRIX_UNITS_MACOS:
        return "macOS", found, "macOS 26.2 or later lets MLX use this chip's matrix units"
    return "macOS", found, ""
