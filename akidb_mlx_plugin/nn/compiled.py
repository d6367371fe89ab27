"""Functions compiled by MLX, on a Linux CPU only once their libraries are known to be this user's own.

MLX looks for a compiled kernel's library when an array that needs it is first evaluated, somewhere inside a graph. Here
each kind of kernel is loaded before that, by a small example of its own, which `kernel_folder.load_kernel` guards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from akidb_mlx_plugin.runtime.kernel_folder import IS_GUARDED, load_kernel


def is_guarded() -> bool:
    """Return whether this thread's kernels have to be loaded before they are used."""
    return IS_GUARDED and mx.default_device() == mx.cpu


class Kernels:
    """Which kernels of one function may be used, by the kinds of arrays they are for.

    A kind is whatever makes MLX compile another kernel: the dtypes, and which axes can be walked as one.
    """

    def __init__(self) -> None:
        self._usable: dict[Hashable, bool] = {}

    def may_use(self, kind: Hashable, example: Callable[[], Any]) -> bool:
        """Return whether the compiled function may be used for arrays of a kind.

        Args:
            kind: of the arrays.
            example: applies the compiled function to small arrays of that kind.
        """
        usable = self._usable.get(kind)
        if usable is None:
            usable = self._usable[kind] = load_kernel(lambda: mx.eval(example()))
        return usable


_uncompiled = 0
_lock = threading.Lock()


@contextmanager
def without_kernels() -> Iterator[None]:
    """Have MLX compile nothing on a Linux CPU while a graph is described by code that is not this package's.

    MLX has one switch for the whole process: what other threads describe at the same time is not compiled either, and
    computes the same.
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
    """Return whether MLX compiles, which it cannot be asked: it runs a compiled function but once."""
    runs: list[None] = []

    def probe(x: mx.array) -> mx.array:
        runs.append(None)
        return x

    compiled = mx.compile(probe)
    for _ in range(2):
        compiled(mx.array(0.0))
    return len(runs) == 1
