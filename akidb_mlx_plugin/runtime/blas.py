"""Give MLX a fast BLAS on a Linux CPU.

MLX's wheel for Linux includes the reference BLAS, which multiplies matrices some 80 times slower than the processor
can. Its library calls `cblas_sgemm` through an import slot (`elf.py`): the address of a faster one is written there,
from the wheel scipy-openblas32, the system's OpenBLAS, MKL, or the library that `AKIDB_BLAS_LIBRARY` names. No other
library's symbols are touched, and the order of imports does not matter. macOS has Accelerate and needs none of this.
"""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import logging
import os
import site
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np

from akidb_mlx_plugin.errors import InvalidInputError
from akidb_mlx_plugin.runtime.elf import Mapping, find_mappings, find_slots, read_slot, write_slot
from akidb_mlx_plugin.runtime.fork import FORK_BARRIER

LIBRARY_VARIABLE = "AKIDB_BLAS_LIBRARY"
REMEDY = (
    "install one: pip install scipy-openblas32, or the system's OpenBLAS (apt install libopenblas0-pthread), or name a "
    f"library in {LIBRARY_VARIABLE}"
)
_SYSTEM_LIBRARIES = ("libopenblas.so.0", "libopenblaso.so.0", "libopenblasp.so.0", "libopenblas.so")
# The wheel's symbols have the first, to avoid clashes with other libraries.
_PREFIXES = ("scipy_", "")
_PRODUCTS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
_THREAD_SETTERS = ("openblas_set_num_threads", "MKL_Set_Num_Threads", "bli_thread_set_num_threads")
# Threads spin while they wait for their next product, and take a core each from whatever else computes: OpenBLAS's for
# 2^26 clock ticks, some 20 ms, MKL's for 200 ms, unless these variables say otherwise. With 2^16 ticks ten short texts
# of MiniLM on two cores took as long, and a fifth less processor time. MKL's is in milliseconds.
_SPIN_LIMITS = {"OPENBLAS_THREAD_TIMEOUT": "16", "KMP_BLOCKTIME": "1"}
# Processors, by OpenBLAS's names, for which it has kernels that multiply small matrices in place.
_SMALL_KERNEL_CORES = {"SkylakeX", "Cooperlake", "SapphireRapids"}
_ROW_MAJOR, _NO_TRANSPOSE = 101, 111
# Tolerance for the sum of some hundred products of numbers around one.
_TOLERANCE = 1e-3
_TRIAL_SIDE, _TRIALS = 512, 3
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 1 << 30

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Blas:
    """The library that computes MLX's matrix products.

    Attributes:
        name: "openblas", "mkl", "accelerate", "custom" or "reference".
        path: file it was loaded from; "" if it comes with the platform.
        core: for OpenBLAS, the processor its kernels are for; `OPENBLAS_CORETYPE` chooses others.
        gflops: billions of operations per second in a short trial; 0 if there was no choice.
        others: slower libraries that were tried too.
    """

    name: str
    path: str = ""
    core: str = ""
    gflops: float = 0.0
    others: tuple[Blas, ...] = ()

    @property
    def small_kernels(self) -> bool:
        """Whether it multiplies small matrices in place, without copying them first."""
        return self.core in _SMALL_KERNEL_CORES

    def __str__(self) -> str:
        return f"{self.name}, {self.core} kernels" if self.core else self.name


