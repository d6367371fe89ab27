"""Threads that own MLX: every computation of a model runs on one of them.

MLX's streams belong to threads, and a thread that used one must release it before it ends, or the interpreter aborts
at exit. Callers therefore never touch MLX; they submit work to a pool and wait for a future.
"""

from __future__ import annotations

import atexit
import heapq
import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx

from akidb_mlx_plugin.errors import ServiceUnavailableError
from akidb_mlx_plugin.runtime.blas import check_product, load_blas, set_blas_threads
from akidb_mlx_plugin.runtime.cores import core_count
from akidb_mlx_plugin.runtime.default_device import borrowed
from akidb_mlx_plugin.runtime.fork import FORK_BARRIER, ForkGuard

_JOIN_SECONDS = 10.0
# Freed buffers that MLX keeps for the next batch on a GPU; without a limit every new shape would add more, for good.
_GPU_POOL_BYTES = 1 << 30


@dataclass(frozen=True)
class _Piece:
    """A piece of work waiting for a thread.

    Attributes:
        work: the function to run.
        collect: turns its result into what the caller gets; None to return it unchanged.
        future: where the caller waits.
        small: whether its matrix products are too small for several threads.
    """

    work: Callable[[], Any]
    collect: Callable[[Any], Any] | None
    future: Future[Any]
    small: bool


