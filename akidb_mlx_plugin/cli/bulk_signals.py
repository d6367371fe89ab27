"""SIGINT and SIGTERM while Ray works: one clean end, with none of its processes left behind."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from types import FrameType, TracebackType
from typing import Any, TypeVar

Result = TypeVar("Result")
_LOOK_S = 0.05
_WEAK_REFERENCES = ("_weakrefset.py", "weakref.py")


class StopSignals:
    """Turns either signal into one KeyboardInterrupt, held back while it would leave processes behind.

    Attributes:
        number: of the first signal received; None if there was none.
    """

    def __init__(self) -> None:
        """Start without a signal."""
        self.number: int | None = None
        self._held = True
        self._before: dict[signal.Signals, Any] = {}
        # Its thread must outlive what it starts: Linux ends Ray's processes with their parent thread.
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._pool.shutdown()

    def finish(self, call: Callable[[], Result]) -> Result:
        """Return what a call returns, or raise what it raises, deferring signals meanwhile.

        Ray installs its own handlers when it starts, one of which prints a stack trace. In another thread it can
        install the fewest, and ours are put back here for as long as it takes.
        """
        self.hold()
        pending = self._pool.submit(call)
        while not pending.done():
            self._install()
            wait([pending], _LOOK_S)
        self._install()
        return pending.result()

    def release(self) -> None:
        """Let signals interrupt from now on.

        Raises:
            KeyboardInterrupt: one was received already.
        """
        self._held = False
        if self.number is not None:
            raise KeyboardInterrupt

    def hold(self) -> None:
        """Hold signals back from now on."""
        self._held = True

    def _install(self) -> None:
        for number in self._before:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            return
        if not self._held and _is_in_finalizer(frame):
            again = threading.Timer(_LOOK_S, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        self.number = number
        if not self._held:
            raise KeyboardInterrupt


def _is_in_finalizer(frame: FrameType | None) -> bool:
    """Return whether a frame belongs to a finalizer, in which Python reports an exception and goes on."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or code.co_filename.endswith(_WEAK_REFERENCES):
            return True
        frame = frame.f_back
    return False
