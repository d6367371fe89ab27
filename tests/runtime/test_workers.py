"""The threads that own MLX."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from processes import run_python
from queue_fakes import PATIENCE_S

from akidb_mlx_plugin import ServiceUnavailableError
from akidb_mlx_plugin.runtime import workers
from akidb_mlx_plugin.runtime.cores import core_count
from akidb_mlx_plugin.runtime.workers import WorkerPool


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    """Two threads on the CPU."""
    pool = WorkerPool("cpu", 2)
    yield pool
    pool.close()


@pytest.fixture
def single() -> Iterator[WorkerPool]:
    """One thread on the CPU."""
    pool = WorkerPool("cpu", 1)
    yield pool
    pool.close()


class Gate:
    """Work that reports when it begins, and waits until it may end."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.open.wait(PATIENCE_S)
        return "done"


def hold(pool: WorkerPool) -> tuple[Gate, Future[Any]]:
    """Keep a thread of the pool busy."""
    gate = Gate()
    future = pool.submit(gate)
    assert gate.begun.wait(PATIENCE_S)
    return gate, future


@pytest.mark.parametrize(("before", "after"), [(1 << 40, 1 << 30), (1 << 20, 1 << 20)])
def test_a_gpus_pool_of_freed_buffers_is_bounded(before: int, after: int) -> None:
    unchanged = mx.set_cache_limit(before)
    workers._bound_gpu_pool()
    assert mx.set_cache_limit(unchanged) == after


