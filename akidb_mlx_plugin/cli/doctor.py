"""`akidb-mlx doctor`: check packages, device, speed, cache and hub, and suggest remedies."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import typer

from akidb_mlx_plugin._version import __version__
from akidb_mlx_plugin.cli.output import JsonOption, print_rows
from akidb_mlx_plugin.errors import EmbeddingError
from akidb_mlx_plugin.installation import install_command

if TYPE_CHECKING:
    from akidb_mlx_plugin.runtime.blas import Blas

_PACKAGES = ("mlx", "tokenizers", "huggingface_hub", "chromadb", "lancedb")
_OPTIONAL = {"chromadb": "chroma", "lancedb": "lancedb"}
_HUB_TIMEOUT_S = 3.0
# The reference BLAS reaches 2 on any machine, an optimized one 40 and more on a single core.
_SLOW_GFLOPS = 15.0
_BUSY = "the BLAS is a fast one: run doctor again when nothing else computes"


@dataclass(frozen=True)
class _Finding:
    """The result of one check, with a remedy if it found a problem."""

    check: str
    found: str
    remedy: str = ""


def doctor(json: JsonOption = False) -> None:
    """Check versions, device, BLAS speed, cached models and access to the hub, and suggest remedies.

    Exits with status 1 if a problem affects embedding; an unreachable hub does not count.

    Example: akidb-mlx doctor
    """
    findings = [*_packages(), *_device(), *_cache(), _hub()]
    print_rows([asdict(finding) for finding in findings], as_json=json, title="akidb-mlx doctor")
    if any(finding.remedy and not finding.check.startswith("hub") for finding in findings):
        raise typer.Exit(1)


def _packages() -> Iterator[_Finding]:
    yield _Finding("akidb-mlx-plugin", __version__)
    yield _Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in _PACKAGES:
        try:
            yield _Finding(package, version(package))
        except PackageNotFoundError:
            extra = _OPTIONAL.get(package)
            # Users of one database do not need the other.
            hint = f"not installed; only for {package}: {install_command(extra)}" if extra else "missing"
            yield _Finding(package, hint, "" if extra else f"pip install {package}")


def _device() -> Iterator[_Finding]:
    from akidb_mlx_plugin.cli.doctor_gpu import check_gpu
    from akidb_mlx_plugin.runtime.blas import REMEDY, load_blas
    from akidb_mlx_plugin.runtime.cores import core_count
    from akidb_mlx_plugin.runtime.devices import choose_device
    from akidb_mlx_plugin.runtime.workers import WorkerPool

    device = choose_device("auto")
    yield _Finding("device", f"{device}, {core_count()} cores")
    blas = load_blas()
    pool = WorkerPool(device, 1)
    try:
        gflops = float(pool.submit(_measure_gflops).result())
        if device == "gpu":
            yield from (_Finding(*finding) for finding in check_gpu(pool))
    finally:
        pool.close()
    slow = device == "cpu" and gflops < _SLOW_GFLOPS
    if device == "cpu":
        yield _Finding("BLAS", _describe_blas(blas), REMEDY if blas.name == "reference" else "")
        for other in blas.others:
            yield _Finding("BLAS, slower", _describe_blas(other))
        if forced := os.environ.get("OPENBLAS_CORETYPE"):
            yield _Finding("OPENBLAS_CORETYPE", f"{forced}: kernels of another processor may halve the speed")
    remedy = REMEDY if blas.name == "reference" else _BUSY
    yield _Finding("matrix products", f"{gflops:.0f} GFLOP/s in float32", remedy if slow else "")


def _describe_blas(blas: Blas) -> str:
    speed = f", {blas.gflops:.0f} GFLOP/s in a short trial" if blas.gflops else ""
    return f"{blas}{speed}" + (f" ({blas.path})" if blas.path else "")


def _measure_gflops() -> float:
    """Return billions of float32 operations per second in the best of five products of 1024 x 1024 matrices."""
    import mlx.core as mx

    side = 1024
    a = mx.random.normal((side, side))
    mx.eval(a)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        mx.eval(a @ a)
        best = min(best, time.perf_counter() - begun)
        if best > 0.5:
            break
    return 2 * side**3 / best / 1e9


def _cache() -> Iterator[_Finding]:
    from akidb_mlx_plugin.hub.cache import default_cache_dir, list_cached_models, list_shared_models
    from akidb_mlx_plugin.hub.disk import free_bytes

    folder = default_cache_dir()
    models = list_cached_models()
    size = sum(model.size_bytes for model in models) / 1e9
    free = free_bytes(folder) / 1e9
    remedy = "free some disk space, or set AKIDB_MODEL_CACHE_DIR to a larger disk" if free < 1 else ""
    yield _Finding("model cache", f"{folder}: {size:.2f} GB used, {free:.0f} GB free", remedy)
    names = ", ".join(model.repo for model in models)
    yield _Finding("models present", names or "none; to get one: akidb-mlx models download NAME")
    if shared := ", ".join(model.repo for model in list_shared_models()):
        yield _Finding("Hugging Face cache", shared)


def _hub() -> _Finding:
    import urllib.error
    import urllib.request

    from akidb_mlx_plugin.hub.client import find_hub, is_offline

    if is_offline():
        return _Finding("hub", "offline by HF_HUB_OFFLINE")
    try:
        endpoint = find_hub().endpoint
    except EmbeddingError as error:
        return _Finding("hub", str(error), "set HF_ENDPOINT and HF_TOKEN anew, or unset them")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=_HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        pass  # it answered
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return _Finding(
            "hub",
            f"{endpoint} not reachable: {reason}",
            "cached models and minilm-l6-v2 (from the Python package index) work without it; "
            "for others, copy a checkpoint folder here and pass its path, or set HF_ENDPOINT to a mirror",
        )
    return _Finding("hub", f"{endpoint} reachable")
