"""MLX's default device, borrowed from the process only while operations are described.

Operations without a stream, such as `x + y`, go to the default device. Default streams belong to threads, but MLX has
one default device for the whole process (measured with 0.32.4). So a thread that computes elsewhere sets it only while
it describes operations, one thread at a time, and gives it back before it evaluates them, which takes nearly all of
the time: other MLX code in the process keeps its device.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

# Held while operations are described for another device than the process's default.
_lock = threading.Lock()


@dataclass
class _Loan:
    """What a thread does with the default device.

    Attributes:
        device: what it computes on; None outside of `borrowed`.
        before: what to give back; None while nothing is borrowed.
    """

    device: mx.DeviceType | None = None
    before: mx.Device | None = None


class _Loans(threading.local):
    def __init__(self) -> None:
        self.own = _Loan()


_loans = _Loans()


def computes_on_cpu() -> bool:
    """Return whether operations that this thread describes now go to a CPU."""
    device = _loans.own.device
    return bool((mx.default_device() if device is None else device) == mx.cpu)


@contextmanager
def borrowed(device: mx.DeviceType) -> Iterator[None]:
    """Describe operations for a device, and evaluate them within `evaluate` or `given_back`; must not be nested."""
    loan = _loans.own
    loan.device = device
    _take(loan)
    try:
        yield
    finally:
        _give_back(loan)
        loan.device = None


@contextmanager
def given_back() -> Iterator[None]:
    """Give the default device back for a while: to evaluate, or to wait for another thread."""
    loan = _loans.own
    if loan.before is None:
        yield
        return
    _give_back(loan)
    try:
        yield
    finally:
        _take(loan)


def evaluate(*values: Any) -> None:
    """Evaluate arrays, or trees of them, like `mx.eval`."""
    with given_back():
        mx.eval(*values)


def start_evaluating(*values: Any) -> None:
    """Start to evaluate arrays, like `mx.async_eval`."""
    with given_back():
        mx.async_eval(*values)  # type: ignore[no-untyped-call]


def _take(loan: _Loan) -> None:
    assert loan.device is not None, "only a thread that computes borrows"
    _lock.acquire()
    before = mx.default_device()
    if before == loan.device and not mx.is_available(mx.gpu):
        # There is nothing else to share, and threads need not wait for each other.
        _lock.release()
        return
    loan.before = before
    if before != loan.device:
        mx.set_default_device(loan.device)


def _give_back(loan: _Loan) -> None:
    before, loan.before = loan.before, None
    if before is None:
        return
    # Another device set in the meantime was intended.
    if before != loan.device and mx.default_device() == loan.device:
        mx.set_default_device(before)
    _lock.release()
