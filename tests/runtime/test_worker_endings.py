"""How pools of threads end."""

from __future__ import annotations

import threading

from queue_fakes import PATIENCE_S

from akidb_mlx_plugin.runtime.workers import WorkerPool


def test_a_second_close_waits_for_the_first() -> None:
    """Or a process could exit while a thread still releases its stream, and abort."""
    pool = WorkerPool("cpu", 1)
    busy = threading.Event()
    working = pool.submit(lambda: busy.wait(PATIENCE_S))
    first = threading.Thread(target=pool.close)
    first.start()
    threading.Timer(0.2, busy.set).start()
    while not pool._closed:
        pass
    pool.close()
    assert working.done()
    assert not any(thread.is_alive() for thread in pool._threads)
    first.join()
