"""Try again what may pass by itself, and do not wait for ever."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, TypeVar

from akidb_mlx_plugin.errors import DownloadError

if TYPE_CHECKING:
    import tenacity

ATTEMPTS = 3
# The first wait before a new attempt; it doubles.
BACKOFF_S = 1.0
# A server that asks for more patience than this is reported instead of waited for.
LONGEST_WAIT_S = 60.0

T = TypeVar("T")
logger = logging.getLogger(__name__)


class TransientError(DownloadError):
    """A download failed for a reason that may pass by itself.

    Attributes:
        wait_s: how long the server asks to wait; None: it does not say.
        unreachable: no answer came at all.
    """

    def __init__(self, message: str, *, wait_s: float | None = None, unreachable: bool = False) -> None:
        super().__init__(message)
        self.wait_s = wait_s
        self.unreachable = unreachable


def with_retries(action: Callable[[], T], *, retry_unreachable: bool = True) -> T:
    """Run an action until it no longer raises TransientError, `ATTEMPTS` times at most, with growing waits between.

    Args:
        action: called without arguments.
        retry_unreachable: whether a server that gives no answer is asked again.
    Raises:
        TransientError: the last one, with the number of attempts.
    """
    import tenacity

    def may_pass(error: BaseException) -> bool:
        if not isinstance(error, TransientError) or (error.unreachable and not retry_unreachable):
            return False
        return (error.wait_s or 0) <= LONGEST_WAIT_S

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS),
        wait=_wait_s,
        retry=tenacity.retry_if_exception(may_pass),
        before_sleep=lambda state: logger.warning("%s; trying again", _failure(state)),
        reraise=True,
    )
    try:
        return retrying(action)
    except TransientError as error:
        tried = retrying.statistics.get("attempt_number", 1)
        if tried == 1:
            raise
        message = f"{error} (tried {tried} times)"
        raise TransientError(message, wait_s=error.wait_s, unreachable=error.unreachable) from error


def within_deadline(seconds: float, action: Callable[[], T], message: str) -> T:
    """Run an action, but wait no longer than this for it.

    A connect timeout holds for each of a host's addresses in turn, and a name lookup has none at all; only
    a thread that is left behind bounds both.

    Raises:
        TransientError: the time is up; it says `message`.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="akidb-hub-probe", daemon=True).start()
    try:
        return future.result(timeout=seconds)
    except FutureTimeoutError as error:
        if future.done():
            raise
        raise TransientError(message, unreachable=True) from error


def _failure(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _wait_s(state: tenacity.RetryCallState) -> float:
    asked = getattr(_failure(state), "wait_s", None)
    return float(asked) if asked is not None else BACKOFF_S * 2.0 ** (state.attempt_number - 1)
