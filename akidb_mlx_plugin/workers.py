"""Threads that own MLX: every computation of a model runs on one of them, whoever asked for it.

MLX's streams belong to threads, and a thread that used one must give it back before it ends, or the interpreter aborts
at exit. Callers therefore never touch MLX; they hand work to a pool and wait for a future.
"""

from __future__ import annotations

import atexit
import heapq
import itertools
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import mlx.core as mx

from akidb_mlx_plugin.blas import load_blas, set_blas_threads
from akidb_mlx_plugin.errors import ServiceUnavailableError
from akidb_mlx_plugin.forking import ForkGuard

_JOIN_SECONDS = 10.0


def core_count() -> int:
    """Return the number of processors this process may use.

    Those of its affinity, and no more than `OMP_NUM_THREADS`: by that Ray and other launchers of many processes on one
    machine tell each its share.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(cores, int(share)) if share.isdigit() and int(share) else cores


class WorkerPool:
    """A few threads with a stream each, and a queue in which short work goes first.

    Of the idle threads the first always takes the work: one call after another finds its weights in that core's cache.
    """

    def __init__(self, device: str, count: int) -> None:
        """Start the threads.

        Args:
            device: "cpu" or "gpu".
            count: how many; work of several of them runs side by side.
        Raises:
            ServiceUnavailableError: this process was forked from one that used MLX, and MLX would hang in it.
        """
        _mlx_use.enter()
        load_blas()
        self._device = mx.gpu if device == "gpu" else mx.cpu
        self._pid = os.getpid()
        self._queue: list[tuple[int, int, Callable[[], Any], Future[Any]]] = []
        self._ticket = itertools.count()
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

    def submit(self, work: Callable[[], Any], *, short: bool = True) -> Future[Any]:
        """Run a function on one of the threads.

        Args:
            work: it may use MLX, and must hand out no lazy array.
            short: goes ahead of all work that is not.
        Raises:
            ServiceUnavailableError: the pool is closed, or belongs to the parent of a fork.
        """
        if os.getpid() != self._pid:
            raise ServiceUnavailableError(
                "this model was loaded before the process forked, and its threads stayed in the parent; "
                "start processes by 'spawn', or load it only after the fork"
            )
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise ServiceUnavailableError("the model has been closed; load it again")
            self._unfinished += 1
            heapq.heappush(self._queue, (0 if short else 1, next(self._ticket), work, future))
            if self._idle:
                first = min(self._idle)
                self._idle.remove(first)
                self._wake[first].notify()
        return future

    def close(self) -> None:
        """Finish what was submitted, give the streams back and end the threads; safe to call twice."""
        # Looked at first: a lock that was held at a fork is never released in the child.
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for wake in self._wake:
                wake.notify()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN_SECONDS)

    def _work(self, index: int) -> None:
        stream = mx.new_stream(self._device)
        with mx.stream(stream):
            while self._run_next(index):
                pass
        mx.synchronize(stream)
        mx.clear_streams()

    def _run_next(self, index: int) -> bool:
        """Run one piece of work; return False when told to stop. Locals die with each piece, and so do its arrays."""
        with self._lock:
            while not self._queue:
                if self._closed:
                    return False
                self._idle.add(index)
                self._wake[index].wait()
                self._idle.discard(index)
            _, _, work, future = heapq.heappop(self._queue)
        answer: Callable[[], None] | None = None
        if future.set_running_or_notify_cancel():
            try:
                self._divide_cores()
                answer = partial(future.set_result, work())
            except BaseException as error:  # to whoever waits, whatever it is; the thread lives on
                answer = partial(future.set_exception, error)
        # Before the answer: who gets it may submit at once, and shall not share the cores with what is done.
        with self._lock:
            self._unfinished -= 1
        if answer:
            answer()
        return True

    def _divide_cores(self) -> None:
        """One piece of work alone gets every core for its matrix products; side by side they share them."""
        if self._device == mx.cpu:
            set_blas_threads(max(1, self._cores // min(self._unfinished, len(self._threads))))


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()
_mlx_use = ForkGuard()


@atexit.register
def _close_all() -> None:
    for pool in list(_pools):
        pool.close()