class _Library:
    """A BLAS loaded only for this package."""

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name
        self.handle = ctypes.CDLL(path)
        self.prefix = next((prefix for prefix in _PREFIXES if hasattr(self.handle, f"{prefix}cblas_sgemm")), None)
        if self.prefix is None:
            raise OSError(f"{path} has no cblas_sgemm")
        if not self._is_right():
            raise OSError(f"{path} computes wrong products")

    @cached_property
    def products(self) -> dict[str, int]:
        """Addresses of the functions that MLX calls, by their usual names."""
        found = {name: getattr(self.handle, f"{self.prefix}{name}", None) for name in _PRODUCTS}
        return {name: cast(int, ctypes.cast(f, ctypes.c_void_p).value) for name, f in found.items() if f}

    @cached_property
    def set_threads(self) -> Callable[[int], None] | None:
        names = (f"{self.prefix}{name}" for name in _THREAD_SETTERS)
        return next((getattr(self.handle, name) for name in names if hasattr(self.handle, name)), None)

    def describe(self) -> Blas:
        function = getattr(self.handle, f"{self.prefix}openblas_get_corename", None)
        if function is None:
            return Blas(self.name, self.path)
        function.restype = ctypes.c_char_p
        return Blas(self.name, self.path, (function() or b"").decode("ascii", "replace"))

    def measure(self) -> float:
        """Return billions of operations per second for the best of a few products."""
        a = np.ones((_TRIAL_SIDE, _TRIAL_SIDE), dtype=np.float32)
        best = float("inf")
        for _ in range(_TRIALS):
            begun = time.perf_counter()
            self._multiply(a, a)
            best = min(best, time.perf_counter() - begun)
        return 2 * _TRIAL_SIDE**3 / best / 1e9

    def _is_right(self) -> bool:
        """Return whether it takes 32-bit sizes and computes a product correctly."""
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal(sides).astype(np.float32) for sides in ((37, 130), (130, 41)))
        return bool(np.abs(self._multiply(a, b) - a.astype(np.float64) @ b).max() < _TOLERANCE)

    def _multiply(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        (rows, inner), columns = a.shape, b.shape[1]
        c = np.zeros((rows, columns), dtype=np.float32)
        sgemm = getattr(self.handle, f"{self.prefix}cblas_sgemm")
        one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in (a, b, c)]
        layout = (_ROW_MAJOR, _NO_TRANSPOSE, _NO_TRANSPOSE, rows, columns, inner)
        sgemm(*layout, one, pointers[0], inner, pointers[1], columns, zero, pointers[2], columns)
        return c


class _Slots:
    """The slots of MLX's library that hold the addresses of the BLAS functions it calls."""

    def __init__(self, addresses: dict[str, list[int]], mappings: list[Mapping]) -> None:
        self._addresses, self._mappings = addresses, mappings
        self._before = {slot: read_slot(slot) for slots in addresses.values() for slot in slots}

    @classmethod
    def of_mlx(cls) -> _Slots | None:
        """Find the slots; None if MLX's library is missing or has an unexpected layout."""
        import mlx.core as mx

        file = Path(mx.__file__).parent / "lib" / "libmlx.so"
        try:
            mappings = find_mappings(file.resolve())
            base = next(mapping.start for mapping in mappings if mapping.offset == 0)
            found = find_slots(file, _PRODUCTS)
        except (OSError, ValueError, KeyError, StopIteration) as error:
            logger.debug("cannot find the slots of %s: %s", file, error)
            return None
        if not found["cblas_sgemm"]:
            return None
        return cls({name: [base + slot for slot in slots] for name, slots in found.items()}, mappings)

    def fill(self, library: _Library) -> None:
        """Make MLX call a library's functions from now on."""
        for name, address in library.products.items():
            for slot in self._addresses[name]:
                write_slot(slot, address, self._mappings)

    def restore(self) -> None:
        """Make MLX call the original functions again."""
        for slot, address in self._before.items():
            write_slot(slot, address, self._mappings)


_lock = threading.Lock()
_loaded: Blas | None = None
_in_use: _Library | None = None
_unchecked: _Slots | None = None


def load_blas() -> Blas:
    """Give MLX a fast BLAS, once per process.

    Returns:
        The library in use. If none was found, that is the reference BLAS, and one warning names the remedy.
    Raises:
        InvalidInputError: `AKIDB_BLAS_LIBRARY` names a library that cannot be loaded.
    """
    global _loaded
    with _lock:
        if _loaded is None:
            FORK_BARRIER.enter()
            try:
                _loaded = _load()
            finally:
                FORK_BARRIER.leave()
        return _loaded


def check_product() -> None:
    """Compare one of MLX's products with NumPy's, and restore MLX's own BLAS if they differ.

    Call it once MLX may compute on this thread; only the first call has an effect.
    """
    global _unchecked
    with _lock:
        slots, _unchecked = _unchecked, None
    if slots is None:
        return
    import mlx.core as mx

    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(sides).astype(np.float32) for sides in ((70, 130), (130, 90)))
    product = np.array(mx.array(a) @ mx.array(b))
    # NaN is neither close nor far: what is not known to be close is wrong.
    if not np.allclose(product, a.astype(np.float64) @ b, rtol=0, atol=_TOLERANCE):
        slots.restore()
        _warn_of_slowness("MLX's products were wrong with the faster BLAS, so its own was restored")


