"""A real BLAS in front of MLX on a Linux CPU.

MLX's wheel for Linux links the reference BLAS, which multiplies matrices some 80 times slower than the processor can.
A library that is loaded before it with its symbols global answers in its place: MKL (`pip install mkl`, x86-64 alone),
the system's OpenBLAS, which goes first on AMD processors with AVX-512, or whatever `AKIDB_BLAS_LIBRARY` names. macOS
has Accelerate and needs none of this.
"""

from __future__ import annotations

import ctypes
import glob
import importlib.abc
import logging
import os
import site
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import cast

from akidb_mlx_plugin.errors import InvalidInputError

LIBRARY_VARIABLE = "AKIDB_BLAS_LIBRARY"
REMEDY = (
    "install one: pip install 'akidb-mlx-plugin[linux]' (x86-64), or the system's OpenBLAS "
    f"(apt install libopenblas0-pthread), or name a library in {LIBRARY_VARIABLE}"
)
_SYSTEM_LIBRARIES = ("libopenblas.so.0", "libopenblaso.so.0", "libopenblasp.so.0", "libopenblas.so")
_THREAD_SETTERS = ("MKL_Set_Num_Threads", "openblas_set_num_threads", "bli_thread_set_num_threads")
# Processors by OpenBLAS's names for which it has kernels that take small matrices as they lie.
_SMALL_KERNEL_CORES = {"SkylakeX", "Cooperlake", "SapphireRapids"}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 1 << 30

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Blas:
    """The library that answers MLX's matrix products.

    Attributes:
        name: "mkl", "openblas", "accelerate", "custom" or "reference".
        path: file it was loaded from; "" where the platform brings it.
        core: of OpenBLAS, the processor its kernels were written for; `OPENBLAS_CORETYPE` chooses others.
    """

    name: str
    path: str = ""
    core: str = ""

    @property
    def small_kernels(self) -> bool:
        """Whether it multiplies small matrices as they lie, without copying them first."""
        return self.core in _SMALL_KERNEL_CORES

    def __str__(self) -> str:
        return f"{self.name}, {self.core} kernels" if self.core else self.name


_lock = threading.Lock()
_loaded: Blas | None = None
_set_threads: Callable[[int], None] | None = None


class _BeforeMLX(importlib.abc.MetaPathFinder):
    """Loads the BLAS when MLX is about to be imported, by whomever: after that its symbols are bound for good."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "mlx.core":
            load_blas()
            # Not before: where the user's library cannot be loaded, a second import of MLX has to fail as well.
            sys.meta_path.remove(self)
        return None


def load_blas_before_mlx() -> None:
    """Arrange that the BLAS is loaded at MLX's import; costs nothing until then."""
    if "mlx.core" not in sys.modules and not any(isinstance(finder, _BeforeMLX) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeMLX())


def load_blas() -> Blas:
    """Put a real BLAS in front of MLX, once per process.

    Returns:
        The library in use. Where none was found that is the reference BLAS, and one warning names the remedy.
    Raises:
        InvalidInputError: `AKIDB_BLAS_LIBRARY` names a library that cannot be loaded.
    """
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = _load()
        return _loaded


def set_blas_threads(count: int) -> None:
    """Let each matrix product use this many threads; nothing happens where the library cannot be told."""
    if _set_threads is not None:
        _set_threads(count)


def _load() -> Blas:
    if not sys.platform.startswith("linux"):
        return Blas("accelerate")
    _keep_freed_pages()
    if "mlx.core" in sys.modules:
        _log.warning(
            "mlx was imported before akidb_mlx_plugin, too early for a fast BLAS: embedding on this CPU will be some "
            "50 times slower than it could be; import akidb_mlx_plugin first, or set LD_PRELOAD to a BLAS library"
        )
        return Blas("reference")
    explicit = os.environ.get(LIBRARY_VARIABLE)
    if explicit:
        try:
            return _open(explicit, "custom")
        except OSError as error:
            raise InvalidInputError(
                f"{LIBRARY_VARIABLE}={explicit!r} cannot be loaded: {error}; name a BLAS library's file, or unset it"
            ) from error
    for path, name in _candidates():
        try:
            return _open(path, name)
        except OSError as error:
            _log.debug("BLAS candidate %s cannot be loaded: %s", path, error)
    _log.warning("no fast BLAS found: embedding on this CPU will be some 50 times slower than it could be; %s", REMEDY)
    return Blas("reference")


def _candidates() -> list[tuple[str, str]]:
    """Return paths and names of the libraries to try, the fastest on this processor first."""
    roots = dict.fromkeys((sys.prefix, sys.base_prefix, site.getuserbase() or ""))
    mkl = [
        (path, "mkl")
        for root in roots
        for path in sorted(glob.glob(str(Path(root) / "lib" / "libmkl_rt.so*")), reverse=True)
    ]
    openblas = [(library, "openblas") for library in _SYSTEM_LIBRARIES]
    # Chosen by processor and not by a trial: MKL puts its symbols in front for good with the first product it computes.
    return [*openblas, *mkl] if is_amd_with_avx512() else [*mkl, *openblas]


def is_amd_with_avx512() -> bool:
    """Tell whether MKL would leave half of the processor unused, as it does not use AVX-512 on AMD (measured: 90
    against 195 GFLOP/s on a core)."""
    try:
        description = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "AuthenticAMD" in description and " avx512f " in description


def _thread_setter(library: ctypes.CDLL) -> Callable[[int], None] | None:
    for name in _THREAD_SETTERS:
        if hasattr(library, name):
            return cast(Callable[[int], None], getattr(library, name))
    return None


def _open(path: str, name: str) -> Blas:
    global _set_threads
    library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    if not hasattr(library, "cblas_sgemm"):
        raise OSError(f"{path} has no cblas_sgemm")
    _set_threads = _thread_setter(library)
    _log.info("matrix products by %s (%s)", name, path)
    return Blas(name, path, _core_name(library))


def _core_name(library: ctypes.CDLL) -> str:
    if not hasattr(library, "openblas_get_corename"):
        return ""
    library.openblas_get_corename.restype = ctypes.c_char_p
    return (library.openblas_get_corename() or b"").decode("ascii", "replace")


def _keep_freed_pages() -> None:
    """Have malloc keep the memory of freed activations.

    MLX allocates every intermediate result anew with malloc, and glibc by default gives megabytes back to the system at
    once: clearing fresh pages then costs several times the arithmetic on them (12 ns against 3 ns per element of an
    activation). At most 1 GiB of freed memory is kept. All threads allocate from one arena: with one each, what one has
    freed is of no use to the others, and memory creeps up for hours as each meets its own largest batch.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc; musl has none
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_ARENA_MAX, 1)
