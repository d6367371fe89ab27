"""Signals that are held back while processes are started and stopped."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref

import pytest

from akidb_mlx_plugin.cli.bulk_signals import StopSignals

BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", BOTH)
def test_interrupts_once_while_released_and_leaves_the_handlers_as_they_were(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in BOTH]
    with StopSignals() as signals:
        signals.release()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.number == number
    assert [signal.getsignal(each) for each in BOTH] == before


@pytest.mark.parametrize("number", BOTH)
def test_waits_for_a_call_that_installs_handlers_of_its_own(number: signal.Signals) -> None:
    started, go_on = threading.Event(), threading.Event()

    def call() -> str:
        started.set()
        assert go_on.wait(30)
        return "done"

    def interrupt() -> None:
        assert started.wait(30)
        os.kill(os.getpid(), number)
        go_on.set()

    sender = threading.Thread(target=interrupt)
    with StopSignals() as signals:
        sender.start()
        assert signals.finish(call) == "done"
        sender.join()
        assert signals.number == number
        with pytest.raises(KeyboardInterrupt):
            signals.release()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["finalizer", "weak reference"])
def test_is_not_lost_in_a_finalizer(way: str, recwarn: pytest.WarningsRecorder) -> None:
    """Python ignores what is raised there."""

    class Thing:
        def __del__(self) -> None:
            if way == "finalizer":
                os.kill(os.getpid(), signal.SIGTERM)

    def forget() -> None:
        things.clear()
        time.sleep(30)

    things = [Thing()]
    weakref.finalize(things[0], lambda: way == "weak reference" and os.kill(os.getpid(), signal.SIGTERM))
    with StopSignals() as signals:
        signals.release()
        with pytest.raises(KeyboardInterrupt):
            forget()
        assert signals.number == signal.SIGTERM
    assert not recwarn.list


def test_what_a_call_raises_is_raised() -> None:
    with StopSignals() as signals, pytest.raises(ConnectionError, match="nobody there"):
        signals.finish(lambda: (_ for _ in ()).throw(ConnectionError("nobody there")))


def test_the_thread_of_a_call_lives_as_long_as_what_it_started_may() -> None:
    with StopSignals() as signals:
        thread = signals.finish(threading.current_thread)
        assert thread is not threading.main_thread()
        assert thread.is_alive()
    assert not thread.is_alive()