def set_blas_threads(count: int) -> None:
    """Set the number of threads per matrix product; has no effect if the library does not support it."""
    if _in_use is not None and _in_use.set_threads is not None:
        _in_use.set_threads(count)


def _load() -> Blas:
    global _in_use, _unchecked
    if not sys.platform.startswith("linux"):
        return Blas("accelerate")
    _keep_freed_pages()
    explicit = os.environ.get(LIBRARY_VARIABLE)
    try:
        with _short_spin():
            libraries = [_Library(explicit, "custom")] if explicit else _open_candidates()
    except OSError as error:
        raise InvalidInputError(
            f"{LIBRARY_VARIABLE}={explicit!r} cannot be loaded: {error}; name a BLAS library's file, or unset it"
        ) from error
    if not libraries:
        _warn_of_slowness(f"no fast BLAS found; {REMEDY}")
        return Blas("reference")
    slots = _Slots.of_mlx()
    if slots is None:
        _warn_of_slowness("MLX's library has an unexpected layout; set LD_PRELOAD to a BLAS library")
        return Blas("reference")
    chosen, described = _choose(libraries)
    try:
        slots.fill(chosen)
    except OSError as error:
        slots.restore()
        _warn_of_slowness(f"cannot give MLX a faster BLAS ({error}); set LD_PRELOAD to a BLAS library")
        return Blas("reference")
    _in_use, _unchecked = chosen, slots
    logger.info("matrix products by %s (%s)", described, described.path)
    return described


def _warn_of_slowness(reason: str) -> None:
    logger.warning("embedding on this CPU will be about 50 times slower than necessary: %s", reason)


def _choose(libraries: list[_Library]) -> tuple[_Library, Blas]:
    """Return the fastest library in a short trial, with the others' figures; a single one needs no trial."""
    if len(libraries) == 1:
        return libraries[0], libraries[0].describe()
    measured = [(library, replace(library.describe(), gflops=library.measure())) for library in libraries]
    measured.sort(key=lambda pair: -pair[1].gflops)
    (chosen, described), *others = measured
    return chosen, replace(described, others=tuple(other for _, other in others))


@contextmanager
def _short_spin() -> Iterator[None]:
    """Let the threads of libraries that are loaded meanwhile sleep soon, unless the user has set how long they spin."""
    limits = {name: limit for name, limit in _SPIN_LIMITS.items() if name not in os.environ}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name in limits:
            os.environ.pop(name, None)


def _open_candidates() -> list[_Library]:
    libraries = []
    for path, name in _candidates():
        try:
            libraries.append(_Library(path, name))
        except OSError as error:
            logger.debug("BLAS candidate %s cannot be used: %s", path, error)
    return libraries


def _candidates() -> list[tuple[str, str]]:
    """Return paths and names of the libraries on this machine: the wheel's, the system's, and MKL."""
    wheel = importlib.util.find_spec("scipy_openblas32")
    folders = list(wheel.submodule_search_locations or ()) if wheel else []
    openblas = [path for folder in folders for path in sorted(glob.glob(f"{folder}/lib/libscipy_openblas*.so*"))]
    roots = dict.fromkeys((sys.prefix, sys.base_prefix, site.getuserbase() or ""))
    mkl = [path for root in roots for path in sorted(glob.glob(f"{root}/lib/libmkl_rt.so*"), reverse=True)[:1]]
    system = [library for library in _SYSTEM_LIBRARIES if _is_loadable(library)][:1]
    return [*((path, "openblas") for path in [*openblas, *system]), *((path, "mkl") for path in mkl[:1])]


def _is_loadable(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _keep_freed_pages() -> None:
    """Make malloc keep the memory of freed activations.

    MLX allocates every intermediate result with malloc, and glibc by default returns megabytes to the system at once:
    clearing fresh pages then costs several times the arithmetic on them (12 ns versus 3 ns per element of an
    activation). At most 1 GiB of freed memory is kept. All threads share one arena: with one each, no thread can reuse
    what another freed, and memory creeps up for hours as each meets its own largest batch.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc; musl has none
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_ARENA_MAX, 1)