class WorkerPool:
    """A few threads with a stream each, and a queue that puts short work first.

    The first idle thread always takes the work, so that successive calls find the weights in one core's cache.
    """

    def __init__(self, device: str, count: int, *, ahead: int = 0) -> None:
        """Start the threads.

        Args:
            device: "cpu" or "gpu".
            count: number of threads.
            ahead: how many more pieces a thread begins before it collects the first one, so that a GPU does not idle
                while the next graph is built.
        Raises:
            ServiceUnavailableError: this process was forked from one that used MLX, and MLX would hang here.
        """
        _mlx_use.enter()
        load_blas()
        self._device = mx.gpu if device == "gpu" else mx.cpu
        if device == "gpu":
            _bound_gpu_pool()
        self._ahead = ahead
        self._pid = os.getpid()
        self._queue: list[tuple[int, int, _Piece]] = []
        self._sequence = itertools.count()
        self._closed = False
        self._lock = threading.Lock()
        self._unfinished = 0
        self._cores = core_count()
        self._idle: set[int] = set()
        self._wake = [threading.Condition(self._lock) for _ in range(max(count, 1))]
        self._threads = [
            threading.Thread(target=self._work, args=(i,), name=f"akidb-mlx-{i}", daemon=True)
            for i in range(len(self._wake))
        ]
        for thread in self._threads:
            thread.start()
        _pools.add(self)

    @property
    def size(self) -> int:
        """Number of threads."""
        return len(self._threads)

    def submit(
        self,
        work: Callable[[], Any],
        *,
        collect: Callable[[Any], Any] | None = None,
        short: bool = True,
        small: bool = False,
    ) -> Future[Any]:
        """Run a function on one of the threads.

        Args:
            work: may use MLX, and evaluates by `default_device.evaluate`; must not return a lazy array except to
                `collect`, which must not describe operations.
            collect: called on the same thread to evaluate what `work` returned; its result is the future's.
            short: whether it goes ahead of all work that is not short.
            small: whether its matrix products are too small for several threads, which spin while they wait for each
                other, and for a busy core take many times as long.
        Raises:
            ServiceUnavailableError: the pool is closed, or belongs to the parent of a fork.
        """
        if os.getpid() != self._pid:
            raise ServiceUnavailableError(
                "this model was loaded before the process was forked, and its threads stayed in the parent; "
                "start processes with 'spawn', or load it only after the fork"
            )
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise ServiceUnavailableError("the model has been closed; load it again")
            self._unfinished += 1
            heapq.heappush(self._queue, (0 if short else 1, next(self._sequence), _Piece(work, collect, future, small)))
            if self._idle:
                first = min(self._idle)
                self._idle.remove(first)
                self._wake[first].notify()
        return future

    def close(self) -> None:
        """Finish pending work, release the streams and stop the threads; returns once they have ended.

        Safe to call twice, and from several threads: a process must not exit while a thread still releases its stream.
        """
        # Checked first: a lock held at a fork is never released in the child.
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closed = True
            for wake in self._wake:
                wake.notify()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_SECONDS)

    def _work(self, index: int) -> None:
        stream = _open_stream(self._device)
        begun: deque[tuple[_Piece, Any]] = deque()
        try:
            # Of this thread alone, unlike the default device, which `mx.stream` would set too.
            mx.set_default_stream(stream)
            if self._device == mx.cpu:
                FORK_BARRIER.enter()
                try:
                    with borrowed(self._device):
                        check_product()
                finally:
                    FORK_BARRIER.leave()
            while self._run_next(index, begun):
                pass
        finally:
            mx.synchronize(stream)
            mx.clear_streams()
            if self._device == mx.cpu and _make_lasting_stream is not None:
                _idle_streams.append(stream)

    def _run_next(self, index: int, begun: deque[tuple[_Piece, Any]]) -> bool:
        """Begin a piece of work or collect the oldest begun one; return False once the pool is closed and done.

        A call handles one piece, so that no local variable keeps its arrays alive afterwards.
        """
        piece = self._pop(index, wait=not begun) if len(begun) <= self._ahead else None
        if piece is not None:
            self._begin(piece, begun)
        elif begun:
            piece, value = begun.popleft()
            assert piece.collect is not None, "what needs no collecting is resolved at once"
            self._resolve(piece, partial(piece.collect, value))
        else:
            return False
        return True

    def _pop(self, index: int, *, wait: bool) -> _Piece | None:
        """Return the next piece; None if there is none (with `wait`: once the pool is closed)."""
        with self._lock:
            while not self._queue:
                if self._closed or not wait:
                    return None
                self._idle.add(index)
                self._wake[index].wait()
                self._idle.discard(index)
            return heapq.heappop(self._queue)[-1]

    def _begin(self, piece: _Piece, begun: deque[tuple[_Piece, Any]]) -> None:
        if not piece.future.set_running_or_notify_cancel():
            self._count_finished()
            return
        self._divide_cores(piece)
        # Until its result is there: MLX computes on a thread of its own meanwhile.
        FORK_BARRIER.enter()
        if piece.collect is None:
            self._resolve(piece, partial(self._describe, piece))
            return
        try:
            begun.append((piece, self._describe(piece)))
        except BaseException as error:
            FORK_BARRIER.leave()
            self._count_finished()
            piece.future.set_exception(error)

    def _describe(self, piece: _Piece) -> Any:
        with borrowed(self._device):
            return piece.work()

    def _resolve(self, piece: _Piece, finish: Callable[[], Any]) -> None:
        """Give the caller what `finish` returns or raises; the thread survives any exception."""
        try:
            resolve = partial(piece.future.set_result, finish())
        except BaseException as error:
            resolve = partial(piece.future.set_exception, error)
        FORK_BARRIER.leave()
        # First, because a callback may submit more work at once, which must not share the cores with finished work.
        self._count_finished()
        resolve()

    def _count_finished(self) -> None:
        with self._lock:
            self._unfinished -= 1

    def _divide_cores(self, piece: _Piece) -> None:
        """Split the cores among the running pieces for their matrix products; one alone gets all it can use."""
        if self._device == mx.cpu:
            pieces = min(self._unfinished, len(self._threads))
            set_blas_threads(1 if piece.small and pieces == 1 else max(1, self._cores // pieces))


# Streams of finished threads, for reuse. MLX runs a thread for each CPU stream until the process ends: with new streams
# for every loaded model, threads would pile up.
_idle_streams: list[mx.Stream] = []
# Makes a stream that another thread may use later; since MLX 0.32.
_make_lasting_stream: Callable[[mx.DeviceType], mx.Stream] | None = getattr(mx, "new_thread_unsafe_stream", None)


def _open_stream(device: mx.DeviceType) -> mx.Stream:
    """Return a stream that no other thread uses, reusing one if possible."""
    if device != mx.cpu or _make_lasting_stream is None:
        return mx.new_stream(device)
    try:
        return _idle_streams.pop()
    except IndexError:
        return _make_lasting_stream(device)


def _bound_gpu_pool() -> None:
    """Limit MLX's pool of freed buffers, unless the process has set a lower limit already."""
    before = mx.set_cache_limit(_GPU_POOL_BYTES)
    if before < _GPU_POOL_BYTES:
        mx.set_cache_limit(before)


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()
_mlx_use = ForkGuard()


@atexit.register
def _close_all() -> None:
    for pool in list(_pools):
        pool.close()
