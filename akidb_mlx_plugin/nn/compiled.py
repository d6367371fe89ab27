"""Functions compiled by MLX; used on a Linux CPU only once their libraries are known to be this user's own.

MLX loads a compiled kernel's library when an array that needs it is first evaluated, somewhere inside a graph. Here
each kind of kernel is loaded earlier, by a small example guarded by `kernel_folder.load_kernel`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from akidb_mlx_plugin.runtime.default_device import computes_on_cpu, given_back
from akidb_mlx_plugin.runtime.kernel_folder import IS_GUARDED, load_kernel


def is_guarded() -> bool:
    """Return whether this thread's kernels must be loaded before use."""
    return IS_GUARDED and computes_on_cpu()


class Kernels:
    """Which kernels of a compiled function may be used, by kind of array.

    A kind is what makes MLX compile another kernel: the dtypes, and which axes collapse into one.
    """

    def __init__(self) -> None:
        self._usable: dict[Hashable, bool] = {}

    def may_use(self, kind: Hashable, example: Callable[[], Any]) -> bool:
        """Return whether the compiled function may be used for a kind of array.

        Args:
            kind: see the class.
            example: applies the compiled function to small arrays of that kind.
        """
        usable = self._usable.get(kind)
        if usable is None:
            described = example()
            # Compiling takes seconds, and other threads may be waiting for the same lock.
            with given_back():
                usable = self._usable[kind] = load_kernel(lambda: mx.eval(described))
        return usable


_uncompiled = 0
_lock = threading.Lock()


@contextmanager
def without_kernels() -> Iterator[None]:
    """Disable MLX's compilation on a Linux CPU while code outside this package builds a graph.

    MLX's switch is process-wide: graphs that other threads build meanwhile are not compiled either, which does not
    change their results.
    """
    global _uncompiled
    if not is_guarded():
        yield
        return
    with _lock:
        if _uncompiled or _compiles():
            _uncompiled += 1
            mx.disable_compile()
            switched = True
        else:
            switched = False
    try:
        yield
    finally:
        if switched:
            with _lock:
                _uncompiled -= 1
                if not _uncompiled:
                    mx.enable_compile()


def _compiles() -> bool:
    """Return whether MLX compiles; there is no query for it, but MLX calls a compiled function only once."""
    runs: list[None] = []

    def probe(x: mx.array) -> mx.array:
        runs.append(None)
        return x

    compiled = mx.compile(probe)
    for _ in range(2):
        compiled(mx.array(0.0))
    return len(runs) == 1