class TestWork:
    def test_runs_on_the_pools_own_threads(self, pool: WorkerPool) -> None:
        names = {pool.submit(lambda: threading.current_thread().name).result(PATIENCE_S) for _ in range(20)}
        assert names <= {"akidb-mlx-0", "akidb-mlx-1"}

    def test_side_by_side(self, pool: WorkerPool) -> None:
        together = threading.Barrier(2)
        futures = [pool.submit(lambda: together.wait(PATIENCE_S)) for _ in range(2)]
        assert sorted(future.result(PATIENCE_S) for future in futures) == [0, 1]

    @pytest.mark.parametrize("error", [ValueError("bad"), MemoryError("full"), SystemExit(3), KeyboardInterrupt()])
    def test_an_exception_reaches_the_caller_and_the_thread_survives(
        self, single: WorkerPool, error: BaseException
    ) -> None:
        def fail() -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            single.submit(fail).result(PATIENCE_S)
        assert caught.value is error
        assert single.submit(lambda: 5).result(PATIENCE_S) == 5

    def test_short_work_goes_first_and_the_rest_in_order(self, single: WorkerPool) -> None:
        gate, _ = hold(single)
        done: list[str] = []
        long = [single.submit(lambda i=i: done.append(f"long {i}"), short=False) for i in range(3)]  # type: ignore[misc]
        short = [single.submit(lambda i=i: done.append(f"short {i}")) for i in range(3)]  # type: ignore[misc]
        gate.open.set()
        for future in long + short:
            future.result(PATIENCE_S)
        assert done == ["short 0", "short 1", "short 2", "long 0", "long 1", "long 2"]

    def test_cancelled_work_is_not_run(self, single: WorkerPool) -> None:
        gate, _ = hold(single)
        done: list[int] = []
        futures = [single.submit(lambda i=i: done.append(i)) for i in range(3)]  # type: ignore[misc]
        assert futures[1].cancel()
        gate.open.set()
        futures[2].result(PATIENCE_S)
        assert done == [0, 2]

    @pytest.mark.parametrize(
        ("ahead", "order"),
        [
            (0, ["begin 0", "collect 0", "begin 1", "collect 1", "begin 2", "collect 2"]),
            (1, ["begin 0", "begin 1", "collect 0", "begin 2", "collect 1", "collect 2"]),
        ],
    )
    def test_how_many_begin_before_one_is_collected(self, ahead: int, order: list[str]) -> None:
        pool = WorkerPool("cpu", 1, ahead=ahead)
        gate, _ = hold(pool)
        done: list[str] = []

        def begin(i: int) -> mx.array:
            done.append(f"begin {i}")
            value = mx.full((4,), i) + 1
            mx.async_eval(value)
            return value

        def collect(value: mx.array) -> float:
            result = float(np.array(value).sum())
            done.append(f"collect {int(result / 4) - 1}")
            return result

        futures = [pool.submit(lambda i=i: begin(i), collect=collect) for i in range(3)]  # type: ignore[misc]
        gate.open.set()
        assert [future.result(PATIENCE_S) for future in futures] == [4.0, 8.0, 12.0]
        assert done == order
        pool.close()

    @pytest.mark.parametrize("where", ["begin", "collect"])
    def test_an_error_in_either_step_reaches_its_caller_alone(self, where: str) -> None:
        pool = WorkerPool("cpu", 1, ahead=1)
        gate, _ = hold(pool)

        def fail(*_: object) -> None:
            raise ValueError(where)

        good = [pool.submit(lambda: 1, collect=lambda value: value + 1)]
        bad = pool.submit(fail if where == "begin" else lambda: 1, collect=fail)
        good.append(pool.submit(lambda: 2, collect=lambda value: value + 1))
        gate.open.set()
        with pytest.raises(ValueError, match=where):
            bad.result(PATIENCE_S)
        assert [future.result(PATIENCE_S) for future in good] == [2, 3]
        pool.close()

    def test_closing_collects_what_has_begun(self) -> None:
        pool = WorkerPool("cpu", 1, ahead=1)
        gate, _ = hold(pool)
        futures = [pool.submit(lambda i=i: i, collect=lambda value: value) for i in range(4)]  # type: ignore[misc]
        gate.open.set()
        pool.close()
        assert [future.result(0) for future in futures] == [0, 1, 2, 3]

    def test_no_reference_is_kept(self, single: WorkerPool) -> None:
        class Big:
            pass

        big = Big()
        gone = weakref.ref(big)
        single.submit(lambda big=big: None).result(PATIENCE_S)  # type: ignore[misc]
        del big
        # A thread drops its references to a piece of work before it takes the next.
        single.submit(lambda: None).result(PATIENCE_S)
        assert gone() is None

    def test_cores_are_shared_by_running_work(self, pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
        given: list[int] = []
        monkeypatch.setattr(workers, "set_blas_threads", given.append)
        monkeypatch.setattr(pool, "_cores", 8)
        pool.submit(lambda: None).result(PATIENCE_S)
        pool.submit(lambda: None).result(PATIENCE_S)
        gate, held = hold(pool)
        pool.submit(lambda: None).result(PATIENCE_S)
        # Small work alone has one, and beside other work its share.
        pool.submit(lambda: None, small=True).result(PATIENCE_S)
        gate.open.set()
        held.result(PATIENCE_S)
        pool.submit(lambda: None).result(PATIENCE_S)
        pool.submit(lambda: None, small=True).result(PATIENCE_S)
        assert given[:5] == [8, 8, 8, 4, 4]
        assert given[-1] == 1

    def test_finished_work_has_no_share_of_the_cores(self, pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
        given: list[int] = []
        monkeypatch.setattr(workers, "set_blas_threads", given.append)
        monkeypatch.setattr(pool, "_cores", 8)
        gate, future = hold(pool)
        followed = threading.Event()

        def follow(_: Future[Any]) -> None:
            """Run on the thread that resolves the future; the other one takes what is submitted here."""
            pool.submit(lambda: None).result(PATIENCE_S)
            followed.set()

        future.add_done_callback(follow)
        gate.open.set()
        assert followed.wait(PATIENCE_S)
        assert given == [8, 8]

    def test_there_is_at_least_one_thread(self) -> None:
        assert core_count() >= 1
        assert WorkerPool("cpu", 0).size == 1

    @pytest.mark.parametrize(("share", "cores"), [("1", 1), ("1,4", 1), ("999", None), ("", None), ("all", None)])
    def test_a_launchers_share_of_the_cores_is_respected(
        self, share: str, cores: int | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        own = core_count()
        monkeypatch.setenv("OMP_NUM_THREADS", share)
        assert core_count() == (cores or own)


class TestClosing:
    def test_pending_work_is_finished(self) -> None:
        pool = WorkerPool("cpu", 1)
        gate, first = hold(pool)
        later = [pool.submit(lambda i=i: i, short=i % 2 == 0) for i in range(6)]  # type: ignore[misc]
        closing = threading.Thread(target=pool.close)
        closing.start()
        gate.open.set()
        closing.join(PATIENCE_S)
        assert not closing.is_alive()
        assert [first.result(0), *(future.result(0) for future in later)] == ["done", *range(6)]

    def test_the_threads_end(self) -> None:
        pool = WorkerPool("cpu", 3)
        threads = pool._threads
        pool.submit(lambda: np.array(mx.ones(5) + 1)).result(PATIENCE_S)
        pool.close()
        pool.close()
        assert not [thread for thread in threads if thread.is_alive()]
        with pytest.raises(ServiceUnavailableError, match="closed"):
            pool.submit(lambda: None)

    @pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="not Linux")
    @pytest.mark.skipif(workers._make_lasting_stream is None, reason="MLX before 0.32")
    def test_pools_that_come_and_go_leave_no_threads_of_mlx(self) -> None:
        def use() -> None:
            pool = WorkerPool("cpu", 2)
            futures = [pool.submit(lambda: np.array(mx.ones(5) + 1).sum()) for _ in range(4)]
            assert [future.result(PATIENCE_S) for future in futures] == [10.0] * 4
            pool.close()

        use()
        before = len(os.listdir("/proc/self/task"))
        for _ in range(10):
            use()
        # MLX's own thread pool may start meanwhile; a thread for each stream would be twenty more.
        assert len(os.listdir("/proc/self/task")) < before + 10

    def test_work_may_close_its_own_pool(self) -> None:
        pool = WorkerPool("cpu", 1)
        pool.submit(pool.close).result(PATIENCE_S)
        pool._threads[0].join(PATIENCE_S)
        assert not pool._threads[0].is_alive()

    @pytest.mark.slow
    def test_an_exiting_interpreter_waits_for_running_work(self) -> None:
        printed = run_python(
            """
            import threading, time
            from akidb_mlx_plugin.runtime.workers import WorkerPool
            import mlx.core as mx
            begun = threading.Event()
            def work():
                begun.set()
                time.sleep(0.2)
                mx.eval(mx.ones((200, 200)) @ mx.ones((200, 200)))
                print("done", flush=True)
            pools = [WorkerPool("cpu", 2) for _ in range(2)]
            pools[0].submit(work)
            begun.wait()
            """
        )
        assert printed == "done\n"

    @pytest.mark.slow
    def test_forks_amid_products_do_not_hang(self) -> None:
        """OpenBLAS ends its threads at a fork, and a product that waits for them would wait for ever."""
        printed = run_python(
            """
            import os, signal, threading
            import mlx.core as mx
            from akidb_mlx_plugin.runtime.workers import WorkerPool
            signal.alarm(60)
            pool = WorkerPool("cpu", 2)
            done = threading.Event()
            def multiply():
                x = mx.ones((300, 300))
                for _ in range(20):
                    x = x @ x / 300
                return x
            def load():
                while not done.is_set():
                    pool.submit(multiply, collect=mx.eval).result()
            callers = [threading.Thread(target=load) for _ in range(3)]
            for caller in callers:
                caller.start()
            for _ in range(40):
                child = os.fork()
                if child == 0:
                    os._exit(0)
                os.waitpid(child, 0)
            done.set()
            for caller in callers:
                caller.join()
            print(pool.submit(lambda: "alive").result())
            """
        )
        assert printed == "alive\n"

    @pytest.mark.slow
    def test_a_forked_child_is_refused_and_exits(self) -> None:
        printed = run_python(
            """
            import os, signal
            from akidb_mlx_plugin import ServiceUnavailableError
            from akidb_mlx_plugin.runtime.workers import WorkerPool
            signal.alarm(60)
            pool = WorkerPool("cpu", 2)
            with pool._lock:
                child = os.fork()
            if child == 0:
                for use in (lambda: pool.submit(print), lambda: WorkerPool("cpu", 1)):
                    try:
                        use()
                    except ServiceUnavailableError:
                        print("refused", flush=True)
                pool.close()
                raise SystemExit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), pool.submit(lambda: "alive").result())
            """
        )
        assert printed == "refused\nrefused\n7 alive\n"
